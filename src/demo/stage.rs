//! The demo's cast: five pods and two bare ones, what they serve, what the mesh knows of them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::place::Place;
use super::rows::Who;
use super::setup::Interrupt;
use super::{Error, rows};
use crate::lab::{
    self, Action, Agent, Behaviour, Capture, Launch, Match, Membership, MeshFile, Pod, Policy, Proxy, Server,
    Service, Session, Side, Text, World,
};

/// How long the proxies may take to start.
const START: Duration = Duration::from_secs(10);
/// How often a starting proxy is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// Where applications answer.
pub(super) const RESPOND: u16 = 8080;
/// Where the application that speaks first listens.
pub(super) const GREET: u16 = 2525;
/// Where bytes are poured.
pub(super) const SINK: u16 = 9000;
/// Port of the service in front of payments.
pub(super) const SERVICE: u16 = 80;

/// Everything that runs, in the order it is to be taken down.
#[derive(Debug)]
pub(super) struct Stage {
    proxies: [Proxy; 2],
    servers: Vec<(Who, u16, Server)>,
    _sessions: [Session; 2],
    _agents: [Agent; 2],
    pods: Vec<(Who, Pod)>,
    bare: [Pod; 2],
    service: Service,
    world: World,
    /// Said only inside the mesh: must not be seen on the wire.
    pub(super) secret: String,
    /// Said outside it: must be seen, or the search is blind.
    pub(super) aloud: String,
    /// How long all of this took.
    pub(super) took: Duration,
}

impl Stage {
    /// Builds the world, starts the proxies, hands them their pods and opens the shops.
    ///
    /// # Errors
    /// The first step that failed.
    pub(super) fn build(place: &Place, interrupt: &Interrupt) -> Result<Self, Error> {
        let start = Instant::now();
        let mut world = World::new()?;
        let mut pods = Vec::new();
        for who in Who::ALL {
            let (side, namespace, name, membership) = who.facts();
            pods.push((who, world.add_pod(side, namespace, name, membership)?));
        }
        let bare = [
            world.add_pod(Side::One, "bare", "bare-one", Membership::Outside)?,
            world.add_pod(Side::Two, "bare", "bare-two", Membership::Outside)?,
        ];
        let (mesh, service) = mesh(&pods)?;
        let mesh_path = place.path().join("mesh.yaml");
        mesh.save(&mesh_path)?;
        let authority = place.path().join("ca");

        let program = std::env::current_exe()
            .map_err(|cause| Error::Unfit(format!("finding this program's own file: {cause}")))?;
        let open = |side: Side| -> Result<(Agent, Proxy, Session), Error> {
            let agent = Agent::listen(&place.path().join(format!("{side}.sock")))?;
            let mut proxy =
                Launch::new(&program, side, agent.path(), &mesh_path, &authority).start(world.node(side))?;
            interrupt.watch(proxy.pid());
            let session = greeted(&agent, &mut proxy)?;
            Ok((agent, proxy, session))
        };
        // One after the other: the first makes the certificate authority that the second finds.
        let (agent_one, mut proxy_one, session_one) = open(Side::One)?;
        let (agent_two, mut proxy_two, session_two) = open(Side::Two)?;
        for (side, session) in [(Side::One, &session_one), (Side::Two, &session_two)] {
            let enrolled: Vec<_> = pods
                .iter()
                .map(|(_, pod)| pod)
                .filter(|pod| pod.side() == side && pod.membership() == Membership::Mesh)
                .collect();
            for pod in &enrolled {
                pod.install_rules()?;
            }
            session.snapshot(enrolled)?;
        }
        proxy_one.wait_ready(START)?;
        proxy_two.wait_ready(START)?;

        let mut servers = Vec::new();
        for (who, port, behaviour) in rows::SERVERS {
            servers.push((who, port, Server::start(find(&pods, who), port, behaviour)?));
        }
        servers.push((Who::Printer, SINK, Server::start(&bare[1], SINK, Behaviour::Sink)?));
        let mark = fastrand::u64(..);
        Ok(Self {
            proxies: [proxy_one, proxy_two],
            servers,
            _sessions: [session_one, session_two],
            _agents: [agent_one, agent_two],
            pods,
            bare,
            service,
            world,
            secret: format!("between-us-{mark:016x}"),
            aloud: format!("for-all-to-hear-{mark:016x}"),
            took: start.elapsed(),
        })
    }

    /// The wire, the nodes.
    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// The five pods of the story, then the two bare ones.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|(_, pod)| pod).chain(&self.bare)
    }

    /// One of the five.
    pub(super) fn pod(&self, who: Who) -> &Pod {
        find(&self.pods, who)
    }

    /// The two pods without rules or proxy, one on each node; the second has a sink.
    pub(super) fn bare(&self) -> &[Pod; 2] {
        &self.bare
    }

    /// The proxy of a node.
    pub(super) fn proxy(&self, side: Side) -> &Proxy {
        match side {
            Side::One => &self.proxies[0],
            Side::Two => &self.proxies[1],
        }
    }

    /// The service in front of payments.
    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// The server of `who` on `port`; every row of the demo names one that exists.
    pub(super) fn server(&self, who: Who, port: u16) -> Option<&Server> {
        self.servers.iter().find(|(it, at, _)| (*it, *at) == (who, port)).map(|(_, _, server)| server)
    }

    /// Starts listening on the wire for both texts: the secret one first.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) fn eavesdrop(&self) -> Result<Capture, Error> {
        Ok(Capture::start(&self.world, &[&self.secret, &self.aloud])?)
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

/// Waits for the proxy's hello, and gives up at once when the proxy ends instead.
fn greeted(agent: &Agent, proxy: &mut Proxy) -> Result<Session, Error> {
    let deadline = Instant::now() + START;
    loop {
        match agent.accept(GLANCE) {
            Err(lab::Error::TooLate { .. }) if Instant::now() < deadline => proxy.still_runs()?,
            Err(_) if Instant::now() >= deadline => {
                return Err(lab::Error::TooLate {
                    what: format!(
                        "the proxy's hello to its node agent; its last words:\n{}\nThat",
                        proxy.log().last(15)
                    ),
                    within: START,
                }
                .into());
            }
            other => return Ok(other?),
        }
    }
}

fn find(pods: &[(Who, Pod)], who: Who) -> &Pod {
    pods.iter()
        .find_map(|(it, pod)| (*it == who).then_some(pod))
        .expect("a pod was added for every member of Who::ALL")
}

/// What the proxies are told: one service, and two policies on payments.
fn mesh(pods: &[(Who, Pod)]) -> Result<(MeshFile, Service), Error> {
    let payments = vec![find(pods, Who::Payments).full_name()];
    let vip = |text: &str| {
        text.parse()
            .map_err(|cause| Error::Unfit(format!("the demo's own address {text} is malformed: {cause}")))
    };
    let service = Service {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        addresses: vec![vip("10.96.0.10")?, vip("fd96::10")?],
        ports: vec![(SERVICE, RESPOND)],
        behind: payments.clone(),
    };
    let callers = [Who::Storefront, Who::Cart]
        .map(|who| Text::Exact(find(pods, who).identity().principal().to_owned()))
        .into();
    let policy = |name: &str, action: Action, one: Match| Policy {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        action,
        on: payments.clone(),
        rules: vec![vec![vec![one]]],
    };
    let mesh = MeshFile::new(pods.iter().map(|(_, pod)| pod))
        .service(service.clone())
        // What a control plane makes of a PeerAuthentication with mode STRICT.
        .policy(policy(
            rows::STRICT,
            Action::Deny,
            Match { not_principals: vec![Text::Presence], ..Match::default() },
        ))
        .policy(policy(rows::CALLERS, Action::Allow, Match { principals: callers, ..Match::default() }));
    Ok((mesh, service))
}
