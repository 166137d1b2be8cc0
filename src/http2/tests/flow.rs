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
    for _ in 0..15 {
        wire.machine.left_arena(FIRST);
    }
    // More than has arrived is never given back.
    assert_eq!(wire.out(), [""; 0]);
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
