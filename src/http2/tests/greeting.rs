//! How a tunnel begins (RFC 9113 §3.4, §6.5).

use super::*;

#[test]
fn a_client_greets_with_preface_settings_and_the_tunnels_window() {
    let machine = Machine::new(Role::Client, CONFIG, Instant::now());
    let output = machine.output();
    assert!(output.starts_with(PREFACE));
    let frames = frames(output);
    let entries = [(2, 0), (4, 256 << 10), (5, 1 << 20), (6, 16 << 10)];
    assert_eq!(
        frames[0],
        (FrameHead::parse(settings(&entries)[..9].try_into().unwrap()), &settings(&entries)[9..])
    );
    assert_eq!(
        said(frames[1].0, frames[1].1),
        format!("WINDOW_UPDATE 0 {}", FIRST_CONNECTION_WINDOW - 65_535)
    );
    assert_eq!(frames.len(), 2);
}

#[test]
fn a_server_greets_with_settings_and_the_tunnels_window() {
    let config = Config { header_table: 1_024, connection_window: 1, ..CONFIG };
    let machine = Machine::new(Role::Server, config, Instant::now());
    // A window of a tunnel cannot be smaller than the one it begins with.
    let entries = [(3, 200), (1, 1_024), (4, 256 << 10), (5, 1 << 20), (6, 16 << 10)];
    assert_eq!(machine.output(), settings(&entries));
}

#[test]
fn settings_are_acknowledged_once_each_and_bring_the_tunnel_up() {
    let mut server =
        Wire { machine: Machine::new(Role::Server, CONFIG, Instant::now()), now: Instant::now() };
    server.out();
    assert_eq!(server.get(PREFACE), Ok(vec![]));
    assert_eq!(server.get(&settings(&[])), Ok(vec!["ready".into()]));
    assert_eq!(server.out(), ["SETTINGS ack"]);
    assert_eq!(server.get(&settings(&[(3, 5)])), Ok(vec![]));
    assert_eq!(server.out(), ["SETTINGS ack"]);
    assert!(!server.machine.is_acknowledged());
    assert_eq!(server.get(&settings_ack()), Ok(vec![]));
    assert!(server.machine.is_acknowledged());
}

#[test]
fn what_is_no_preface_is_refused_at_its_first_wrong_byte() {
    for at in 0..PREFACE.len() {
        let mut bytes = PREFACE.to_vec();
        bytes[at] ^= 1;
        let mut machine = Machine::new(Role::Server, CONFIG, Instant::now());
        let result = machine.read(&mut &bytes[..=at], Instant::now());
        assert_eq!(result.unwrap_err(), Error::Preface, "byte {at}");
    }
    let mut machine = Machine::new(Role::Server, CONFIG, Instant::now());
    assert!(machine.read(&mut &b"GET / HTTP/1.1\r\n"[..], Instant::now()).is_err());
}

#[test]
fn the_first_frame_must_be_settings() {
    for first in [connect(1), update(0, 1), settings_ack(), frame(FrameKind::PING, 0, 0, &[0; 8])] {
        let mut machine = Machine::new(Role::Server, CONFIG, Instant::now());
        let bytes = [&PREFACE[..], &first].concat();
        let error = machine.read(&mut &bytes[..], Instant::now()).unwrap_err();
        assert!(matches!(error, Error::FirstFrame(_)), "{error}");
    }
}

#[test]
fn a_client_may_ask_before_the_servers_settings_and_keeps_to_them_after() {
    let mut client =
        Wire { machine: Machine::new(Role::Client, CONFIG, Instant::now()), now: Instant::now() };
    assert_eq!(client.machine.can_open(), 200);
    client.machine.open("10.0.0.1:80", []).unwrap();
    assert_eq!(client.get(&settings(&[(3, 2), (4, 10)])), Ok(vec!["ready".into()]));
    assert_eq!(client.machine.can_open(), 1);
    client.machine.open("10.0.0.1:80", []).unwrap();
    assert_eq!(client.machine.open("10.0.0.1:80", []), Err(OpenError::Full(2)));
    client.get(&ok(1)).unwrap();
    assert_eq!(client.machine.room(StreamId::new(1)), 10);
}

#[test]
fn an_acknowledgement_that_was_not_asked_for_is_an_error() {
    assert_eq!(Wire::server().get(&settings_ack()), Err(Error::UnaskedAck));
}

#[test]
fn settings_out_of_their_range_end_the_tunnel_with_the_right_code() {
    for (id, value, role, code) in [
        (2, 2, Role::Server, Code::PROTOCOL_ERROR),
        (2, 1, Role::Client, Code::PROTOCOL_ERROR),
        (4, 1 << 31, Role::Server, Code::FLOW_CONTROL_ERROR),
        (5, 16_383, Role::Server, Code::PROTOCOL_ERROR),
        (5, 1 << 24, Role::Server, Code::PROTOCOL_ERROR),
        (8, 2, Role::Client, Code::PROTOCOL_ERROR),
        (9, 2, Role::Client, Code::PROTOCOL_ERROR),
    ] {
        let mut wire = Wire::new(role, CONFIG, &[]);
        assert_eq!(wire.get(&settings(&[(id, value)])), Err(Error::Setting { id, value }));
        assert_eq!(wire.out(), [format!("GOAWAY 0 {code}")]);
    }
    let mut wire = Wire::server();
    assert_eq!(
        wire.get(&settings(&[(2, 1), (4, (1 << 31) - 1), (5, 16_384), (8, 1), (0x7777, 5)])),
        Ok(vec![])
    );
}

#[test]
fn a_client_is_told_when_it_may_open_more() {
    let mut client = Wire::new(Role::Client, CONFIG, &[(3, 1)]);
    client.machine.open("10.0.0.1:80", []).unwrap();
    assert_eq!(client.machine.can_open(), 0);
    assert_eq!(client.get(&settings(&[(3, 2)])), Ok(vec!["may open".into()]));
    assert_eq!(client.machine.can_open(), 1);
    assert_eq!(client.get(&settings(&[(3, 2)])), Ok(vec![]));
    assert_eq!(client.get(&settings(&[(3, 0)])), Ok(vec![]));
    assert_eq!(client.machine.can_open(), 0);
}
