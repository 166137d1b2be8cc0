//! Flow control: what is given back when, to whom, and that nobody's stall is another's.

use super::*;

const FIRST: usize = 256 << 10;

#[test]
fn a_tunnels_credit_returns_when_bytes_leave_the_arena_and_a_streams_when_they_are_taken() {
    let mut wire = Wire::serving();
    let stream = StreamId::new(1);
    let mut bytes = &data(1, &[0; FIRST])[..];
    let Some(Action::Data { bytes: payload, .. }) = wire.machine.read(&mut bytes, wire.now).unwrap() else {
        panic!()
    };
    assert_eq!(payload.len(), FIRST);
    assert_eq!(wire.out(), [""; 0]);
    wire.machine.left_arena(FIRST - 1);
    // Less than a quarter of the tunnel's window is not worth a frame yet.
    assert_eq!(wire.out(), [""; 0]);
    wire.machine.left_arena(1);
    // It has taken all it was sent, so its window grows.
    assert_eq!(wire.out(), [format!("WINDOW_UPDATE 0 {}", FIRST_CONNECTION_WINDOW as usize + FIRST)]);
    wire.machine.taken(stream, FIRST / 4 - 1);
    assert_eq!(wire.out(), [""; 0]);
    wire.machine.taken(stream, 1);
    assert_eq!(wire.out(), [format!("WINDOW_UPDATE 1 {}", FIRST / 4)]);
}

#[test]
fn a_tunnels_window_is_announced_by_the_quarter() {
    let mut wire = Wire::new(Role::Server, Config { connection_window: 1 << 20, ..CONFIG }, &[]);
    wire.get(&connect(1)).unwrap();
    assert_eq!(wire.get(&data(1, &[0; FIRST - 1])).unwrap().len(), 1);
    assert_eq!(wire.out(), [""; 0]);
    wire.get(&data(1, &[0])).unwrap();
    assert_eq!(wire.out(), [format!("WINDOW_UPDATE 0 {FIRST}")]);
}

#[test]
fn more_than_the_tunnels_window_ends_the_tunnel() {
    let mut wire = Wire::new(Role::Server, Config { connection_window: 65_535, ..CONFIG }, &[]);
    wire.get(&connect(1)).unwrap();
    let mut bytes = &data(1, &[0; 65_535])[..];
    assert!(wire.machine.read(&mut bytes, wire.now).unwrap().is_some());
    assert_eq!(wire.get(&data(1, &[0])), Err(Error::Window { length: 1, left: 0 }));
}

#[test]
fn the_window_of_a_stream_that_drains_grows_to_the_configured_size() {
    let mut wire = Wire::serving();
    let mut told = 0;
    for _ in 0..64 {
        wire.get(&data(1, &[0; FIRST / 4])).unwrap();
        wire.machine.taken(StreamId::new(1), FIRST / 4);
        told += announced(&mut wire, 1);
    }
    let sent = 64 * FIRST / 4;
    assert!(FIRST + told - sent > 3 << 20, "{} bytes may be sent", FIRST + told - sent);
    assert!(FIRST + told - sent <= 4 << 20);
}

/// How much the peer may send on all streams after 64 times a quarter of the window that a tunnel begins with.
fn tunnels_window_after_much_was_taken(may_grow: bool) -> usize {
    let mut wire = Wire::serving();
    wire.machine.let_windows_grow(may_grow);
    let first = FIRST_CONNECTION_WINDOW as usize;
    let (mut told, mut sent) = (0, 0);
    for _ in 0..64 {
        wire.get(&data(1, &[0; FIRST / 4])).unwrap();
        sent += FIRST / 4;
        wire.machine.taken(StreamId::new(1), FIRST / 4);
        told += announced(&mut wire, 0);
    }
    first + told - sent
}

#[test]
fn the_window_of_a_tunnel_that_drains_grows_to_the_configured_size_unless_it_may_not() {
    let grown = tunnels_window_after_much_was_taken(true);
    assert!(grown > 12 << 20 && grown <= 16 << 20, "{grown} bytes may be sent");
    let kept = tunnels_window_after_much_was_taken(false);
    assert!(kept <= 1 << 20, "{kept} bytes may be sent");
}

#[test]
fn the_window_of_a_stream_that_lags_stays_as_it_is() {
    let mut wire = Wire::serving();
    wire.get(&data(1, &[0; FIRST / 2])).unwrap();
    let mut told = 0;
    for _ in 0..64 {
        // Half a window always waits.
        wire.get(&data(1, &[0; FIRST / 4])).unwrap();
        wire.machine.taken(StreamId::new(1), FIRST / 4);
        told += announced(&mut wire, 1);
    }
    assert_eq!(told, 64 * FIRST / 4, "what was taken and not a byte more");
}

fn announced(wire: &mut Wire, stream: u32) -> usize {
    let prefix = format!("WINDOW_UPDATE {stream} ");
    wire.out().iter().filter_map(|line| line.strip_prefix(&prefix)).map(|n| n.parse::<usize>().unwrap()).sum()
}

#[test]
fn a_smaller_window_is_not_held_against_a_peer_that_has_not_read_of_it() {
    let config = Config { stream_window: 1_000, ..CONFIG };
    let mut server =
        Wire { machine: Machine::new(Role::Server, config, Instant::now()), now: Instant::now() };
    server.get(PREFACE).unwrap();
    server.get(&settings(&[])).unwrap();
    server.get(&connect(1)).unwrap();
    assert_eq!(server.get(&data(1, &[0; 65_535])).unwrap().len(), 1);
    server.get(&settings_ack()).unwrap();
    server.out();
    // From here on its streams have what the SETTINGS say, and this one is that much overdrawn.
    server.get(&connect(3)).unwrap();
    assert!(server.get(&data(3, &[0; 1_001])).unwrap()[0].starts_with("3: Broken(Window)"));
    server.machine.taken(StreamId::new(1), 65_535);
    assert_eq!(server.get(&data(1, &[0; 1_000])).unwrap().len(), 1);
    assert!(server.get(&data(1, &[0])).unwrap()[0].starts_with("1: Broken(Window)"));
}

#[test]
fn what_is_sent_keeps_to_both_windows_and_to_the_frame_size() {
    let mut wire = Wire::new(Role::Server, CONFIG, &[(4, 100_000), (5, 20_000)]);
    wire.get(&[connect(1), connect(3)].concat()).unwrap();
    let (one, three) = (StreamId::new(1), StreamId::new(3));
    wire.machine.respond(one, []).unwrap();
    wire.machine.respond(three, []).unwrap();
    assert_eq!(wire.machine.room(one), 20_000);
    assert_eq!(wire.machine.send(one, 20_001, false), Err(SendError::Room { length: 20_001, room: 20_000 }));
    assert_eq!(wire.machine.send(one, 0, false), Err(SendError::Nothing));
    for _ in 0..3 {
        wire.machine.send(one, 20_000, false).unwrap();
    }
    assert_eq!((wire.machine.room(one), wire.machine.room(three)), (5_535, 5_535));
    wire.machine.send(three, 5_535, false).unwrap();
    assert_eq!(wire.machine.room(one), 0);
    // An end needs no window (§6.9.1).
    wire.machine.send(three, 0, true).unwrap();
    assert_eq!(wire.get(&update(0, 50_000)).unwrap(), ["writable"]);
    assert_eq!(wire.get(&update(0, 10_000)).unwrap(), [""; 0], "it was open already");
    for _ in 0..2 {
        wire.machine.send(one, 20_000, false).unwrap();
    }
    assert_eq!(wire.machine.room(one), 0, "its own window is used up");
    assert_eq!(wire.get(&update(1, 7)).unwrap(), ["1: writable"]);
    assert_eq!(wire.machine.room(one), 7);
}

#[test]
fn a_change_of_the_peers_initial_window_changes_open_streams() {
    let mut wire = Wire::serving();
    let stream = StreamId::new(1);
    wire.machine.send(stream, 10_000, false).unwrap();
    wire.get(&settings(&[(4, 5_000)])).unwrap();
    assert_eq!(wire.machine.room(stream), 0, "5,535 below zero");
    wire.get(&update(1, 5_000)).unwrap();
    assert_eq!(wire.machine.room(stream), 0);
    assert_eq!(wire.get(&settings(&[(4, 6_000)])).unwrap(), ["writable"]);
    assert_eq!(wire.machine.room(stream), 1_000);
}

/// One, four or sixty-four stalled streams of a hundred do not stop the others.
#[test]
fn streams_whose_applications_take_nothing_leave_the_tunnels_window_to_the_others() {
    for stalled in [1u32, 4, 64] {
        let mut wire = Wire::server();
        let streams: Vec<u32> = (0..100).map(|n| 2 * n + 1).collect();
        for &stream in &streams {
            wire.get(&connect(stream)).unwrap();
            wire.machine.respond(StreamId::new(stream), []).unwrap();
        }
        for &stream in &streams[..stalled as usize] {
            // All that it may send; it leaves the arena for the backlog.
            assert_eq!(wire.get(&data(stream, &[0; FIRST])).unwrap().len(), 1);
        }
        for _ in 0..10 {
            for &stream in &streams[stalled as usize..] {
                let told = wire.get(&data(stream, &[0; 100_000])).unwrap();
                assert_eq!(told.len(), 1, "stream {stream} beside {stalled} stalled ones");
                wire.machine.taken(StreamId::new(stream), 100_000);
            }
        }
    }
}

#[test]
fn data_of_a_stream_that_is_reset_in_the_middle_of_a_frame_is_given_back() {
    let mut wire = Wire::new(Role::Server, Config { connection_window: 65_535, ..CONFIG }, &[]);
    for round in 0..100u32 {
        let stream = 2 * round + 1;
        wire.get(&connect(stream)).unwrap();
        let frame = data(stream, &[0; 40_000]);
        assert_eq!(wire.get(&frame[..20_000]).unwrap().len(), 1);
        wire.machine.reset(StreamId::new(stream), Code::CANCEL);
        assert_eq!(wire.get(&frame[20_000..]), Ok(vec![]), "round {round}");
    }
}

#[test]
fn padding_alone_is_announced_to_the_stream_too() {
    let mut wire = Wire::serving();
    let padding = [&[255u8][..], &[0; 255]].concat();
    for _ in 0..10_000 {
        assert_eq!(wire.get(&frame(FrameKind::DATA, flag::PADDED, 1, &padding)), Ok(vec![]));
        wire.later(Duration::from_millis(100));
    }
    assert_eq!(wire.get(&data(1, b"x")).unwrap(), ["1: data x"]);
}

#[test]
fn a_worker_may_keep_windows_as_they_are() {
    let mut wire = Wire::serving();
    wire.machine.let_windows_grow(false);
    let mut told = 0;
    for _ in 0..64 {
        wire.get(&data(1, &[0; FIRST / 4])).unwrap();
        wire.machine.taken(StreamId::new(1), FIRST / 4);
        told += announced(&mut wire, 1);
    }
    assert_eq!(told, 64 * FIRST / 4);
}

/// Every way in which DATA comes and goes, and at the end everything is returned: no credit has leaked, none was given twice.
#[test]
fn when_all_is_taken_the_windows_are_whole_whatever_happened() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut wire = Wire::new(Role::Server, Config { connection_window: 1 << 20, ..CONFIG }, &[]);
        let mut next = 1;
        let (mut in_arena, mut untaken) = (0, Vec::new());
        for _ in 0..300 {
            wire.later(Duration::from_millis(100));
            if wire.machine.streams() < 20 && random.bool() {
                wire.get(&connect(next)).unwrap();
                if random.bool() {
                    wire.machine.respond(StreamId::new(next), []).unwrap();
                }
                next += 2;
            }
            // Also on streams that are over.
            let stream = 2 * random.u32(next.saturating_sub(40) / 2..=next / 2) + 1;
            let open = usize::try_from(wire.machine.receive.open()).unwrap();
            if stream >= next || open < 3_000 {
                wire.machine.left_arena(std::mem::take(&mut in_arena));
                continue;
            }
            let mut payload = vec![0; random.usize(2..3_000)];
            payload[0] = random.u8(..=u8::try_from((payload.len() - 1).min(255)).unwrap());
            let padded = if random.bool() { flag::PADDED } else { 0 };
            let end = if random.u8(..) < 20 { flag::END_STREAM } else { 0 };
            if matches!(
                wire.machine.streams.gone(stream),
                Some(stream::Gone::Ended | stream::Gone::ResetByPeer)
            ) {
                continue;
            }
            let frame = frame(FrameKind::DATA, padded | end, stream, &payload);
            let cut = random.usize(..=frame.len());
            for mut piece in [&frame[..cut], &frame[cut..]] {
                while let Some(action) = wire.machine.read(&mut piece, wire.now).unwrap() {
                    if let Action::Data { stream, bytes, .. } = action {
                        in_arena += bytes.len();
                        untaken.push((stream, bytes.len()));
                    }
                }
                match random.u8(..12) {
                    0 => wire.machine.reset(StreamId::new(stream), Code::CANCEL),
                    1 => wire.machine.left_arena(std::mem::take(&mut in_arena)),
                    2 => untaken
                        .pop()
                        .into_iter()
                        .for_each(|(stream, bytes)| wire.machine.taken(stream, bytes)),
                    3 => drop(wire.machine.finish(StreamId::new(stream))),
                    _ => {}
                }
            }
            if random.u8(..) < 10 {
                wire.get(&rst(stream, Code::CANCEL)).unwrap();
            }
            wire.out();
        }
        wire.machine.left_arena(in_arena);
        for (stream, bytes) in untaken {
            wire.machine.taken(stream, bytes);
        }
        assert_eq!(wire.machine.receive.owed(), 0, "seed {seed}");
        for stream in wire.machine.streams.iter_mut() {
            assert_eq!((stream.receive.owed(), stream.untaken), (0, 0), "seed {seed}, stream {}", stream.id);
        }
    }
}

/// Two callers with more DATA queued than the wire between them holds: as long as both go on reading, bytes go on moving.
#[test]
fn callers_that_go_on_reading_never_wait_for_each_other() {
    const PIPE: usize = 512 << 10;
    let now = Instant::now();
    let mut machines = [Machine::new(Role::Client, CONFIG, now), Machine::new(Role::Server, CONFIG, now)];
    let stream = machines[0].open("a:1", []).unwrap();
    // Towards each machine; and what each has said that the wire does not hold yet.
    let (mut wires, mut queues): ([Vec<u8>; 2], [Vec<u8>; 2]) = Default::default();
    let mut carried = [0, 0];
    for turn in 0..2_000 {
        for side in [0, 1] {
            let machine = &mut machines[side];
            queues[side].extend(machine.output());
            machine.sent(machine.output().len());
            while queues[side].len() < 1 << 20 && machine.room(stream) > 0 {
                let length = machine.room(stream).min(64 << 10);
                let head = machine.send(stream, length, false).unwrap();
                queues[side].extend(head);
                queues[side].extend(vec![0; length]);
            }
            let fits = queues[side].len().min(PIPE - wires[1 - side].len());
            wires[1 - side].extend(queues[side].drain(..fits));
            let arrived = wires[side].len().min(64 << 10);
            let bytes: Vec<u8> = wires[side].drain(..arrived).collect();
            let mut rest = &bytes[..];
            while let Some(action) = machine.read(&mut rest, now).unwrap() {
                match action {
                    Action::Request { stream, .. } => machine.respond(stream, []).unwrap(),
                    Action::Data { stream, bytes, .. } => {
                        carried[side] += bytes.len();
                        machine.left_arena(bytes.len());
                        machine.taken(stream, bytes.len());
                    }
                    _ => {}
                }
            }
        }
        assert!(turn < 100 || carried.iter().all(|bytes| *bytes > turn * 10_000), "turn {turn}: {carried:?}");
    }
}

#[test]
fn padding_is_given_back_at_once() {
    let mut wire =
        Wire::new(Role::Server, Config { connection_window: 65_535, stream_window: 65_535, ..CONFIG }, &[]);
    wire.get(&connect(1)).unwrap();
    let padded = [&[255u8][..], b"x", &[0; 255]].concat();
    for _ in 0..10_000 {
        assert_eq!(wire.get(&frame(FrameKind::DATA, flag::PADDED, 1, &padded)).unwrap(), ["1: data x"]);
        wire.machine.taken(StreamId::new(1), 1);
    }
}

#[test]
fn what_is_left_of_a_tunnels_window_is_announced_by_its_own_quarter() {
    let mut wire = Wire::new(Role::Server, Config { connection_window: 1 << 20, ..CONFIG }, &[]);
    wire.machine.let_windows_grow(false);
    for stream in [1, 3, 5, 7] {
        wire.get(&connect(stream)).unwrap();
    }
    // Three quarters and more of the window go to applications that take nothing.
    for stream in [1, 3, 5] {
        let mut bytes = &data(stream, &[0; FIRST])[..];
        assert!(wire.machine.read(&mut bytes, wire.now).unwrap().is_some());
    }
    wire.machine.hold_back(3 * FIRST);
    // What a fourth takes comes back while the peer may still send: it never has to stop.
    let mut told = 0;
    for _ in 0..100 {
        wire.get(&data(7, &[0; FIRST / 8])).unwrap();
        wire.machine.taken(StreamId::new(7), FIRST / 8);
        told += announced(&mut wire, 0);
    }
    assert!(told >= 100 * FIRST / 8 - FIRST / 4, "{told}");
    wire.machine.hold_back(0);
    wire.machine.left_arena(3 * FIRST);
    assert!(announced(&mut wire, 0) >= 3 * FIRST);
}
