//! A peer with a good certificate that does what costs a proxy and brings nobody anything, and a mesh that goes on beside it.
//!
//! Two nodes in real network namespaces, each with a real `adit`; needs root. The hostile peer speaks to port 15008 of a pod. The whole
//! time an application keeps opening connections to the same pod through the mesh, in an open loop: one that is late does not hold up the
//! next. Nobody of these may fail, and what a flood took of memory and descriptors must be given back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

mod frames;
mod gauge;
mod hostile;
mod lawful;
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, SETTINGS, WINDOW_UPDATE};
use frames::{connect, frame, fresh, rst};
use gauge::Gauge;
use hostile::{Hostile, Manner};
use lawful::{Lawful, Times};
use stage::{ECHO, POUR, SINK, Stage};

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(3);
/// Hostile peers at a time.
const PEERS: usize = 2;
/// What a flood may take at any moment.
const MEMORY: u64 = 64 << 20;
/// By when it must have given that back.
const RECOVERY: Duration = Duration::from_secs(30);
/// What the kernel, the allocator and the connections of others make of difference.
const SLACK: u64 = 6 << 20;
const SOME_DESCRIPTORS: usize = 24;

/// What becomes of the tunnels of a hostile peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// They are ended, again and again.
    Ended,
    /// What it does is allowed, and is carried.
    Carried,
    /// Either, by its speed.
    Any,
}

/// One way to be a nuisance: what a peer sends at its turn number `n` on one tunnel.
struct Flood {
    name: &'static str,
    fate: Fate,
    manner: Manner,
    make: fn(u32) -> Vec<u8>,
}

/// Nothing of it reads like a request that is too long: a field of 4,000 bytes goes into the table, and 8,000 bytes call for it.
fn bomb(n: u32) -> Vec<u8> {
    let mut block = frames::head(SINK);
    // Literal with incremental indexing, new name "x", value of 4,000 bytes (RFC 7541 §6.2.1): 127 + 3873 = 4000.
    block.extend(b"\x40\x01x\x7f\xa1\x1e");
    block.extend([b'v'; 4_000]);
    // Index 62: the first entry of the dynamic table (§6.1).
    block.extend([0xbe; 8_000]);
    frame(HEADERS, END_HEADERS, fresh(n), &block)
}

fn floods() -> Vec<Flood> {
    let flood = |name, fate, make| Flood { name, fate, manner: Manner::default(), make };
    let slow = |name, fate, manner, make| Flood { name, fate, manner, make };
    vec![
        flood("rapid reset", Fate::Ended, |n| {
            (0..64)
                .flat_map(|k| [connect(fresh(64 * n + k), ECHO), rst(fresh(64 * n + k))].concat())
                .collect()
        }),
        flood("CONNECT, more than allowed", Fate::Any, |n| {
            (0..64).flat_map(|k| connect(fresh(64 * n + k), ECHO)).collect()
        }),
        flood("PING", Fate::Ended, |_| frame(PING, 0, 0, &[7; 8]).repeat(256)),
        flood("SETTINGS", Fate::Ended, |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(16)),
        flood("empty DATA", Fate::Ended, |n| match n {
            0 => connect(fresh(0), SINK),
            _ => frame(DATA, 0, fresh(0), &[]).repeat(256),
        }),
        flood("DATA of one byte", Fate::Carried, |n| {
            let stream = fresh(n / 200);
            match n % 200 {
                0 => connect(stream, SINK),
                199 => frame(DATA, END_STREAM, stream, b"x"),
                _ => frame(DATA, 0, stream, b"x").repeat(256),
            }
        }),
        flood("PRIORITY", Fate::Ended, |n| frame(PRIORITY, 0, fresh(n), &[0, 0, 0, 0, 16]).repeat(256)),
        flood("unknown frames", Fate::Ended, |_| frame(0x77, 0xff, 0, &[1; 16_384]).repeat(16)),
        flood("CONTINUATION", Fate::Ended, |n| match n {
            0 => frame(HEADERS, 0, fresh(0), &frames::head(SINK)),
            // Fields that nobody asked for: literal, never indexed, and large.
            _ => {
                let field = [&b"\x10\x01x\x7f\x81\x7f"[..], &[b'v'; 16_384]].concat();
                frame(CONTINUATION, 0, fresh(0), &field[..16_384]).repeat(8)
            }
        }),
        flood("empty CONTINUATION", Fate::Ended, |n| match n {
            0 => frame(HEADERS, 0, fresh(0), &frames::head(SINK)),
            _ => frame(CONTINUATION, 0, fresh(0), &[]).repeat(64),
        }),
        flood("WINDOW_UPDATE", Fate::Ended, |n| match n {
            0 => connect(fresh(0), SINK),
            _ => {
                [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), frame(WINDOW_UPDATE, 0, fresh(0), &[0, 0, 0, 1])]
                    .concat()
                    .repeat(256)
            }
        }),
        flood("HPACK bomb", Fate::Ended, bomb),
        slow(
            "answers that are not read",
            Fate::Any,
            Manner { reads: false, tunnels: 16, ..Manner::default() },
            |_| frame(PING, 0, 0, &[7; 8]).repeat(200),
        ),
        slow(
            "downloads that are not read",
            Fate::Any,
            Manner { reads: false, tunnels: 4, ..Manner::default() },
            |n| match n {
                0..100 => {
                    [connect(fresh(n), POUR), frame(WINDOW_UPDATE, 0, fresh(n), &[0x7f, 0, 0, 0])].concat()
                }
                _ => Vec::new(),
            },
        ),
        slow("TLS KeyUpdate", Fate::Ended, Manner { keys: true, ..Manner::default() }, |_| Vec::new()),
        slow("tiny TLS records", Fate::Carried, Manner { record: Some(32), ..Manner::default() }, |n| {
            let stream = fresh(n / 200);
            match n % 200 {
                0 => connect(stream, SINK),
                199 => frame(DATA, END_STREAM, stream, b"x"),
                _ => frame(DATA, 0, stream, &[b'x'; 1_000]),
            }
        }),
    ]
}

/// What a flood did.
#[derive(Default)]
struct Done {
    bytes: AtomicU64,
    tunnels: AtomicU64,
    ended: AtomicU64,
}

/// Every peer floods, on a new tunnel whenever its last one was ended, or on many in turn.
fn flood(stage: &Stage, flood: &Flood, done: &Done) {
    let until = Instant::now() + FLOOD;
    thread::scope(|scope| {
        for _ in 0..PEERS {
            scope.spawn(|| {
                let mut held: Vec<(Hostile, u32)> = Vec::new();
                let mut next = 0;
                while Instant::now() < until {
                    if held.len() < flood.manner.tunnels {
                        if let Ok(tunnel) = Hostile::open(stage, flood.manner, until) {
                            done.tunnels.fetch_add(1, Ordering::Relaxed);
                            held.push((tunnel, 0));
                        }
                        continue;
                    }
                    next = (next + 1) % held.len();
                    let (tunnel, n) = &mut held[next];
                    let bytes = (flood.make)(*n);
                    *n += 1;
                    match tunnel.send(&bytes, until) {
                        Ok(sent) => done.bytes.fetch_add(sent, Ordering::Relaxed),
                        Err(_) => {
                            held.swap_remove(next);
                            done.ended.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
    });
}

/// Connections that say nothing, or their ClientHello a byte at a time, as many as there are descriptors for.
fn strangers(stage: &Stage, hello: &[u8], count: usize, done: &Done) {
    let until = Instant::now() + 2 * FLOOD;
    let hello = Arc::new(hello);
    thread::scope(|scope| {
        for _ in 0..PEERS {
            let hello = hello.clone();
            scope.spawn(move || {
                let mut held: Vec<std::net::TcpStream> = Vec::new();
                let mut said = 0;
                while Instant::now() < until {
                    for _ in 0..200 {
                        if held.len() < count / PEERS
                            && let Ok(socket) = hostile::begin(stage)
                        {
                            done.tunnels.fetch_add(1, Ordering::Relaxed);
                            held.push(socket);
                        }
                    }
                    if let Some(byte) = hello.get(said..=said) {
                        said += 1;
                        held.retain(|mut socket| std::io::Write::write_all(&mut socket, byte).is_ok());
                        thread::sleep(Duration::from_millis(50));
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
}

#[test]
fn whatever_a_peer_sends_others_are_served_and_nothing_is_kept_of_it() {
    let stage = Stage::new();
    let gauge = Gauge::new(stage.victim());
    let lawful = Lawful::start(&stage);
    thread::sleep(Duration::from_secs(3));
    let calm = lawful.take();
    let quiet = gauge.now();
    println!(
        "without a flood: {} connections, {}; {} of memory, {} descriptors",
        calm.pooled.len(),
        Times::of(&calm.pooled),
        mib(quiet.memory),
        quiet.descriptors
    );
    println!(
        "{:28} {:>8} {:>7} {:>6}  {:24} {:24} {:>10} {:>7} {:>9} {:>8}",
        "flood",
        "sent",
        "tunnels",
        "ended",
        "p50 / p99",
        "new tunnels p50 / p99",
        "memory",
        "CPU",
        "back in",
        "missed"
    );
    let mut wrong = Vec::new();
    let mut judge = |name: &str, fate: Fate, run: &dyn Fn(&Done)| {
        drop(lawful.take());
        let done = Done::default();
        let before = gauge.now();
        gauge.forget_peak();
        let started = Instant::now();
        run(&done);
        let took = started.elapsed();
        let after = gauge.now();
        let served = lawful.take();
        let peak = gauge.peak().saturating_sub(quiet.memory);
        let stopped = Instant::now();
        let is_back = || {
            let now = gauge.now();
            now.memory <= quiet.memory + quiet.memory / 10 + SLACK
                && now.descriptors <= quiet.descriptors + SOME_DESCRIPTORS
        };
        while !is_back() && stopped.elapsed() < RECOVERY {
            thread::sleep(Duration::from_millis(50));
        }
        let (tunnels, ended) = (done.tunnels.load(Ordering::Relaxed), done.ended.load(Ordering::Relaxed));
        println!(
            "{name:28} {:>8} {tunnels:>7} {ended:>6}  {:24} {:24} {:>10} {:>6.0}% {:>8.1}s {:>8}",
            mib(done.bytes.load(Ordering::Relaxed)),
            Times::of(&served.pooled).to_string(),
            Times::of(&served.fresh).to_string(),
            mib(peak),
            100.0 * (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64(),
            stopped.elapsed().as_secs_f64(),
            served.failed_fresh.len(),
        );
        let mut complain = |what: String| wrong.push(format!("{name}: {what}"));
        if !is_back() {
            complain(format!("after {RECOVERY:?} it was not back: {quiet:?} before, {:?} now", gauge.now()));
        }
        if peak > MEMORY {
            complain(format!("it took {} of memory", mib(peak)));
        }
        if !served.failed.is_empty() {
            complain(format!("{} connections of others failed: {:?}", served.failed.len(), served.failed[0]));
        }
        if !served.failed_fresh.is_empty() {
            complain(format!(
                "{} new tunnels failed: {:?}",
                served.failed_fresh.len(),
                served.failed_fresh[0]
            ));
        }
        if served.pooled.len() < 20 {
            complain(format!("only {} connections of others", served.pooled.len()));
        }
        let as_wanted = match fate {
            Fate::Ended => ended > 0,
            Fate::Carried => ended == 0,
            Fate::Any => true,
        };
        if tunnels == 0 || !as_wanted {
            complain(format!(
                "of {tunnels} hostile tunnels {ended} were ended, and {fate:?} is what they should be"
            ));
        }
    };
    for one in floods() {
        judge(one.name, one.fate, &|done| flood(&stage, &one, done));
    }
    let hello = hostile::hello(&stage);
    let most = usize::try_from(stage::descriptors()).unwrap().saturating_sub(2_000).min(20_000);
    judge("silent connections", Fate::Any, &|done| strangers(&stage, &[], most, done));
    judge("slow handshakes", Fate::Any, &|done| strangers(&stage, &hello, 2_000, done));
    lawful.stop();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), stage.last_words());
    stage.still_runs();
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

/// A value that says whether to go on; shared by threads that come and go.
#[derive(Clone, Debug)]
struct Running(Arc<AtomicBool>);

impl Running {
    fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    fn goes_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
