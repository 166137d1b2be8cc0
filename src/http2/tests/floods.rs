//! What a peer may not do without end, and what it may.

use super::*;

/// Sends what `nth` makes until the tunnel ends; after how many.
fn flood(wire: &mut Wire, mut nth: impl FnMut(u32) -> Vec<u8>) -> (u32, Error) {
    for n in 0..1_000_000 {
        let result = wire.get(&nth(n));
        wire.machine.sent(wire.machine.output().len());
        if let Err(error) = result {
            return (n, error);
        }
    }
    panic!("a million, and no end");
}

/// An id that has not been used: tests begin with stream 1.
fn fresh(n: u32) -> u32 {
    2 * n + 3
}

#[test]
fn each_known_flood_ends_the_tunnel_and_says_which_it_was() {
    let status = |status: &'static str| headers(1, 0, &[(":status", status)]);
    type Make = Box<dyn FnMut(u32) -> Vec<u8>>;
    let rows: Vec<(Nuisance, Wire, Make)> = vec![
        (Nuisance::EmptyData, Wire::serving(), Box::new(|_| data(1, b""))),
        (
            Nuisance::EmptyData,
            Wire::serving(),
            Box::new(|_| frame(FrameKind::DATA, flag::PADDED, 1, &[2, 0, 0])),
        ),
        (Nuisance::Settings, Wire::server(), Box::new(|_| settings(&[]))),
        (Nuisance::Ping, Wire::server(), Box::new(|_| frame(FrameKind::PING, 0, 0, &[0; 8]))),
        (Nuisance::WindowUpdate, Wire::serving(), Box::new(|_| update(1, 1))),
        (Nuisance::WindowUpdate, Wire::serving(), Box::new(|_| update(0, 1))),
        (Nuisance::Priority, Wire::server(), Box::new(|n| frame(FrameKind::PRIORITY, 0, fresh(n), &[0; 5]))),
        (Nuisance::Unknown, Wire::server(), Box::new(|_| frame(FrameKind(0x20), 0, 0, b""))),
        (Nuisance::Unknown, Wire::server(), Box::new(|_| frame(FrameKind(0x20), 0, 0, &[0; 1 << 20]))),
        // A rapid reset, which is refused first.
        (
            Nuisance::Refusal,
            Wire::server(),
            Box::new(|n| [connect(fresh(n)), rst(fresh(n), Code::CANCEL)].concat()),
        ),
        // Resets that we are made to send: by a window raised by nothing, by a malformed head.
        (Nuisance::Provoked, Wire::server(), Box::new(|n| [connect(fresh(n)), update(fresh(n), 0)].concat())),
        (Nuisance::Provoked, Wire::server(), Box::new(|n| headers(fresh(n), 0, &[("a", "b")]))),
        (
            Nuisance::Provoked,
            Wire::server(),
            Box::new(|n| headers(fresh(n), 0, &[("a", "v".repeat(17 << 10).leak())])),
        ),
        // More streams than we allow.
        (Nuisance::Refusal, Wire::server(), Box::new(|n| connect(fresh(n)))),
        (
            Nuisance::Continuation,
            Wire::server(),
            Box::new(|n| {
                let head = frame(FrameKind::HEADERS, flag::END_STREAM, fresh(n), &block(&CONNECT));
                let more = frame(FrameKind::CONTINUATION, 0, fresh(n), b"");
                let end = frame(FrameKind::CONTINUATION, flag::END_HEADERS, fresh(n), b"");
                [head, more.repeat(20), end, rst(fresh(n), Code::CANCEL)].concat()
            }),
        ),
        (
            Nuisance::Interim,
            {
                let mut wire = Wire::client();
                wire.machine.open("a:1", []).unwrap();
                wire
            },
            Box::new(move |_| status("103")),
        ),
        (
            Nuisance::Stale,
            {
                let mut wire = Wire::carrying();
                wire.machine.reset(StreamId::new(1), Code::CANCEL);
                wire
            },
            Box::new(|_| rst(1, Code::CANCEL)),
        ),
        (
            Nuisance::Stale,
            {
                let mut wire = Wire::carrying();
                wire.machine.reset(StreamId::new(1), Code::CANCEL);
                wire
            },
            Box::new(|_| ok(1)),
        ),
    ];
    for (nuisance, mut wire, make) in rows {
        let (after, error) = flood(&mut wire, make);
        assert_eq!(error, Error::Flood(nuisance), "after {after}");
        assert_eq!(error.code(), Code::ENHANCE_YOUR_CALM);
        assert!(after >= 5, "{nuisance:?} after {after} only");
    }
}

#[test]
fn at_the_rate_that_is_allowed_nothing_ever_ends() {
    let mut wire = Wire::serving();
    for n in 0..3_000u32 {
        let bytes = [
            frame(FrameKind::PING, 0, 0, &[0; 8]),
            settings(&[]),
            data(1, b""),
            update(1, 1),
            connect(fresh(n)),
            rst(fresh(n), Code::CANCEL),
        ];
        assert_eq!(wire.get(&bytes.concat()).unwrap().len(), 2, "round {n}");
        wire.machine.sent(wire.machine.output().len());
        wire.later(Duration::from_millis(110));
    }
}

#[test]
fn streams_are_refused_before_the_tunnel_is_ended() {
    let mut wire = Wire::server();
    let mut refused = 0;
    for n in 0..1_000 {
        let told = wire.get(&[connect(fresh(n)), rst(fresh(n), Code::CANCEL)].concat()).unwrap();
        refused += u32::from(told.is_empty());
        assert_eq!(told.is_empty(), wire.out() == [format!("RST_STREAM {} REFUSED_STREAM", fresh(n))]);
    }
    assert_eq!(refused, 600);
    // A second later somebody who means it is served again.
    wire.later(Duration::from_secs(1));
    assert_eq!(wire.get(&connect(fresh(1_000))).unwrap().len(), 1);
}

#[test]
fn resets_of_answered_streams_are_no_flood() {
    let mut wire = Wire::server();
    for n in 0..10_000 {
        assert_eq!(wire.get(&connect(fresh(n))).unwrap().len(), 1, "connection {n}");
        wire.machine.respond(StreamId::new(fresh(n)), []).unwrap();
        assert_eq!(wire.get(&rst(fresh(n), Code::CANCEL)).unwrap().len(), 1);
        wire.machine.sent(wire.machine.output().len());
    }
}

#[test]
fn refusals_are_no_flood_for_either_side() {
    let mut server = Wire::server();
    let mut client = Wire::client();
    for n in 0..50_000 {
        let stream = client.machine.open("10.0.0.1:80", []).unwrap();
        let request = client.machine.output().to_vec();
        client.machine.sent(request.len());
        assert_eq!(server.get(&request).unwrap().len(), 1, "connection {n}");
        server.machine.refuse(stream, http::StatusCode::UNAUTHORIZED).unwrap();
        let answer = server.machine.output().to_vec();
        server.machine.sent(answer.len());
        assert_eq!(client.get(&answer).unwrap(), [format!("{stream}: 401 {{}}, end")]);
    }
}

#[test]
fn small_data_is_no_flood() {
    let mut wire = Wire::serving();
    for _ in 0..100_000 {
        assert_eq!(wire.get(&data(1, b"x")).unwrap(), ["1: data x"]);
        wire.machine.taken(StreamId::new(1), 1);
        wire.machine.sent(wire.machine.output().len());
    }
}

#[test]
fn window_updates_for_what_we_send_are_no_flood() {
    let mut wire = Wire::serving();
    for _ in 0..100_000 {
        wire.machine.send(StreamId::new(1), 1, false).unwrap();
        wire.get(&[update(0, 1), update(1, 1)].concat()).unwrap();
    }
}

#[test]
fn a_peer_that_makes_us_answer_and_does_not_read_is_ended() {
    let mut wire = Wire::server();
    let ping = frame(FrameKind::PING, 0, 0, &[0; 8]);
    let mut rounds = 0;
    let error = loop {
        // Within the rate, so that it is the unread answers and nothing else.
        wire.later(Duration::from_millis(10));
        match wire.get(&ping) {
            Ok(_) => rounds += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unread(bytes) if bytes > 256 << 10), "{error}");
    assert!(rounds > 10_000);
}

#[test]
fn a_bomb_of_headers_costs_no_memory() {
    let mut wire = Wire::server();
    // One entry of 4,000 bytes, and then references to it: 16 MB of head in a block of 16 KiB.
    let value = vec![b'x'; 4_000 - 33];
    let mut bomb = block(&CONNECT);
    bomb.extend([0x40, 1, b'a']);
    // Its length, 3,967, as a number behind a prefix of seven bits (RFC 7541 §5.1).
    bomb.extend([0x7f, 0x80, 0x1e]);
    bomb.extend(&value);
    bomb.extend(vec![0xbe; 4_000]);
    let told = wire.get(&frame(FrameKind::HEADERS, flag::END_HEADERS, 1, &bomb)).unwrap();
    assert_eq!(told, [""; 0]);
    assert_eq!(wire.out(), ["HEADERS 1 :status=431 end", "RST_STREAM 1 NO_ERROR"]);
}
