//! What does a protected record cost beside its cipher, in each direction?
//!
//! Unit: time per iteration and bytes of body per second, by suite and by what is sealed or opened at once: one record
//! of 64 B, 1 KiB or 16 KiB, or a batch of 256 KiB, which is 16 full records.
//!
//! - `seal`, `open`: this room's, on slots as they go to and come from a socket.
//! - `seal-raw`, `open-raw`: the reference, aws-lc's plain AEAD on the same bytes at the same places with the same nonces:
//!   no header, no counting, no limits, no type, no padding.
//! - `key-update`: one KeyUpdate sealed and opened, so two derivations and two new keys.
//! - `state`: both ends of one direction written down and taken up again.
//!
//! Before criterion runs each alone, the first table runs both in turn, so that a machine that slows down slows down
//! both: `ratio` is raw time by ours in the same round, median and quartiles over all rounds; at 16 KiB the aim is 0.90
//! or more.

use std::hint::black_box;
use std::time::{Duration, Instant};

use adit::tls::{
    Content, HEADER, OVERHEAD, Opened, Opener, OpenerState, PeerKeys, Role, SLOT, Sealer, SealerState, Suite,
    TRAILER, TrafficSecret, batch_length, bodies,
};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

const SIZES: [(&str, usize); 4] = [("64B", 64), ("1KiB", 1 << 10), ("16KiB", 1 << 14), ("256KiB", 1 << 18)];
const TAG: usize = 16;
/// How many bytes one round of the table works on, in each way.
const ROUND: usize = 4 << 20;
const ROUNDS: usize = 101;

fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &vec![7; suite.secret_length()]).expect("the suite's length")
}

/// The two ends of one direction, and the bytes between them.
struct Ours {
    sealer: Sealer,
    opener: Opener,
    batch: Vec<u8>,
}

impl Ours {
    fn new(suite: Suite, size: usize) -> Self {
        let mut batch = vec![0; batch_length(size)];
        bodies(&mut batch).for_each(|body| body.fill(0x61));
        Self {
            sealer: Sealer::new(secret(suite), 0),
            opener: Opener::new(Role::Server, secret(suite), 0),
            batch,
        }
    }

    /// Time to seal; opened again outside it.
    fn seal(&mut self) -> Duration {
        self.update();
        let from = Instant::now();
        self.sealer.seal_batch(black_box(&mut self.batch)).expect("an open sealer");
        let took = from.elapsed();
        self.open_all();
        took
    }

    /// Time to open what was sealed outside it.
    fn open(&mut self) -> Duration {
        self.update();
        self.sealer.seal_batch(&mut self.batch).expect("an open sealer");
        let from = Instant::now();
        self.open_all();
        from.elapsed()
    }

    fn open_all(&mut self) {
        let mut rest = black_box(&mut self.batch[..]);
        while !rest.is_empty() {
            let Ok(Opened::Record { taken, content: Content::Data(data) }) = self.opener.open(rest) else {
                panic!("what was sealed opens");
            };
            black_box(data);
            rest = &mut rest[taken..];
        }
    }

    fn update(&mut self) {
        if self.sealer.key_update_due() {
            self.key_update();
        }
    }

    fn key_update(&mut self) {
        let mut record = self.sealer.seal_key_update(PeerKeys::Stay).expect("an open sealer").to_vec();
        let opened = self.opener.open(&mut record);
        assert!(matches!(opened, Ok(Opened::Record { content: Content::KeysChanged { .. }, .. })));
        // Data between keeps the opener from losing its patience.
        let mut data = [0; OVERHEAD + 1];
        self.sealer.seal(&mut data).expect("an open sealer");
        assert!(self.opener.open(&mut data).is_ok());
    }

    fn move_on(self) -> Self {
        let now = Instant::now();
        let sealer = self.sealer.into_state().expect("it has not failed").encode(now);
        let opener = self.opener.into_state().expect("it has not failed").encode(now);
        Self {
            sealer: Sealer::resume(SealerState::decode(black_box(&sealer), now).expect("just written")),
            opener: Opener::resume(OpenerState::decode(black_box(&opener), now).expect("just written")),
            batch: self.batch,
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
    fn new(suite: Suite, size: usize) -> Self {
        let (cipher, length) = match suite {
            Suite::Aes128 => (&AES_128_GCM, 16),
            Suite::Aes256 => (&AES_256_GCM, 32),
        };
        let key = UnboundKey::new(cipher, &vec![7; length]).expect("the cipher's length");
        Self { key: LessSafeKey::new(key), sequence: 0, batch: vec![0x61; batch_length(size)] }
    }

    fn seal(&mut self) -> Duration {
        let before = self.sequence;
        let from = Instant::now();
        self.seal_all();
        let took = from.elapsed();
        self.open_all(before);
        took
    }

    fn open(&mut self) -> Duration {
        let before = self.sequence;
        self.seal_all();
        let from = Instant::now();
        self.open_all(before);
        from.elapsed()
    }

    fn seal_all(&mut self) {
        for slot in black_box(&mut self.batch).chunks_mut(SLOT) {
            let tag_at = slot.len() - HEADER - TAG;
            let (inner, tag_room) = slot[HEADER..].split_at_mut(tag_at);
            let aad = Aad::from([0; HEADER]);
            let tag =
                self.key.seal_in_place_separate_tag(nonce(self.sequence), aad, inner).expect("in limits");
            tag_room.copy_from_slice(tag.as_ref());
            self.sequence += 1;
        }
    }

    fn open_all(&mut self, mut sequence: u64) {
        for slot in black_box(&mut self.batch).chunks_mut(SLOT) {
            let tag_at = slot.len() - HEADER - TAG;
            let (inner, tag) = slot[HEADER..].split_at_mut(tag_at);
            let aad = Aad::from([0; HEADER]);
            black_box(
                self.key.open_in_place_separate_tag(nonce(sequence), aad, tag, inner).expect("authentic"),
            );
            sequence += 1;
        }
    }
}

fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Both in turn, round by round.
fn table() {
    println!(
        "record/interleaved: ns per operation (median) and ratio raw/ours: median [quartiles], {ROUNDS} rounds"
    );
    let mut clock: Vec<Duration> = (0..10_001).map(|_| Instant::now().elapsed()).collect();
    clock.sort();
    println!("  each includes what reading the clock costs, {} ns", clock[clock.len() / 2].as_nanos());
    for suite in Suite::ALL {
        for (name, size) in SIZES {
            let mut ours = Ours::new(suite, size);
            let mut raw = Raw::new(suite, size);
            let turns = u32::try_from((ROUND / (size + 1024)).max(1)).expect("a small number");
            for (way, of_ours, of_raw) in [
                ("seal", Ours::seal as fn(&mut Ours) -> Duration, Raw::seal as fn(&mut Raw) -> Duration),
                ("open", Ours::open, Raw::open),
            ] {
                let mut rounds = Vec::new();
                for _ in 0..ROUNDS {
                    let (mut a, mut b) = (Duration::ZERO, Duration::ZERO);
                    for _ in 0..turns {
                        a += of_ours(&mut ours);
                        b += of_raw(&mut raw);
                    }
                    rounds.push((a.as_secs_f64(), b.as_secs_f64()));
                }
                let sorted = |of: fn(&(f64, f64)) -> f64| {
                    let mut all: Vec<f64> = rounds.iter().map(of).collect();
                    all.sort_by(f64::total_cmp);
                    all
                };
                let ratio = sorted(|(ours, raw)| raw / ours);
                let per_turn = |all: Vec<f64>| all[ROUNDS / 2] * 1e9 / f64::from(turns);
                println!(
                    "  {suite:?} {way} {name:>6}: ours {:9.1}, raw {:9.1}, ratio {:.3} [{:.3} - {:.3}]",
                    per_turn(sorted(|(ours, _)| *ours)),
                    per_turn(sorted(|(_, raw)| *raw)),
                    ratio[ROUNDS / 2],
                    ratio[ROUNDS / 4],
                    ratio[ROUNDS * 3 / 4],
                );
            }
        }
    }
}

fn records(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let mut group = criterion.benchmark_group(format!("record/{suite:?}"));
        for (name, size) in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            let mut ours = Ours::new(suite, size);
            let mut raw = Raw::new(suite, size);
            group.bench_function(BenchmarkId::new("seal", name), |bench| {
                bench.iter_custom(|times| (0..times).map(|_| ours.seal()).sum());
            });
            group.bench_function(BenchmarkId::new("seal-raw", name), |bench| {
                bench.iter_custom(|times| (0..times).map(|_| raw.seal()).sum());
            });
            group.bench_function(BenchmarkId::new("open", name), |bench| {
                bench.iter_custom(|times| (0..times).map(|_| ours.open()).sum());
            });
            group.bench_function(BenchmarkId::new("open-raw", name), |bench| {
                bench.iter_custom(|times| (0..times).map(|_| raw.open()).sum());
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group(format!("record/{suite:?}"));
        let mut ours = Ours::new(suite, 64);
        group.bench_function("key-update", |bench| bench.iter(|| ours.key_update()));
        let mut ours = Some(Ours::new(suite, 64));
        group.bench_function("state", |bench| bench.iter(|| ours = ours.take().map(Ours::move_on)));
        group.finish();
    }
}

criterion_group!(benches, records);

fn main() {
    const { assert!(OVERHEAD == HEADER + TRAILER) };
    if std::env::args().any(|arg| arg == "--bench") && !std::env::args().any(|arg| arg == "--test") {
        table();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
