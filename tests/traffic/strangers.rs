//! What the tunnel port answers to whoever knows how to speak to it, and to those who do not.

use std::io::{Read, Write};
use std::net::SocketAddr;

use adit::identity::SpiffeId;
use adit::lab::{Action, Behaviour, Match, Side, Text, dial};
use http::{Method, StatusCode};

use super::caller::Caller;
use super::evidence::{Before, Client, Expected, assert_moved};
use super::stage::{Part, SOON, Stage, policy, service};

const ECHO: u16 = 7777;
const SILENT: u16 = 7778;
const GUARDED: u16 = 7779;
const SERVER: &str = "shop/server";
const PEER: &str = "legacy/peer";

/// A server behind a real proxy, and a pod outside the mesh from which we play a peer.
fn stage() -> Stage {
    let cast = [
        (Side::Two, SERVER, Part::Mesh),
        (Side::One, "shop/other", Part::Mesh),
        (Side::One, PEER, Part::Outside),
    ];
    let somebody_else = Text::Exact("cluster.local/ns/shop/sa/other".to_owned());
    let guard =
        Match { not_principals: vec![somebody_else], destination_ports: vec![GUARDED], ..Match::default() };
    let mut stage = Stage::of(&cast, |mesh| {
        mesh.service(service("shop/front", 1, (80, ECHO), &[SERVER]))
            .service(service("shop/elsewhere", 2, (80, ECHO), &["shop/other"]))
            .policy(policy("guard", Action::Deny, &[SERVER], guard))
    });
    stage.serve(SERVER, ECHO, Behaviour::Echo);
    stage.serve(SERVER, GUARDED, Behaviour::Echo);
    stage
}

fn peer_id() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "peer").expect("a plain name")
}

/// A peer with a good certificate.
fn good(stage: &Stage) -> Caller {
    Caller::new(stage.pod(PEER), &peer_id(), &stage.authority(), stage.pod(SERVER).identity())
}

/// Both tunnel ports of the server.
fn doors(stage: &Stage) -> [SocketAddr; 2] {
    let server = stage.pod(SERVER);
    [server.at(15008), server.at_v6(15008)]
}

#[test]
fn a_connect_is_answered_by_what_it_asks_for() {
    let stage = stage();
    let (server, other) = (stage.pod(SERVER), stage.pod("shop/other"));
    let caller = good(&stage);
    for door in doors(&stage) {
        let mut tunnel = caller.tunnel(door).unwrap_or_else(|cause| panic!("{door}: {cause}"));
        let at = |port| SocketAddr::new(door.ip(), port).to_string();
        let elsewhere = SocketAddr::new(other.ip_like(door.ip()), ECHO).to_string();
        let other_family = if door.is_ipv4() { server.at_v6(ECHO) } else { server.at(ECHO) }.to_string();
        let front = "front.shop.svc.cluster.local";
        let visits = || stage.seen(SERVER, ECHO).len() + stage.seen(SERVER, GUARDED).len();
        let visits_before = visits();

        // Status, the reason it is counted under (if it has no record), the words of its line.
        let answers: [(Method, String, u16, &str, &str); 12] = [
            (Method::CONNECT, elsewhere, 400, "bad_request", "ip mismatch: "),
            (Method::CONNECT, other_family, 400, "bad_request", "ip mismatch: "),
            (Method::CONNECT, format!("127.0.0.1:{ECHO}"), 400, "bad_request", "ip mismatch: "),
            (Method::GET, at(ECHO), 400, "bad_request", "expected method CONNECT, got GET"),
            (Method::CONNECT, at(15001), 503, "recursive_call", "attempted recursive call to ourselves"),
            (Method::CONNECT, at(15006), 503, "recursive_call", "attempted recursive call to ourselves"),
            (Method::CONNECT, at(15008), 503, "recursive_call", "attempted recursive call to ourselves"),
            (
                Method::CONNECT,
                "nobody.shop.svc.cluster.local:80".into(),
                503,
                "unknown_destination",
                "nobody.shop",
            ),
            (Method::CONNECT, format!("{front}:81"), 503, "unknown_destination", "cannot resolve port"),
            (
                Method::CONNECT,
                "elsewhere.shop.svc.cluster.local:80".into(),
                503,
                "unknown_destination",
                "cannot resolve port",
            ),
            (Method::CONNECT, at(SILENT), 503, "", "connection failed: "),
            (Method::CONNECT, at(GUARDED), 401, "", "explicitly denied by: shop/guard"),
        ];
        for (method, authority, status, reason, words) in answers {
            let what = format!("{method} {authority} at {door}");
            let before = Before::now(&stage);
            let (answer, _) = tunnel.ask(method, &authority);
            assert_eq!(answer.as_u16(), status, "{what}\n{}", stage.last_words());
            let line =
                before.line(&stage, Side::Two, "inbound", Client::At(stage.pod(PEER).ip_like(door.ip())));
            let error = line.error.clone().unwrap_or_default();
            assert!(error.contains(words), "{what}: {line:#?}");
            if reason.is_empty() {
                assert_eq!(line.src_identity.as_deref(), Some(peer_id().as_str()), "{what}: {line:#?}");
                assert_eq!(line.dst_hbone_addr, Some(authority), "{what}: {line:#?}");
                assert_eq!((line.bytes_sent, line.bytes_recv), (Some(0), Some(0)), "{what}: {line:#?}");
            } else {
                assert_eq!(
                    (line.level.as_str(), line.message.as_str()),
                    ("warn", "connection failed"),
                    "{what}"
                );
                let refused =
                    Expected::new("adit_connections_refused_total", 1, &[("reason", reason.to_owned())]);
                assert_moved(&what, &before.moved(&stage, Side::Two), &[refused]);
            }
        }
        assert_eq!(visits(), visits_before, "none of these may reach an application");

        // The same tunnel still carries what is right.
        for authority in [at(ECHO), format!("{front}:80"), format!("{}:80", front.to_uppercase())] {
            let before = Before::now(&stage);
            let (answer, mut stream) = tunnel.ask(Method::CONNECT, &authority);
            assert_eq!(answer, StatusCode::OK, "{authority} at {door}\n{}", stage.last_words());
            stream.echoes("11 or more?");
            stream.finish();
            let peer = stage.pod(PEER).ip_like(door.ip());
            let line = before.line(&stage, Side::Two, "inbound", Client::At(peer));
            assert_eq!((line.bytes_sent, line.bytes_recv), (Some(11), Some(11)), "{line:#?}");
            let seen = stage.seen(SERVER, ECHO).pop().expect("it was reached");
            assert_eq!((seen.peer.ip(), seen.bytes), (peer, 11), "{authority} at {door}");
        }
    }
}

#[test]
fn who_cannot_prove_an_identity_of_this_mesh_gets_no_tunnel_and_disturbs_nobody() {
    let stage = stage();
    let good = good(&stage);
    let server = stage.pod(SERVER);
    let elsewhere = tempfile::tempdir().unwrap();
    let of_another_root = Caller::new(stage.pod(PEER), &peer_id(), elsewhere.path(), server.identity());
    let foreign = SpiffeId::new("example.org", "shop", "peer").unwrap();
    let of_another_domain = Caller::new(stage.pod(PEER), &foreign, &stage.authority(), server.identity());
    let strangers = [
        ("a certificate of another root", good.clone().showing(&of_another_root)),
        ("a certificate of another trust domain", good.clone().showing(&of_another_domain)),
        ("no certificate", good.clone().showing_nothing()),
    ];
    for door in doors(&stage) {
        let mut tunnel = good.tunnel(door).unwrap_or_else(|cause| panic!("{door}: {cause}"));
        let authority = SocketAddr::new(door.ip(), ECHO).to_string();
        let (status, mut stream) = tunnel.ask(Method::CONNECT, &authority);
        assert_eq!(status, StatusCode::OK);
        stream.echoes("before");
        for (what, stranger) in &strangers {
            let before = Before::now(&stage);
            let told = stranger.turned_away(door).unwrap_or_else(|cause| panic!("{what} at {door}: {cause}"));
            assert!(told.contains("alert"), "{what} must be told by a TLS alert, and was told: {told}");
            let line =
                before.line(&stage, Side::Two, "inbound", Client::At(stage.pod(PEER).ip_like(door.ip())));
            let error = line.error.clone().unwrap_or_default();
            assert!(error.starts_with("tls handshake error: "), "{what}: {line:#?}");
            assert_eq!(line.src_identity, None, "{what}: {line:#?}");
            let refused =
                Expected::new("adit_connections_refused_total", 1, &[("reason", "tls_handshake".to_owned())]);
            assert_moved(what, &before.moved(&stage, Side::Two), &[refused]);
            stream.echoes("between");
        }
        for garbage in
            [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"\0", &[0x16, 3, 1, 0xff, 0xff], &[0xff; 70_000]]
        {
            let before = Before::now(&stage);
            hang_up_on(&stage, door, garbage);
            let line =
                before.line(&stage, Side::Two, "inbound", Client::At(stage.pod(PEER).ip_like(door.ip())));
            assert!(line.error.is_some(), "{line:#?}");
            stream.echoes("between");
        }
        // And the next one with a good certificate is served as ever.
        let mut next = good.tunnel(door).unwrap_or_else(|cause| panic!("{door}: {cause}"));
        assert_eq!(next.connect(&authority), StatusCode::OK);
        stream.echoes("after");
    }
}

/// Sends `garbage` to the tunnel port, stops sending, and insists that the connection is closed without an answer
/// in HTTP.
fn hang_up_on(stage: &Stage, door: SocketAddr, garbage: &[u8]) {
    let mut stream = dial(stage.pod(PEER).netns(), door, SOON).unwrap();
    let mut back = Vec::new();
    let sent = stream.write_all(garbage).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let ended = sent.and_then(|()| stream.read_to_end(&mut back));
    let shown = back.escape_ascii().to_string();
    assert!(back.len() <= 7, "garbage was answered by more than an alert: {shown}");
    if let Err(cause) = ended {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        let closed = [BrokenPipe, ConnectionReset, NotConnected].contains(&cause.kind());
        assert!(closed, "garbage was not hung up on: {cause}");
    }
}

#[test]
fn the_proxys_own_ports_cannot_be_dialled_from_outside() {
    let stage = stage();
    let (peer, server) = (stage.pod(PEER), stage.pod(SERVER));
    for port in [15001, 15006] {
        for to in [server.at(port), server.at_v6(port)] {
            let before = Before::now(&stage);
            let (end, _) = super::evidence::refused(&peer, to, "let me in");
            assert_eq!(end, super::evidence::Refused::Reset, "{to}\n{}", stage.last_words());
            let refused = Expected::new(
                "adit_connections_refused_total",
                1,
                &[("reason", "recursive_call".to_owned())],
            );
            assert_moved(&to.to_string(), &before.moved(&stage, Side::Two), &[refused]);
        }
    }
}
