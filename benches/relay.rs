//! How fast does the plaintext relay carry one connection, and from which size on is a pipe worth it?
//!
//! Unit: time per transfer of N bytes from an application to another, which answers with one byte; GiB/s by it. Each
//! application is a thread, the relay is a third: a machine with fewer than three free cores shows how they share, not
//! how fast each is. So the CPU time of the relay's thread is printed too, in ms per GiB, which is the steadier figure.
//!
//! - `relay`: as it runs: copied at first, spliced once there is much.
//! - `copy`, `splice`: every byte that way, as far as it goes.
//! - `loopback`: the same two applications on one connection, with nothing between them.
//! - `memcpy`: copying that many bytes within this process.
//! - `relay/pipe/SIZE`: transfers of 16 MiB through a pipe of that many bytes, filled as far as it goes each time, from the first byte
//!   on. The relay's own is 256 KiB. Nothing else of the relay is in that loop, so `splice` is what to compare it with.
//!
//! Every connection uses cubic, as those between proxy and application do (`benches/sockets.rs`).

use std::fs;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;

use adit::flow::Share;
use adit::flow::relay::{Meter, Splice, relay_by};
use adit::net::Pipe;
use adit::net::socket::{Listen, dialer, listen, prefer_congestion};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::Interest;
use tokio::net::TcpStream as AsyncStream;

const SIZES: [usize; 7] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];
const PIPES: [usize; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
const CHUNK: usize = 256 << 10;

/// How the bytes of one connection go.
#[derive(Clone, Copy)]
enum Way {
    Relay(Splice),
    Pipe(usize),
}

struct Uncounted;

impl Meter for Uncounted {
    fn to_upstream(&self, _bytes: usize) {}
    fn to_downstream(&self, _bytes: usize) {}
}

/// An application that answers every `size` bytes with one.
fn answering(size: usize) -> SocketAddr {
    let listener = listener();
    let addr = listener.local_addr().expect("bound above");
    thread::spawn(move || {
        let (mut from, _) = listener.accept().expect("the bench connects");
        let mut buffer = vec![0; CHUNK];
        let mut missing = size;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            missing = missing.checked_sub(read).expect("a transfer begins when the one before is answered");
            if missing == 0 {
                missing = size;
                from.write_all(&[1]).expect("the bench waits for it");
            }
        }
    });
    addr
}

/// The relay's thread.
struct Relay {
    addr: SocketAddr,
    thread: nix::unistd::Pid,
}

impl Relay {
    /// Between whoever connects to its address and `to`.
    fn start(to: SocketAddr, way: Way) -> Self {
        let listener = listener();
        let addr = listener.local_addr().expect("bound above");
        let (say, tell) = channel();
        thread::spawn(move || {
            say.send(nix::unistd::gettid()).expect("it waits below");
            let (downstream, _) = listener.accept().expect("the bench connects");
            let upstream = connect(to);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(async {
                let [downstream, upstream] = [downstream, upstream].map(|socket| {
                    socket.set_nonblocking(true).expect("an open socket");
                    AsyncStream::from_std(socket).expect("a runtime is here")
                });
                match way {
                    Way::Relay(splice) => {
                        relay_by(splice, downstream, upstream, Uncounted, Share::alone())
                            .await
                            .expect("nobody resets");
                    }
                    Way::Pipe(size) => {
                        let up = pipe(&downstream, &upstream, size);
                        tokio::try_join!(up, pipe(&upstream, &downstream, size)).expect("nobody resets");
                    }
                }
            });
        });
        Self { addr, thread: tell.recv().expect("the thread says it first") }
    }

    /// CPU time so far, in ns.
    fn cpu(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread));
        let stat = stat.expect("the thread lives as long as the connection");
        stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first number")
    }
}

/// Moves everything from one socket to the other, by one pipe.
async fn pipe(from: &AsyncStream, to: &AsyncStream, size: usize) -> io::Result<()> {
    let mut pipe = Pipe::new(size)?;
    loop {
        from.readable().await?;
        match from.try_io(Interest::READABLE, || pipe.fill(from, size)) {
            Ok(0) => return Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => continue,
            filled => filled?,
        };
        while pipe.held() > 0 {
            to.writable().await?;
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                drained => drop(drained?),
            }
        }
    }
}

fn transfer(to: &mut TcpStream, block: &[u8]) {
    for chunk in block.chunks(CHUNK) {
        to.write_all(chunk).expect("the way is open");
    }
    to.read_exact(&mut [0]).expect("it is answered");
}

fn connect(to: SocketAddr) -> TcpStream {
    let socket = dialer(to, None, None).expect("a process may make sockets");
    prefer_congestion(&socket, "cubic");
    socket.set_nonblocking(false).expect("an open socket");
    socket.connect(&to.into()).expect("it listens");
    socket.into()
}

/// A listener whose connections are as those of a pod.
fn listener() -> TcpListener {
    let addr = ([127, 0, 0, 1], 0).into();
    let how = Listen { addr, mark: None, reuse_port: false, congestion: Some("cubic"), keepalive: None };
    let listener = listen(&how).expect("loopback has a free port");
    listener.set_nonblocking(false).expect("an open socket");
    listener
}

/// Measures transfers of `block` by `way`: their time, and what they cost the relay.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, way: Way, block: &[u8]) {
    let relay = Relay::start(answering(block.len()), way);
    let mut through = connect(relay.addr);
    let (mut sent, mut cpu) = (0u64, 0);
    group.bench_function(name, |bench| {
        bench.iter_custom(|times| {
            let (before, start) = (relay.cpu(), std::time::Instant::now());
            (0..times).for_each(|_| transfer(&mut through, block));
            let took = start.elapsed();
            sent += times * block.len() as u64;
            cpu += relay.cpu() - before;
            took
        });
    });
    if let Some(per_gib) = (u128::from(cpu) << 30).checked_div(u128::from(sent)) {
        println!("{name}: the relay takes {:.1} ms of CPU per GiB", per_gib as f64 / 1e6);
    }
}

fn bytes(criterion: &mut Criterion) {
    let always = Splice::After { moved: 0, chunk: 0 };
    let ways = [("relay", Splice::default()), ("copy", Splice::Off), ("splice", always)];
    let mut group = criterion.benchmark_group("relay/bytes");
    group.sample_size(20);
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        let block = vec![0x5a; size];
        for (name, splice) in ways {
            measure(&mut group, &format!("{name}/{size}"), Way::Relay(splice), &block);
        }
        let mut direct = connect(answering(size));
        group.bench_function(BenchmarkId::new("loopback", size), |bench| {
            bench.iter(|| transfer(&mut direct, &block));
        });
        let mut copy = vec![0; size];
        group.bench_function(BenchmarkId::new("memcpy", size), |bench| {
            bench.iter(|| copy.copy_from_slice(black_box(&block)));
        });
    }
}

fn pipes(criterion: &mut Criterion) {
    let block = vec![0x5a; 16 << 20];
    let mut group = criterion.benchmark_group("relay");
    group.sample_size(20).throughput(Throughput::Bytes(block.len() as u64));
    for size in PIPES {
        measure(&mut group, &format!("pipe/{size}"), Way::Pipe(size), &block);
    }
}

criterion_group!(benches, bytes, pipes);
criterion_main!(benches);
