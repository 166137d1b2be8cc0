//! Clients inside pods. Their sockets are made in the pod's namespace and driven from the caller's thread.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::{Netns, canonical};

/// Bytes given to the kernel at once by [`pour`].
const CHUNK: usize = 256 * 1024;

/// Connects from `netns` to `to`, all within `within`, which also bounds every later read and write.
///
/// # Errors
/// The system's answer; `TimedOut` when there is none.
pub fn dial(netns: &Netns, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let socket = netns.run(|| Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&to.into(), within)?;
    socket.set_read_timeout(Some(within))?;
    socket.set_write_timeout(Some(within))?;
    Ok(socket.into())
}

/// Listens on `port` at every address of `netns`, both families.
///
/// # Errors
/// The system's answer, for example EADDRINUSE.
pub fn listen_for(netns: &Netns, port: u16) -> io::Result<TcpListener> {
    let socket = netns.run(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// An HTTP answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body; bytes that are no UTF-8 are replaced.
    pub body: String,
}

/// `GET path` at `to` from `netns`.
///
/// # Errors
/// The system's answer, or `InvalidData` for what is no HTTP answer or shorter than it announced.
pub fn http_get(netns: &Netns, to: SocketAddr, path: &str, within: Duration) -> io::Result<Reply> {
    let mut stream = dial(netns, to, within)?;
    // HTTP/1.0, so that the answer ends with the connection and comes unchunked.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {to}\r\n\r\n").as_bytes())?;
    reply(&stream)
}

/// Reads one answer to the end of the connection.
fn reply(stream: &TcpStream) -> io::Result<Reply> {
    let mut all = Vec::new();
    (&*stream).read_to_end(&mut all)?;
    let bad =
        |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{why}: {}", all.escape_ascii()));
    if all.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    }
    let end = all.windows(4).position(|it| it == b"\r\n\r\n").ok_or_else(|| bad("no HTTP answer"))?;
    let (head, body) = (String::from_utf8_lossy(&all[..end]), &all[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
    let status = status.and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| bad("an HTTP answer without status"))?;
    let announced = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if announced.is_some_and(|(_, length)| length.trim().parse() != Ok(body.len())) {
        return Err(bad("an HTTP answer with another length than it announced"));
    }
    Ok(Reply { status, body: String::from_utf8_lossy(body).into_owned() })
}

/// Asks a [`Behaviour::Respond`](super::Behaviour::Respond) server, with `secret` in the request and, checked, in
/// the answer. Returns the address the server saw the connection come from.
///
/// # Errors
/// `UnexpectedEof` or `ConnectionReset` when the connection ends without an answer; `InvalidData` for another
/// answer than such a server gives.
pub fn ask(stream: &TcpStream, secret: &str) -> io::Result<SocketAddr> {
    let mut sender = stream;
    sender.write_all(format!("GET / HTTP/1.0\r\nhost: lab\r\nx-secret: {secret}\r\n\r\n").as_bytes())?;
    let reply = reply(stream)?;
    seen_in(&reply.body, secret)
}

/// Talks to a [`Behaviour::Greet`](super::Behaviour::Greet) server: waits for its greeting, then says `secret`,
/// then waits for it to come back. Returns and fails as [`ask`].
pub fn hear(stream: &TcpStream, secret: &str) -> io::Result<SocketAddr> {
    let mut lines = BufReader::new(stream);
    let mut greeting = String::new();
    lines.read_line(&mut greeting)?;
    if greeting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without a greeting",
        ));
    }
    let mut sender = stream;
    sender.write_all(format!("{secret}\r\n").as_bytes())?;
    let mut farewell = String::new();
    lines.read_to_string(&mut farewell)?;
    seen_in(&format!("{greeting}{farewell}"), secret)
}

/// Finds `peer=<address>` and `secret=<secret>` in a server's answer.
fn seen_in(answer: &str, secret: &str) -> io::Result<SocketAddr> {
    let bad =
        |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{why}: {}", answer.escape_debug()));
    if !answer.lines().any(|line| line.strip_prefix("secret=") == Some(secret)) {
        return Err(bad("the secret did not come back"));
    }
    answer
        .lines()
        .find_map(|line| line.strip_prefix("peer=")?.parse().ok())
        .map(canonical)
        .ok_or_else(|| bad("the server did not say whom it saw"))
}

/// Pushes bytes into a [`Behaviour::Sink`](super::Behaviour::Sink) server for `during`, closes, and waits for the
/// count of what arrived. Returns the bytes and the time from the first byte to the count.
///
/// # Errors
/// The system's answer, or `InvalidData` when not every byte arrived.
pub fn pour(stream: &TcpStream, during: Duration) -> io::Result<(u64, Duration)> {
    let chunk = vec![0x61; CHUNK];
    let start = Instant::now();
    let mut sent = 0_u64;
    let mut sender = stream;
    while start.elapsed() < during {
        sender.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut count = [0; 8];
    sender.read_exact(&mut count)?;
    let took = start.elapsed();
    let arrived = u64::from_be_bytes(count);
    if arrived == sent {
        Ok((sent, took))
    } else {
        let what = format!("{sent} bytes were sent and {arrived} arrived");
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}
