//! Whatever comes, and in whatever pieces: no panic, bounded memory, the same meaning; and between two machines, every
//! byte once and in order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Frames of all kinds, with and without sense.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![Just(0u32), 1u32..12, any::<u32>()];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(block(&CONNECT)),
        Just(block(&[(":status", "200")])),
        Just(vec![0; 8]),
        Just(vec![0, 0, 0, 1]),
    ];
    let wild = (0u8..12, any::<u8>(), stream, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(FrameKind(kind), flags, stream, &payload));
    let id = (0u32..6).prop_map(|n| 2 * n + 1);
    prop_oneof![
        1 => wild,
        3 => id.clone().prop_map(connect),
        3 => id.clone().prop_map(ok),
        4 => (id.clone(), 0usize..2_000).prop_map(|(stream, length)| data(stream, &vec![7; length])),
        2 => (id.clone(), 0usize..20).prop_map(|(stream, length)| last_data(stream, &vec![7; length])),
        2 => (id.clone(), 0u32..14).prop_map(|(stream, code)| rst(stream, Code(code))),
        2 => (id, 0u32..100_000).prop_map(|(stream, increment)| update(stream, increment)),
        1 => (1u16..10, 0u32..100_000).prop_map(|entry| settings(&[entry])),
        1 => (0u32..12).prop_map(|last| goaway(last, Code::NO_ERROR, "?")),
        1 => Just(settings_ack()),
    ]
}

fn both() -> [Wire; 2] {
    let mut client = Wire::client();
    for _ in 0..4 {
        client.machine.open("10.0.0.1:80", []).unwrap();
    }
    [client, Wire::server()]
}

/// What is told and said for `bytes`, cut at `cuts`. Rows of DATA of one stream are joined, as every cut divides one.
fn meaning(wire: &mut Wire, bytes: &[u8], cuts: &[Index]) -> (Vec<String>, Vec<u8>, Option<Error>) {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let (mut told, mut at) = (Vec::<String>::new(), 0);
    for end in ends {
        let mut piece = &bytes[at..end];
        at = end;
        while let Ok(Some(action)) = wire.machine.read(&mut piece, wire.now) {
            let mut next = line(&action);
            if let Action::Data { stream, bytes, .. } = action {
                wire.machine.left_arena(bytes.len());
                let row = format!("{stream}: data ");
                if told.last().is_some_and(|last| last.starts_with(&row) && !last.ends_with("end")) {
                    next = told.pop().unwrap_or_default() + &next[row.len()..];
                }
            }
            told.push(next);
        }
    }
    (told, wire.machine.output().to_vec(), wire.machine.failure().cloned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for mut wire in both() {
            let result = wire.get(&bytes);
            prop_assert!(wire.machine.output().len() <= 64 << 10);
            prop_assert_eq!(result.err(), wire.machine.failure().cloned());
        }
        let mut fresh = Machine::new(Role::Server, CONFIG, Instant::now());
        let _ = fresh.read(&mut &bytes[..], Instant::now());
    }

    #[test]
    fn arbitrary_frames_never_panic_and_a_failure_says_goaway(frames in prop::collection::vec(any_frame(), 0..60)) {
        for mut wire in both() {
            wire.out();
            for frame in &frames {
                let failed = wire.get(frame).is_err();
                let ids: Vec<_> = (0..6).map(|n| StreamId::new(2 * n + 1)).collect();
                for &stream in &ids {
                    let _ = wire.machine.respond(stream, []);
                    wire.machine.taken(stream, 500);
                    let room = wire.machine.room(stream).min(300);
                    let _ = wire.machine.send(stream, room, room % 7 == 3);
                }
                let out = wire.out();
                prop_assert_eq!(failed, out.iter().any(|line| line.starts_with("GOAWAY")));
                if failed {
                    break;
                }
            }
            wire.later(Duration::from_secs(60));
            let _ = wire.machine.on_time(wire.now);
        }
    }

    #[test]
    fn how_bytes_are_cut_makes_no_difference(
        frames in prop::collection::vec(any_frame(), 0..30), cuts in prop::collection::vec(any::<Index>(), 0..40)
    ) {
        let bytes = frames.concat();
        for (mut whole, mut cut) in both().into_iter().zip(both()) {
            let expected = meaning(&mut whole, &bytes, &[]);
            let got = meaning(&mut cut, &bytes, &cuts);
            prop_assert_eq!(&got.0, &expected.0);
            prop_assert_eq!(got.1, expected.1);
            prop_assert_eq!(got.2, expected.2);
        }
    }
}

/// What one application of the model has to say, and what it has heard.
#[derive(Default)]
struct End {
    sent: Vec<u8>,
    ended: bool,
    heard: Vec<u8>,
    heard_end: bool,
    cut: bool,
}

/// Both machines, the wire between them in pieces, and what the applications at both ends know.
struct Model {
    random: fastrand::Rng,
    now: Instant,
    machines: [Machine; 2],
    /// Bytes on their way to each machine.
    wires: [Vec<u8>; 2],
    ends: [BTreeMap<StreamId, End>; 2],
    untaken: [BTreeMap<StreamId, usize>; 2],
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let mut config = || Config {
            stream_window: random.u32(1..600_000),
            connection_window: random.u32(1..1_000_000),
            frame_size: random.u32(16_384..100_000),
            streams: random.u32(1..20),
            ..CONFIG
        };
        let machines = [Machine::new(Role::Client, config(), now), Machine::new(Role::Server, config(), now)];
        Self {
            random,
            now,
            machines,
            wires: Default::default(),
            ends: Default::default(),
            untaken: Default::default(),
        }
    }

    fn flush(&mut self, side: usize) {
        let machine = &mut self.machines[side];
        self.wires[1 - side].extend(machine.output());
        machine.sent(machine.output().len());
    }

    fn deliver(&mut self, side: usize, most: usize) {
        let wire = &mut self.wires[side];
        let bytes: Vec<u8> = wire.drain(..most.min(wire.len())).collect();
        let mut rest = &bytes[..];
        while let Some(action) =
            self.machines[side].read(&mut rest, self.now).expect("both keep to the rules")
        {
            match action {
                Action::Request { stream, .. } => {
                    self.ends[side].insert(stream, End::default());
                    if self.random.u8(..) < 20 {
                        self.machines[side].refuse(stream, http::StatusCode::SERVICE_UNAVAILABLE).unwrap();
                        self.ends[side].remove(&stream);
                        self.untaken[side].remove(&stream);
                        return self.reread(side, rest.to_vec());
                    }
                    self.machines[side].respond(stream, []).unwrap();
                }
                Action::Response { stream, response, .. } => {
                    let end = self.ends[side].get_mut(&stream).unwrap();
                    end.cut |= !response.status.is_success();
                }
                Action::Data { stream, bytes, end } => {
                    self.machines[side].left_arena(bytes.len());
                    *self.untaken[side].entry(stream).or_default() += bytes.len();
                    let application = self.ends[side].get_mut(&stream).unwrap();
                    assert!(!application.heard_end && !application.cut, "nothing comes behind the end");
                    application.heard.extend(bytes);
                    application.heard_end |= end;
                }
                Action::Reset { stream, .. } => {
                    if let Some(end) = self.ends[side].get_mut(&stream) {
                        end.cut = true;
                    }
                }
                Action::Ready | Action::MayOpen | Action::Writable { .. } | Action::GoAway { .. } => {}
            }
        }
        assert!(rest.is_empty());
    }

    fn reread(&mut self, side: usize, rest: Vec<u8>) {
        self.wires[side].splice(..0, rest);
    }

    fn step(&mut self) {
        let side = self.random.usize(..2);
        let streams: Vec<_> = self.ends[side].iter().filter(|(_, end)| !end.cut).map(|(id, _)| *id).collect();
        let some = (!streams.is_empty()).then(|| streams[self.random.usize(..streams.len())]);
        match (self.random.u8(..100), some) {
            (0..15, _) if side == 0 => {
                if let Ok(stream) = self.machines[0].open("10.0.0.1:80", []) {
                    self.ends[0].insert(stream, End::default());
                }
            }
            (15..50, Some(stream)) => {
                let room = self.machines[side].room(stream);
                let length = self.random.usize(..=room.min(50_000));
                let last = self.random.u8(..) < 25;
                let ready = length > 0 || last;
                if ready && let Ok(head) = self.machines[side].send(stream, length, last) {
                    let payload: Vec<u8> = (0..length).map(|_| self.random.u8(..)).collect();
                    // What stands in the output goes in front of this DATA.
                    self.flush(side);
                    self.wires[1 - side].extend(head);
                    self.wires[1 - side].extend(&payload);
                    let end = self.ends[side].get_mut(&stream).unwrap();
                    end.sent.extend(payload);
                    end.ended = last;
                }
            }
            (50..53, Some(stream)) => {
                self.machines[side].reset(stream, Code::CANCEL);
                self.ends[side].get_mut(&stream).unwrap().cut = true;
            }
            (53..70, Some(stream)) => {
                let untaken = self.untaken[side].entry(stream).or_default();
                let bytes = self.random.usize(..=*untaken);
                *untaken -= bytes;
                self.machines[side].taken(stream, bytes);
            }
            _ => {
                self.flush(side);
                let most = self.random.usize(..60_000);
                self.deliver(1 - side, most);
            }
        }
    }

    /// Everybody takes everything.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "it never settles");
            for side in [0, 1] {
                for (stream, untaken) in std::mem::take(&mut self.untaken[side]) {
                    self.machines[side].taken(stream, untaken);
                }
                self.flush(side);
                self.deliver(1 - side, usize::MAX);
            }
            if self.wires.iter().all(Vec::is_empty) && self.machines.iter().all(|m| m.output().is_empty()) {
                return;
            }
        }
    }
}

#[test]
fn between_two_machines_every_byte_arrives_once_in_order_and_an_end_only_after_all_of_them() {
    let mut carried = 0;
    for seed in 0..60 {
        let mut model = Model::new(seed);
        for _ in 0..600 {
            model.step();
        }
        model.settle();
        let [clients, servers] = &model.ends;
        for (stream, client) in clients {
            let Some(server) = servers.get(stream) else {
                assert!(client.heard.is_empty(), "seed {seed}: {stream} was never served");
                continue;
            };
            for (from, to) in [(client, server), (server, client)] {
                assert!(from.sent.starts_with(&to.heard), "seed {seed}: {stream}");
                if to.heard_end {
                    assert!(from.ended && from.sent.len() == to.heard.len(), "seed {seed}: {stream}");
                }
                if !client.cut && !server.cut {
                    assert_eq!(
                        (to.heard_end, to.heard.len()),
                        (from.ended, from.sent.len()),
                        "seed {seed}: {stream}"
                    );
                }
                carried += to.heard.len();
            }
        }
        for machine in &model.machines {
            assert!(machine.failure().is_none());
            assert_eq!(machine.receive.owed(), 0, "seed {seed}: the tunnel's window is whole");
        }
    }
    assert!(carried > 10 << 20, "{carried} bytes");
}
