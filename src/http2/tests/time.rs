//! Deadlines. Time is a value here; no test waits.

use super::*;

#[test]
fn a_peer_that_does_not_greet_is_given_up() {
    for role in [Role::Client, Role::Server] {
        let start = Instant::now();
        let mut machine = Machine::new(role, CONFIG, start);
        assert_eq!(machine.deadline(), Some(start + GREETING_DEADLINE));
        machine.on_time(start + GREETING_DEADLINE - Duration::from_millis(1)).unwrap();
        let error = machine.on_time(start + GREETING_DEADLINE).unwrap_err();
        assert_eq!(error, Error::Silent(GREETING_DEADLINE));
        assert_eq!(machine.on_time(start).unwrap_err(), error, "it stays failed");
    }
}

#[test]
fn a_peer_that_does_not_acknowledge_is_given_up() {
    let start = Instant::now();
    let mut client = Wire { machine: Machine::new(Role::Client, CONFIG, start), now: start };
    client.get(&settings(&[])).unwrap();
    client.now = start + ACK_DEADLINE - Duration::from_secs(1);
    client.get(&settings(&[])).unwrap();
    assert_eq!(client.machine.deadline(), Some(start + ACK_DEADLINE));
    let error = client.machine.on_time(start + ACK_DEADLINE).unwrap_err();
    assert_eq!((error.code(), error), (Code::SETTINGS_TIMEOUT, Error::SettingsTimeout(ACK_DEADLINE)));
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up_within_thirty_seconds() {
    let mut wire = Wire::serving();
    let start = wire.now;
    assert_eq!(wire.machine.deadline(), Some(start + PING_AFTER));
    wire.later(PING_AFTER);
    wire.machine.on_time(wire.now).unwrap();
    wire.machine.on_time(wire.now).unwrap();
    assert_eq!(wire.out(), ["PING 0 8"], "once");
    wire.later(PING_DEADLINE);
    assert_eq!(wire.machine.deadline(), Some(wire.now));
    assert_eq!(wire.now - start, Duration::from_secs(30));
    assert_eq!(wire.machine.on_time(wire.now), Err(Error::PingTimeout(PING_DEADLINE)));
    assert_eq!(wire.out(), ["GOAWAY 1 NO_ERROR"]);
}

#[test]
fn an_idle_tunnel_lets_go_of_its_buffers() {
    let mut wire = Wire::serving();
    wire.get(&headers(3, 0, &[CONNECT[0], CONNECT[1], ("baggage", "x".repeat(3_000).leak())])).unwrap();
    wire.machine.refuse(StreamId::new(3), http::StatusCode::BAD_REQUEST).unwrap();
    wire.out();
    assert!(wire.machine.block.capacity() > 2_000);
    wire.later(PING_AFTER);
    wire.machine.on_time(wire.now).unwrap();
    assert_eq!(wire.out(), ["PING 0 8"]);
    assert_eq!(wire.machine.block.capacity(), 0);
    // What is left is the machine itself and its streams.
    assert!(size_of::<Machine>() <= 1_024, "{} bytes", size_of::<Machine>());
}

#[test]
fn a_peer_that_answers_lives_on() {
    let mut wire = Wire::serving();
    for _ in 0..100 {
        wire.now = wire.machine.deadline().unwrap();
        wire.machine.on_time(wire.now).unwrap();
        let mut pong = wire.machine.output().to_vec();
        assert_eq!(wire.out(), ["PING 0 8"]);
        pong[4] = flag::ACK;
        wire.later(PING_DEADLINE - Duration::from_millis(1));
        wire.get(&pong).unwrap();
    }
}

#[test]
fn a_peer_that_sends_is_not_asked_and_not_given_up() {
    let mut wire = Wire::serving();
    for _ in 0..100 {
        wire.later(PING_AFTER - Duration::from_millis(1));
        wire.get(&data(1, b"x")).unwrap();
        wire.machine.on_time(wire.now).unwrap();
        assert_eq!(wire.out(), [""; 0]);
    }
    // Asked once, it answers late, behind what it has to send.
    wire.later(PING_AFTER);
    wire.machine.on_time(wire.now).unwrap();
    assert_eq!(wire.out(), ["PING 0 8"]);
    for _ in 0..10 {
        wire.later(PING_DEADLINE - Duration::from_millis(1));
        wire.get(&data(1, b"x")).unwrap();
        wire.machine.on_time(wire.now).unwrap();
    }
    assert_eq!(wire.out(), [""; 0]);
}
