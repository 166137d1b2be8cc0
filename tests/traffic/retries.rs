//! A service one of whose endpoints is dead: nobody notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit::lab::{Action, Behaviour, Match, Side, Text};

use super::evidence::{Before, Exchange, First, Refused, exchange, refused};
use super::stage::{Part, Stage, policy, service};

const RESPOND: u16 = 8080;
const CLIENT: &str = "shop/client";
const ALIVE: &str = "shop/alive";
const PLAIN_ALIVE: &str = "legacy/alive";
/// Connections per service: that chance never picks the dead endpoint first happens once in a million runs.
const CONNECTIONS: usize = 20;

/// What the kernel makes of the two ways to say that an address leads nowhere.
const NO_WAY: &[&str] = &["No route to host", "Network is unreachable"];

/// What is wrong with each dead endpoint, the service it shares with a living one, and the words of its failure.
const DEAD: [(&str, u8, &str, &[&str]); 5] = [
    // In the mesh and served, with no application on the port.
    ("shop/silent", 1, ALIVE, &["http status: 503"]),
    // In the mesh, and nobody serves it any more: its tunnel port refuses.
    ("shop/unserved", 2, ALIVE, &["Connection refused"]),
    // In the mesh, and its address leads nowhere.
    ("shop/lost", 3, ALIVE, NO_WAY),
    // Outside the mesh, and its port refuses.
    ("legacy/closed", 4, PLAIN_ALIVE, &["Connection refused"]),
    // Outside the mesh, and its address leads nowhere.
    ("legacy/lost", 5, PLAIN_ALIVE, NO_WAY),
];

fn stage() -> Stage {
    let cast = [
        (Side::One, CLIENT, Part::Mesh),
        (Side::Two, ALIVE, Part::Mesh),
        (Side::Two, PLAIN_ALIVE, Part::Outside),
        (Side::Two, "shop/silent", Part::Mesh),
        (Side::Two, "shop/unserved", Part::Dead),
        (Side::Two, "shop/lost", Part::Dead),
        (Side::Two, "legacy/closed", Part::Outside),
        (Side::Two, "legacy/lost", Part::Outside),
    ];
    let with_services = |mesh| {
        DEAD.iter().fold(mesh, |mesh: adit::lab::MeshFile, (dead, last, alive, _)| {
            mesh.service(service(&format!("{dead}-service"), *last, (80, RESPOND), &[dead, alive]))
        })
    };
    let mut stage =
        Stage::tuned(&cast, with_services, |launch| launch.env("RUST_LOG", "info,adit::outbound=debug"));
    for pod in [ALIVE, PLAIN_ALIVE] {
        stage.serve(pod, RESPOND, Behaviour::Respond);
    }
    for pod in ["shop/lost", "legacy/lost"] {
        stage.cut_off(pod);
    }
    stage
}

/// [`CONNECTIONS`] exchanges of the client with whoever answers at `to`.
fn all_at_once(stage: &Stage, to: SocketAddr) -> Vec<std::io::Result<Exchange>> {
    let client = stage.pod(CLIENT);
    std::thread::scope(|scope| {
        let dial = || exchange(&client, to, First::Client, "any of you");
        let all: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(dial)).collect();
        all.into_iter().map(|it| it.join().expect("an exchange fails by its result")).collect()
    })
}

#[test]
fn of_a_service_with_a_dead_endpoint_every_connection_succeeds() {
    let stage = stage();
    for (dead, last, alive, words) in DEAD {
        for vip in service("any/any", last, (80, RESPOND), &[]).addresses {
            let to = SocketAddr::new(vip, 80);
            let from = stage.proxy(Side::One).log().position();
            let before = Before::now(&stage);
            // All at once: the kernel may take a second to tell a proxy that an address leads nowhere.
            for done in all_at_once(&stage, to) {
                let done =
                    done.unwrap_or_else(|cause| panic!("{dead}, {to}: {cause}\n{}", stage.last_words()));
                assert_eq!(done.seen.ip(), done.local.ip(), "{dead}, {to}");
                let line = before.line(&stage, Side::One, "outbound", done.local);
                assert_eq!(line.error, None, "{dead}, {to}: {line:#?}");
                let alive = stage.pod(alive);
                assert_eq!(line.dst_workload.as_deref(), Some(alive.name()), "{dead}, {to}: {line:#?}");
                assert_eq!((line.bytes_sent, line.bytes_recv), (Some(done.sent), Some(done.received)));
            }
            let told = before.lines(&stage, Side::One);
            assert_eq!(
                told.len(),
                CONNECTIONS,
                "a connection has one line, however often it was tried: {told:#?}"
            );
            // The control: the dead one was among those that were tried.
            let tried = stage.proxy(Side::One).log().since(from);
            let tried: Vec<_> =
                tried.iter().filter(|line| line.contains("trying another endpoint")).collect();
            assert!(!tried.is_empty(), "{dead}, {to}: the dead endpoint was never tried");
            let as_expected = |line: &&String| words.iter().any(|words| line.contains(words));
            assert!(tried.iter().all(as_expected), "{dead}, {to}: wanted {words:?}: {tried:#?}");
        }
    }
}

#[test]
fn a_dead_pod_that_was_dialled_by_its_own_address_is_told_as_dead() {
    let stage = stage();
    for (dead, _, _, words) in DEAD {
        let pod = stage.pod(dead);
        for to in [pod.at(RESPOND), pod.at_v6(RESPOND)] {
            let before = Before::now(&stage);
            let (end, local) = refused(&stage.pod(CLIENT), to, "are you there");
            assert_eq!(end, Refused::Reset, "{dead} at {to}\n{}", stage.last_words());
            let line = before.line(&stage, Side::One, "outbound", local);
            let error = line.error.clone().unwrap_or_default();
            assert!(words.iter().any(|words| error.contains(words)), "{dead} at {to}: {line:#?}");
            assert_eq!(line.dst_workload.as_deref(), Some(pod.name()), "{line:#?}");
            assert_eq!((line.bytes_sent, line.bytes_recv), (Some(0), Some(0)), "{line:#?}");
        }
    }
}

#[test]
fn a_verdict_of_one_endpoint_is_not_appealed_at_another() {
    let cast = [
        (Side::One, CLIENT, Part::Mesh),
        (Side::Two, ALIVE, Part::Mesh),
        (Side::Two, "shop/closed", Part::Mesh),
    ];
    let nobody = Match { principals: vec![Text::Presence], ..Match::default() };
    let mut stage = Stage::of(&cast, |mesh| {
        mesh.service(service("shop/both", 1, (80, RESPOND), &[ALIVE, "shop/closed"])).policy(policy(
            "nobody",
            Action::Deny,
            &["shop/closed"],
            nobody,
        ))
    });
    stage.serve(ALIVE, RESPOND, Behaviour::Respond);
    stage.serve("shop/closed", RESPOND, Behaviour::Respond);
    let to = SocketAddr::new(service("any/any", 1, (80, RESPOND), &[]).addresses[0], 80);
    let before = Before::now(&stage);
    let answered = all_at_once(&stage, to).iter().filter(|it| it.is_ok()).count();
    // Only then can no judgement follow.
    Before::when_idle(&stage);
    let told = before.lines(&stage, Side::Two);
    let denied = told.iter().filter(|line| line.policy.as_deref() == Some("shop/nobody")).count();
    assert_eq!((answered + denied, told.len()), (CONNECTIONS, CONNECTIONS), "one judgement each: {told:#?}");
    assert!(answered > 0 && denied > 0, "chance picks both: {answered} answered, {denied} denied");
    assert_eq!(stage.seen(ALIVE, RESPOND).len(), answered, "whom one refused the other did not serve");
    assert_eq!(stage.seen("shop/closed", RESPOND).len(), 0, "the refusing application was visited");
}

#[test]
fn an_endpoint_that_never_answers_costs_a_connection_time_and_not_its_life() {
    let cast = [
        (Side::One, CLIENT, Part::Mesh),
        (Side::Two, ALIVE, Part::Mesh),
        (Side::Two, "shop/deaf", Part::Dead),
    ];
    let mut stage =
        Stage::of(&cast, |mesh| mesh.service(service("shop/both", 1, (80, RESPOND), &[ALIVE, "shop/deaf"])));
    stage.serve(ALIVE, RESPOND, Behaviour::Respond);
    stage.swallow("shop/deaf");
    let to = SocketAddr::new(service("any/any", 1, (80, RESPOND), &[]).addresses[0], 80);
    let start = Instant::now();
    for done in all_at_once(&stage, to) {
        done.unwrap_or_else(|cause| panic!("{to}: {cause}\n{}", stage.last_words()));
    }
    assert!(start.elapsed() > PATIENCE, "the deaf endpoint was never tried");
}

/// Less than a proxy waits for an answer to SYN (5 s), more than any answer takes.
const PATIENCE: Duration = Duration::from_secs(4);
