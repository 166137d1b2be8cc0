//! Connections of one request each: connect, ask, hear the answer to its end.
//!
//! The server closes first, as HTTP servers do; so the client's addresses are free again at once.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adit::net::Netns;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Measured, Window};
use crate::figures::{Figure, Mark, Whose, quantile};
use crate::stage::{Called, SOON, Stage};

/// Connections at a time, each with a thread of the client and one of the server.
const AT_A_TIME: usize = 8;
const REQUEST: &[u8] = b"GET /cart HTTP/1.1\r\nhost: server.bench\r\nuser-agent: bench\r\naccept: */*\r\nconnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 14\r\nconnection: close\r\n\r\nsomething new\n";

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    /// When each connection was over, and how long it took.
    done: Vec<(Instant, Duration)>,
    failed: usize,
    first_failure: Option<io::Error>,
}

pub fn measure(stage: &Stage, window: &Window) -> io::Result<Measured> {
    let (listener, to) = stage.listen(Called::Server)?;
    let over = AtomicBool::new(false);
    let mut seen = Seen::default();
    let watched = thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..AT_A_TIME {
            scope.spawn(|| serve(&listener));
            clients.push(scope.spawn(|| call_until(&over, stage.client().netns(), to)));
        }
        let watched = window.watch(stage, || ());
        over.store(true, Ordering::SeqCst);
        for client in clients {
            let one = client.join().expect("clients return their errors");
            seen.done.extend(one.done);
            seen.failed += one.failed;
            seen.first_failure = seen.first_failure.take().or(one.first_failure);
        }
        // Only now, because the last calls need to be answered. Wakes the blocked accepts, which then fail (EINVAL).
        let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
        watched
    })?;
    let inside = seen.done.iter().filter(|(at, _)| (watched.begin..watched.end).contains(at));
    let mut durations: Vec<Duration> = inside.map(|(_, took)| *took).collect();
    durations.sort_unstable();
    if durations.is_empty() {
        return Err(seen.first_failure.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
    }
    let count = durations.len() as f64;
    let mut values = vec![(Figure::Connections, count / watched.seconds())];
    for (mark, per_mille) in [(Mark::P50, 500), (Mark::P99, 990)] {
        let took = quantile(&durations, per_mille).expect("there is one at least");
        values.push((Figure::Connection(mark), took.as_secs_f64() * 1e6));
    }
    if let Some([client, server]) = watched.cpu.seconds() {
        let each = [(Whose::Both, client + server), (Whose::Client, client), (Whose::Server, server)];
        values.extend(each.map(|(whose, seconds)| (Figure::ConnectionCpu(whose), seconds * 1e6 / count)));
    }
    let complaint = seen.first_failure.map(|first| {
        format!(
            "{} of {} connections failed, the first of them: {first}",
            seen.failed,
            seen.done.len() + seen.failed
        )
    });
    Ok(Measured { values, complaint })
}

fn call_until(over: &AtomicBool, netns: &Netns, to: SocketAddr) -> Seen {
    let mut seen = Seen::default();
    // This thread ends soon and need not come home.
    if let Err(cause) = netns.enter() {
        (seen.failed, seen.first_failure) = (1, Some(cause));
        return seen;
    }
    while !over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match call(to) {
            Ok(()) => {
                let end = Instant::now();
                seen.done.push((end, end - begin));
            }
            Err(cause) => {
                seen.failed += 1;
                seen.first_failure.get_or_insert(cause);
                // A refusal comes at once; the next one shall not cost everybody's CPU.
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    seen
}

fn call(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    // Bounds the connect as well (socket(7)).
    socket.set_write_timeout(Some(SOON))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(REQUEST)?;
    let mut answer = [0; 2 * ANSWER.len()];
    let mut len = 0;
    loop {
        match stream.read(&mut answer[len..])? {
            0 if &answer[..len] == ANSWER => return Ok(()),
            0 => {
                let what = format!("the answer ended after {len} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            more => len += more,
        }
    }
}

fn serve(listener: &TcpListener) {
    loop {
        match listener.accept() {
            // What goes wrong here shows at the client.
            Ok((stream, _)) => drop(answer(stream)),
            Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => return,
            // A client that gave up while it waited, or nobody for a long time.
            Err(_) => {}
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut request = [0; 2 * REQUEST.len()];
    let mut len = 0;
    while !request[..len].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[len..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
    }
    stream.write_all(ANSWER)
}
