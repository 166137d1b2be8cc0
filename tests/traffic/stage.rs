//! The lab every test here starts from: two nodes, a real `adit` on each, and the pods a test asks for.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit::lab::{
    Action, Agent, Behaviour, Launch, Match, Membership, MeshFile, Pod, Policy, Proxy, Seen, Server, Service,
    Session, Side, World,
};
use nix::sys::signal::Signal;

/// What may take a moment on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A pod's part in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In the mesh: its traffic is captured, its node's proxy serves it.
    Mesh,
    /// Not in the mesh, and the mesh knows it.
    Outside,
    /// The mesh says that it speaks HBONE, and nobody serves it: what is left of a pod that has died.
    Dead,
}

/// Two nodes, their proxies, their pods and what these serve. Dropped in this order.
pub struct Stage {
    servers: Vec<(String, u16, Server)>,
    proxies: Vec<Proxy>,
    _sessions: Vec<Session>,
    _agents: Vec<Agent>,
    pods: Vec<Pod>,
    pub world: World,
    place: tempfile::TempDir,
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
    /// A mesh of `cast`, named `namespace/name`, with what `mesh` adds to it. Everything is up and ready.
    pub fn of(cast: &[(Side, &str, Part)], mesh: impl FnOnce(MeshFile) -> MeshFile) -> Self {
        Self::tuned(cast, mesh, |launch| launch)
    }

    /// As [`Stage::of`], with a change to how the proxies are started.
    pub fn tuned(
        cast: &[(Side, &str, Part)],
        mesh: impl FnOnce(MeshFile) -> MeshFile,
        tune: impl Fn(Launch) -> Launch,
    ) -> Self {
        let mut world = World::new().unwrap_or_else(|cause| {
            panic!("these tests make network namespaces and need root and iproute2: {}", cause.story())
        });
        let mut pods = Vec::new();
        let mut served = Vec::new();
        for &(side, full_name, part) in cast {
            let (namespace, name) = full_name.split_once('/').expect("pods are named namespace/name");
            let membership = if part == Part::Outside { Membership::Outside } else { Membership::Mesh };
            let pod = world.add_pod(side, namespace, name, membership).unwrap_or_else(fail);
            if part == Part::Mesh {
                pod.install_rules().unwrap_or_else(fail);
                served.push(pod.clone());
            }
            pods.push(pod);
        }
        let place = tempfile::tempdir().expect("a temporary directory can be made");
        let mesh_path = place.path().join("mesh.yaml");
        mesh(MeshFile::new(&pods)).save(&mesh_path).unwrap_or_else(fail);
        let (mut proxies, mut sessions, mut agents) = (Vec::new(), Vec::new(), Vec::new());
        // One after the other: the first makes the certificate authority that the second finds.
        for side in Side::BOTH {
            let agent = Agent::listen(&place.path().join(format!("{side}.sock"))).unwrap_or_else(fail);
            let program = Path::new(env!("CARGO_BIN_EXE_adit"));
            let launch = Launch::new(program, side, agent.path(), &mesh_path, &place.path().join("ca"));
            let proxy = tune(launch).start(world.node(side)).unwrap_or_else(fail);
            let session = agent.accept(SOON).unwrap_or_else(|cause| {
                panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(15))
            });
            session.snapshot(served.iter().filter(|pod| pod.side() == side)).unwrap_or_else(fail);
            proxies.push(proxy);
            sessions.push(session);
            agents.push(agent);
        }
        for proxy in &mut proxies {
            proxy.wait_ready(SOON).unwrap_or_else(fail);
        }
        Self { servers: Vec::new(), proxies, _sessions: sessions, _agents: agents, pods, world, place }
    }

    /// Opens a server in a pod.
    pub fn serve(&mut self, pod: &str, port: u16, behaviour: Behaviour) {
        let server = Server::start(&self.pod(pod), port, behaviour).unwrap_or_else(fail);
        self.servers.push((pod.to_owned(), port, server));
    }

    /// The connections a server has had so far.
    pub fn seen(&self, pod: &str, port: u16) -> Vec<Seen> {
        let found = self.servers.iter().find(|(of, at, _)| (of.as_str(), *at) == (pod, port));
        found.unwrap_or_else(|| panic!("{pod} serves nothing on port {port}")).2.seen()
    }

    /// A pod by its `namespace/name`.
    pub fn pod(&self, full_name: &str) -> Pod {
        let found = self.pods.iter().find(|pod| pod.full_name() == full_name);
        found.unwrap_or_else(|| panic!("no pod is called {full_name}")).clone()
    }

    /// The proxy of a node.
    pub fn proxy(&self, side: Side) -> &Proxy {
        match side {
            Side::One => &self.proxies[0],
            Side::Two => &self.proxies[1],
        }
    }

    /// Makes a pod's addresses unreachable: its node says so to whoever asks.
    pub fn cut_off(&self, pod: &str) {
        self.reroute(pod, "unreachable");
    }

    /// Makes a pod's addresses swallow what is sent to them, as a NetworkPolicy does.
    pub fn swallow(&self, pod: &str) {
        self.reroute(pod, "blackhole");
    }

    fn reroute(&self, pod: &str, kind: &str) {
        let pod = self.pod(pod);
        for destination in [format!("{}/32", pod.ipv4()), format!("{}/128", pod.ipv6())] {
            let family = if destination.contains(':') { "-6" } else { "-4" };
            let mut ip = Command::new("ip");
            for step in ["del", "add"] {
                let words: &[&str] = if step == "del" { &[] } else { &[kind] };
                let output = self.world.node(pod.side()).netns().run(|| {
                    ip = Command::new("ip");
                    ip.args([family, "route", step]).args(words).arg(&destination).output()
                });
                let output = output.expect("ip can be started");
                assert!(output.status.success(), "{ip:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    /// The directory of everything that is on disk.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Where the proxies' certificate authority lives.
    pub fn authority(&self) -> std::path::PathBuf {
        self.place().join("ca")
    }

    /// What both proxies said last, for messages.
    pub fn last_words(&self) -> String {
        Side::BOTH.map(|side| format!("{side} said:\n{}", self.proxy(side).log().last(12))).join("\n")
    }
}

/// Ends a test with the whole story of an error of the lab.
pub fn fail<T>(cause: adit::lab::Error) -> T {
    panic!("{}", cause.story())
}

/// A service `namespace/name` with one port in front of pods, and one virtual address per family, ending in `last`.
pub fn service(full_name: &str, last: u8, port: (u16, u16), behind: &[&str]) -> Service {
    let (namespace, name) = full_name.split_once('/').expect("services are named namespace/name");
    Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        addresses: vec![
            std::net::Ipv4Addr::new(10, 96, 0, last).into(),
            std::net::Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, last.into()).into(),
        ],
        ports: vec![port],
        behind: behind.iter().map(|&it| it.to_owned()).collect(),
    }
}

/// A policy `shop/<name>` of one match on some pods.
pub fn policy(name: &str, action: Action, on: &[&str], one: Match) -> Policy {
    Policy {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        action,
        on: on.iter().map(|&it| it.to_owned()).collect(),
        rules: vec![vec![vec![one]]],
    }
}

/// What a control plane makes of a PeerAuthentication with mode STRICT on some pods.
pub fn strict(on: &[&str]) -> Policy {
    let without_identity = Match { not_principals: vec![adit::lab::Text::Presence], ..Match::default() };
    policy(STRICT, Action::Deny, on, without_identity)
}

/// The name of [`strict`].
pub const STRICT: &str = "converted_peer_authentication_strict";
