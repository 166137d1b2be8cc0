//! Bytes as fast as they go: one thread writes and one reads, per connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{Load, Measured, Way, Window};
use crate::figures::{Figure, Whose};
use crate::stage::{Called, Pair, SOON, Stage};

/// Bytes written and read at once.
const CHUNK: usize = 256 << 10;
const GIB: f64 = (1_u64 << 30) as f64;

/// Bytes that one reader has got, on a cache line of their own.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU64);

/// What a load did, beside the CPU it took.
struct Carried {
    /// Bytes of each stream.
    bytes: Vec<u64>,
    seconds: f64,
    cpu: Option<[f64; 2]>,
}

impl Carried {
    fn total(&self) -> f64 {
        self.bytes.iter().sum::<u64>() as f64
    }

    fn gigabits(&self) -> f64 {
        self.total() * 8.0 / 1e9 / self.seconds
    }

    fn fairness(&self) -> f64 {
        let (slowest, fastest) = (self.bytes.iter().min(), self.bytes.iter().max());
        let as_float = |count: Option<&u64>| count.map_or(0.0, |&count| count as f64);
        as_float(slowest) / as_float(fastest).max(1.0)
    }
}

pub fn through_the_mesh(stage: &Stage, window: &Window, load: Load) -> io::Result<Measured> {
    let carried = carry(stage, window, load, Called::Server)?;
    let mut values = vec![(Figure::Throughput(load), carried.gigabits())];
    if load.streams > 1 {
        values.push((Figure::Fairness(load), carried.fairness()));
    }
    if let Some([client, server]) = carried.cpu {
        let per_gib = |seconds: f64| seconds * GIB / carried.total();
        let each = [(Whose::Both, client + server), (Whose::Client, client), (Whose::Server, server)];
        values.extend(each.map(|(whose, seconds)| (Figure::Cpu(whose, load), per_gib(seconds))));
    }
    Ok(Measured::of(values))
}

/// The server's proxy is not in the path.
pub fn passthrough(stage: &Stage, window: &Window) -> io::Result<Measured> {
    let carried = carry(stage, window, Load { streams: 1, way: Way::Up }, Called::Outside)?;
    let mut values = vec![(Figure::Passthrough, carried.gigabits())];
    if let Some([client, _]) = carried.cpu {
        values.push((Figure::PassthroughCpu, client * GIB / carried.total()));
    }
    Ok(Measured::of(values))
}

fn carry(stage: &Stage, window: &Window, load: Load, called: Called) -> io::Result<Carried> {
    let (listener, to) = stage.listen(called)?;
    let pairs = (0..load.streams).map(|_| stage.connect(&listener, to)).collect::<io::Result<Vec<Pair>>>()?;
    drop(listener);
    let counts: Vec<Count> = pairs.iter().map(|_| Count::default()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (pair, count) in pairs.iter().zip(&counts) {
            let (from, to) = match load.way {
                Way::Up => (&pair.client, &pair.server),
                Way::Down => (&pair.server, &pair.client),
            };
            let over = &over;
            threads.push(scope.spawn(move || unless(over, write(from))));
            threads.push(scope.spawn(move || unless(over, read(to, count))));
        }
        let bytes = || counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let watched = window.watch(stage, bytes);
        over.store(true, Ordering::SeqCst);
        pairs.iter().for_each(Pair::cut);
        for thread in threads {
            thread.join().expect("these threads return their errors")?;
        }
        let watched = watched?;
        let moved = watched.after.iter().zip(&watched.before).map(|(after, before)| after - before);
        let carried =
            Carried { bytes: moved.collect(), seconds: watched.seconds(), cpu: watched.cpu.seconds() };
        if carried.total() == 0.0 {
            let within = window.length.min(SOON);
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no byte arrived in {within:?}")));
        }
        Ok(carried)
    })
}

/// An end is no error once it was asked for.
fn unless(over: &AtomicBool, result: io::Result<()>) -> io::Result<()> {
    if over.load(Ordering::SeqCst) { Ok(()) } else { result }
}

fn write(mut to: &TcpStream) -> io::Result<()> {
    let chunk = vec![0x61; CHUNK];
    loop {
        to.write_all(&chunk)?;
    }
}

fn read(mut from: &TcpStream, count: &Count) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => count.0.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
}
