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
    let asked = || {
        let mut wire = Wire::client();
        wire.machine.open("a:1", []).unwrap();
        wire
    };
    let over = || {
        let mut wire = Wire::carrying();
        wire.machine.reset(StreamId::new(1), Code::CANCEL);
        wire
    };
    let leaving = || {
        let mut wire = Wire::server();
        wire.machine.shutdown(wire.now);
        wire.later(GOAWAY_DEADLINE);
        wire.machine.on_time(wire.now).unwrap();
        wire
    };
    let long: &'static str = "v".repeat(17 << 10).leak();
    let fields = block(&CONNECT);
    type Make = Box<dyn FnMut(u32) -> Vec<u8>>;
    // What is spent, by how many in one turn, where, and what a turn sends.
    let rows: Vec<(Nuisance, u32, Wire, Make)> = vec![
        (Nuisance::EmptyData, 1, Wire::serving(), Box::new(|_| data(1, b""))),
        (
            Nuisance::EmptyData,
            1,
            Wire::serving(),
            Box::new(|_| frame(FrameKind::DATA, flag::PADDED, 1, &[2, 0, 0])),
        ),
        (Nuisance::Settings, 1, Wire::server(), Box::new(|_| settings(&[]))),
        (Nuisance::Ping, 1, Wire::server(), Box::new(|_| frame(FrameKind::PING, 0, 0, &[0; 8]))),
        (Nuisance::WindowUpdate, 1, Wire::serving(), Box::new(|_| update(1, 1))),
        (Nuisance::WindowUpdate, 1, Wire::serving(), Box::new(|_| update(0, 1))),
        (
            Nuisance::Priority,
            1,
            Wire::server(),
            Box::new(|n| frame(FrameKind::PRIORITY, 0, fresh(n), &[0; 5])),
        ),
        (Nuisance::Unknown, 1, Wire::server(), Box::new(|_| frame(FrameKind(0x20), 0, 0, b""))),
        (Nuisance::Unknown, 65, Wire::server(), Box::new(|_| frame(FrameKind(0x20), 0, 0, &[0; 1 << 20]))),
        (Nuisance::GoAway, 1, Wire::client(), Box::new(|_| goaway(0, Code::NO_ERROR, "again"))),
        // A rapid reset, which is refused first.
        (
            Nuisance::Refusal,
            1,
            Wire::server(),
            Box::new(|n| [connect(fresh(n)), rst(fresh(n), Code::CANCEL)].concat()),
        ),
        // Resets that we are made to send: by a window raised by nothing, by a malformed head, by one that is too long.
        (
            Nuisance::Provoked,
            1,
            Wire::server(),
            Box::new(|n| [connect(fresh(n)), update(fresh(n), 0)].concat()),
        ),
        (Nuisance::Provoked, 1, Wire::server(), Box::new(|n| headers(fresh(n), 0, &[("a", "b")]))),
        (Nuisance::Provoked, 1, Wire::server(), Box::new(move |n| headers(fresh(n), 0, &[("a", long)]))),
        // More streams than we allow; and streams behind our last GOAWAY.
        (Nuisance::Refusal, 1, Wire::server(), Box::new(|n| connect(fresh(n)))),
        (Nuisance::Stale, 1, leaving(), Box::new(|n| connect(fresh(n)))),
        (
            Nuisance::Continuation,
            21,
            Wire::server(),
            Box::new(move |n| {
                let head = frame(FrameKind::HEADERS, flag::END_STREAM, fresh(n), &fields);
                let more = frame(FrameKind::CONTINUATION, 0, fresh(n), b"");
                let end = frame(FrameKind::CONTINUATION, flag::END_HEADERS, fresh(n), b"");
                [head, more.repeat(20), end, rst(fresh(n), Code::CANCEL)].concat()
            }),
        ),
        (Nuisance::Interim, 1, asked(), Box::new(move |_| status("103"))),
        (Nuisance::Stale, 1, over(), Box::new(|_| rst(1, Code::CANCEL))),
        (Nuisance::Stale, 1, over(), Box::new(|_| ok(1))),
    ];
    for (nuisance, each, mut wire, make) in rows {
        let (turns, error) = flood(&mut wire, make);
        assert_eq!(error, Error::Flood(nuisance), "after {turns}");
        assert_eq!(error.code(), Code::ENHANCE_YOUR_CALM);
        let (most, _) = nuisance.allowance();
        // The greeting has spent two SETTINGS.
        assert!(
            turns + 2 >= most / each,
            "{nuisance:?} after {turns} turns of {each}, and {most} are allowed"
        );
        assert!(turns <= most / each + 1_000, "{nuisance:?} after {turns} turns of {each} only");
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
    assert!(wire.machine.failure().is_none());
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
        assert!(rounds < 100_000, "{} bytes of answers wait", wire.machine.output().len());
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
    let error = wire.get(&frame(FrameKind::HEADERS, flag::END_HEADERS, 1, &bomb)).unwrap_err();
    let most = 4 * (16 << 10) + (4 << 10);
    assert!(
        matches!(error, Error::Compression(hpack::DecodeError::TooMuch { most: limit, .. }) if limit == most)
    );
    assert_eq!(error.code(), Code::ENHANCE_YOUR_CALM);
}

/// A peer like Go's, whose library raises both windows for each 4 KiB that it reads.
#[test]
fn a_peer_that_reads_in_small_pieces_is_no_flood() {
    let mut wire = Wire::new(Role::Client, CONFIG, &[(4, 1 << 20), (5, 1 << 20)]);
    wire.get(&update(0, (1 << 20) - 65_535)).unwrap();
    wire.machine.open("a:1", []).unwrap();
    wire.get(&ok(1)).unwrap();
    for _ in 0..2_000 {
        let room = wire.machine.room(StreamId::new(1)).min(256 << 10);
        wire.machine.send(StreamId::new(1), room, false).unwrap();
        for _ in 0..room / 4_096 {
            wire.get(&[update(0, 4_096), update(1, 4_096)].concat()).unwrap();
        }
    }
}

#[test]
fn a_busy_tunnel_with_some_impatient_clients_is_no_flood() {
    for (rate, percent) in [(5_000, 3), (5_000, 10), (5_000, 40), (1_000, 30)] {
        let mut wire = Wire::server();
        let start = wire.now;
        let mut taken_back = std::collections::VecDeque::new();
        for n in 0..rate * 20 {
            wire.now = start + Duration::from_secs(1) * n / rate;
            let id = fresh(n);
            assert_eq!(wire.get(&connect(id)).unwrap().len(), 1, "{rate}/s, {percent} %: connection {n}");
            if n % 100 < percent {
                taken_back.push_back((wire.now + Duration::from_millis(20), id));
            } else {
                wire.machine.respond(StreamId::new(id), []).unwrap();
                wire.machine.reset(StreamId::new(id), Code::CANCEL);
            }
            while let Some((when, id)) = taken_back.pop_front() {
                if when > wire.now {
                    taken_back.push_front((when, id));
                    break;
                }
                wire.get(&rst(id, Code::CANCEL)).unwrap();
            }
            wire.machine.sent(wire.machine.output().len());
        }
    }
}

#[test]
fn what_we_say_by_ourselves_is_no_unread_answer() {
    let mut wire = Wire::new(Role::Client, CONFIG, &[(3, 5_000)]);
    for _ in 0..2_000 {
        wire.machine.open("10.0.0.1:80", [(&b"baggage"[..], &[b'x'; 400][..])]).unwrap();
    }
    assert!(wire.machine.output().len() > 512 << 10);
    wire.get(&settings(&[])).unwrap();
    // And it moves, however much it is.
    let state = wire.machine.into_state(wire.now).unwrap();
    let mut machine = Machine::from_state(&state, wire.now).unwrap();
    assert!(machine.output().len() > 512 << 10);
    assert!(machine.read(&mut &settings(&[])[..], wire.now).is_ok());
}
