//! What one connection left behind: what both ends saw, its log lines, the counters it moved.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use adit::lab::{AccessLine, Pod, Position, Proxy, Side};
use socket2::{Domain, Socket, Type};

use super::stage::{SOON, Stage};

/// One finished exchange with a lab server, as its client saw it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The client's own address.
    pub local: SocketAddr,
    /// Bytes from client to server.
    pub sent: u64,
    /// Bytes from server to client.
    pub received: u64,
    /// Whom the server said it saw.
    pub seen: SocketAddr,
}

/// Who speaks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The client, as in HTTP: a `Respond` server.
    Client,
    /// The server, as in SMTP or MySQL: a `Greet` server.
    Server,
}

/// Dials from a port that no test dials from twice, so that logs can be searched for it.
///
/// Otherwise a client may use one port towards two destinations within a minute. Both are redirected to one
/// address, the kernel then gives the second another port on the way (nf_nat), and the log tells of that one.
fn dial(from: &Pod, to: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 32_768, "from here on ports are the kernel's to give out");
    let local = SocketAddr::new(from.ip_like(to.ip()), port);
    let dial = || {
        let socket = from.netns().run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
        socket.bind(&local.into())?;
        socket.connect_timeout(&to.into(), SOON)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.set_write_timeout(Some(SOON))?;
        Ok(socket.into())
    };
    (local, dial())
}

/// Asks a lab server, with `marker` in the question and in the answer, and counts the bytes both ways.
pub fn exchange(from: &Pod, to: SocketAddr, first: First, marker: &str) -> io::Result<Exchange> {
    let (local, stream) = dial(from, to);
    let mut stream = stream?;
    let mut answer = Vec::new();
    if first == First::Server {
        // Not a byte is sent before the whole greeting is there.
        let mut byte = [0];
        while answer.last() != Some(&b'\n') {
            stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
    }
    let question = match first {
        First::Client => format!("GET / HTTP/1.0\r\nx-secret: {marker}\r\n\r\n"),
        First::Server => format!("{marker}\r\n"),
    };
    stream.write_all(question.as_bytes())?;
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {text:?}"));
    if line("secret=").as_deref() != Some(marker) {
        return Err(wrong("the marker did not come back"));
    }
    let seen: SocketAddr =
        line("peer=").and_then(|it| it.parse().ok()).ok_or_else(|| wrong("no peer in the answer"))?;
    let (sent, received) = (question.len() as u64, answer.len() as u64);
    Ok(Exchange { local, sent, received, seen: adit::net::canonical(seen) })
}

/// What a connection looked like to a client that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// By a reset.
    Reset,
    /// By an orderly close, which an application takes for an empty answer.
    Closed,
}

/// Dials, says `marker`, and insists that nothing comes back; says how it ended and from where it was dialled.
pub fn refused(from: &Pod, to: SocketAddr, marker: &str) -> (Refused, SocketAddr) {
    let (local, stream) = dial(from, to);
    let mut stream = match stream {
        Ok(stream) => stream,
        // The reset was faster than the dial.
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => return (Refused::Reset, local),
        Err(cause) => panic!("{} could not even dial {to}: {cause}", from.full_name()),
    };
    let mut back = Vec::new();
    let result = stream.write_all(marker.as_bytes()).and_then(|()| stream.read_to_end(&mut back));
    assert!(back.is_empty(), "{} got {:?} from {to}", from.full_name(), back.escape_ascii().to_string());
    match result {
        Ok(_) => (Refused::Closed, local),
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => (Refused::Reset, local),
        Err(cause) => panic!("{} waited for {to} and got: {cause}", from.full_name()),
    }
}

/// Where the logs and counters of both proxies stood.
pub struct Before {
    log: [Position; 2],
    page: [Page; 2],
}

impl Before {
    /// As of now.
    pub fn now(stage: &Stage) -> Self {
        Self {
            log: Side::BOTH.map(|side| stage.proxy(side).log().position()),
            page: Side::BOTH.map(|side| Page::of(stage.proxy(side))),
        }
    }

    /// As of now, once every connection that was opened is closed and has its line.
    pub fn when_idle(stage: &Stage) -> Self {
        let deadline = Instant::now() + SOON;
        loop {
            let before = Self::now(stage);
            let is_idle = |side: Side| {
                let page = &before.page[side as usize];
                let told = stage.proxy(side).access_log().since(Position::START);
                let told = told.iter().filter(|line| line.message == "connection complete").count() as u64;
                page.sum("istio_tcp_connections_opened_total") == told
                    && page.sum("istio_tcp_connections_closed_total") == told
            };
            if Side::BOTH.into_iter().all(is_idle) {
                return Self { log: Side::BOTH.map(|side| stage.proxy(side).log().position()), ..before };
            }
            assert!(Instant::now() < deadline, "connections stay open\n{}", stage.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The first line of a connection's end since then, in `direction`, that is about a client at `client`.
    pub fn line(&self, stage: &Stage, side: Side, direction: &str, client: impl Into<Client>) -> AccessLine {
        let client = client.into();
        let wanted = |line: &AccessLine| line.direction == direction && client.is_in(line);
        let log = stage.proxy(side).access_log();
        log.wait_for_since(self.log[side as usize], wanted, SOON).unwrap_or_else(|cause| {
            panic!("no {direction} line about {client:?}: {}\n{}", cause.story(), stage.last_words())
        })
    }

    /// The first `count` lines of connections' ends since then, in `direction`, about clients at `client`.
    pub fn lines_of(
        &self,
        stage: &Stage,
        side: Side,
        direction: &str,
        client: IpAddr,
        count: usize,
    ) -> Vec<AccessLine> {
        let wanted = |line: &AccessLine| line.direction == direction && Client::At(client).is_in(line);
        let log = stage.proxy(side).access_log();
        let lines = log.wait_for_count(self.log[side as usize], count, wanted, SOON);
        assert_eq!(
            lines.len(),
            count,
            "{direction} lines about {client}: {lines:#?}\n{}",
            stage.last_words()
        );
        lines
    }

    /// All ends of connections that `side` has told since then.
    pub fn lines(&self, stage: &Stage, side: Side) -> Vec<AccessLine> {
        stage.proxy(side).access_log().since(self.log[side as usize])
    }

    /// Every connection counter that moved since then at `side`.
    pub fn moved(&self, stage: &Stage, side: Side) -> Vec<Moved> {
        Page::of(stage.proxy(side)).since(&self.page[side as usize])
    }
}

/// How a client is named in a log line: by address and port, or, where a tunnel has its own port, by address.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    Exactly(SocketAddr),
    At(IpAddr),
}

impl From<SocketAddr> for Client {
    fn from(addr: SocketAddr) -> Self {
        Self::Exactly(addr)
    }
}

impl From<IpAddr> for Client {
    fn from(ip: IpAddr) -> Self {
        Self::At(ip)
    }
}

impl Client {
    fn is_in(self, line: &AccessLine) -> bool {
        let logged = line.src_addr.as_deref().and_then(|it| it.parse::<SocketAddr>().ok());
        match self {
            Self::Exactly(addr) => logged == Some(addr),
            Self::At(ip) => logged.is_some_and(|it| it.ip() == ip),
        }
    }
}

/// Labels by name.
type Labels = BTreeMap<String, String>;

/// The connection counters of one scrape.
struct Page(BTreeMap<(String, Labels), u64>);

/// A counter that moved.
#[derive(Clone, Debug)]
pub struct Moved {
    pub family: String,
    pub labels: Labels,
    pub by: u64,
}

impl Page {
    /// Scrapes `istio_tcp_*_total` and `adit_connections_refused_total` from port 15020.
    fn of(proxy: &Proxy) -> Self {
        let reply = proxy.get(15020, "/stats/prometheus", SOON).unwrap_or_else(super::stage::fail);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let samples = reply.body.lines().filter_map(sample).filter(|((family, _), _)| {
            family.ends_with("_total")
                && (family.starts_with("istio_tcp_") || family == "adit_connections_refused_total")
        });
        Self(samples.collect())
    }

    fn sum(&self, family: &str) -> u64 {
        self.0.iter().filter(|((name, _), _)| name == family).map(|(_, value)| value).sum()
    }

    fn since(&self, before: &Self) -> Vec<Moved> {
        let moved = |((family, labels), value): (&(String, Labels), &u64)| {
            let key = (family.clone(), labels.clone());
            let by = value - before.0.get(&key).copied().unwrap_or(0);
            (by > 0).then_some(Moved { family: key.0, labels: key.1, by })
        };
        self.0.iter().filter_map(moved).collect()
    }
}

/// One line of the page; `None` for comments.
fn sample(line: &str) -> Option<((String, Labels), u64)> {
    let (name, value) = line.split_once(" # ").map_or(line, |(it, _)| it).rsplit_once(' ')?;
    let (family, labels) = name.split_once('{').unwrap_or((name, "}"));
    let labels = labels.strip_suffix('}')?;
    let pairs = labels.split("\",").filter(|it| !it.is_empty());
    let pairs = pairs.map(|pair| {
        let (name, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("a label without value: {line}"));
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    });
    Some(((family.to_owned(), pairs.collect()), value.parse().ok()?))
}

/// One counter that has to move.
#[derive(Clone, Debug)]
pub struct Expected {
    family: &'static str,
    by: u64,
    labels: Vec<(&'static str, String)>,
}

impl Expected {
    /// `family` moves by `by` where it has these labels.
    pub fn new(family: &'static str, by: u64, labels: &[(&'static str, String)]) -> Self {
        Self { family, by, labels: labels.to_vec() }
    }

    fn is(&self, moved: &Moved) -> bool {
        let labels = &self.labels;
        self.family == moved.family
            && self.by == moved.by
            && labels.iter().all(|(name, value)| moved.labels.get(*name) == Some(value))
    }
}

/// Insists that exactly these counters moved.
pub fn assert_moved(what: &str, moved: &[Moved], expected: &[Expected]) {
    for one in expected {
        let hits = moved.iter().filter(|it| one.is(it)).count();
        assert_eq!(hits, 1, "{what}: wanted once {one:?}\namong {moved:#?}");
    }
    assert_eq!(moved.len(), expected.len(), "{what}: moved {moved:#?}\nwanted no more than {expected:#?}");
}
