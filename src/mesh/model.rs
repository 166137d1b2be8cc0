//! The mesh as a control plane tells it: object by object, each replaced or taken away by its name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::build::{Builder, standing_behind};
use super::names::{NetworkAddress, Ports, ServiceKey};
use super::service::Service;
use super::snapshot::Snapshot;
use super::workload::{NetworkMode, Protocol, Workload, WorkloadFields};
use crate::policy::{Policies, Policy, PolicyKey, UnknownPolicy};

/// How long a policy that a workload of this node names may stay away before it counts as missing. istiod sends addresses first.
const PENDING: Duration = Duration::from_secs(2);

/// How long nobody is let through in plaintext to an address at which a workload of the mesh was.
const DEPARTED: Duration = Duration::from_secs(600);

/// One thing that is new, other than before, or gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// This workload, which stands behind these services with its own ports there.
    Workload(Box<WorkloadFields>, Vec<(ServiceKey, Ports)>),
    /// This service.
    Service(Box<Service>),
    /// Something of this name is at these addresses, and how it is to be reached was not understood. What was known of it stays.
    Misunderstood(Arc<str>, Vec<NetworkAddress>),
    /// This policy.
    Policy(Policy),
    /// No more the address resource of this name: a workload's uid, or `namespace/hostname` of a service.
    RemoveAddress(Arc<str>),
    /// No more the policy of this name.
    RemovePolicy(PolicyKey),
}

/// All objects, as they were last told. One exists, on the discovery thread.
#[derive(Debug)]
pub struct Model {
    node: Option<Arc<str>>,
    unknown_policy: UnknownPolicy,
    next: u64,
    workloads: HashMap<Arc<str>, Standing>,
    services: HashMap<Arc<str>, (u64, Arc<Service>)>,
    policies: Policies,
    /// Policies that this node's workloads name and that are not here, and until when they may come.
    awaited: HashMap<PolicyKey, Instant>,
    /// Addresses at which a workload was that speaks HBONE, and until when they are remembered. Only their network and the text of
    /// them is kept.
    departed: HashMap<NetworkAddress, Instant>,
    /// By name, addresses of what was not understood.
    misunderstood: HashMap<Arc<str>, Vec<NetworkAddress>>,
}

/// A workload, and its own ports behind its services.
#[derive(Debug)]
struct Standing {
    nth: u64,
    workload: Arc<Workload>,
    ports: Arc<[Ports]>,
}

impl Model {
    /// Starts empty. Workloads on `node` are this node's own; without a name all of them are.
    pub fn new(node: Option<Arc<str>>, unknown_policy: UnknownPolicy) -> Self {
        Self {
            node,
            unknown_policy,
            next: 0,
            workloads: HashMap::new(),
            services: HashMap::new(),
            policies: Policies::default(),
            awaited: HashMap::new(),
            departed: HashMap::new(),
            misunderstood: HashMap::new(),
        }
    }

    /// Takes changes over, in their order, at `now`.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>, now: Instant) {
        self.departed.retain(|_, until| *until > now);
        for change in changes {
            self.next += 1;
            match change {
                Change::Workload(fields, services) => {
                    let uid = Arc::clone(&fields.uid);
                    self.misunderstood.remove(&uid);
                    let (workload, ports) = standing_behind(*fields, services);
                    let here = Arc::clone(&workload);
                    let before = self.workloads.insert(uid, Standing { nth: self.next, workload, ports });
                    self.depart(before, now);
                    for address in addresses(&here) {
                        // Whoever is there now, it is known how to reach it.
                        self.departed.remove(&address);
                    }
                }
                Change::Service(service) => {
                    let name: Arc<str> = service.key.to_string().into();
                    self.misunderstood.remove(&name);
                    self.services.insert(name, (self.next, Arc::from(service)));
                }
                Change::Misunderstood(name, addresses) => {
                    self.misunderstood.insert(name, addresses);
                }
                Change::Policy(policy) => {
                    self.policies.insert(policy);
                }
                Change::RemoveAddress(name) => {
                    self.misunderstood.remove(&name);
                    let gone = self.workloads.remove(&name);
                    self.depart(gone, now);
                    self.services.remove(&name);
                }
                Change::RemovePolicy(key) => {
                    self.policies.remove(&key);
                }
            }
        }
    }

    /// Remembers where `standing` was, if it is to be reached by HBONE alone.
    fn depart(&mut self, standing: Option<Standing>, now: Instant) {
        let Some(Standing { workload, .. }) = standing else { return };
        if workload.protocol == Protocol::Hbone {
            self.departed.extend(addresses(&workload).map(|address| (address, now + DEPARTED)));
        }
    }

    /// Whether there is a policy of this name.
    pub fn has_policy(&self, key: &PolicyKey) -> bool {
        self.policies.has(key)
    }

    /// When another snapshot is due though nothing changes: a policy that is awaited counts as missing unless it comes, and an
    /// address at which a workload was is nobody's again.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.awaited.values().chain(self.departed.values()).filter(|until| **until > now).min().copied()
    }

    /// The mesh as it is at `now`.
    pub fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.look_for_policies(now);
        let pending: HashSet<PolicyKey> =
            self.awaited.iter().filter(|(_, until)| **until > now).map(|(key, _)| key.clone()).collect();
        let mut builder = Builder::new(self.node.clone(), self.unknown_policy);
        let mut workloads: Vec<_> = self.workloads.values().collect();
        // What came last counts where several want one place.
        workloads.sort_unstable_by_key(|standing| standing.nth);
        for Standing { workload, ports, .. } in workloads {
            builder.shared_workload(Arc::clone(workload), Arc::clone(ports));
        }
        let mut services: Vec<_> = self.services.values().collect();
        services.sort_unstable_by_key(|(nth, _)| *nth);
        for (_, service) in services {
            builder.shared_service(Arc::clone(service));
        }
        builder.policies(self.policies.clone(), pending);
        let departed = self.departed.iter().filter(|(_, until)| **until > now);
        let departed = departed.map(|(address, _)| address);
        builder.unreachable(departed.chain(self.misunderstood.values().flatten()).cloned());
        builder.build()
    }

    /// Notes what this node's workloads name and is not here, each from when it was first looked for.
    fn look_for_policies(&mut self, now: Instant) {
        let node = self.node.as_deref();
        let local = self.workloads.values().map(|standing| &standing.workload);
        let local = local.filter(|workload| node.is_none_or(|node| node == &*workload.node));
        let named = local.flat_map(|workload| &workload.authorization_policies);
        let absent: HashSet<&PolicyKey> = named.filter(|key| !self.policies.has(key)).collect();
        self.awaited.retain(|key, _| absent.contains(key));
        for key in absent {
            if !self.awaited.contains_key(key) {
                self.awaited.insert(key.clone(), now + PENDING);
            }
        }
    }
}

/// The addresses that are a workload's own.
fn addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> + '_ {
    let own = workload.network_mode == NetworkMode::Standard;
    let ips = workload.ips.iter().filter(move |_| own);
    ips.map(|ip| NetworkAddress { network: Arc::clone(&workload.network), ip: *ip })
}
