//! Which endpoint of a service? A decision, pure.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::{
    Endpoint, Endpoints, IpFamilies, LoadBalancer, LoadBalancerMode, Scope, Service, Workload, target_port,
};
use crate::net::OriginalDst;

/// Where chance comes from.
pub trait Pick {
    /// A number from 0 to `n` − 1, each as likely. `n` is never 0.
    fn below(&mut self, n: u64) -> u64;
}

/// Chance, seeded by the system; not for secrets. One per worker.
#[derive(Debug, Default)]
pub struct Chance(fastrand::Rng);

impl Pick for Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0.u64(0..n)
    }
}

/// One endpoint and the port on which it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) port: u16,
    pub(super) reach: Reach,
}

/// How a workload is reached; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// At this address.
    At(IpAddr),
    /// Once its hostname is resolved.
    ByHostname,
    /// It is on another network.
    ThroughGateway,
    /// It has no address in an allowed family, no hostname and no gateway.
    Nowhere,
}

/// How well an endpoint fits; more is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    /// What it has in common with the client, as the service's preferences count it.
    rank: usize,
    /// Among equals, whether this proxy can carry a connection there.
    reach: u8,
}

/// Draws one endpoint of `service` for a connection that dialled `dst`.
///
/// Those that can be chosen are healthy enough for the service, serve the dialled port, are not in `tried`, and
/// pass the service's preferences; of them the best-ranked count, and there those that this proxy can carry a
/// connection to. Each is as likely as its capacity says. `None` when nothing is left.
///
/// - Cost: linear in the endpoints, no allocation.
pub(super) fn choose<'a>(
    source: &Workload,
    dst: OriginalDst,
    service: &Service,
    endpoints: &'a Endpoints,
    pick: &mut impl Pick,
    tried: &[Arc<str>],
) -> Option<Chosen<'a>> {
    // The service must list the port, whatever its endpoints say.
    service.ports.get(dst.port())?;
    let candidates = || {
        endpoints
            .iter()
            .filter(|endpoint| service.accepts(endpoint.status) && !tried.contains(&endpoint.uid))
            .filter_map(|endpoint| candidate(source, dst, service, endpoint))
    };
    let (mut best, mut total) = (None, 0_u64);
    for (fit, chosen) in candidates() {
        let capacity = u64::from(chosen.workload.capacity);
        match Some(fit).cmp(&best) {
            Ordering::Greater => (best, total) = (Some(fit), capacity),
            // Endpoints are fewer than 2³², and so is each one's capacity.
            Ordering::Equal => total += capacity,
            Ordering::Less => {}
        }
    }
    if total == 0 {
        return None;
    }
    let mut drawn = pick.below(total);
    candidates().filter(|(fit, _)| Some(*fit) == best).map(|(_, chosen)| chosen).find(|chosen| {
        let capacity = u64::from(chosen.workload.capacity);
        let hit = drawn < capacity;
        drawn = drawn.saturating_sub(capacity);
        hit
    })
}

fn candidate<'a>(
    source: &Workload,
    dst: OriginalDst,
    service: &Service,
    endpoint: &'a Endpoint,
) -> Option<(Fit, Chosen<'a>)> {
    let workload = endpoint.workload.as_ref()?;
    let port = target_port(endpoint.ports.get(dst.port()), service, dst.port())?;
    let rank = rank(service.load_balancer.as_ref(), source, workload)?;
    let reach = reach(source, workload, dst.addr(), service.ip_families);
    let preference = match reach {
        Reach::At(_) => 3,
        Reach::ByHostname | Reach::ThroughGateway => 2,
        // Kept, so that a service with nothing else says what is wrong with its endpoint.
        Reach::Nowhere => 1,
    };
    // An endpoint on this network that has neither address nor hostname was never a candidate.
    if workload.ips.is_empty() && reach == Reach::Nowhere {
        return None;
    }
    Some((Fit { rank, reach: preference }, Chosen { workload, port, reach }))
}

/// How a client at `source` reaches `workload` for `target`, its own address or a service's.
///
/// The dialled address itself, if it is the workload's; else one of the family that was dialled; else the first
/// that `families` allows.
pub(super) fn reach(
    source: &Workload,
    workload: &Workload,
    target: SocketAddr,
    families: IpFamilies,
) -> Reach {
    if workload.network != source.network {
        return if workload.network_gateway.is_some()
            || !workload.ips.is_empty()
            || !workload.hostname.is_empty()
        {
            Reach::ThroughGateway
        } else {
            Reach::Nowhere
        };
    }
    if workload.ips.contains(&target.ip()) {
        return Reach::At(target.ip());
    }
    let allowed = |ip: &&IpAddr| match families {
        IpFamilies::Any | IpFamilies::Dual => true,
        IpFamilies::V4 => ip.is_ipv4(),
        IpFamilies::V6 => ip.is_ipv6(),
    };
    let mut usable = workload.ips.iter().filter(allowed);
    let same = usable.clone().find(|ip| ip.is_ipv4() == target.is_ipv4());
    match same.or_else(|| usable.next()) {
        Some(ip) => Reach::At(*ip),
        None if !workload.hostname.is_empty() => Reach::ByHostname,
        None => Reach::Nowhere,
    }
}

/// How much `to` has in common with `from`, as the preferences count it; `None` where they forbid it.
///
/// Preferences are walked while they match. When the network comes first, a match there outweighs all the others
/// together, and a mismatch does not end the walk: an endpoint of the same network is always before one of
/// another, and among those of another the nearest still wins.
fn rank(balancer: Option<&LoadBalancer>, from: &Workload, to: &Workload) -> Option<usize> {
    let Some(LoadBalancer { preferences, mode, .. }) = balancer else { return Some(0) };
    let strict = match mode {
        LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => return Some(0),
        LoadBalancerMode::Strict => true,
        LoadBalancerMode::Failover => false,
    };
    let network_first = preferences.first() == Some(&Scope::Network);
    let (mut common, mut bonus) = (0, 0);
    for scope in preferences {
        let same = match scope {
            Scope::Region => from.locality.region == to.locality.region,
            Scope::Zone => from.locality.zone == to.locality.zone,
            Scope::Subzone => from.locality.subzone == to.locality.subzone,
            Scope::Node => from.node == to.node,
            Scope::Cluster => from.cluster_id == to.cluster_id,
            Scope::Network => from.network == to.network,
        };
        let decisive = network_first && *scope == Scope::Network;
        if same {
            common += 1;
            if decisive {
                bonus = preferences.len() - 1;
            }
        } else if !decisive {
            break;
        }
    }
    (!strict || common == preferences.len()).then_some(common + bonus)
}
