//! What are the settings of a node's sockets worth: congestion control, Nagle's delay, and how many callers may wait?
//!
//! Over the loopback of a network namespace, as between a proxy and an application on its node. Making the namespace
//! needs CAP_SYS_ADMIN; without it the bench says that it did not run. It prints which congestion control the sockets
//! really have, since a kernel may lack one.
//!
//! - `sockets/bulk`: GiB/s, blocks of 16 MiB, answered by one byte each; application to application, a thread each, which never share a
//!   core: left to the scheduler, calls differ fourfold by where it puts the two.
//! - `sockets/call`: µs for 64 bytes there and 64 bytes back.
//! - `sockets/split`: the same, with the 64 bytes there sent in two writes, which Nagle's delay holds up.
//! - `sockets/backlog`: a table of ms. Callers connect at once to a listener that nobody accepts from for 50 ms; until when half of
//!   them and the last are connected as they see it, how many had to send their SYN again, and how many were never accepted, by what
//!   `listen` was told. `adit` is its listener. (Never: with SYN cookies the kernel remembers nobody whose last ACK finds the queue full.)
//!
//! The reference of each is the row with the kernel's own choice: `nagle`, and 128, which is what many servers ask for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use adit::net::Netns;
use adit::net::socket::{Listen, dialer, listen, prefer_congestion, start_connect};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;
use socket2::{Domain, SockRef, Socket, Type};

const BLOCK: usize = 16 << 20;
const CHUNK: usize = 256 << 10;
const CALL: usize = 64;
/// Callers at once, and how long nobody accepts: a worker's turn with large transfers takes some ms.
const CALLERS: usize = 2000;
const BUSY: Duration = Duration::from_millis(50);
/// Who is not accepted within this time after the one before it never will be: SYNs are sent again after 1 s, 3 s and 7 s.
const IN_VAIN: Duration = Duration::from_secs(6);
/// A SYN that got no answer is sent again after a second (RFC 6298 §2.1).
const AGAIN: Duration = Duration::from_millis(900);

/// A connection whose far end, on a core of its own, answers every `question` bytes with `answer`.
fn connection(
    (netns, core): (&Netns, usize),
    congestion: &'static str,
    nodelay: bool,
    (question, answer): (usize, usize),
) -> TcpStream {
    let (listener, stream) = netns
        .run(|| {
            let listener = listener(Some(congestion))?;
            let to = listener.local_addr()?;
            let socket = dialer(to, None, None)?;
            prefer_congestion(&socket, congestion);
            socket.set_nonblocking(false)?;
            socket.connect(&to.into())?;
            Ok((listener, TcpStream::from(socket)))
        })
        .expect("a new namespace has free ports");
    listener.set_nonblocking(false).expect("an open socket");
    let (mut far, _) = listener.accept().expect("connected above");
    for end in [&stream, &far] {
        end.set_nodelay(nodelay).expect("an open socket");
    }
    thread::spawn(move || {
        pin(core);
        let mut buffer = vec![0; CHUNK];
        let mut missing = question;
        while let Ok(read @ 1..) = far.read(&mut buffer) {
            missing = missing.checked_sub(read).expect("one question at a time");
            if missing == 0 {
                missing = question;
                far.write_all(&vec![1; answer]).expect("the bench waits for it");
            }
        }
    });
    stream
}

fn listener(congestion: Option<&'static str>) -> io::Result<TcpListener> {
    let addr = ([127, 0, 0, 1], 0).into();
    listen(&Listen { addr, mark: None, reuse_port: false, congestion, keepalive: None })
}

fn name_of(stream: &TcpStream) -> String {
    let name = SockRef::from(stream).tcp_congestion().expect("a TCP socket");
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

fn ask(stream: &mut TcpStream, parts: &[&[u8]], answer: &mut [u8]) {
    for part in parts {
        stream.write_all(part).expect("the way is open");
    }
    stream.read_exact(answer).expect("it is answered");
}

/// A core for each end, the near one's first; the same where there is only one.
fn cores() -> [usize; 2] {
    let mine = sched_getaffinity(Pid::from_raw(0)).expect("this thread runs somewhere");
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| mine.is_set(cpu) == Ok(true));
    let near = allowed.next().expect("this thread runs somewhere");
    [near, allowed.next_back().unwrap_or(near)]
}

/// Keeps this thread, and those it starts, on one core.
fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).expect("it came from such a set");
    sched_setaffinity(Pid::from_raw(0), &only).expect("it is one of those allowed");
}

/// A namespace with a loopback; `None` without the privilege to make one.
fn place() -> Option<Netns> {
    match Netns::create() {
        Ok(netns) => {
            let up = netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status());
            assert!(up.expect("the package iproute2 is installed").success());
            Some(netns)
        }
        Err(cause) => {
            println!("sockets: not run, because making a network namespace failed: {cause}");
            None
        }
    }
}

fn sockets(criterion: &mut Criterion) {
    let Some(netns) = place() else { return };
    let [near, far] = cores();
    pin(near);
    let block = vec![0x5a; BLOCK];
    let mut group = criterion.benchmark_group("sockets");
    group.sample_size(20);
    for congestion in ["cubic", "bbr"] {
        for nodelay in [true, false] {
            let wanted = format!("{congestion}, {}", if nodelay { "nodelay" } else { "nagle" });
            let mut stream = connection((&netns, far), congestion, nodelay, (BLOCK, 1));
            println!("{wanted}: the sockets have {}", name_of(&stream));
            group.throughput(Throughput::Bytes(BLOCK as u64));
            group.bench_function(BenchmarkId::new("bulk", &wanted), |bench| {
                let parts: Vec<&[u8]> = block.chunks(CHUNK).collect();
                bench.iter(|| ask(&mut stream, &parts, &mut [0]));
            });
            group.throughput(Throughput::Elements(1));
            for (name, parts) in [("call", &[&block[..CALL]][..]), ("split", &[&block[..4], &block[4..CALL]])]
            {
                let mut stream = connection((&netns, far), congestion, nodelay, (CALL, CALL));
                group.bench_function(BenchmarkId::new(name, &wanted), |bench| {
                    bench.iter(|| ask(&mut stream, parts, &mut [0; CALL]));
                });
            }
        }
    }
}

/// A listener for which `waiting` callers may wait.
fn plain_listener(waiting: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(waiting)?;
    Ok(socket.into())
}

/// Until when each of `callers` was connected as it saw it, the first first; and how many of them were never accepted.
fn burst(netns: &Netns, listener: TcpListener, callers: usize) -> io::Result<(Vec<Duration>, usize)> {
    let to = listener.local_addr()?;
    listener.set_nonblocking(false)?;
    SockRef::from(&listener).set_read_timeout(Some(IN_VAIN))?;
    let begun = Instant::now();
    let accepting = thread::spawn(move || {
        thread::sleep(BUSY);
        let accept = |_| Some(listener.accept().ok()?.0);
        (0..callers).map_while(accept).collect::<Vec<TcpStream>>()
    });
    let calling = netns.run(|| {
        let call = |_| {
            let socket = dialer(to, None, None)?;
            start_connect(&socket, to)?;
            Ok(socket)
        };
        (0..callers).map(call).collect::<io::Result<Vec<_>>>()
    })?;
    let waiting = Epoll::new(EpollCreateFlags::empty())?;
    for call in &calling {
        waiting.add(call, EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, 0))?;
    }
    let mut after = Vec::with_capacity(callers);
    let mut events = [EpollEvent::empty(); 64];
    while after.len() < callers {
        let connected = waiting.wait(&mut events, EpollTimeout::NONE)?;
        after.extend((0..connected).map(|_| begun.elapsed()));
    }
    let accepted = accepting.join().expect("accepting does not panic").len();
    Ok((after, callers - accepted))
}

fn backlog(callers: usize) {
    let Some(netns) = place() else { return };
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    println!(
        "sockets/backlog: {callers} callers at once, nobody accepts for {BUSY:?}; somaxconn of this host is {}",
        most.trim()
    );
    let rows = [Some(128), Some(1024), Some(4096), None];
    for waiting in rows {
        let listener = netns.run(|| waiting.map_or_else(|| listener(None), plain_listener));
        let listener = listener.expect("a new namespace has free ports");
        let (after, lost) = burst(&netns, listener, callers).expect("all connect");
        let late = after.iter().filter(|&&after| after >= AGAIN).count();
        let name = waiting.map_or("adit".to_owned(), |waiting| waiting.to_string());
        let ms = |nth: usize| after[nth].as_secs_f64() * 1e3;
        let (half, all) = (ms(callers / 2), ms(callers - 1));
        println!(
            "  {name:>4}: half after {half:7.1} ms, all after {all:7.1} ms, {late:4} SYNs again, {lost:4} never accepted"
        );
    }
}

criterion_group!(benches, sockets);

fn main() {
    let brief = std::env::args().any(|arg| arg == "--test");
    backlog(if brief { CALLERS / 10 } else { CALLERS });
    benches();
    Criterion::default().configure_from_args().final_summary();
}
