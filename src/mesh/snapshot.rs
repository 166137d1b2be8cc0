//! The mesh at one moment, and what can be asked of it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::cidr::CidrIndex;
use super::names::{Destination, GatewayAddress, ServiceKey};
use super::service::{Endpoints, Service, Visibility};
use super::workload::Workload;
use crate::identity::SpiffeId;
use crate::policy::{Policies, PolicyKey, PolicySet, UnknownPolicy};

/// By network, then by address: two borrowed keys, so that a look-up allocates nothing.
pub(super) type ByAddress<T> = HashMap<Arc<str>, HashMap<IpAddr, T>>;

/// The mesh at one moment. Made by a [`super::Builder`], never changed.
pub struct Snapshot {
    pub(super) workloads: HashMap<Arc<str>, Arc<Workload>>,
    pub(super) workloads_by_address: ByAddress<Arc<Workload>>,
    /// Workloads with a hostname, for gateways that are named by one.
    pub(super) workloads_by_hostname: HashMap<ServiceKey, Arc<Workload>>,
    /// Workloads of this node by name; the few that share it differ in namespace or service account.
    pub(super) local: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    pub(super) services: HashMap<ServiceKey, Arc<Service>>,
    pub(super) services_by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    pub(super) services_by_vip: ByAddress<Vec<Arc<Service>>>,
    pub(super) services_by_cidr: HashMap<Arc<str>, CidrIndex>,
    pub(super) endpoints: HashMap<ServiceKey, Endpoints>,
    pub(super) nothing: Endpoints,
    pub(super) policies: Policies,
    pub(super) unknown_policy: UnknownPolicy,
    /// Policies that are named, and not here, and may come soon.
    pub(super) pending: HashSet<PolicyKey>,
    /// Where is, or was a short while ago, what may have to be reached by HBONE alone.
    pub(super) unreachable: ByAddress<()>,
    /// Compiled for this node's workloads, by uid.
    pub(super) policy_sets: HashMap<Arc<str>, Arc<PolicySet>>,
}

/// Who asks for a service, which decides what is visible and what comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer<'a> {
    /// A client in this namespace.
    In(&'a str),
    /// Nobody in particular; visibility does not apply.
    Anyone,
}

/// What an address or a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// One workload.
    Workload(&'a Arc<Workload>),
    /// A service.
    Service(&'a Arc<Service>),
}

impl fmt::Debug for Snapshot {
    /// Its size, since all of it would fill a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("workloads", &self.workloads.len())
            .field("services", &self.services.len())
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// The workload with this key.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that answers at this address. Workloads on the host's network never do, because a node's
    /// address says nothing about who listens there.
    pub fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(network)?.get(&ip)
    }

    /// Whether nobody knows how to reach this address, and plaintext may be no way: a workload that speaks HBONE was there a short while
    /// ago, or what discovery said of who is there was not understood.
    pub fn is_unreachable(&self, network: &str, ip: IpAddr) -> bool {
        self.unreachable.get(network).is_some_and(|there| there.contains_key(&ip))
    }

    /// The workload of this node that is the pod with this name, namespace and service account.
    pub fn local_workload(
        &self,
        name: &str,
        namespace: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let same = self.local.get(name)?.iter().filter(|workload| {
            &*workload.namespace == namespace && &*workload.service_account == service_account
        });
        same.max_by_key(|workload| workload.precedence())
    }

    /// The service with this key, whoever may see it.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service `viewer` means by this hostname.
    pub fn service_by_hostname(&self, hostname: &str, viewer: Viewer<'_>) -> Option<&Arc<Service>> {
        best(self.services_by_hostname.get(hostname)?, viewer)
    }

    /// The service `viewer` reaches at this address: by virtual address, else by range.
    pub fn service_at(&self, network: &str, ip: IpAddr, viewer: Viewer<'_>) -> Option<&Arc<Service>> {
        let exact = self.services_by_vip.get(network).and_then(|vips| vips.get(&ip));
        exact.and_then(|candidates| best(candidates, viewer)).or_else(|| {
            let mut narrowest = None;
            for candidates in self.services_by_cidr.get(network)?.claims(ip) {
                let Some(here) = best(candidates, viewer) else { continue };
                // A wider range of the client's own namespace is before a narrower one of another.
                if viewer == Viewer::In(&here.key.namespace) {
                    return Some(here);
                }
                narrowest = narrowest.or(Some(here));
            }
            narrowest
        })
    }

    /// "What is this address": a workload, else a service.
    pub fn what_is(&self, network: &str, ip: IpAddr, viewer: Viewer<'_>) -> Option<Found<'_>> {
        self.workload_at(network, ip)
            .map(Found::Workload)
            .or_else(|| self.service_at(network, ip, viewer).map(Found::Service))
    }

    /// "Who takes connections to this address": a service, else a workload.
    pub fn who_serves(&self, network: &str, ip: IpAddr, viewer: Viewer<'_>) -> Option<Found<'_>> {
        self.service_at(network, ip, viewer)
            .map(Found::Service)
            .or_else(|| self.workload_at(network, ip).map(Found::Workload))
    }

    /// What a waypoint or gateway reference points at. Only references by address heed visibility.
    pub fn gateway(&self, gateway: &GatewayAddress, viewer: Viewer<'_>) -> Option<Found<'_>> {
        match &gateway.destination {
            Destination::Address(address) => self.who_serves(&address.network, address.ip, viewer),
            Destination::Hostname(key) => self
                .service(key)
                .map(Found::Service)
                .or_else(|| self.workloads_by_hostname.get(key).map(Found::Workload)),
        }
    }

    /// Whether `identity` at `ip` is an instance of this waypoint. The reference is resolved workload first,
    /// whoever may see it.
    pub fn is_instance(&self, waypoint: &GatewayAddress, identity: &SpiffeId, ip: IpAddr) -> bool {
        let is = |workload: &Workload| workload.ips.contains(&ip) && workload.identity() == Ok(identity);
        let found = match &waypoint.destination {
            Destination::Address(address) => self.what_is(&address.network, address.ip, Viewer::Anyone),
            Destination::Hostname(_) => self.gateway(waypoint, Viewer::Anyone),
        };
        match found {
            Some(Found::Workload(workload)) => is(workload),
            Some(Found::Service(service)) => {
                self.endpoints(&service.key).iter().filter_map(|one| one.workload.as_deref()).any(is)
            }
            None => false,
        }
    }

    /// What stands behind a service, healthy or not; empty for one that is unknown.
    pub fn endpoints(&self, service: &ServiceKey) -> &Endpoints {
        self.endpoints.get(service).unwrap_or(&self.nothing)
    }

    /// The port on which `workload` serves `service_port` of `service`; `None` where nobody says.
    ///
    /// The workload need not stand behind the service; then the service's own mapping counts.
    pub fn target_port(&self, workload: &Workload, service: &Service, service_port: u16) -> Option<u16> {
        let own = self.endpoints(&service.key).of(&workload.uid);
        target_port(own.and_then(|endpoint| endpoint.ports.get(service_port)), service, service_port)
    }

    /// The services a workload stands behind, in its own order. What it names and nobody sent is left out.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
        workload.services.iter().filter_map(|key| self.service(key))
    }

    /// Which of its services a connection to `port` of `workload` was meant for: the one the client named, else
    /// the first that leads to that port. A guess for telemetry, never for authorization.
    pub fn guess_service<'a>(
        &'a self,
        workload: &'a Workload,
        named: Option<&str>,
        port: u16,
    ) -> Option<&'a Arc<Service>> {
        let leads = |service: &&Arc<Service>| {
            let own = self.endpoints(&service.key).of(&workload.uid).map(|endpoint| &endpoint.ports);
            let targets = service.ports.iter().chain(own.into_iter().flat_map(|ports| ports.iter()));
            targets.into_iter().any(|(_, target)| target == port)
        };
        self.services_of(workload)
            .find(|service| named.is_some_and(|host| host == &*service.key.hostname))
            .or_else(|| self.services_of(workload).find(leads))
    }

    /// The policies that bind `workload`: compiled beforehand for this node's workloads, on the spot for others.
    pub fn policies(&self, workload: &Workload) -> Arc<PolicySet> {
        // An older record of the same workload may be bound by other policies.
        let same = |known: &&Arc<Workload>| {
            known.namespace == workload.namespace
                && known.authorization_policies == workload.authorization_policies
        };
        let ready = self.workload(&workload.uid).filter(same).and(self.policy_sets.get(&workload.uid));
        ready.map_or_else(|| Arc::new(self.compile(workload)), Arc::clone)
    }

    /// All policies.
    pub fn all_policies(&self) -> &Policies {
        &self.policies
    }

    /// All workloads, in no order.
    pub fn all_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The workloads of this node, in no order.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.values().flatten()
    }
}

/// The port behind `service_port`: the endpoint's own, else the service's. Port 0 is nobody's.
pub(crate) fn target_port(own: Option<u16>, service: &Service, service_port: u16) -> Option<u16> {
    own.or_else(|| service.ports.get(service_port)).filter(|target| *target != 0)
}

/// The one among services with the same name or address that `viewer` means: of its own namespace, else the
/// canonical one (the last, if several), else the first.
fn best<'a>(candidates: &'a [Arc<Service>], viewer: Viewer<'_>) -> Option<&'a Arc<Service>> {
    let own = |service: &Service| viewer == Viewer::In(&service.key.namespace);
    let mut best: Option<&Arc<Service>> = None;
    for service in candidates {
        if own(service) {
            return Some(service);
        }
        let visible = service.visibility == Visibility::Public || viewer == Viewer::Anyone;
        if visible && (best.is_none() || service.canonical) {
            best = Some(service);
        }
    }
    best
}
