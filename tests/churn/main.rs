//! What a million connections leave behind, however they ended: nothing. And what goes on when no descriptor is left.
//!
//! Applications and proxies share this process: plaintext through the relay, and tunnels of both carriers, each in a network namespace
//! and on a thread of its own, over loopback. Making a namespace needs root. `ADIT_CHURN` sets the number of connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

mod carriers;
mod crowd;
mod exhausted;
mod held;
mod life;
mod proxies;

use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use adit::flow::relay::{Spare, spare};
use adit::hbone::{Carrier as How, Handshakes, release_spare};
use adit::net::Netns;
use allocation_counter::measure;
use tokio::runtime::{LocalOptions, LocalRuntime};

use self::carriers::{Carrier, Plain, Tunnels, share_once};
use self::crowd::{Place, churn, cut};
use self::held::{Held, descriptors, resident};
use self::proxies::Proxies;

/// Connections, unless told otherwise.
const CONNECTIONS: usize = 1_000_000;
/// Of a hundred of them: so many by which carrier. Each lane has a thread, a namespace, and tunnels of its own.
const LANES: [(Lane, usize); 4] =
    [(Lane::InPlace, 30), (Lane::InPlace, 30), (Lane::Classic, 20), (Lane::Plain, 20)];
/// What one thread may have allocated and not freed at its end, in bytes; apart from buffers of the relay, of which it keeps some.
const KEPT: i64 = 128 << 10;
/// What the process may have grown by, for the slack of its allocator, in KiB.
const GROWTH: usize = 96 << 10;
/// For anything that must happen, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// These tests count, and limit, what the process has.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug)]
enum Lane {
    InPlace,
    Classic,
    Plain,
}

/// What a lane says when it waits for the others.
struct Waiting {
    /// Descriptors of the pipes that it keeps for the next connection.
    pipes: usize,
}

/// A thread with its connections, for who lets it go on.
struct Running {
    lane: Lane,
    go_on: Sender<()>,
    waits: Receiver<Waiting>,
}

#[test]
fn a_million_connections_leave_nothing_behind() {
    let _alone = alone();
    let connections = std::env::var("ADIT_CHURN").map_or(CONNECTIONS, |number| number.parse().unwrap());
    let (handshakes, _threads) = Handshakes::start(1, 64).unwrap();
    // Before anybody counts.
    assert!(!life::library().is_empty());
    let at_first = descriptors();
    std::thread::scope(|scope| {
        let start = |(lane, share)| run(scope, lane, connections * share / 100, handshakes.clone());
        let lanes: Vec<Running> = LANES.into_iter().map(start).collect();
        // What is made once and kept is made by the first of them.
        let pipes = all_wait(&lanes);
        let before = (descriptors() - pipes, resident());
        let since = Instant::now();
        lanes.iter().for_each(|lane| lane.go_on.send(()).unwrap());
        let pipes = all_wait(&lanes);
        println!("{connections} connections in {:?}", since.elapsed());
        assert_eq!(descriptors() - pipes, before.0, "descriptors after them, and before");
        let grown = resident().saturating_sub(before.1);
        println!("the process has grown by {grown} KiB");
        assert!(grown < GROWTH, "the process has grown by {grown} KiB");
        lanes.iter().for_each(|lane| lane.go_on.send(()).unwrap());
    });
    // What a thread keeps for itself goes a moment after its work.
    let deadline = Instant::now() + SOON;
    while descriptors() != at_first {
        assert!(Instant::now() < deadline, "{} descriptors at the end, and {at_first} before", descriptors());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until all lanes wait; how many descriptors they keep.
fn all_wait(lanes: &[Running]) -> usize {
    let pipes = lanes.iter().map(|Running { lane, waits, .. }| {
        let Waiting { pipes } = waits.recv().unwrap_or_else(|_| panic!("{lane:?} has failed"));
        pipes
    });
    pipes.sum()
}

fn run<'scope>(
    scope: &'scope Scope<'scope, '_>,
    lane: Lane,
    connections: usize,
    handshakes: Handshakes,
) -> Running {
    let (go_on, may_go_on) = channel();
    let (wait, waits) = channel();
    scope.spawn(move || {
        enter_a_namespace();
        let wait = move |waiting| {
            wait.send(waiting).unwrap();
            may_go_on.recv().expect("the other lanes have not failed");
        };
        let seen = measure(|| {
            let runtime = worker();
            let tunnels = |how| {
                let proxies = async { Tunnels::new(how, Proxies::new(handshakes).await).await };
                runtime.block_on(proxies)
            };
            match lane {
                Lane::InPlace => leaves_nothing(lane, &runtime, tunnels(How::InPlace), connections, wait),
                Lane::Classic => leaves_nothing(lane, &runtime, tunnels(How::Classic), connections, wait),
                Lane::Plain => leaves_nothing(lane, &runtime, Plain::default(), connections, wait),
            }
            drop(runtime);
            if matches!(lane, Lane::InPlace) {
                give_back();
            }
        });
        let Spare { buffers, pipes } = spare();
        assert!(buffers <= 32 && pipes <= 32, "{lane:?}: {buffers} buffers and {pipes} pipes are kept");
        let kept = seen.bytes_current - i64::try_from(buffers << 16).unwrap();
        println!("{lane:?}: {kept} bytes are kept of {}", seen.bytes_total);
        assert!(kept < KEPT, "{lane:?}: {kept} bytes are kept of {connections} connections");
    });
    Running { lane, go_on, waits }
}

/// Moves this thread to a namespace where sockets hold little, so that they are full now and then.
fn enter_a_namespace() {
    let netns = Netns::create().unwrap_or_else(|cause| panic!("{cause}; run this as root"));
    netns.enter().unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    for (name, value) in [
        ("tcp_rmem", "4096 65536 262144"),
        ("tcp_wmem", "4096 65536 262144"),
        // The one that is always allowed.
        ("tcp_congestion_control", "reno"),
        ("ip_local_port_range", "1024 65535"),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    }
}

/// A runtime that counts every task that runs on it.
fn worker() -> LocalRuntime {
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap()
}

/// What tunnels keep for the next bytes goes when nobody has needed it for two looks, ten seconds apart.
fn give_back() {
    for _ in 0..22 {
        release_spare();
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn leaves_nothing(
    lane: Lane,
    runtime: &LocalRuntime,
    carrier: impl Carrier,
    connections: usize,
    wait: impl Fn(Waiting),
) {
    let what = format!("{lane:?}");
    let seed = 1_000_000_000 * lane as u64;
    let carrier = Rc::new(carrier);
    let nobody = None::<&Plain>;
    let place = Rc::new(runtime.block_on(Place::new()));
    runtime.block_on(share_once());
    let before = runtime.block_on(async { Held::now(Some(&*carrier)) });
    let many = |connections, seed| {
        runtime.block_on(async {
            churn(&carrier, &place, connections, seed).await;
            before.again(&what, Some(&*carrier)).await;
        });
    };
    many(connections / 10, seed);
    let pipes = || Waiting { pipes: 2 * spare().pipes };
    wait(pipes());

    let since = Instant::now();
    many(connections, seed + 500_000_000);
    println!("{what}: {connections} connections in {:?}", since.elapsed());
    wait(pipes());

    runtime.block_on(async {
        cut(&carrier, &place).await;
        drop((carrier, place));
        let none = Held::of_a_worker();
        none.again(&format!("{what}, when all is over"), nobody).await;
    });
}
