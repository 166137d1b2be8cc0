//! How connections end: a half-close stays a half-close, a reset a reset, and what was cut short never looks whole.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use adit::lab::Pod;

use crate::stage::{End, SOON, Stage, Way, end_of, say, talks, until};

#[test]
fn every_end_reaches_the_other_side_as_what_it_was() {
    let mut stage = Stage::new();
    for way in Way::ALL {
        a_client_that_stops_sending_still_hears(&stage, way);
        a_server_that_stops_sending_still_hears(&stage, way);
        a_reset_is_passed_on(&stage, way);
        a_reset_after_a_half_close_is_passed_on(&stage, way);
        a_reset_of_what_nobody_reads_is_passed_on(&stage, way);
    }
    the_far_proxys_death_is_a_reset(&mut stage);
}

fn a_client_that_stops_sending_still_hears(stage: &Stage, way: Way) {
    let (client, server) = stage.connect(way);
    half_closes(&client, &server, &format!("{way:?}, the client stops first"));
}

fn a_server_that_stops_sending_still_hears(stage: &Stage, way: Way) {
    let (client, server) = stage.connect(way);
    half_closes(&server, &client, &format!("{way:?}, the server stops first"));
}

/// `first` sends its last word and FIN; `second` hears both, answers at leisure, and ends too.
fn half_closes(first: &TcpStream, second: &TcpStream, what: &str) {
    say(first, second, b"last word").unwrap_or_else(|cause| panic!("{what}: {cause}"));
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(second, SOON, what), End::Clean, "{what}: the half-close");
    for nth in 0..3 {
        say(second, first, b"answer").unwrap_or_else(|cause| panic!("{what}: answer {nth}: {cause}"));
    }
    second.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(first, SOON, what), End::Clean, "{what}: the other half");
}

fn a_reset_is_passed_on(stage: &Stage, way: Way) {
    for resetter in ["client", "server"] {
        let (client, server) = stage.connect(way);
        talks(&(client.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();
        let (resetting, other) = if resetter == "client" { (client, server) } else { (server, client) };
        reset(resetting);
        let what = format!("{way:?}, the {resetter} resets");
        assert_eq!(end_of(&other, SOON, &what), End::Reset, "{what}: what the other side sees");
    }
}

fn a_reset_after_a_half_close_is_passed_on(stage: &Stage, way: Way) {
    for stopper in ["client", "server"] {
        let (client, server) = stage.connect(way);
        talks(&(client.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();
        let (stopping, other) = if stopper == "client" { (client, server) } else { (server, client) };
        let what = format!("{way:?}, the {stopper} stops sending and then resets");
        stopping.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end_of(&other, SOON, &what), End::Clean, "{what}: the half-close");
        reset(stopping);
        // Reading shows the FIN for ever: the reset shows as the socket's error, without a word being sent.
        until(&what, SOON, || match other.take_error().unwrap().map(|cause| cause.kind()) {
            Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            seen => Err(format!("the other side's socket has the error {seen:?}")),
        });

        let (client, server) = stage.connect(way);
        talks(&(client.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();
        let (stopping, other) = if stopper == "client" { (client, server) } else { (server, client) };
        let what = format!("{way:?}, the {stopper} stops sending and the other resets");
        stopping.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end_of(&other, SOON, &what), End::Clean, "{what}: the half-close");
        reset(other);
        assert_eq!(end_of(&stopping, SOON, &what), End::Reset, "{what}: what it sees");
    }
}

/// With bytes under way that the other application does not read, in buffers all along the way.
fn a_reset_of_what_nobody_reads_is_passed_on(stage: &Stage, way: Way) {
    let (client, server) = stage.connect(way);
    talks(&(client.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let chunk = vec![7; 1 << 20];
    let full = (0..256).find_map(|_| (&client).write_all(&chunk).err());
    assert!(full.is_some(), "{way:?}: 256 MiB were taken that nobody reads");
    reset(server);
    let what = format!("{way:?}, the server resets with bytes unread");
    assert_eq!(end_of(&client, SOON, &what), End::Reset, "{what}: what the client sees");
}

/// How long a half-closed connection is silent: longer than its probes take to give up (60 s), and than connection
/// tracking knows it without a packet (60 s).
const SILENCE: Duration = Duration::from_secs(75);

#[test]
fn a_half_closed_connection_lives_as_long_as_both_of_its_ends() {
    let stage = Stage::new();
    let mut silent = Vec::new();
    let mut bereft = Vec::new();
    for way in Way::ALL {
        let (client_pod, server_pod) = stage.ends(way);
        for stopper in ["client", "server"] {
            let half_closed = || {
                let (client, server) = stage.connect(way);
                talks(&(client.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();
                let (stopping, other) = if stopper == "client" { (client, server) } else { (server, client) };
                stopping.shutdown(Shutdown::Write).unwrap();
                let what = format!("{way:?}, half-closed by the {stopper}");
                assert_eq!(end_of(&other, SOON, &what), End::Clean, "{what}");
                (what, stopping, other)
            };
            silent.push(half_closed());
            let (what, stopping, other) = half_closed();
            vanish(if stopper == "client" { client_pod } else { server_pod }, &stopping);
            bereft.push((format!("{what}, which then vanishes"), other, stopping));
            let (what, stopping, other) = half_closed();
            vanish(if stopper == "client" { server_pod } else { client_pod }, &other);
            bereft.push((format!("{what}, whose other end vanishes"), stopping, other));
        }
    }
    let since = std::time::Instant::now();
    for (what, left, _vanished) in &bereft {
        until(&format!("{what}: the other end is reset"), SILENCE.saturating_sub(since.elapsed()), || {
            // Who has read a FIN already reads nothing else, and to it a reset is EPIPE (tcp_reset, Linux 6.18).
            match left.take_error().unwrap().map(|cause| cause.kind()) {
                Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
                other => Err(format!("its socket says {other:?}")),
            }
        });
    }
    println!("all are told after {:?}", since.elapsed());
    std::thread::sleep(SILENCE.saturating_sub(since.elapsed()));
    for (what, stopping, other) in silent {
        say(&other, &stopping, b"at last").unwrap_or_else(|cause| panic!("{what}, silent since: {cause}"));
        other.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end_of(&stopping, SOON, &what), End::Clean, "{what}");
    }
}

/// From here on `pod`'s end of a connection is heard no more, as after a power cut.
fn vanish(pod: &Pod, end: &TcpStream) {
    // What it has received it acknowledges before: who waits for an acknowledgement sends no probes, but again.
    std::thread::sleep(Duration::from_millis(200));
    // Whoever else had this port in that pod is gone; where it goes to is rewritten before this rule is asked.
    let port = end.local_addr().unwrap().port().to_string();
    let rule = ["-I", "OUTPUT", "-p", "tcp", "--sport", &port, "-j", "DROP"];
    for program in ["iptables", "ip6tables"] {
        let status = pod.netns().run(|| Command::new(program).args(rule).status()).unwrap();
        assert!(status.success(), "{program} {rule:?}");
    }
}

fn the_far_proxys_death_is_a_reset(stage: &mut Stage) {
    let idle = stage.connect(Way::Tunnel);
    let stopped = stage.connect(Way::Tunnel);
    let plain = stage.connect(Way::PlainIn);
    let untouched = stage.connect(Way::PlainOut);
    for pair in [&idle, &stopped, &plain, &untouched] {
        talks(pair).unwrap();
    }
    stopped.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(&stopped.1, SOON, "the half-close"), End::Clean);
    let busy = stage.connect(Way::Tunnel);
    let (client, mut server) = (busy.0.try_clone().unwrap(), busy.1.try_clone().unwrap());
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let chunk = vec![1; 64 << 10];
            loop {
                if let Err(cause) = server.write_all(&chunk) {
                    return cause.kind();
                }
            }
        });
        (&client).read_exact(&mut vec![0; 1 << 20]).unwrap();
        stage.proxies[1].kill();
        for (what, end) in [
            ("the client of an idle connection", &idle.0),
            ("the client that had stopped sending", &stopped.0),
            ("the client that was receiving", &client),
            ("the server of an idle connection", &idle.1),
            ("the plaintext client", &plain.0),
            ("the plaintext client's server", &plain.1),
        ] {
            let what = format!("{what}, after the death of the proxy of node two");
            assert_eq!(end_of(end, SOON, &what), End::Reset, "{what}");
        }
        assert_eq!(sender.join().unwrap(), ErrorKind::ConnectionReset, "what the sending server is told");
    });
    talks(&untouched).unwrap_or_else(|cause| panic!("a connection that never touched node two: {cause}"));
    stage.proxies[0].kill();
    for (what, end) in [("the client", &untouched.0), ("its server outside the mesh", &untouched.1)] {
        let what = format!("{what}, after the death of the proxy of node one");
        assert_eq!(end_of(end, SOON, &what), End::Reset, "{what}");
    }
}

/// Ends a connection with RST.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}
