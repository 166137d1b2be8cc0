//! How objects of the mesh name each other: addresses in a network, namespaced hostnames, ports.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The key of a service: `namespace/hostname`. The hostname may be a wildcard such as `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The whole hostname, compared as text.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// An IP address in a network: `network/ip`. Networks are compared as text, and the empty one is a name too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name.
    pub network: Arc<str>,
    /// The address; never an IPv4-mapped IPv6 address.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A waypoint or a network's gateway. It is resolved when it is used, so it may name what is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// Which workload or service it is.
    pub destination: Destination,
    /// The port of its HBONE listener: a workload's own port, or a service's port.
    pub hbone_port: u16,
}

/// What a [`GatewayAddress`] points at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A workload's address or a service's virtual address.
    Address(NetworkAddress),
    /// A service or, if none has that name, a workload with this namespace and hostname.
    Hostname(ServiceKey),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            Destination::Address(address) => address.fmt(f),
            Destination::Hostname(name) => name.fmt(f),
        }
    }
}

/// Service ports and the target ports behind them. Target 0 means the port has a name and each endpoint says
/// which number it has there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Box<[(u16, u16)]>);

impl Ports {
    /// Target port of `service_port`, if it is listed.
    pub fn get(&self, service_port: u16) -> Option<u16> {
        self.0.binary_search_by_key(&service_port, |pair| pair.0).ok().map(|at| self.0[at].1)
    }

    /// All pairs (service port, target port), ordered by service port.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<(u16, u16)> for Ports {
    /// Of several entries for one service port the last one counts.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect::<std::collections::BTreeMap<_, _>>().into_iter().collect())
    }
}
