//! How fast does the plaintext relay carry one connection?
//!
//! Unit: GiB/s of one direction, in blocks of 16 MiB from an application to another, each a thread of its own; the
//! relay is a third. A machine with fewer than three free cores shows how they share, not how fast each is.
//!
//! - `relay`: application, relay, application: two loopback connections.
//! - `loopback`: the same two applications on one connection, with nothing between them.
//! - `memcpy`: copying that many bytes within this process.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use adit::flow::relay::{Meter, relay};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::net::TcpStream as AsyncStream;

const BLOCK: usize = 16 << 20;
const CHUNK: usize = 256 << 10;

struct Uncounted;

impl Meter for Uncounted {
    fn to_upstream(&self, _bytes: usize) {}
    fn to_downstream(&self, _bytes: usize) {}
}

/// An application that reads; says when each block has arrived.
fn sink() -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    let (arrived, blocks) = channel();
    thread::spawn(move || {
        let (mut from, _) = listener.accept().expect("the bench connects");
        let mut buffer = vec![0; CHUNK];
        let mut missing = BLOCK;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            assert!(read <= missing, "a block is sent when the one before has arrived");
            missing -= read;
            if missing == 0 {
                missing = BLOCK;
                if arrived.send(()).is_err() {
                    return;
                }
            }
        }
    });
    (addr, blocks)
}

/// One relay between whoever connects to the address and `to`.
fn relay_to(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    thread::spawn(move || {
        let (downstream, _) = listener.accept().expect("the bench connects");
        let upstream = TcpStream::connect(to).expect("the sink listens");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            let [downstream, upstream] = [downstream, upstream].map(|socket| {
                socket.set_nonblocking(true).expect("an open socket");
                AsyncStream::from_std(socket).expect("a runtime is here")
            });
            relay(downstream, upstream, &Uncounted).await.expect("nobody resets");
        });
    });
    addr
}

fn send(to: &mut TcpStream, block: &[u8], arrived: &Receiver<()>) {
    for chunk in block.chunks(CHUNK) {
        to.write_all(chunk).expect("the way is open");
    }
    arrived.recv().expect("the sink lives");
}

fn bytes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay/bytes");
    group.throughput(Throughput::Bytes(BLOCK as u64)).sample_size(20);
    let block = vec![0x5a; BLOCK];
    let (addr, arrived) = sink();
    let mut through = TcpStream::connect(relay_to(addr)).expect("the relay listens");
    group.bench_function("relay", |bench| bench.iter(|| send(&mut through, &block, &arrived)));
    let (addr, arrived) = sink();
    let mut direct = TcpStream::connect(addr).expect("the sink listens");
    group.bench_function("loopback", |bench| bench.iter(|| send(&mut direct, &block, &arrived)));
    let mut copy = vec![0; BLOCK];
    group.bench_function("memcpy", |bench| bench.iter(|| copy.copy_from_slice(black_box(&block))));
}

criterion_group!(benches, bytes);
criterion_main!(benches);
