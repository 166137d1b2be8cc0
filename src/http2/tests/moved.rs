//! A machine that moves to another process goes on as if it had not.

use proptest::prelude::*;

use super::*;

/// All that a busy server gets, and all that it does between: answers, DATA, ends, in a fixed order.
fn script() -> Vec<u8> {
    let fields = block(&[CONNECT[0], CONNECT[1], ("baggage", "k8s.namespace.name=shop")]);
    // The client's encoder uses its table, so that moving it matters.
    let inserting = [&fields[..], &[0x40, 1, b'x', 1, b'y']].concat();
    let reusing = [&block(&CONNECT)[..], &[0xbe]].concat();
    let padded = [&[3, 0, 0, 0, 0, 9][..], &inserting, &[0; 3]].concat();
    [
        PREFACE.to_vec(),
        settings(&[(3, 100), (4, 70_000), (5, 20_000), (6, 1 << 20)]),
        update(0, 1 << 20),
        frame(FrameKind::HEADERS, flag::PADDED | flag::PRIORITY | flag::END_HEADERS, 1, &padded),
        settings_ack(),
        data(1, b"hello"),
        frame(FrameKind::HEADERS, 0, 3, &reusing[..4]),
        frame(FrameKind::CONTINUATION, flag::END_HEADERS, 3, &reusing[4..]),
        frame(FrameKind::DATA, flag::PADDED, 3, &[&[2][..], b"padded", &[0; 2]].concat()),
        update(1, 1_000),
        frame(FrameKind::PING, 0, 0, b"12345678"),
        frame(FrameKind(0x42), 0, 0, b"unknown"),
        settings(&[(4, 60_000), (1, 0)]),
        last_data(1, b"bye"),
        connect(5),
        rst(5, Code::CANCEL),
        data(3, &[b'x'; 300]),
        rst(3, Code::CANCEL),
        goaway(0, Code::NO_ERROR, "leaving"),
    ]
    .concat()
}

/// Runs the script, byte position by byte position; at each of `moves` the machine is written down and taken up.
fn run(script: &[u8], moves: &[usize]) -> (Vec<String>, Vec<u8>) {
    let mut wire = Wire { machine: Machine::new(Role::Server, CONFIG, Instant::now()), now: Instant::now() };
    let (mut told, mut output, mut at) = (Vec::new(), Vec::new(), 0);
    for end in moves.iter().copied().chain([script.len()]) {
        play(&mut wire, &script[at..end], &mut told);
        at = end;
        // Some of the output is always on its way, a part of a frame among it.
        let sent = wire.machine.output().len() * 2 / 3;
        output.extend(&wire.machine.output()[..sent]);
        wire.machine.sent(sent);
        let elsewhere = wire.now + Duration::from_secs(7_777);
        let state = wire.machine.into_state(wire.now).expect("nothing is left to read");
        wire = Wire { machine: Machine::from_state(&state, elsewhere).unwrap(), now: elsewhere };
        let again = Machine::from_state(&state, elsewhere).unwrap().into_state(elsewhere).unwrap();
        assert_eq!(again, state, "what is read back is what was written");
    }
    output.extend(wire.machine.output());
    (told, output)
}

fn play(wire: &mut Wire, script: &[u8], told: &mut Vec<String>) {
    for part in script.chunks(1) {
        for line in wire.get(part).unwrap() {
            react(&mut wire.machine, &line);
            told.push(line);
        }
    }
}

/// What the caller does, so that windows, backlog and states move on.
fn react(machine: &mut Machine, line: &str) {
    let (stream, what) = line.split_once(": ").unwrap_or(("", line));
    let Ok(id) = stream.parse() else { return };
    let stream = StreamId::new(id);
    if what.starts_with("CONNECT") && id != 5 {
        machine.respond(stream, [(&b"baggage"[..], &b"a=b"[..])]).unwrap();
    } else if what.starts_with("data") {
        machine.taken(stream, 1);
        machine.send(stream, 3, what.ends_with("end")).unwrap();
    }
}

/// Bytes of payload lines joined, since a move in the middle of a payload cuts it in another place.
fn joined(told: &[String]) -> Vec<String> {
    told.iter().map(|line| line.replace(": data ", ": ")).collect()
}

#[test]
fn a_machine_that_moves_at_any_byte_goes_on_as_if_it_had_not() {
    let script = script();
    let unmoved = run(&script, &[]);
    assert!(unmoved.0.len() > 20, "{:?}", unmoved.0);
    for at in 0..script.len() {
        let moved = run(&script, &[at]);
        assert_eq!((joined(&moved.0), &moved.1), (joined(&unmoved.0), &unmoved.1), "moved at byte {at}");
    }
    let everywhere: Vec<_> = (0..script.len()).collect();
    assert_eq!(run(&script, &everywhere), unmoved);
}

#[test]
fn deadlines_keep_their_distance() {
    let mut wire = Wire::serving();
    wire.later(PING_AFTER);
    wire.machine.on_time(wire.now).unwrap();
    wire.machine.shutdown(wire.now);
    let left = wire.machine.deadline().unwrap() - wire.now;
    let state = wire.machine.into_state(wire.now).unwrap();
    let elsewhere = wire.now + Duration::from_secs(3_600);
    let machine = Machine::from_state(&state, elsewhere).unwrap();
    assert_eq!(machine.deadline(), Some(elsewhere + left));
}

#[test]
fn what_is_spent_stays_spent_and_what_a_worker_forbids_stays_forbidden() {
    let mut wire = Wire::serving();
    wire.machine.let_windows_grow(false);
    let (most, _) = Nuisance::Priority.allowance();
    let priority = frame(FrameKind::PRIORITY, 0, 1, &[0; 5]);
    for _ in 0..most {
        wire.get(&priority).unwrap();
    }
    let state = wire.machine.into_state(wire.now).unwrap();
    let mut wire = Wire { machine: Machine::from_state(&state, wire.now).unwrap(), now: wire.now };
    wire.get(&data(1, &[0; 256 << 10])).unwrap();
    wire.machine.taken(StreamId::new(1), 256 << 10);
    let updates = [0, 1].map(|stream| format!("WINDOW_UPDATE {stream} {}", 256 << 10));
    assert_eq!(wire.out(), updates, "what was taken and not a byte more");
    assert_eq!(wire.get(&priority), Err(Error::Flood(Nuisance::Priority)));
}

#[test]
fn a_machine_that_failed_or_has_more_to_tell_stays() {
    let mut wire = Wire::serving();
    wire.get(&settings_ack()).unwrap_err();
    assert!(wire.machine.into_state(wire.now).is_err());
    let mut wire = Wire::carrying();
    let bytes = goaway(0, Code::NO_ERROR, "");
    assert!(wire.machine.read(&mut &bytes[..], wire.now).unwrap().is_some());
    let mut machine =
        wire.machine.into_state(wire.now).expect_err("stream 1 is refused, and nobody knows yet");
    assert!(matches!(machine.read(&mut &b""[..], wire.now), Ok(Some(Action::Reset { .. }))));
    assert!(machine.into_state(wire.now).is_ok());
}

/// Values that no machine has, in places that chance would not find.
#[test]
fn a_window_beyond_its_size_is_no_state() {
    let wire = Wire::serving();
    let mut state = wire.machine.into_state(wire.now).unwrap().to_vec();
    let window = [&(1i64 << 20).to_be_bytes()[..], &0u32.to_be_bytes(), &(1u32 << 20).to_be_bytes()].concat();
    let at = state.windows(window.len()).position(|bytes| bytes == window).unwrap();
    for open in [i64::MAX, (1 << 20) + 1, i64::MIN] {
        state[at..at + 8].copy_from_slice(&open.to_be_bytes());
        state[at + 8..at + 12].copy_from_slice(&1u32.to_be_bytes());
        assert!(Machine::from_state(&state, wire.now).is_err(), "{open}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_are_no_state_are_an_error_and_never_a_panic(
        at in 0usize..script().len(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut wire = Wire { machine: Machine::new(Role::Server, CONFIG, Instant::now()), now: Instant::now() };
        play(&mut wire, &script()[..at], &mut Vec::new());
        let mut state = wire.machine.into_state(wire.now).unwrap().to_vec();
        for (index, byte) in flips {
            let index = index.index(state.len());
            state[index] = byte;
        }
        if let Ok(machine) = Machine::from_state(&state, wire.now) {
            let mut wire = Wire { machine, now: wire.now };
            let _ = wire.get(&script()[at..]);
            let _ = wire.machine.on_time(wire.now);
            let _ = wire.machine.into_state(wire.now);
        }
    }
}
