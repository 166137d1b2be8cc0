//! The hardware of the lab: a wire, two nodes on it, pods behind them.
//!
//! ```text
//!            node-one                     wire                     node-two
//!   pods 10.77.1.n fd77:1::n       br0 (one bridge)        pods 10.77.2.n fd77:2::n
//!   eth0 10.76.0.1 fd76::1  ────── port-one port-two ────── eth0 10.76.0.2 fd76::2
//! ```
//!
//! Pods hang on their node by a veth pair each and are routed, as with most CNI plugins. Offloads stay as the
//! kernel sets them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::error::Error;
use super::ip;
use crate::capture::rules::{DnsCapture, InboundCapture, Rules, Tools};
use crate::identity::SpiffeId;
use crate::net::Netns;

/// Host part of the address each pod uses as its gateway.
const GATEWAY: u8 = 254;

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// `node-one`, pods 10.77.1.0/24.
    One,
    /// `node-two`, pods 10.77.2.0/24.
    Two,
}

impl Side {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::One, Self::Two];

    /// The node's name, as `NODE_NAME` and the mesh file spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "node-one",
            Self::Two => "node-two",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    fn pod_v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(), host)
    }

    fn pod_v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, self.number().into(), 0, 0, 0, 0, 0, host.into())
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a pod takes part in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Its traffic is captured and carried by HBONE.
    Mesh,
    /// It speaks plain TCP and has no identity.
    Outside,
}

/// One node: a router between its pods and the wire, and the place its proxy runs in.
#[derive(Debug)]
pub struct Node {
    side: Side,
    netns: Netns,
    pods: u8,
}

impl Node {
    /// Which one.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address on the wire.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 76, 0, self.side.number())
    }

    /// Its IPv6 address on the wire.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd76, 0, 0, 0, 0, 0, 0, self.side.number().into())
    }
}

/// One pod: a namespace behind a node, and who lives in it. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod(Arc<PodFacts>);

#[derive(Debug)]
struct PodFacts {
    namespace: String,
    name: String,
    identity: SpiffeId,
    membership: Membership,
    side: Side,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    netns: Netns,
}

impl Pod {
    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Its name; its service account has the same.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.0.namespace, self.0.name)
    }

    /// The uid the node agent uses for it.
    pub fn uid(&self) -> String {
        format!("uid-{}-{}", self.0.namespace, self.0.name)
    }

    /// Whether it takes part in the mesh.
    pub fn membership(&self) -> Membership {
        self.0.membership
    }

    /// The node it runs on.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.0.ipv4
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.0.ipv6
    }

    /// Its address of the family of `like`.
    pub fn ip_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.0.ipv4.into() } else { self.0.ipv6.into() }
    }

    /// `port` at its IPv4 address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.ipv4.into(), port)
    }

    /// `port` at its IPv6 address.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.ipv6.into(), port)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Installs the rules that bring its traffic to the proxy, as a node agent does before it hands a pod over.
    /// Without them the pod is on the wire, bare. DNS is left alone.
    ///
    /// # Errors
    /// [`Error::Rules`]; nothing is installed then.
    pub fn install_rules(&self) -> Result<(), Error> {
        let rules = Rules {
            ipv6: true,
            dns: DnsCapture::Left,
            inbound: InboundCapture::Captured,
            virtual_interfaces: Vec::new(),
        };
        rules
            .install(self.netns(), &Tools::default())
            .map_err(|cause| Error::Rules { pod: self.full_name(), cause })
    }

    /// The identity the mesh gives it.
    pub fn identity(&self) -> &SpiffeId {
        &self.0.identity
    }
}

/// The wire and everything attached to it. Dropping it ends the namespaces no process runs in any more.
#[derive(Debug)]
pub struct World {
    wire: Netns,
    nodes: [Node; 2],
    congestion: String,
}

impl World {
    /// Lays the wire and attaches two nodes without pods.
    ///
    /// # Errors
    /// The step and the system's or `ip`'s answer. Without CAP_SYS_ADMIN the first step fails.
    pub fn new() -> Result<Self, Error> {
        let wire = namespace("the wire")?;
        ip::settings(&wire, "the wire", &[("ipv6/conf/default/disable_ipv6", "1")])?;
        ip::batch(
            &wire,
            "the wire",
            "link set lo up\n\
             link add name br0 type bridge mcast_snooping 0 stp_state 0 forward_delay 0\n\
             link set br0 up\n",
        )?;
        let nodes = [Self::attach(&wire, Side::One)?, Self::attach(&wire, Side::Two)?];
        for node in &nodes {
            Self::connect(node)?;
        }
        let congestion = ip::prefer_cubic(&nodes[0].netns, Side::One.name())?;
        ip::prefer_cubic(&nodes[1].netns, Side::Two.name())?;
        Ok(Self { wire, nodes, congestion })
    }

    fn attach(wire: &Netns, side: Side) -> Result<Node, Error> {
        let netns = namespace(side.name())?;
        ip::settings(
            &netns,
            side.name(),
            &[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
            ],
        )?;
        let port = format!("port-{}", side.number());
        ip::batch(
            wire,
            "the wire",
            &format!(
                "link add name {port} type veth peer name eth0 netns {}\n\
                 link set {port} master br0\n\
                 link set {port} up\n",
                path(&netns)
            ),
        )?;
        Ok(Node { side, netns, pods: 0 })
    }

    fn connect(node: &Node) -> Result<(), Error> {
        let far = node.side.other().number();
        ip::batch(
            &node.netns,
            node.side.name(),
            &format!(
                "link set lo up\n\
                 addr add {}/24 dev eth0\n\
                 addr add {}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add 10.77.{far}.0/24 via 10.76.0.{far}\n\
                 route add fd77:{far}::/64 via fd76::{far}\n",
                node.ipv4(),
                node.ipv6()
            ),
        )
    }

    /// Attaches a pod to a node. Installs no rules: that is the node agent's part.
    ///
    /// # Errors
    /// Names that a SPIFFE identity cannot have, a 254th pod on one node, or a failing step.
    pub fn add_pod(
        &mut self,
        side: Side,
        namespace_name: &str,
        name: &str,
        membership: Membership,
    ) -> Result<Pod, Error> {
        let full = format!("{namespace_name}/{name}");
        let identity = SpiffeId::new("cluster.local", namespace_name, name).map_err(|cause| {
            Error::Protocol { place: full.clone(), what: format!("the pod can have no identity: {cause}") }
        })?;
        let node = &mut self.nodes[usize::from(side.number()) - 1];
        if node.pods + 1 >= GATEWAY {
            return Err(Error::Protocol { place: full, what: format!("{side} has no address left") });
        }
        node.pods += 1;
        let host = node.pods;
        let (ipv4, ipv6) = (side.pod_v4(host), side.pod_v6(host));
        let (gateway4, gateway6) = (side.pod_v4(GATEWAY), side.pod_v6(GATEWAY));
        let netns = namespace(&full)?;
        ip::settings(
            &netns,
            &full,
            &[
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
            ],
        )?;
        ip::batch(
            &node.netns,
            side.name(),
            &format!(
                "link add name pod{host} type veth peer name eth0 netns {}\n\
                 addr add {gateway4}/32 dev pod{host}\n\
                 addr add {gateway6}/128 dev pod{host} nodad\n\
                 link set pod{host} up\n\
                 route add {ipv4}/32 dev pod{host}\n\
                 route add {ipv6}/128 dev pod{host}\n",
                path(&netns)
            ),
        )?;
        ip::batch(
            &netns,
            &full,
            &format!(
                "link set lo up\n\
                 addr add {ipv4}/32 dev eth0\n\
                 addr add {ipv6}/128 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add {gateway4}/32 dev eth0\n\
                 route add default via {gateway4}\n\
                 route add {gateway6}/128 dev eth0\n\
                 route add default via {gateway6}\n"
            ),
        )?;
        ip::prefer_cubic(&netns, &full)?;
        Ok(Pod(Arc::new(PodFacts {
            namespace: namespace_name.to_owned(),
            name: name.to_owned(),
            identity,
            membership,
            side,
            ipv4,
            ipv6,
            netns,
        })))
    }

    /// One of the nodes.
    pub fn node(&self, side: Side) -> &Node {
        &self.nodes[usize::from(side.number()) - 1]
    }

    /// The namespace of the bridge, through which every packet between the nodes passes.
    pub fn wire(&self) -> &Netns {
        &self.wire
    }

    /// The congestion control of the nodes and pods: cubic where the host allows namespaces to choose it.
    pub fn congestion(&self) -> &str {
        &self.congestion
    }
}

fn namespace(place: &str) -> Result<Netns, Error> {
    Netns::create().map_err(Error::io(format!("making the network namespace of {place}")))
}

/// How another process of the same user can open this namespace while we live.
fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}
