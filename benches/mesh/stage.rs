//! One variant's mesh: a client on node one, a server on node two, and another server there outside the mesh.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adit::lab::{self, Agent, Error, Launch, Membership, MeshFile, Pod, Proxy, Session, Side, World};
use adit::net::Netns;
use nix::sys::signal::Signal;
use socket2::{Domain, SockRef, Socket, Type};

/// What may take a moment on a busy machine; also how long any read or write of an application may block.
pub const SOON: Duration = Duration::from_secs(20);
/// How often a starting proxy is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// Where servers listen.
const PORT: u16 = 9000;

/// One way of carrying the applications' connections.
#[derive(Clone, Debug)]
pub struct Variant {
    /// As the table spells it.
    pub name: String,
    /// `None`: the pods are on the wire, bare.
    pub program: Option<Program>,
    /// What its processes are told beyond what every proxy is told.
    pub environment: Vec<(String, String)>,
}

/// What is started on each node.
#[derive(Clone, Debug)]
pub enum Program {
    /// This file, as `FILE proxy ztunnel`.
    Adit(PathBuf),
    /// `sh -c "exec COMMAND"`.
    Command(String),
}

impl Variant {
    /// Whether it has no proxies.
    pub fn is_bare(&self) -> bool {
        self.program.is_none()
    }

    fn launch(&self, program: &Program, side: Side, agent: &Path, mesh: &Path, authority: &Path) -> Launch {
        let launch = match program {
            Program::Adit(file) => Launch::new(file, side, agent, mesh, authority),
            Program::Command(command) => {
                let mut launch = Launch::new(Path::new("/bin/sh"), side, agent, mesh, authority)
                    .arguments(["-c".to_owned(), format!("exec {command}")]);
                for name in ["PATH", "HOME"] {
                    if let Ok(value) = std::env::var(name) {
                        launch = launch.env(name, value);
                    }
                }
                launch
            }
        };
        self.environment.iter().fold(launch, |launch, (name, value)| launch.env(name, value))
    }
}

/// A mesh that is up. Fields are dropped in this order.
pub struct Stage {
    proxies: Vec<Proxy>,
    _sessions: Vec<Session>,
    _agents: Vec<Agent>,
    client: Pod,
    server: Pod,
    outside: Pod,
    world: World,
}

/// Which pod is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The one in the mesh, through a tunnel.
    Server,
    /// The one outside, in plaintext.
    Outside,
}

impl Stage {
    /// Builds a mesh of its own in new namespaces; `place` is made and must be removed by the caller.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn build(variant: &Variant, place: &Path, congestion: &str) -> Result<Self, Error> {
        fs::create_dir_all(place).map_err(Error::io(format!("making {}", place.display())))?;
        let mut world = World::new()?;
        let client = world.add_pod(Side::One, "bench", "client", Membership::Mesh)?;
        let server = world.add_pod(Side::Two, "bench", "server", Membership::Mesh)?;
        let outside = world.add_pod(Side::Two, "bench", "outside", Membership::Outside)?;
        let nodes = Side::BOTH.map(|side| world.node(side).netns());
        for netns in [client.netns(), server.netns(), outside.netns()].into_iter().chain(nodes) {
            choose_congestion(netns, congestion)?;
        }
        let mut stage = Self {
            proxies: Vec::new(),
            _sessions: Vec::new(),
            _agents: Vec::new(),
            client,
            server,
            outside,
            world,
        };
        if let Some(program) = &variant.program {
            stage.start(variant, program, place)?;
        }
        Ok(stage)
    }

    fn start(&mut self, variant: &Variant, program: &Program, place: &Path) -> Result<(), Error> {
        let mesh = place.join("mesh.yaml");
        MeshFile::new([&self.client, &self.server, &self.outside]).save(&mesh)?;
        // One after the other: the first makes the certificate authority that the second finds.
        for (side, pod) in [(Side::One, &self.client), (Side::Two, &self.server)] {
            let agent = Agent::listen(&place.join(format!("{side}.sock")))?;
            let launch = variant.launch(program, side, agent.path(), &mesh, &place.join("ca"));
            let mut proxy = launch.start(self.world.node(side))?;
            pod.install_rules()?;
            let session = greeted(&agent, &mut proxy)?;
            session.snapshot([pod])?;
            self.proxies.push(proxy);
            self._sessions.push(session);
            self._agents.push(agent);
        }
        self.proxies.iter_mut().try_for_each(|proxy| proxy.wait_ready(SOON))
    }

    /// The proxy of a node; none has one when the pods are bare.
    pub fn proxy(&self, side: Side) -> Option<&Proxy> {
        self.proxies.get(usize::from(side == Side::Two))
    }

    /// The process ids of its proxies.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.proxies.iter().map(Proxy::pid)
    }

    /// The pod that calls.
    pub fn client(&self) -> &Pod {
        &self.client
    }

    /// The pod that is called.
    pub fn called(&self, called: Called) -> &Pod {
        match called {
            Called::Server => &self.server,
            Called::Outside => &self.outside,
        }
    }

    /// Opens a server's port. One at a time: the port is always the same.
    pub fn listen(&self, called: Called) -> io::Result<(TcpListener, SocketAddr)> {
        let pod = self.called(called);
        let listener = lab::listen_for(pod.netns(), PORT)?;
        SockRef::from(&listener).set_read_timeout(Some(SOON))?;
        Ok((listener, pod.at(PORT)))
    }

    /// One connection from the client to a server, both its ends, after a byte has gone there and back.
    pub fn connect(&self, listener: &TcpListener, to: SocketAddr) -> io::Result<Pair> {
        use std::io::{Read, Write};
        let mut client = lab::dial(self.client.netns(), to, SOON)?;
        client.write_all(b"?")?;
        let (mut server, _) = listener.accept()?;
        server.set_nodelay(true)?;
        server.set_read_timeout(Some(SOON))?;
        server.set_write_timeout(Some(SOON))?;
        server.read_exact(&mut [0])?;
        server.write_all(b"!")?;
        client.read_exact(&mut [0])?;
        Ok(Pair { client, server })
    }

    /// What a socket made now would use, asked of one in each pod and on each node.
    pub fn congestion(&self) -> io::Result<Vec<String>> {
        let pods = [&self.client, &self.server, &self.outside].map(Pod::netns);
        let nodes = Side::BOTH.map(|side| self.world.node(side).netns());
        let in_force = |netns: &Netns| {
            let name = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None)?.tcp_congestion())?;
            // The kernel fills the rest of the buffer with zeros.
            let name: Vec<u8> = name.into_iter().take_while(|&byte| byte != 0).collect();
            Ok(String::from_utf8_lossy(&name).into_owned())
        };
        pods.into_iter().chain(nodes).map(in_force).collect()
    }

    /// What the proxies said last, for complaints.
    pub fn last_words(&self) -> String {
        let words = Side::BOTH.map(|side| self.proxy(side).map(|it| format!("{side}: {}", it.log().last(3))));
        words.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Both at once, so that the two drains overlap; dropping each then waits for it.
        for proxy in &self.proxies {
            let _ = proxy.signal(Signal::SIGTERM);
        }
    }
}

/// Both ends of one connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    /// Wakes whoever is blocked at either end.
    pub fn cut(&self) {
        for end in [&self.client, &self.server] {
            // Fails when the other end has cut it already.
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn choose_congestion(netns: &Netns, name: &str) -> Result<(), Error> {
    netns
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name))
        .map_err(Error::io(format!("choosing {name} as congestion control of a namespace")))
}

/// Waits for the proxy's hello, and gives up at once when the proxy ends instead.
fn greeted(agent: &Agent, proxy: &mut Proxy) -> Result<Session, Error> {
    let deadline = Instant::now() + SOON;
    loop {
        match agent.accept(GLANCE) {
            Err(Error::TooLate { .. }) if Instant::now() < deadline => proxy.still_runs()?,
            Err(cause) => {
                eprintln!("last words of the proxy:\n{}", proxy.log().last(15));
                return Err(cause);
            }
            Ok(session) => return Ok(session),
        }
    }
}
