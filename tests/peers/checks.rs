//! What must hold over a tunnel with anybody: bytes whole and in order, ends passed on as what they were, and one stream that stops
//! does not stop another.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::stage::{Pair, SOON, Way};

const MIB: usize = 1 << 20;
/// Bytes written or read at once.
const CHUNK: usize = 64 << 10;
/// More than all windows and buffers between two applications hold.
const ENDLESS: usize = 256 * MIB;

/// Bytes number `at` and following of the stream `seed`; no two places look alike.
fn pattern(seed: u64, at: usize, to: &mut [u8]) {
    let word = |place: usize| {
        let mixed = (place as u64 ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).to_le_bytes()
    };
    let (head, rest) = to.split_at_mut(((8 - at % 8) % 8).min(to.len()));
    for (n, byte) in (at..).zip(head.iter_mut()) {
        *byte = word(n / 8)[n % 8];
    }
    for (n, eight) in ((at + head.len()) / 8..).zip(rest.chunks_mut(8)) {
        eight.copy_from_slice(&word(n)[..eight.len()]);
    }
}

/// Sends `length` bytes of the stream `seed`.
pub fn pour(mut to: &TcpStream, seed: u64, length: usize) {
    let mut chunk = vec![0; CHUNK];
    for at in (0..length).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(length - at)];
        pattern(seed, at, chunk);
        to.write_all(chunk).unwrap_or_else(|cause| panic!("stream {seed}, sending byte {at}: {cause}"));
    }
}

/// Reads `length` bytes and compares each with the stream `seed`.
pub fn drink(mut from: &TcpStream, seed: u64, length: usize) {
    let (mut chunk, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    for at in (0..length).step_by(CHUNK) {
        let size = CHUNK.min(length - at);
        from.read_exact(&mut chunk[..size])
            .unwrap_or_else(|cause| panic!("stream {seed}, reading at byte {at}: {cause}"));
        pattern(seed, at, &mut wanted[..size]);
        assert!(chunk[..size] == wanted[..size], "stream {seed} has other bytes near {at}");
    }
}

/// Insists that nothing more comes, and that it ends in order.
pub fn ends(mut from: &TcpStream, what: &str) {
    let mut byte = [0];
    let read = from.read(&mut byte).unwrap_or_else(|cause| panic!("{what}: instead of its end: {cause}"));
    assert_eq!(read, 0, "{what}: more came than was sent");
}

/// Insists that the connection is reset.
pub fn is_reset(mut end: &TcpStream, what: &str) {
    let mut byte = [0];
    match end.read(&mut byte) {
        Err(cause) if cause.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{what}: instead of a reset: {other:?}"),
    }
}

/// Ends a connection by RST.
pub fn break_off(end: TcpStream) {
    socket2::SockRef::from(&end).set_linger(Some(Duration::ZERO)).unwrap();
    drop(end);
}

impl Pair {
    /// `length` bytes each way at once, then both ends.
    pub fn carries(&self, seed: u64, length: usize) {
        let hear = |end: &TcpStream, seed, what| {
            drink(end, seed, length);
            ends(end, what);
        };
        let (heard, client_ended) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                pour(&self.client, 2 * seed, length);
                self.client.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                pour(&self.server, 2 * seed + 1, length);
                if self.server_last {
                    client_ended.recv().expect("the client ended");
                }
                self.server.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                hear(&self.server, 2 * seed, "at the server");
                // Nobody listens where the order does not matter.
                let _ = heard.send(());
            });
            hear(&self.client, 2 * seed + 1, "at the client");
        });
    }

    /// A few bytes each way, after which the connection goes on.
    pub fn talks(&self) {
        pour(&self.client, 77, 4096);
        drink(&self.server, 77, 4096);
        pour(&self.server, 78, 4096);
        drink(&self.client, 78, 4096);
    }
}

/// All that is asked of every peer in every role; `resets` counts the RST_STREAM frames that the foreign proxy has received and sent.
pub fn all(way: &Way<'_>, resets: impl Fn() -> (u64, u64)) {
    let started = Instant::now();
    let step = |what: &str| println!("  {:?}: {what}, after {:.1?}", way.role, started.elapsed());
    way.connect().carries(1, 64 * MIB);
    step("64 MiB each way at once");
    half_closes(way);
    step("half-closes");
    several(way);
    step("16 streams of 4 MiB each way at once");
    stalls(way);
    step("streams that stop beside others that go on");
    breaks(way, resets);
    step("resets");
}

fn half_closes(way: &Way<'_>) {
    let orders: &[bool] = if way.server_last { &[true] } else { &[true, false] };
    for &client_first in orders {
        let Pair { client, server, .. } = way.connect();
        let (first, last) = if client_first { (&client, &server) } else { (&server, &client) };
        pour(first, 3, MIB);
        first.shutdown(Shutdown::Write).unwrap();
        drink(last, 3, MIB);
        ends(last, "what was closed for writing");
        // Long enough for a proxy that takes a half-close for an end to show it.
        thread::sleep(Duration::from_millis(300));
        thread::scope(|scope| {
            scope.spawn(|| pour(last, 4, 8 * MIB));
            drink(first, 4, 8 * MIB);
        });
        last.shutdown(Shutdown::Write).unwrap();
        ends(first, "the other direction");
    }
}

fn several(way: &Way<'_>) {
    let pairs: Vec<_> = (0..16).map(|_| way.connect()).collect();
    thread::scope(|scope| {
        for (seed, pair) in (10..).zip(&pairs) {
            scope.spawn(move || pair.carries(seed, 4 * MIB));
        }
    });
}

/// Writes until nothing has been taken for a second; how many bytes were.
fn fill(mut to: &TcpStream, seed: u64) -> usize {
    to.set_nonblocking(true).unwrap();
    let mut chunk = vec![0; CHUNK];
    let (mut sent, mut moved) = (0, Instant::now());
    while moved.elapsed() < Duration::from_secs(1) {
        pattern(seed, sent, &mut chunk);
        match to.write(&chunk) {
            Ok(taken) => {
                sent += taken;
                moved = Instant::now();
            }
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(cause) => panic!("stream {seed}, sending byte {sent}: {cause}"),
        }
        assert!(sent < ENDLESS, "{sent} bytes were taken for an application that takes none");
    }
    to.set_nonblocking(false).unwrap();
    sent
}

fn stalls(way: &Way<'_>) {
    for to_server in [true, false] {
        let stalled: Vec<_> = (0..4).map(|_| way.connect()).collect();
        let ends_of = |pair: &'_ Pair| {
            let (from, to) =
                if to_server { (&pair.client, &pair.server) } else { (&pair.server, &pair.client) };
            (from.try_clone().unwrap(), to.try_clone().unwrap())
        };
        let (full, told) = mpsc::channel();
        thread::scope(|scope| {
            let fillers: Vec<_> = (20..)
                .zip(&stalled)
                .map(|(seed, pair)| {
                    let (from, to) = ends_of(pair);
                    let full = full.clone();
                    scope.spawn(move || {
                        let sent = fill(&from, seed);
                        full.send(()).unwrap();
                        (from, to, seed, sent)
                    })
                })
                .collect();
            let started = Instant::now();
            let others: Vec<_> = (0..4).map(|_| way.connect()).collect();
            thread::scope(|scope| {
                for (seed, pair) in (30..).zip(&others) {
                    scope.spawn(move || pair.carries(seed, 4 * MIB));
                }
            });
            // Once more when all are certainly full.
            let patience = Duration::from_secs(10);
            let count = (0..4).take_while(|_| told.recv_timeout(patience).is_ok()).count();
            assert_eq!(count, 4, "all four filled up");
            way.connect().carries(40, 4 * MIB);
            println!("    others took {:.1?} beside four that were stopped", started.elapsed());
            for filler in fillers {
                let (from, to, seed, sent) = filler.join().unwrap();
                drink(&to, seed, sent);
                if way.server_last && !to_server {
                    to.shutdown(Shutdown::Write).unwrap();
                    ends(&from, "a stream that had stopped, the other way");
                }
                from.shutdown(Shutdown::Write).unwrap();
                ends(&to, "a stream that had stopped");
            }
        });
    }
}

fn breaks(way: &Way<'_>, resets: impl Fn() -> (u64, u64)) {
    let grows = |what: &str, by: (u64, u64), before: (u64, u64)| {
        let wanted = (before.0 + by.0, before.1 + by.1);
        let deadline = Instant::now() + SOON;
        while resets() != wanted {
            assert!(
                Instant::now() < deadline,
                "{what}: RST_STREAM received and sent: {before:?} before, {:?} after, and {wanted:?} wanted",
                resets()
            );
            thread::sleep(Duration::from_millis(20));
        }
    };
    // What ends in order leaves no reset behind.
    let before = resets();
    let pair = way.connect();
    pair.carries(5, MIB);
    drop(pair);
    way.connect().carries(6, 4096);
    assert_eq!(resets(), before, "RST_STREAM after an end in order");
    // The connection breaks once while it rests and once while bytes are under way, from either application.
    for busy in [false, true] {
        for from_client in [true, false] {
            let what = format!("from the client: {from_client}, busy: {busy}");
            let pair = way.connect();
            pair.talks();
            let Pair { client, server, .. } = pair;
            let before = resets();
            let (breaker, other) = if from_client { (client, server) } else { (server, client) };
            if busy {
                pour(&other, 7, CHUNK);
            }
            break_off(breaker);
            // adit is at the client's side of a peer that serves, and at the server's side of one that calls.
            let adit_breaks = from_client == (way.role == super::stage::Role::Serves);
            if adit_breaks {
                grows(&what, (1, 0), before);
            } else {
                is_reset(&other, &what);
                grows(&what, (0, 1), before);
            }
        }
    }
}
