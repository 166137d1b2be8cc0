use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::judge::{Call, Judged, expect, wire};
use super::rows::{self, CALLERS, End, Reason, Route, Row, STRICT};
use super::{place, report};
use crate::lab::{Finding, Pod, WireReport, World};

#[test]
fn every_row_dials_a_server_that_runs() {
    for row in rows::all() {
        let served = rows::SERVERS.iter().any(|(who, port, _)| (*who, *port) == (row.called, row.by.port()));
        assert!(served, "{row:?}");
    }
}

/// A world with only the two pods of `row`.
fn pods(row: &Row) -> (World, Pod, Pod) {
    let mut world = World::new().expect("tests run as root: a lab needs CAP_SYS_ADMIN and iproute2");
    let mut pod = |who: rows::Who| {
        let (side, namespace, name, membership) = who.facts();
        world.add_pod(side, namespace, name, membership).unwrap()
    };
    let (caller, called) = (pod(row.caller), pod(row.called));
    (world, caller, called)
}

fn row(end: End, route: Route) -> Row {
    *rows::all().iter().find(|row| (row.end, row.route) == (end, route)).unwrap()
}

/// What a flawless play of `row` looks like.
fn flawless(row: &Row, caller: &Pod, called: &Pod) -> (Call, Judged) {
    let answered = row.end == End::Answered;
    let from = SocketAddr::new(caller.ipv4().into(), 4000);
    let seen = if answered { Ok(from) } else { Err(io::ErrorKind::ConnectionReset.into()) };
    let proven = |pod: &Pod| (row.route == Route::Hbone).then(|| pod.identity().as_str().to_owned());
    let (policy, error) = match row.end {
        End::Answered => (None, None),
        End::Refused(Reason::Denied(name)) => {
            (Some(format!("shop/{name}")), Some(format!("denied by: shop/{name}")))
        }
        End::Refused(Reason::NotAllowed(name)) => {
            (Some(format!("shop/{name}")), Some("allow policies exist, but none allowed".to_owned()))
        }
    };
    let judged = Judged {
        caller: caller.full_name(),
        called: called.full_name(),
        what: row.what,
        dialled: called.at(row.by.port()),
        route: row.route.name(),
        caller_identity: proven(caller),
        called_identity: if answered { proven(called) } else { None },
        seen_from: answered.then(|| from.ip()),
        verdict: if answered { "allowed" } else { "refused" },
        policy,
        error,
        first_ms: None,
        next_ms: None,
        problems: Vec::new(),
    };
    (Call { local: Some(from), seen, took: Duration::ZERO }, judged)
}

/// The problems found in a flawless play of `row` after `spoil`; `untouched` says whether the application was
/// spared.
fn problems(row: &Row, untouched: bool, spoil: impl FnOnce(&mut Call, &mut Judged)) -> Vec<String> {
    let (_world, caller, called) = pods(row);
    let (mut call, mut judged) = flawless(row, &caller, &called);
    spoil(&mut call, &mut judged);
    expect(row, &caller, &called, &call, untouched, judged).problems
}

#[test]
fn a_tunnel_that_kept_its_promises_has_no_problems() {
    assert!(problems(&row(End::Answered, Route::Hbone), false, |_, _| ()).is_empty());
}

#[test]
fn every_broken_promise_of_a_tunnel_is_a_problem() {
    let tunnel = row(End::Answered, Route::Hbone);
    let spoils: [fn(&mut Call, &mut Judged); 5] = [
        |call, _| call.seen = Ok("10.76.0.1:4000".parse().unwrap()),
        |call, _| call.seen = Err(io::ErrorKind::ConnectionReset.into()),
        |_, judged| judged.route = Route::Plain.name(),
        |_, judged| judged.caller_identity = None,
        |_, judged| judged.called_identity = Some("spiffe://cluster.local/ns/shop/sa/cart".to_owned()),
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        assert_eq!(problems(&tunnel, false, spoil).len(), 1, "spoil {number}");
    }
}

#[test]
fn a_refusal_must_spare_the_application_and_give_its_reason() {
    let refused = row(End::Refused(Reason::Denied(STRICT)), Route::Plain);
    assert!(problems(&refused, true, |_, _| ()).is_empty());
    assert_eq!(problems(&refused, false, |_, _| ()).len(), 1);
    assert_eq!(problems(&refused, true, |_, judged| judged.policy = None).len(), 1);
    let answered = |call: &mut Call, _: &mut Judged| call.seen = Ok("10.77.2.2:4000".parse().unwrap());
    assert_eq!(problems(&refused, true, answered).len(), 1);
    let unwanted = row(End::Refused(Reason::NotAllowed(CALLERS)), Route::Hbone);
    assert!(problems(&unwanted, true, |_, _| ()).is_empty());
    assert_eq!(problems(&unwanted, true, |_, judged| judged.error = None).len(), 1);
}

#[test]
fn a_capture_proves_something_only_when_it_heard_the_control_and_lost_nothing() {
    let heard = |secret: u64, aloud: u64| WireReport {
        tunnels: 1,
        findings: vec![
            Finding { secret: "secret".to_owned(), times: secret },
            Finding { secret: "aloud".to_owned(), times: aloud },
        ],
        ..WireReport::default()
    };
    let problems = |report: &WireReport| wire("secret", "aloud", report).problems.len();
    assert_eq!(problems(&heard(0, 2)), 0);
    assert_eq!(problems(&heard(1, 2)), 1);
    assert_eq!(problems(&heard(0, 0)), 1);
    assert_eq!(problems(&WireReport { lost: 1, ..heard(0, 2) }), 1);
    assert_eq!(problems(&WireReport { tunnels: 0, ..heard(0, 2) }), 1);
}

#[test]
fn a_cell_that_is_too_wide_is_never_cut() {
    let mut cells = [const { String::new() }; 8];
    "a name wider than its column".clone_into(&mut cells[0]);
    "end".clone_into(&mut cells[7]);
    let line = report::columns(&cells);
    assert!(line.starts_with("a name wider than its column  ") && line.ends_with("end"));
}

#[test]
fn an_identity_is_shown_by_what_differs_inside_a_mesh() {
    assert_eq!(report::workload(Some("spiffe://cluster.local/ns/shop/sa/cart")), "shop/cart");
    assert_eq!(report::workload(Some("something else")), "something else");
    assert_eq!(report::workload(None), "?");
}

#[test]
fn a_directory_others_can_enter_is_not_taken_for_our_own() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    place::private(&home).unwrap();
    place::private(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(place::private(&home).is_err());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert!(place::private(&link).is_err());
}

#[test]
fn what_a_killed_demo_left_is_swept_away_and_a_running_one_is_not() {
    let home = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = home.path().join(name);
        fs::create_dir(&path).unwrap();
        let lock = File::create_new(path.join(place::LOCK)).unwrap();
        lock.try_lock().unwrap();
        (path, lock)
    };
    let (running, _lock) = make("run-1");
    let (killed, lock) = make("run-2");
    drop(lock);
    place::sweep(home.path());
    assert!(running.exists());
    assert!(!killed.exists());
}
