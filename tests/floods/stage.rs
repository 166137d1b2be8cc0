//! The lab: a client, a hostile pod and its neighbour on node one, the pod that they call on node two, a real `adit` on each.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, Tls, TlsPolicy};
use adit::lab::{
    self, Agent, Behaviour, Launch, Membership, MeshFile, Pod, Proxy, Server, Session, Side, World,
};
use adit::net::Netns;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use rustls::ClientConfig;

/// What may take a moment on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// The pod's applications.
pub const ECHO: u16 = 8080;
pub const SINK: u16 = 8081;
/// Sends without end.
pub const POUR: u16 = 8082;

/// The first pod on node two.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);

/// Dropped in this order.
pub struct Stage {
    _servers: [Server; 2],
    proxies: Vec<Proxy>,
    _sessions: Vec<Session>,
    _agents: Vec<Agent>,
    client: Pod,
    server: Pod,
    door: Door,
    neighbours_door: Door,
    _world: World,
    place: tempfile::TempDir,
}

/// How a peer with a good certificate comes to the pod's tunnel port.
#[derive(Clone)]
pub struct Door {
    pub netns: Arc<Netns>,
    pub to: SocketAddr,
    pub config: Arc<ClientConfig>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for proxy in &self.proxies {
            let _ = proxy.signal(Signal::SIGTERM);
        }
    }
}

/// How many descriptors this process may have, after it asked for as many as it can get.
pub fn descriptors() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}

impl Stage {
    pub fn new() -> Self {
        let mut world = World::new().unwrap_or_else(|cause| panic!("{}; run this as root", cause.story()));
        let mut pod = |side, name| world.add_pod(side, "shop", name, Membership::Mesh).unwrap();
        let client = pod(Side::One, "client");
        let [hostile, neighbour] = ["hostile", "neighbour"].map(|name| pod(Side::One, name));
        let server = pod(Side::Two, "server");
        assert_eq!(server.ipv4(), SERVER);
        for pod in [&client, &server] {
            pod.install_rules().unwrap();
        }
        let place = tempfile::tempdir().unwrap();
        let mesh = place.path().join("mesh.yaml");
        MeshFile::new([&client, &hostile, &neighbour, &server]).save(&mesh).unwrap();
        let (mut proxies, mut sessions, mut agents) = (Vec::new(), Vec::new(), Vec::new());
        // One after the other: the first makes the certificate authority that the second finds.
        for (side, pod) in [(Side::One, &client), (Side::Two, &server)] {
            let agent = Agent::listen(&place.path().join(format!("{side}.sock"))).unwrap();
            let program = Path::new(env!("CARGO_BIN_EXE_adit"));
            // The budgets asked for here are those of tunnels carried in place.
            let launch = Launch::new(program, side, agent.path(), &mesh, &place.path().join("ca"))
                .env("TUNNEL", "in-place");
            let proxy = launch.start(world.node(side)).unwrap();
            let session = agent.accept(SOON).unwrap_or_else(|cause| {
                panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(15))
            });
            session.snapshot([pod]).unwrap();
            proxies.push(proxy);
            sessions.push(session);
            agents.push(agent);
        }
        for proxy in &mut proxies {
            proxy.wait_ready(SOON).unwrap();
        }
        let servers = [(ECHO, Behaviour::Echo), (SINK, Behaviour::Sink)]
            .map(|(port, behaviour)| Server::start(&server, port, behaviour).unwrap());
        pour_without_end(lab::listen_for(server.netns(), POUR).unwrap());
        let door = |of: &Pod| Door {
            netns: Arc::new(Netns::from_fd(of.netns().as_fd().try_clone_to_owned().unwrap()).unwrap()),
            to: server.at(15008),
            config: config(of, &server, &place.path().join("ca")),
        };
        let (door, neighbours_door) = (door(&hostile), door(&neighbour));
        Self {
            _servers: servers,
            proxies,
            _sessions: sessions,
            _agents: agents,
            client,
            server,
            door,
            neighbours_door,
            _world: world,
            place,
        }
    }

    /// The process that is flooded.
    pub fn victim(&self) -> u32 {
        self.proxies[1].pid()
    }

    pub fn client_netns(&self) -> OwnedFd {
        self.client.netns().as_fd().try_clone_to_owned().unwrap()
    }

    pub fn server_at(&self, port: u16) -> SocketAddr {
        self.server.at(port)
    }

    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// As [`Stage::door`], for one that means well and has an address of its own.
    pub fn neighbours_door(&self) -> Door {
        self.neighbours_door.clone()
    }

    pub fn last_words(&self) -> String {
        format!(
            "the proxy that was flooded said in {}:\n{}",
            self.place.path().display(),
            self.proxies[1].log().last(12)
        )
    }

    pub fn still_runs(mut self) {
        for proxy in &mut self.proxies {
            proxy.still_runs().unwrap();
        }
    }
}

/// What `who` shows, and that it insists on `whom`.
fn config(who: &Pod, whom: &Pod, authority: &Path) -> Arc<ClientConfig> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ca = EmbeddedCa::open(authority, who.identity().trust_domain(), Clock::system()).unwrap();
    let issued = runtime.block_on(ca.issue(who.identity().clone(), Duration::from_secs(3600))).unwrap();
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    let credentials = Credentials::new(who.identity(), issued, &policy).unwrap();
    credentials.client_config(Arc::new([whom.identity().clone()]))
}

fn pour_without_end(listener: TcpListener) {
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            thread::spawn(move || while socket.write_all(&[b'p'; 64 << 10]).is_ok() {});
        }
    });
}
