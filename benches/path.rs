//! What do records and frames together cost a byte of a tunnel, without any socket?
//!
//! Unit: time per chunk and GiB/s of its payload on one thread: one DATA frame's head is put in front of a chunk, which is sealed where
//! it lies, opened where it lies, taken apart by the other side's frame machine, and delivered; windows are given back, and the
//! announcements of that are sealed, opened and read as well. So this is both proxies' work, and what the kernel does is left out.
//! Chunks are 1 KiB, and what fills 1 record or 16 with the frame's head.
//!
//! - `path/tunnel`: all of that, by the suite that two adits agree on.
//! - `path/raw`: AES-256-GCM alone, sealing and opening the same bytes at the same places.
//! - `path/memcpy`: copying them once.

use std::hint::black_box;
use std::time::Instant;

use adit::http2::{self, Action, Config, HEAD, Machine, StreamId};
use adit::tls::{
    Content, HEADER, MAX_BODY, OVERHEAD, Opened, Opener, PeerKeys, Role, SLOT, Sealer, Suite, TRAILER,
    TrafficSecret, batch_length, bodies,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const CHUNKS: [(&str, usize); 3] =
    [("1KiB", 1 << 10), ("16KiB", MAX_BODY - HEAD), ("256KiB", 16 * MAX_BODY - HEAD)];

const CONFIG: Config = Config {
    stream_window: 4 << 20,
    connection_window: 16 << 20,
    frame_size: 1 << 20,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 200,
};

/// One direction of the records: who seals and who opens.
struct Direction {
    sealer: Sealer,
    opener: Opener,
}

impl Direction {
    fn to(role: Role) -> Self {
        let suite = Suite::Aes256;
        let secret = || TrafficSecret::new(suite, &vec![7; suite.secret_length()]).expect("its length");
        Self { sealer: Sealer::new(secret(), 0), opener: Opener::new(role, secret(), 0) }
    }

    /// Seals and opens what stands in the slots of `batch`, where it stands.
    fn cross(&mut self, batch: &mut [u8]) {
        if self.sealer.key_update_due() {
            let mut record = self.sealer.seal_key_update(PeerKeys::Stay).expect("an open sealer").to_vec();
            self.opener.open(&mut record).expect("just sealed");
        }
        self.sealer.seal_batch(batch).expect("an open sealer");
        let mut rest = black_box(batch);
        while !rest.is_empty() {
            let Ok(Opened::Record { taken, content: Content::Data(_) }) = self.opener.open(rest) else {
                panic!("what was sealed opens");
            };
            rest = &mut rest[taken..];
        }
    }
}

/// Both ends of a tunnel with one open stream.
struct Tunnel {
    client: Machine,
    server: Machine,
    up: Direction,
    down: Direction,
    stream: StreamId,
    now: Instant,
    /// The slots that a chunk fills, and the slot of an answer.
    batch: Vec<u8>,
    answer: Vec<u8>,
    payload: usize,
}

impl Tunnel {
    fn new(payload: usize) -> Self {
        let now = Instant::now();
        let mut client = Machine::new(http2::Role::Client, CONFIG, now);
        let mut server = Machine::new(http2::Role::Server, CONFIG, now);
        let stream = client.open("10.77.2.1:8080", []).expect("there is room");
        for _ in 0..3 {
            let greeting = client.output().to_vec();
            client.sent(greeting.len());
            let mut bytes = &greeting[..];
            while let Some(action) = server.read(&mut bytes, now).expect("both keep to the rules") {
                if let Action::Request { stream, .. } = action {
                    server.respond(stream, []).expect("it was just asked");
                }
            }
            let greeting = server.output().to_vec();
            server.sent(greeting.len());
            let mut bytes = &greeting[..];
            while client.read(&mut bytes, now).expect("both keep to the rules").is_some() {}
        }
        let mut batch = vec![0; batch_length(HEAD + payload)];
        bodies(&mut batch).for_each(|body| body.fill(0x61));
        let (up, down) = (Direction::to(Role::Server), Direction::to(Role::Client));
        Self { client, server, up, down, stream, now, batch, answer: Vec::new(), payload }
    }

    /// One chunk from the client's application to the server's. Returns how many bytes were delivered.
    fn carry(&mut self) -> usize {
        assert!(self.client.room(self.stream) >= self.payload, "all windows were given back");
        let head = self.client.send(self.stream, self.payload, false).expect("there is room");
        self.batch[HEADER..HEADER + HEAD].copy_from_slice(&head);
        self.up.cross(&mut self.batch);
        let mut delivered = 0;
        for body in bodies(&mut self.batch) {
            let mut bytes = &body[..];
            while let Some(action) = self.server.read(&mut bytes, self.now).expect("within the windows") {
                if let Action::Data { bytes, .. } = action {
                    delivered += black_box(bytes).len();
                }
            }
        }
        self.server.left_arena(delivered);
        self.server.taken(self.stream, delivered);
        self.give_back();
        delivered
    }

    /// What the server has to say, in one record.
    fn give_back(&mut self) {
        let frames = self.server.output();
        let length = frames.len();
        if length == 0 {
            return;
        }
        self.answer.resize(OVERHEAD + length, 0);
        self.answer[HEADER..HEADER + length].copy_from_slice(frames);
        self.server.sent(length);
        self.down.cross(&mut self.answer);
        let mut bytes = &self.answer[HEADER..HEADER + length];
        while let Some(action) = self.client.read(&mut bytes, self.now).expect("both keep to the rules") {
            black_box(action);
        }
    }
}

/// The cipher alone.
struct Raw {
    key: LessSafeKey,
    sequence: u64,
    batch: Vec<u8>,
}

impl Raw {
    fn new(payload: usize) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("the cipher's length");
        Self { key: LessSafeKey::new(key), sequence: 0, batch: vec![0x61; batch_length(HEAD + payload)] }
    }

    fn carry(&mut self) {
        let before = self.sequence;
        for slot in self.batch.chunks_mut(SLOT) {
            let (inner, tag) = inner(slot);
            let sealed =
                self.key.seal_in_place_separate_tag(nonce(self.sequence), Aad::from([0; HEADER]), inner);
            tag.copy_from_slice(sealed.expect("in limits").as_ref());
            self.sequence += 1;
        }
        for (slot, sequence) in black_box(&mut self.batch).chunks_mut(SLOT).zip(before..) {
            let (inner, tag) = inner(slot);
            let aad = Aad::from([0; HEADER]);
            black_box(
                self.key.open_in_place_separate_tag(nonce(sequence), aad, tag, inner).expect("authentic"),
            );
        }
    }
}

/// What is encrypted of a slot, body and type, and its tag.
fn inner(slot: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let end = slot.len() - HEADER - TRAILER + 1;
    slot[HEADER..].split_at_mut(end)
}

fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, payload) in CHUNKS {
        group.throughput(Throughput::Bytes(payload as u64));
        let mut tunnel = Tunnel::new(payload);
        group.bench_function(BenchmarkId::new("tunnel", name), |bench| {
            bench.iter(|| assert_eq!(tunnel.carry(), payload));
        });
        let mut raw = Raw::new(payload);
        group.bench_function(BenchmarkId::new("raw", name), |bench| bench.iter(|| raw.carry()));
        let (from, mut to) = (vec![0x61; payload], vec![0; payload]);
        group.bench_function(BenchmarkId::new("memcpy", name), |bench| {
            bench.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
        });
    }
}

criterion_group!(benches, chunks);
criterion_main!(benches);
