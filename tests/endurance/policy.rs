//! Rules that change while connections are open.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use adit::lab::{Action, Match, Membership, MeshFile, Pod, Policy, Position, Side, Text};

use crate::stage::{AT_ONCE, End, SOON, Stage, Way, connect, end_of, talks};

#[test]
fn open_and_new_connections_follow_the_file_and_a_bad_file_changes_nothing() {
    let mut stage = Stage::new();
    let other = stage.world.add_pod(Side::One, "shop", "other", Membership::Mesh).unwrap();
    other.install_rules().unwrap();
    assert_eq!(stage.sessions[0].add(&other).unwrap(), adit::lab::Answer::Done);
    let cast = [&stage.client, &stage.server, &stage.plain, &other].map(Pod::clone);
    let mesh = || MeshFile::new(&cast);
    stage.enforce(&mesh());

    let from_client = stage.connect(Way::Tunnel);
    let from_other = connect(&other, &stage.server).unwrap();
    let from_plain = stage.connect(Way::PlainIn);
    for pair in [&from_client, &from_other, &from_plain] {
        talks(pair).unwrap();
    }

    // A rule against one identity.
    let client = Text::Exact(stage.client.identity().principal().to_owned());
    let no_client = mesh().policy(deny(Match { principals: vec![client], ..Match::default() }));
    stage.enforce(&no_client);
    is_cut(&from_client, "the caller that is now denied");
    is_refused(&stage, &stage.client, "a new call of the denied caller");
    for (who, pair) in [("the other caller", &from_other), ("the plaintext caller", &from_plain)] {
        talks(pair).unwrap_or_else(|cause| panic!("{who} was cut: {cause}"));
    }
    reaches(&stage, &other);
    reaches(&stage, &stage.plain);

    // A file that cannot be read: nothing changes, and the log says where.
    let bad = no_client.yaml().replacen("action: Deny", "action: Maybe", 1);
    let line = 1 + bad.lines().position(|line| line.contains("Maybe")).unwrap();
    let place = format!("{}:{line}", stage.mesh_path().display());
    let from = Side::BOTH.map(|side| stage.proxy(side).log().position());
    stage.rewrite(&bad);
    for (side, from) in Side::BOTH.into_iter().zip(from) {
        let told = |line: &str| line.contains("the mesh file is refused").then(|| line.to_owned());
        let told = stage.proxy(side).log().find(from, "the refusal", SOON, told).unwrap();
        assert!(told.contains(&place), "{side} does not name {place}: {told}");
    }
    for pair in [&from_other, &from_plain] {
        talks(pair).unwrap();
    }
    is_refused(&stage, &stage.client, "a call of the denied caller while the file is bad");
    reaches(&stage, &other);

    // Mended, with a rule against an address instead: the identity may again, the plaintext caller may not.
    let no_plain = Match { source_ips: vec![format!("{}/32", stage.plain.ipv4())], ..Match::default() };
    stage.enforce(&mesh().policy(deny(no_plain)));
    is_cut(&from_plain, "the plaintext caller that is now denied");
    is_refused(&stage, &stage.plain, "a new plaintext call");
    talks(&from_other).unwrap_or_else(|cause| panic!("the other caller was cut: {cause}"));
    reaches(&stage, &stage.client);
    let cut = |line: &adit::lab::AccessLine| {
        line.policy.as_deref() == Some("shop/rule") && line.level == "error" && line.is_end()
    };
    let told = stage.proxy(Side::Two).access_log().wait_for_count(Position::START, 4, cut, SOON);
    assert_eq!(told.len(), 4, "two cut and two refused connections of shop/rule: {told:#?}");
}

/// A rule on the server that refuses whatever matches.
fn deny(what: Match) -> Policy {
    Policy {
        namespace: "shop".to_owned(),
        name: "rule".to_owned(),
        action: Action::Deny,
        on: vec!["shop/server".to_owned()],
        rules: vec![vec![vec![what]]],
    }
}

/// Both ends are reset, within the second that is promised from the moment the new state is in force.
fn is_cut((client, server): &(TcpStream, TcpStream), who: &str) {
    let in_force = Instant::now();
    for (end, side) in [(client, "client"), (server, "server")] {
        let what = format!("{who}, {side} side");
        assert_eq!(end_of(end, AT_ONCE, &what), End::Reset, "{what}");
    }
    let took = in_force.elapsed();
    println!("{who} was cut {took:?} after the new state was in force");
    assert!(took < Duration::from_secs(1), "{who} was cut only after {took:?}");
}

fn reaches(stage: &Stage, from: &Pod) {
    let told = connect(from, &stage.server).and_then(|pair| talks(&pair));
    told.unwrap_or_else(|cause| panic!("{} does not reach the server: {cause}", from.full_name()));
}

fn is_refused(stage: &Stage, from: &Pod, what: &str) {
    let port = crate::stage::fresh_port();
    let listener = adit::lab::listen_for(stage.server.netns(), port).unwrap();
    listener.set_nonblocking(true).unwrap();
    // The client's own proxy accepts before it knows what the far side says.
    match adit::lab::dial(from.netns(), stage.server.at(port), SOON) {
        Ok(client) => assert_eq!(end_of(&client, AT_ONCE, what), End::Reset, "{what}"),
        Err(cause) => assert_eq!(cause.kind(), io::ErrorKind::ConnectionReset, "{what}: {cause}"),
    }
    let guest = listener.accept().map(|(_, peer)| peer);
    assert!(guest.is_err(), "{what} reached the application: {guest:?}");
}
