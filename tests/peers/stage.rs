//! The lab of these tests: one node with a real `adit` and the pod `near`, and one node whose pod `far` is served by a foreign proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use adit::identity::SpiffeId;
use adit::lab::{self, Agent, Launch, Membership, MeshFile, Pod, Proxy, Session, Side, World};
use adit::net::{Netns, die_with_this_thread};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What may take a moment on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// Where the applications listen that are called through a tunnel.
pub const APPLICATION: u16 = 8080;
/// Where the foreign proxy takes connections for its tunnels, at `far`'s loopback.
pub const ENTRANCE: u16 = 9000;

/// One lab at a time: both ends want the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

/// Which part the foreign proxy plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// adit opens tunnels, and it ends them.
    Serves,
    /// It opens tunnels, and adit ends them.
    Calls,
}

/// Dropped in this order.
pub struct Stage {
    pub proxy: Proxy,
    _session: Session,
    _agent: Agent,
    /// Served by adit.
    pub near: Pod,
    /// In the mesh, and served by nobody: a test starts a foreign proxy in it.
    pub far: Pod,
    _world: World,
    place: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Files with what somebody shows, and with the authority that it trusts.
pub struct Papers {
    pub chain: PathBuf,
    pub key: PathBuf,
    pub root: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() {
            let envoy = std::fs::read_to_string(self.place().join("envoy.log")).unwrap_or_default();
            println!("adit said:\n{}\n{envoy}", self.proxy.log().last(30));
        }
    }
}

impl Stage {
    /// Everything up and ready, but for the foreign proxy.
    pub fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut world = World::new().unwrap_or_else(|cause| panic!("{}; run this as root", cause.story()));
        let near = world.add_pod(Side::One, "shop", "near", Membership::Mesh).unwrap();
        let far = world.add_pod(Side::Two, "shop", "far", Membership::Mesh).unwrap();
        near.install_rules().unwrap();
        let place = tempfile::tempdir().unwrap();
        let mesh = place.path().join("mesh.yaml");
        MeshFile::new([&near, &far]).save(&mesh).unwrap();
        let agent = Agent::listen(&place.path().join("agent.sock")).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_adit"));
        let launch = Launch::new(program, Side::One, agent.path(), &mesh, &place.path().join("ca"))
            .env("CONNECTION_TERMINATION_DEADLINE", "60s");
        let mut proxy = launch.start(world.node(Side::One)).unwrap();
        let session = agent
            .accept(SOON)
            .unwrap_or_else(|cause| panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(15)));
        session.snapshot([&near]).unwrap();
        proxy.wait_ready(SOON).unwrap();
        Self { proxy, _session: session, _agent: agent, near, far, _world: world, place, _alone: alone }
    }

    /// Where files of this test go.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// A certificate for `identity` as the lab's authority makes them, in files.
    pub fn papers(&self, identity: &SpiffeId) -> Papers {
        let root = std::fs::read(self.place().join("ca/root.pem")).unwrap();
        let authority = CertificateDer::from_pem_slice(&root).unwrap();
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from_pem_slice(&root).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_der(&authority, &key).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.use_authority_key_identifier_extension = true;
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = self.place().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Papers {
            chain: write("chain.pem", leaf.pem()),
            key: write("key.pem", leaf_key.serialize_pem()),
            root: write("authority.pem", pem("CERTIFICATE", &authority)),
        }
    }

    /// Starts a program in `far`; it ends with the test, however that ends.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let child = self.far.netns().run(|| die_with_this_thread(command).spawn());
        child.unwrap_or_else(|cause| {
            panic!("{command:?}: {cause}; `make conformance` installs what is needed")
        })
    }

    /// Who dials whom while the foreign proxy is in `role`, with a listener for it. With `server_last` no server says its FIN before
    /// its client has.
    pub fn way(&self, role: Role, server_last: bool) -> Way<'_> {
        let (from, to, callee) = match role {
            Role::Serves => (&self.near, self.far.at(APPLICATION), &self.far),
            Role::Calls => {
                (&self.far, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ENTRANCE), &self.near)
            }
        };
        let listener = lab::listen_for(callee.netns(), APPLICATION).unwrap();
        socket2::SockRef::from(&listener).set_read_timeout(Some(SOON)).unwrap();
        Way { role, server_last, from: from.netns(), to, listener }
    }
}

/// From an application to another through one adit, one tunnel and one foreign proxy.
pub struct Way<'a> {
    pub role: Role,
    pub server_last: bool,
    from: &'a Netns,
    to: SocketAddr,
    listener: TcpListener,
}

/// Both ends of one connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    /// The server says its FIN only when it has heard the client's.
    pub server_last: bool,
}

impl Way<'_> {
    /// The client's end of a new connection, of which nobody knows yet whether it leads anywhere.
    pub fn dial(&self) -> TcpStream {
        lab::dial(self.from, self.to, SOON).unwrap()
    }

    /// Both ends of a new connection.
    pub fn connect(&self) -> Pair {
        let client = self.dial();
        let (server, _) = self.listener.accept().expect("the connection arrives");
        server.set_nodelay(true).unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        server.set_write_timeout(Some(SOON)).unwrap();
        Pair { client, server, server_last: self.server_last }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
