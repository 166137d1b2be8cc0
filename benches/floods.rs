//! How much slower is a client of the mesh while an authenticated peer floods the tunnel port of the server it talks to?
//!
//! Unit: µs for 64 bytes there and back through two proxies, median and 99th percentile; beside it the CPU that the server's proxy takes
//! (cores), and what the flood achieves (its frames, and its tunnels, per second). All is real: two nodes in network namespaces, one
//! adit process each, and on the server's node a pod whose tunnels are the attacker's, with a valid certificate. It sends as fast as it is
//! taken, and comes back at once when its tunnel is ended. Needs root; without it the bench says that it did not run.
//!
//! - `quiet`: no flood.
//! - `control`: the reference. The attacker is as busy, but sends to a socket that is none of the proxy's: what sharing the machine costs.
//! - `reset`: CONNECT and RST_STREAM at once (CVE-2023-44487). `ping`: PING, each of which wants an answer (CVE-2019-9512).
//! - `data`: DATA frames of one byte on a stream to an application that reads.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adit::http2::{self, Action, Code, Machine, StreamId};
use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, Tls, TlsPolicy};
use adit::lab::{self, Agent, Error, Launch, Membership, MeshFile, Pod, Proxy, Session, Side, World};
use adit::net::Netns;
use adit::tls::{Content, HEADER, Handshake, OVERHEAD, Opened, Opener, Sealer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

const SOON: Duration = Duration::from_secs(20);
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const TUNNEL_PORT: u16 = 15008;
const ECHO: u16 = 9000;
const SINK: u16 = 9001;
const MESSAGE: [u8; 64] = [0x70; 64];
/// Frames of one record of the flood.
const FRAMES: usize = 500;

const CONFIG: http2::Config = http2::Config {
    stream_window: 4 << 20,
    connection_window: 16 << 20,
    frame_size: 1 << 20,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 200,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Quiet,
    Control,
    Reset,
    Ping,
    Data,
}

const FLOODS: [(&str, Flood); 5] = [
    ("quiet", Flood::Quiet),
    ("control", Flood::Control),
    ("reset", Flood::Reset),
    ("ping", Flood::Ping),
    ("data", Flood::Data),
];

fn main() {
    let brief = std::env::args().any(|argument| argument == "--test");
    if let Err(cause) = Netns::create() {
        println!("floods: not run, because making a network namespace failed: {cause}");
        return;
    }
    let (rounds, window) = if brief { (1, Duration::from_millis(200)) } else { (5, Duration::from_secs(2)) };
    let place = tempfile::tempdir().expect("a temporary directory");
    let mesh = Mesh::start(place.path()).unwrap_or_else(|cause| panic!("{}", cause.story()));
    println!(
        "floods: congestion control of the pods: {}; {rounds} rounds of {window:?}",
        mesh.world.congestion()
    );
    let mut rows = FLOODS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (row, (_, flood)) in rows.iter_mut().zip(FLOODS) {
            row.push(mesh.measure(flood, window).expect("the client's connection lives"));
        }
    }
    println!(
        "  {:<8} {:>9} {:>9} {:>7} {:>12} {:>10}",
        "", "p50 µs", "p99 µs", "cores", "frames/s", "tunnels/s"
    );
    for (row, (name, _)) in rows.iter_mut().zip(FLOODS) {
        let [p50, p99, cores, frames, tunnels] = std::array::from_fn(|nth| {
            row.sort_by(|a, b| a[nth].total_cmp(&b[nth]));
            row[row.len() / 2][nth]
        });
        println!("  {name:<8} {p50:>9.1} {p99:>9.1} {cores:>7.2} {frames:>12.0} {tunnels:>10.1}");
    }
}

/// Two nodes: a client on one; on the other its server, and a pod outside the mesh that has a certificate all the same.
struct Mesh {
    proxies: Vec<Proxy>,
    _sessions: Vec<Session>,
    _agents: Vec<Agent>,
    client: Pod,
    server: Pod,
    outside: Pod,
    config: Arc<ClientConfig>,
    world: World,
}

/// Lets namespaces choose cubic while it lives; a namespace that has chosen keeps it.
struct Allowed(String);

impl Allowed {
    fn lift() -> Option<Self> {
        let before = fs::read_to_string(ALLOWED).ok()?;
        fs::write(ALLOWED, format!("{} cubic", before.trim())).ok()?;
        Some(Self(before))
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Err(cause) = fs::write(ALLOWED, self.0.trim()) {
            eprintln!("floods: could not write {:?} back to {ALLOWED}: {cause}", self.0);
        }
    }
}

impl Mesh {
    fn start(place: &Path) -> Result<Self, Error> {
        let choosing = Allowed::lift();
        let mut world = World::new()?;
        let client = world.add_pod(Side::One, "bench", "client", Membership::Mesh)?;
        let server = world.add_pod(Side::Two, "bench", "server", Membership::Mesh)?;
        let outside = world.add_pod(Side::Two, "bench", "outside", Membership::Outside)?;
        drop(choosing);
        let file = place.join("mesh.yaml");
        MeshFile::new([&client, &server, &outside]).save(&file)?;
        let (mut proxies, mut sessions, mut agents) = (Vec::new(), Vec::new(), Vec::new());
        for (side, pod) in [(Side::One, &client), (Side::Two, &server)] {
            let agent = Agent::listen(&place.join(format!("{side}.sock")))?;
            let program = Path::new(env!("CARGO_BIN_EXE_adit"));
            let launch = Launch::new(program, side, agent.path(), &file, &place.join("ca"));
            proxies.push(launch.start(world.node(side))?);
            pod.install_rules()?;
            let session = agent.accept(SOON)?;
            session.snapshot([pod])?;
            sessions.push(session);
            agents.push(agent);
        }
        proxies.iter_mut().try_for_each(|proxy| proxy.wait_ready(SOON))?;
        let config = stolen(&place.join("ca"), &client, &server);
        Ok(Self { proxies, _sessions: sessions, _agents: agents, client, server, outside, config, world })
    }

    /// 50th and 99th percentile, cores of the server's proxy, frames and tunnels of the flood per second.
    fn measure(&self, flood: Flood, window: Duration) -> io::Result<[f64; 5]> {
        let (over, frames, tunnels) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let echo = lab::listen_for(self.server.netns(), ECHO)?;
        let sink = lab::listen_for(
            if flood == Flood::Control { self.outside.netns() } else { self.server.netns() },
            SINK,
        )?;
        let mut client = lab::dial(self.client.netns(), self.server.at(ECHO), SOON)?;
        let (mut server, _) = echo.accept()?;
        server.set_nodelay(true)?;
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut buffer = [0; MESSAGE.len()];
                while server.read_exact(&mut buffer).and_then(|()| server.write_all(&buffer)).is_ok() {}
            });
            let attack = scope.spawn(|| {
                let attack = Attack { mesh: self, flood, over: &over, frames: &frames, tunnels: &tunnels };
                while flood != Flood::Quiet && !over.load(Ordering::Relaxed) {
                    // However it ended, it begins again.
                    let _ = if flood == Flood::Control { attack.beside(&sink) } else { attack.tunnel() };
                }
            });
            let swallowing = scope.spawn(|| {
                while flood == Flood::Data
                    && let Ok((mut from, _)) = sink.accept()
                {
                    scope.spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(1..) = from.read(&mut buffer) {}
                    });
                }
            });
            let measured = ping(&mut client, window / 4).and_then(|_| {
                let counted = || [&frames, &tunnels].map(|count| count.load(Ordering::Relaxed));
                let (begun, cpu, before) = (Instant::now(), cpu(self.proxies[1].pid())?, counted());
                let mut took = ping(&mut client, window)?;
                let seconds = begun.elapsed().as_secs_f64();
                let cores = (self::cpu(self.proxies[1].pid())? - cpu).as_secs_f64() / seconds;
                let after = counted();
                took.sort_unstable();
                let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000].as_secs_f64() * 1e6;
                let [frames, tunnels] = [0, 1].map(|nth| (after[nth] - before[nth]) as f64 / seconds);
                Ok([at(500), at(990), cores, frames, tunnels])
            });
            over.store(true, Ordering::SeqCst);
            let _ = client.shutdown(std::net::Shutdown::Both);
            attack.join().expect("the attacker returns its errors");
            // Wakes who waits in accept.
            let _ = socket2::SockRef::from(&sink).shutdown(std::net::Shutdown::Both);
            swallowing.join().expect("it does not panic");
            measured
        })
    }
}

/// What a peer needs that has the client's identity.
fn stolen(ca: &Path, client: &Pod, server: &Pod) -> Arc<ClientConfig> {
    let ca = EmbeddedCa::open(ca, "cluster.local", Clock::system()).expect("the proxies have made it");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let issued = runtime.block_on(ca.issue(client.identity().clone(), Duration::from_secs(86_400)));
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    Credentials::new(client.identity(), issued.expect("its own trust domain"), &policy)
        .expect("just issued")
        .client_config([server.identity().clone()].into())
}

fn ping(client: &mut TcpStream, during: Duration) -> io::Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(1 << 18);
    let begun = Instant::now();
    while begun.elapsed() < during {
        let sent = Instant::now();
        client.write_all(&MESSAGE)?;
        client.read_exact(&mut [0; MESSAGE.len()])?;
        took.push(sent.elapsed());
    }
    Ok(took)
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().and_then(|spent| spent.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// One flood.
struct Attack<'a> {
    mesh: &'a Mesh,
    flood: Flood,
    over: &'a AtomicBool,
    frames: &'a AtomicUsize,
    tunnels: &'a AtomicUsize,
}

impl Attack<'_> {
    /// Records to somebody who only reads.
    fn beside(&self, sink: &std::net::TcpListener) -> io::Result<()> {
        let to = SocketAddr::new(self.mesh.outside.ipv4().into(), SINK);
        let mut socket = lab::dial(self.mesh.outside.netns(), to, SOON)?;
        let (mut from, _) = sink.accept()?;
        let secret = adit::tls::TrafficSecret::new(adit::tls::Suite::Aes256, &[7; 48]).expect("its length");
        let mut sealer = Sealer::new(secret, 0);
        let (mut record, mut swallowed) = (Vec::new(), vec![0; 64 << 10]);
        while !self.over.load(Ordering::Relaxed) && !sealer.key_update_due() {
            seal(&mut sealer, &vec![0; FRAMES * 10], &mut record)?;
            socket.write_all(&record)?;
            from.read_exact(&mut swallowed[..record.len()])?;
            self.frames.fetch_add(FRAMES, Ordering::Relaxed);
        }
        Ok(())
    }

    /// One tunnel, until the peer ends it.
    fn tunnel(&self) -> io::Result<()> {
        let to = SocketAddr::new(self.mesh.server.ipv4().into(), TUNNEL_PORT);
        let mut socket = lab::dial(self.mesh.outside.netns(), to, SOON)?;
        let mut tunnel = Tunnel::shake(&mut socket, &self.mesh.config)?;
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        socket.set_nonblocking(true)?;
        let sink = self.mesh.server.at(SINK).to_string();
        let mut stream = None;
        while !self.over.load(Ordering::Relaxed) {
            let mut frames = Vec::new();
            let mut count = 0;
            match self.flood {
                Flood::Ping => {
                    frames = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(FRAMES);
                    count = FRAMES;
                }
                Flood::Reset => {
                    while count < FRAMES / 5
                        && let Ok(asked) = tunnel.machine.open(&sink, [])
                    {
                        tunnel.machine.reset(asked, Code::CANCEL);
                        count += 2;
                    }
                }
                Flood::Data if tunnel.answered => {
                    let stream: StreamId = stream.expect("the answer is to it");
                    while count < FRAMES && tunnel.machine.room(stream) > 0 {
                        let head = tunnel.machine.send(stream, 1, false).map_err(io::Error::other)?;
                        frames.extend_from_slice(&head);
                        frames.push(0x61);
                        count += 1;
                    }
                }
                Flood::Data if stream.is_none() => stream = tunnel.machine.open(&sink, []).ok(),
                Flood::Data | Flood::Quiet | Flood::Control => {}
            }
            tunnel.say(&frames, &mut socket)?;
            self.frames.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The attacker's end of a tunnel.
struct Tunnel {
    sealer: Sealer,
    opener: Opener,
    machine: Machine,
    received: Vec<u8>,
    answered: bool,
}

impl Tunnel {
    fn shake(socket: &mut TcpStream, config: &ClientConfig) -> io::Result<Self> {
        let name = ServerName::IpAddress(socket.peer_addr()?.ip().into());
        let mut handshake = Handshake::client(config, name).map_err(io::Error::other)?;
        let (mut send, mut received) = (Vec::new(), [0; 4096]);
        handshake.start(&mut send).map_err(io::Error::other)?;
        loop {
            socket.write_all(&send)?;
            send.clear();
            if handshake.is_done() {
                break;
            }
            let read = socket.read(&mut received)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            handshake.receive(&received[..read], &mut send).map_err(io::Error::other)?;
        }
        let done = handshake.finish().map_err(io::Error::other)?;
        let machine = Machine::new(http2::Role::Client, CONFIG, Instant::now());
        let (sealer, opener, received) = (done.sealer, done.opener, done.received);
        Ok(Self { sealer, opener, machine, received, answered: false })
    }

    /// Sends what the machine has to say, then `frames`; hears what there is. The end of the tunnel is an error.
    fn say(&mut self, frames: &[u8], socket: &mut TcpStream) -> io::Result<()> {
        let mut record = Vec::new();
        let output = [self.machine.output(), frames].concat();
        self.machine.sent(self.machine.output().len());
        for body in output.chunks(adit::tls::MAX_BODY) {
            seal(&mut self.sealer, body, &mut record)?;
            let mut left = &record[..];
            while !left.is_empty() {
                match socket.write(left) {
                    Ok(sent) => left = &left[sent..],
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.hear(socket)?,
                    Err(cause) => return Err(cause),
                }
            }
        }
        self.hear(socket)
    }

    fn hear(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match socket.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.received.extend_from_slice(&buffer[..read]),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                thread::yield_now();
                return Ok(());
            }
            Err(cause) => return Err(cause),
        }
        loop {
            let Opened::Record { taken, content } =
                self.opener.open(&mut self.received).map_err(io::Error::other)?
            else {
                return Ok(());
            };
            if let Content::Data(data) = content {
                let mut bytes = &data[..];
                while let Some(action) =
                    self.machine.read(&mut bytes, Instant::now()).map_err(io::Error::other)?
                {
                    self.answered |= matches!(action, Action::Response { .. });
                    if matches!(action, Action::GoAway { .. }) {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
            }
            self.received.drain(..taken);
        }
    }
}

fn seal(sealer: &mut Sealer, body: &[u8], record: &mut Vec<u8>) -> io::Result<()> {
    record.clear();
    record.resize(OVERHEAD + body.len(), 0);
    record[HEADER..HEADER + body.len()].copy_from_slice(body);
    sealer.seal(record).map_err(io::Error::other)
}
