//! What is done for every record in the steady state asks for no memory.
//!
//! The counter stands in for the system's allocator in this binary. It counts what Rust code asks for on the calling
//! thread; the cipher's own C code is not seen by it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

use std::time::{Duration, Instant};

use adit::http2::{self, Action, HEAD, Machine, StreamId};
use adit::tls::{
    Content, KEY_UPDATE_DUE, MAX_BODY, OVERHEAD, Opened, Opener, PeerKeys, Role, SLOT, Sealer, Suite,
    TrafficSecret, batch_length, bodies,
};
use allocation_counter::{AllocationInfo, measure};

const TURNS: usize = 1000;

fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &vec![7; suite.secret_length()]).unwrap()
}

#[test]
fn the_counter_counts_in_this_binary() {
    let seen = measure(|| drop(std::hint::black_box(vec![0_u8; 100])));
    assert_eq!(seen.count_total, 1);
}

#[test]
fn records_are_sealed_and_opened_without_allocating() {
    for suite in Suite::ALL {
        for body in [1, 1000, MAX_BODY, 3 * MAX_BODY + 9] {
            let mut sealer = Sealer::new(secret(suite), 0);
            let mut opener = Opener::new(Role::Server, secret(suite), 0);
            let mut batch = vec![0; batch_length(body)];
            let mut opened = 0;
            let seen: AllocationInfo = measure(|| {
                for turn in 0..TURNS {
                    for body in bodies(&mut batch) {
                        body[0] = turn.to_le_bytes()[0];
                    }
                    sealer.seal_batch(&mut batch).unwrap();
                    let mut rest = &mut batch[..];
                    while !rest.is_empty() {
                        let Ok(Opened::Record { taken, content: Content::Data(data) }) = opener.open(rest)
                        else {
                            panic!("a record of data was sealed")
                        };
                        assert_eq!(data[0], turn.to_le_bytes()[0]);
                        opened += data.len();
                        rest = &mut rest[taken..];
                    }
                }
            });
            assert_eq!(seen.count_total, 0, "{suite:?}, {body} bytes: {seen:?}");
            assert_eq!(opened, TURNS * body);
        }
    }
}

#[test]
fn refusals_and_small_records_do_not_allocate_either() {
    let mut sealer = Sealer::new(secret(Suite::Aes256), KEY_UPDATE_DUE);
    let mut opener = Opener::new(Role::Client, secret(Suite::Aes256), 0);
    let mut slot = [23; SLOT];
    let seen = measure(|| {
        sealer.owe_key_update();
        assert!(sealer.key_update_due());
        assert!(sealer.seal(&mut slot).is_err());
        assert!(matches!(opener.open(&mut slot[..4]), Ok(Opened::Incomplete { .. })));
        assert!(opener.open(&mut slot).is_err());
        let end = sealer.seal_alert(rustls::AlertDescription::UnexpectedMessage).unwrap();
        assert_eq!(end.len(), OVERHEAD + 2);
        assert!(sealer.seal_key_update(PeerKeys::Stay).is_err());
    });
    assert_eq!(seen.count_total, 0, "{seen:?}");
}

/// A client and a server with one connected stream, and a wire between them that keeps its memory.
struct Frames {
    client: Machine,
    server: Machine,
    stream: StreamId,
    wire: Vec<u8>,
    now: Instant,
}

impl Frames {
    fn new() -> Self {
        let config = http2::Config {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame_size: 1 << 20,
            header_list: 16 << 10,
            header_table: 4_096,
            streams: 100,
        };
        let now = Instant::now();
        let mut client = Machine::new(http2::Role::Client, config, now);
        let server = Machine::new(http2::Role::Server, config, now);
        let stream = client.open("10.0.0.1:80", []).unwrap();
        let mut frames = Self { client, server, stream, wire: Vec::with_capacity(1 << 20), now };
        frames.reach_server();
        frames.server.respond(stream, []).unwrap();
        frames.reach_client();
        frames.reach_server();
        assert!(frames.client.room(stream) > MAX_BODY);
        frames
    }

    fn reach_server(&mut self) -> usize {
        self.wire.extend_from_slice(self.client.output());
        self.client.sent(self.client.output().len());
        take(&mut self.server, &mut self.wire, self.now)
    }

    fn reach_client(&mut self) -> usize {
        self.wire.extend_from_slice(self.server.output());
        self.server.sent(self.server.output().len());
        take(&mut self.client, &mut self.wire, self.now)
    }
}

/// Reads all that is on the wire, in records; the application takes what it gets. How many bytes that is.
fn take(machine: &mut Machine, wire: &mut Vec<u8>, now: Instant) -> usize {
    let mut carried = 0;
    for mut record in wire.chunks(MAX_BODY) {
        while let Some(action) = machine.read(&mut record, now).unwrap() {
            if let Action::Data { stream, bytes, .. } = action {
                carried += bytes.len();
                machine.left_arena(bytes.len());
                machine.taken(stream, bytes.len());
            }
        }
    }
    wire.clear();
    carried
}

#[test]
fn data_windows_and_pings_go_back_and_forth_without_allocating() {
    for length in [1, 64, MAX_BODY - HEAD, 20 * MAX_BODY - HEAD] {
        let mut frames = Frames::new();
        let mut carried = [0, 0];
        let mut turn = |frames: &mut Frames| {
            let length = length.min(frames.client.room(frames.stream)).min(frames.server.room(frames.stream));
            assert!(length > 0);
            let head = frames.client.send(frames.stream, length, false).unwrap();
            frames.wire.extend_from_slice(&head);
            frames.wire.resize(HEAD + length, 7);
            carried[0] += frames.reach_server();
            let head = frames.server.send(frames.stream, length, false).unwrap();
            frames.wire.extend_from_slice(&head);
            frames.wire.resize(HEAD + length, 7);
            carried[1] += frames.reach_client();
            // A sign of life now and then, which the peer answers.
            frames.now += Duration::from_secs(1);
            frames.client.on_time(frames.now + Duration::from_secs(10)).unwrap();
            (frames.reach_server(), frames.reach_client())
        };
        // The first turns find out how much room answers need.
        for _ in 0..100 {
            turn(&mut frames);
        }
        let seen = measure(|| {
            for _ in 0..TURNS {
                turn(&mut frames);
            }
        });
        assert_eq!(seen.count_total, 0, "{length} bytes: {seen:?}");
        assert!(carried[0] == carried[1] && carried[0] >= TURNS * length.min(60_000), "{carried:?}");
    }
}
