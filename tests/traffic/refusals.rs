//! What policy refuses: not one byte reaches the application, the rule is named, the client sees a reset.

use std::net::SocketAddr;

use adit::lab::{Action, Behaviour, Capture, Match, Side, Text, WireReport};

use super::evidence::{Before, Client, Expected, First, Refused, assert_moved, exchange, refused};
use super::stage::{Part, STRICT, Stage, fail, policy, service, strict};

const RESPOND: u16 = 8080;
const WELCOME: &str = "shop/welcome";
const INTRUDER: &str = "shop/intruder";
const BANNED: &str = "shop/banned";
const PLAIN: &str = "legacy/plain";
const NEAR: &str = "shop/near";
const FAR: &str = "shop/far";
const MARKER: &str = "never-to-be-heard";
const ALOUD: &str = "to-be-heard";

/// Near and far refuse plaintext, and the banned by name, and whoever is not on their list.
fn stage() -> Stage {
    let cast = [
        (Side::One, WELCOME, Part::Mesh),
        (Side::One, INTRUDER, Part::Mesh),
        (Side::One, BANNED, Part::Mesh),
        (Side::One, PLAIN, Part::Outside),
        (Side::One, NEAR, Part::Mesh),
        (Side::Two, FAR, Part::Mesh),
    ];
    let identity = |pod: &str| {
        let (namespace, name) = pod.split_once('/').expect("pods are named namespace/name");
        Text::Exact(format!("cluster.local/ns/{namespace}/sa/{name}"))
    };
    let on = [NEAR, FAR];
    let is = |pods: &[&str]| Match {
        principals: pods.iter().map(|pod| identity(pod)).collect(),
        ..Match::default()
    };
    let mut stage = Stage::of(&cast, |mesh| {
        mesh.service(service("shop/near-service", 1, (80, RESPOND), &[NEAR]))
            .service(service("shop/far-service", 2, (80, RESPOND), &[FAR]))
            .policy(strict(&on))
            .policy(policy("callers", Action::Allow, &on, is(&[WELCOME, BANNED])))
            .policy(policy("no-banned", Action::Deny, &on, is(&[BANNED])))
    });
    for pod in on {
        stage.serve(pod, RESPOND, Behaviour::Respond);
    }
    stage
}

/// Who is refused, by which rule, in which words, and how the counters flag it at the caller's side.
const REFUSED: [(&str, &str, &str); 3] = [
    (PLAIN, STRICT, "explicitly denied by: shop/converted_peer_authentication_strict"),
    (INTRUDER, "callers", "allow policies exist, but none allowed"),
    (BANNED, "no-banned", "explicitly denied by: shop/no-banned"),
];

#[test]
fn whom_policy_refuses_sees_a_reset_and_the_application_sees_nothing() {
    let stage = stage();
    for (caller, rule, words) in REFUSED {
        for (called, last) in [(NEAR, 1), (FAR, 2)] {
            let vips = service("any/any", last, (80, RESPOND), &[]).addresses;
            let pod = stage.pod(called);
            for target in [pod.at(RESPOND), pod.at_v6(RESPOND)] {
                // By pod address, and for those in the mesh by service too.
                refuse(&stage, caller, called, target, target, rule, words);
                if caller != PLAIN {
                    let vip =
                        vips.iter().find(|ip| ip.is_ipv4() == target.is_ipv4()).expect("one per family");
                    refuse(&stage, caller, called, target, SocketAddr::new(*vip, 80), rule, words);
                }
            }
        }
    }
}

/// One refused connection, from all sides.
fn refuse(
    stage: &Stage,
    caller: &str,
    called: &str,
    target: SocketAddr,
    dialled: SocketAddr,
    rule: &str,
    words: &str,
) {
    let what = format!("{caller} to {dialled} of {called}");
    let (from, to) = (stage.pod(caller), stage.pod(called));
    let (before, visits) = (Before::now(stage), stage.seen(called, RESPOND).len());
    let ear = Capture::inside(&to, &[MARKER]).unwrap_or_else(fail);
    let wire = Capture::start(&stage.world, &[MARKER]).unwrap_or_else(fail);
    let (end, local) = refused(&from, dialled, MARKER);
    assert_eq!(end, Refused::Reset, "{what}: what the client saw\n{}", stage.last_words());

    let tunnelled = caller != PLAIN;
    // A tunnel has a port of its own.
    let client = if tunnelled { Client::At(local.ip()) } else { Client::Exactly(local) };
    let into = before.line(stage, to.side(), "inbound", client);
    let error = format!("connection closed due to policy rejection: {words}");
    assert_eq!(into.level, "error", "{what}: {into:#?}");
    assert_eq!(into.error, Some(error), "{what}: {into:#?}");
    assert_eq!(into.policy, Some(format!("shop/{rule}")), "{what}: {into:#?}");
    assert_eq!((into.bytes_sent, into.bytes_recv), (Some(0), Some(0)), "{what}: {into:#?}");
    assert_eq!(into.src_workload.as_deref(), Some(from.name()), "{what}: {into:#?}");
    assert_eq!(into.dst_workload.as_deref(), Some(to.name()), "{what}: {into:#?}");
    let identity = tunnelled.then(|| from.identity().as_str().to_owned());
    assert_eq!(into.src_identity, identity, "{what}: {into:#?}");

    let principals = [("source_principal", identity.unwrap_or_else(|| "unknown".to_owned()))];
    let of = |reporter: &str, flag: &str| {
        let mut counters = Vec::new();
        for (family, flag) in [
            ("istio_tcp_connections_opened_total", "-"),
            ("istio_tcp_connections_closed_total", flag),
            ("istio_tcp_connections_failed_total", flag),
        ] {
            let mut labels = vec![
                ("reporter", reporter.to_owned()),
                ("response_flags", flag.to_owned()),
                ("source_workload", from.name().to_owned()),
                ("destination_workload", to.name().to_owned()),
            ];
            labels.extend(principals.clone());
            counters.push(Expected::new(family, 1, &labels));
        }
        counters
    };
    let destination = of("destination", "DENY");
    let source = if tunnelled { of("source", "CONNECT") } else { Vec::new() };
    if tunnelled {
        let out = before.line(stage, from.side(), "outbound", local);
        assert_eq!(out.level, "error", "{what}: {out:#?}");
        assert_eq!(out.error.as_deref(), Some("http status: 401 Unauthorized"), "{what}: {out:#?}");
        assert_eq!((out.bytes_sent, out.bytes_recv), (Some(0), Some(0)), "{what}: {out:#?}");
        assert_eq!(out.dst_hbone_addr, Some(target.to_string()), "{what}: {out:#?}");
    }
    if from.side() == to.side() {
        assert_moved(&what, &before.moved(stage, to.side()), &[source, destination].concat());
    } else {
        assert_moved(&what, &before.moved(stage, from.side()), &source);
        assert_moved(&what, &before.moved(stage, to.side()), &destination);
    }

    // Logged as ended on every side, so nothing more is on its way.
    let heard = ear.stop().unwrap_or_else(fail);
    assert_eq!(stage.seen(called, RESPOND).len(), visits, "{what}: the application was visited");
    assert_eq!(
        (heard.connections, heard.findings[0].times, heard.lost),
        (0, 0, 0),
        "{what}: in the pod {heard:?}"
    );
    let wire = wire.stop().unwrap_or_else(fail);
    assert_eq!(wire.lost, 0, "{what}: the capture of the wire proves nothing: {wire:?}");
    if tunnelled {
        assert_eq!(wire.findings[0].times, 0, "{what}: in the clear on the wire: {wire:?}");
    }
}

#[test]
fn whom_policy_admits_is_heard_by_the_application_and_by_the_same_captures() {
    let stage = stage();
    for (called, target) in [NEAR, FAR].into_iter().flat_map(|called| {
        [stage.pod(called).at(RESPOND), stage.pod(called).at_v6(RESPOND)].map(|it| (called, it))
    }) {
        let (from, to) = (stage.pod(WELCOME), stage.pod(called));
        let before = Before::now(&stage);
        let ear = Capture::inside(&to, &[ALOUD]).unwrap_or_else(fail);
        let wire = Capture::start(&stage.world, &[ALOUD]).unwrap_or_else(fail);
        let done =
            exchange(&from, target, First::Client, ALOUD).unwrap_or_else(|cause| panic!("{target}: {cause}"));
        let into = before.line(&stage, to.side(), "inbound", Client::At(done.local.ip()));
        assert_eq!(into.policy.as_deref(), Some("shop/callers"), "{into:#?}");
        assert_eq!(into.error, None, "{into:#?}");
        let heard = ear.stop().unwrap_or_else(fail);
        assert_eq!(heard.connections, 1, "one connection inside the pod, from its proxy: {heard:?}");
        assert_eq!(heard.findings[0].times, 2, "the question and the answer: {heard:?}");
        let wire: WireReport = wire.stop().unwrap_or_else(fail);
        assert_eq!((wire.findings[0].times, wire.lost), (0, 0), "in the clear between the nodes: {wire:?}");
        if called == FAR {
            assert!(wire.packets > 0, "the way to the other node leads over the wire: {wire:?}");
        }
    }
}
