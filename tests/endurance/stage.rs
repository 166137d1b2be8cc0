//! The lab every test here starts from: one client, one server, one pod outside the mesh, a proxy on each node.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit::lab::{self, Agent, Launch, Membership, MeshFile, Pod, Proxy, Session, Side, World};
use adit::net::canonical;
use nix::sys::signal::Signal;

/// What may take a moment on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// The other side of the mesh's promise that live connections follow the rules: 1 s, and room for a busy machine.
pub const AT_ONCE: Duration = Duration::from_secs(5);

/// One lab at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Two nodes, their proxies and their pods. Dropped in this order.
pub struct Stage {
    pub proxies: Vec<Proxy>,
    pub sessions: Vec<Session>,
    pub agents: Vec<Agent>,
    /// On node one, in the mesh.
    pub client: Pod,
    /// On node two, in the mesh.
    pub server: Pod,
    /// On node one, outside the mesh.
    pub plain: Pod,
    pub world: World,
    place: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Both at once, so that the two drains overlap; dropping each then waits for it.
        for proxy in &self.proxies {
            let _ = proxy.signal(Signal::SIGTERM);
        }
    }
}

impl Stage {
    /// Everything up and ready.
    pub fn new() -> Self {
        Self::tuned(|launch| launch)
    }

    /// As [`Stage::new`], with a change to how the proxies are started.
    pub fn tuned(tune: impl Fn(Launch) -> Launch) -> Self {
        Self::prepared(|_, _, _| (), |launch, _, ()| tune(launch)).0
    }

    /// As [`Stage::tuned`], with something that is made when there are nodes and pods, and no proxies yet; in a directory that lives
    /// as long as the stage.
    pub fn prepared<T>(
        prepare: impl FnOnce(&World, &Path, [&Pod; 3]) -> T,
        tune: impl Fn(Launch, Side, &T) -> Launch,
    ) -> (Self, T) {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut world = World::new().unwrap_or_else(|cause| panic!("{}; run this as root", cause.story()));
        let mut pod = |side, namespace, name, membership| {
            let pod = world.add_pod(side, namespace, name, membership).unwrap();
            if membership == Membership::Mesh {
                pod.install_rules().unwrap();
            }
            pod
        };
        let client = pod(Side::One, "shop", "client", Membership::Mesh);
        let server = pod(Side::Two, "shop", "server", Membership::Mesh);
        let plain = pod(Side::One, "legacy", "plain", Membership::Outside);
        let place = tempfile::tempdir().unwrap();
        MeshFile::new([&client, &server, &plain]).save(&mesh_path(&place)).unwrap();
        let prepared = prepare(&world, place.path(), [&client, &server, &plain]);
        let start = |side: Side| {
            let agent = Agent::listen(&place.path().join(format!("{side}.sock"))).unwrap();
            let launch = tune(launch(&place, side), side, &prepared);
            let proxy = launch.start(world.node(side)).unwrap();
            let session = agent.accept(SOON).unwrap_or_else(|cause| {
                panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(15))
            });
            (agent, proxy, session)
        };
        // One after the other: the first makes the certificate authority that the second finds.
        let (agent_one, proxy_one, session_one) = start(Side::One);
        let (agent_two, proxy_two, session_two) = start(Side::Two);
        session_one.snapshot([&client]).unwrap();
        session_two.snapshot([&server]).unwrap();
        let mut proxies = vec![proxy_one, proxy_two];
        for proxy in &mut proxies {
            proxy.wait_ready(SOON).unwrap();
        }
        let stage = Self {
            proxies,
            sessions: vec![session_one, session_two],
            agents: vec![agent_one, agent_two],
            client,
            server,
            plain,
            world,
            place,
            _alone: alone,
        };
        (stage, prepared)
    }

    /// How a proxy of `side` is started.
    pub fn launch(&self, side: Side) -> Launch {
        launch(&self.place, side)
    }

    /// The proxy of a node.
    pub fn proxy(&self, side: Side) -> &Proxy {
        &self.proxies[index(side)]
    }

    /// A directory that lives as long as the stage.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Where the mesh is described.
    pub fn mesh_path(&self) -> PathBuf {
        mesh_path(&self.place)
    }

    /// Puts `text` in the place of the mesh file at one stroke, as an editor or a ConfigMap does.
    pub fn rewrite(&self, text: &str) {
        let draft = self.place.path().join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.mesh_path()).unwrap();
    }

    /// Puts a mesh in force on both nodes.
    pub fn enforce(&self, mesh: &MeshFile) {
        let from = Side::BOTH.map(|side| self.proxy(side).log().position());
        self.rewrite(&mesh.yaml());
        for (side, from) in Side::BOTH.into_iter().zip(from) {
            let in_force = |line: &str| line.contains("its state is in force").then_some(());
            self.proxy(side).log().find(from, "the new mesh in force", SOON, in_force).unwrap();
        }
    }

    /// Both ends of a new connection over `way`, the client's first.
    pub fn connect(&self, way: Way) -> (TcpStream, TcpStream) {
        let (from, to) = self.ends(way);
        connect(from, to).unwrap_or_else(|cause| {
            let logs = Side::BOTH.map(|side| self.proxy(side).log().last(10));
            panic!("{way:?}: {cause}; the proxies say:\n{}\n{}", logs[0], logs[1])
        })
    }

    /// Who dials whom on `way`.
    pub fn ends(&self, way: Way) -> (&Pod, &Pod) {
        match way {
            Way::Tunnel => (&self.client, &self.server),
            Way::PlainIn => (&self.plain, &self.server),
            Way::PlainOut => (&self.client, &self.plain),
        }
    }

    /// One number of a proxy's metrics: the sum over all label sets of `name`.
    pub fn metric(&self, side: Side, name: &str) -> f64 {
        let page = self.proxy(side).get(15020, "/metrics", SOON).unwrap().body;
        let values: Vec<f64> = page
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
            .collect();
        assert!(!values.is_empty(), "{side} shows no {name}:\n{page}");
        values.iter().sum()
    }
}

/// How a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Mesh to mesh, over both proxies.
    Tunnel,
    /// From outside the mesh to a pod in it.
    PlainIn,
    /// From a pod in the mesh to one outside.
    PlainOut,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Tunnel, Self::PlainIn, Self::PlainOut];
}

pub fn index(side: Side) -> usize {
    match side {
        Side::One => 0,
        Side::Two => 1,
    }
}

fn mesh_path(place: &tempfile::TempDir) -> PathBuf {
    place.path().join("mesh.yaml")
}

fn launch(place: &tempfile::TempDir, side: Side) -> Launch {
    let program = Path::new(env!("CARGO_BIN_EXE_adit"));
    let agent = place.path().join(format!("{side}.sock"));
    Launch::new(program, side, &agent, &mesh_path(place), &place.path().join("ca"))
}

/// A port nobody else uses: connections of different checks never meet.
pub fn fresh_port() -> u16 {
    static NEXT: Mutex<u16> = Mutex::new(20_000);
    let mut next = NEXT.lock().unwrap();
    *next += 1;
    *next
}

/// Both ends of a new connection between two pods, the client's first; every read on them waits [`SOON`] at most.
pub fn connect(from: &Pod, to: &Pod) -> io::Result<(TcpStream, TcpStream)> {
    let port = fresh_port();
    let listener = lab::listen_for(to.netns(), port)?;
    let client = lab::dial(from.netns(), to.at(port), SOON)?;
    let (server, _) = accept(&listener)?;
    Ok((client, server))
}

/// The next connection, with its peer; waits [`SOON`] at most.
pub fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    socket2::SockRef::from(listener).set_read_timeout(Some(SOON))?;
    let (server, peer) = listener.accept()?;
    server.set_nodelay(true)?;
    server.set_read_timeout(Some(SOON))?;
    server.set_write_timeout(Some(SOON))?;
    Ok((server, canonical(peer)))
}

/// Sends `text` and insists that exactly it arrives.
pub fn say(from: &TcpStream, to: &TcpStream, text: &[u8]) -> io::Result<()> {
    (&*from).write_all(text)?;
    let mut heard = vec![0; text.len()];
    (&*to).read_exact(&mut heard)?;
    if heard == text { Ok(()) } else { Err(io::Error::other(format!("{text:?} arrived as {heard:?}"))) }
}

/// Insists that a connection carries bytes both ways.
pub fn talks((client, server): &(TcpStream, TcpStream)) -> io::Result<()> {
    say(client, server, b"question")?;
    say(server, client, b"answer")
}

/// How a connection ended, seen by reading from it to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Clean,
    /// RST.
    Reset,
}

/// Reads to the end, within `within`, and says which it was. Panics when there is none.
pub fn end_of(stream: &TcpStream, within: Duration, who: &str) -> End {
    let deadline = Instant::now() + within;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).unwrap();
        match (&*stream).read(&mut buffer) {
            Ok(0) => return End::Clean,
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => return End::Reset,
            Err(cause) => panic!("{who}: no end within {within:?}, but {cause}"),
        }
    }
}

/// Waits until `is_so` has nothing to complain about.
pub fn until(what: &str, within: Duration, mut is_so: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + within;
    while let Err(why) = is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {within:?}; {why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
