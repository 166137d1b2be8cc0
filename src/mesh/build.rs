//! From objects to a [`Snapshot`]: puts endpoints behind their services, fills the indices, compiles policies.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::cidr::CidrIndex;
use super::names::{NetworkAddress, Ports, ServiceKey};
use super::service::{Endpoint, Endpoints, Service};
use super::snapshot::{ByAddress, Snapshot};
use super::workload::{Health, NetworkMode, Workload, WorkloadFields};
use crate::policy::{Policies, Policy, PolicyKey, PolicySet, UnknownPolicy};

/// Collects the objects of one snapshot. They may come in any order and name what comes later or never; of
/// several with one key the last one counts, in the place of the last one.
#[derive(Debug)]
pub struct Builder {
    node: Option<Arc<str>>,
    unknown_policy: UnknownPolicy,
    workloads: Vec<(Arc<Workload>, Arc<[Ports]>)>,
    services: Vec<Arc<Service>>,
    endpoints: HashMap<ServiceKey, Vec<Endpoint>>,
    policies: Policies,
    pending: HashSet<PolicyKey>,
    unreachable: ByAddress<()>,
}

impl Builder {
    /// Starts empty. Workloads on `node` are this node's own; without a name all of them are.
    pub fn new(node: Option<Arc<str>>, unknown_policy: UnknownPolicy) -> Self {
        Self {
            node,
            unknown_policy,
            workloads: Vec::new(),
            services: Vec::new(),
            endpoints: HashMap::new(),
            policies: Policies::default(),
            pending: HashSet::new(),
            unreachable: HashMap::new(),
        }
    }

    /// Adds a workload that stands behind `services`, with its own ports there. Services that never come leave
    /// no trace but the workload's own list.
    pub fn workload(&mut self, fields: WorkloadFields, services: Vec<(ServiceKey, Ports)>) {
        let (workload, ports) = standing_behind(fields, services);
        self.shared_workload(workload, ports);
    }

    /// As [`Builder::workload`], of one that is shared with other snapshots; `ports` are in the order of its services.
    pub(super) fn shared_workload(&mut self, workload: Arc<Workload>, ports: Arc<[Ports]>) {
        self.workloads.push((workload, ports));
    }

    /// Adds a service.
    pub fn service(&mut self, service: Service) {
        self.shared_service(Arc::new(service));
    }

    /// As [`Builder::service`], of one that is shared with other snapshots.
    pub(super) fn shared_service(&mut self, service: Arc<Service>) {
        self.services.push(service);
    }

    /// Puts the workload with this uid behind a service, unless the workload itself says how it stands there.
    pub fn endpoint(&mut self, service: ServiceKey, uid: Arc<str>, ports: Ports, status: Health) {
        let endpoint = Endpoint { uid, ports, status, workload: None };
        self.endpoints.entry(service).or_default().push(endpoint);
    }

    /// Adds a policy.
    pub fn policy(&mut self, policy: Policy) {
        self.policies.insert(policy);
    }

    /// These are the policies, and those of whom it is not known yet whether they will come.
    pub(super) fn policies(&mut self, policies: Policies, pending: HashSet<PolicyKey>) {
        (self.policies, self.pending) = (policies, pending);
    }

    /// At these addresses is, or was a short while ago, what may have to be reached by HBONE alone, and nobody knows how.
    pub(super) fn unreachable(&mut self, addresses: impl Iterator<Item = NetworkAddress>) {
        for NetworkAddress { network, ip } in addresses {
            self.unreachable.entry(network).or_default().insert(ip, ());
        }
    }

    /// Makes the snapshot.
    pub fn build(self) -> Snapshot {
        let mut endpoints = self.endpoints;
        let workloads = last_of_each(self.workloads, |(workload, _)| Arc::clone(&workload.uid));
        let workloads: Vec<Arc<Workload>> = workloads
            .into_iter()
            .map(|(workload, ports)| {
                for (key, ports) in workload.services.iter().zip(ports.iter().cloned()) {
                    let uid = Arc::clone(&workload.uid);
                    let endpoint = Endpoint { uid, ports, status: workload.status, workload: None };
                    endpoints.entry(key.clone()).or_default().push(endpoint);
                }
                workload
            })
            .collect();
        let services = last_of_each(self.services, |service| service.key.clone());
        let mut snapshot = Snapshot {
            workloads: workloads.iter().map(|one| (Arc::clone(&one.uid), Arc::clone(one))).collect(),
            workloads_by_address: HashMap::new(),
            workloads_by_hostname: HashMap::new(),
            local: HashMap::new(),
            services: services.iter().map(|one| (one.key.clone(), Arc::clone(one))).collect(),
            services_by_hostname: HashMap::new(),
            services_by_vip: HashMap::new(),
            services_by_cidr: HashMap::new(),
            endpoints: HashMap::new(),
            nothing: Endpoints::default(),
            policies: self.policies,
            unknown_policy: self.unknown_policy,
            pending: self.pending,
            unreachable: self.unreachable,
            policy_sets: HashMap::new(),
        };
        for workload in &workloads {
            snapshot.index_workload(workload, self.node.as_deref());
        }
        for service in &services {
            snapshot.index_service(service);
        }
        snapshot.attach(endpoints);
        snapshot.compile_local();
        snapshot
    }
}

impl Snapshot {
    fn index_workload(&mut self, workload: &Arc<Workload>, node: Option<&str>) {
        if workload.network_mode == NetworkMode::Standard {
            let network = self.workloads_by_address.entry(Arc::clone(&workload.network)).or_default();
            for ip in &workload.ips {
                let holder = network.entry(*ip).or_insert_with(|| Arc::clone(workload));
                if workload.precedence() >= holder.precedence() {
                    *holder = Arc::clone(workload);
                }
            }
        }
        if !workload.hostname.is_empty() {
            let key = ServiceKey {
                namespace: Arc::clone(&workload.namespace),
                hostname: Arc::clone(&workload.hostname),
            };
            self.workloads_by_hostname.entry(key).or_insert_with(|| Arc::clone(workload));
        }
        if node.is_none_or(|node| node == &*workload.node) {
            self.local.entry(Arc::clone(&workload.name)).or_default().push(Arc::clone(workload));
        }
    }

    fn index_service(&mut self, service: &Arc<Service>) {
        let hostname = Arc::clone(&service.key.hostname);
        self.services_by_hostname.entry(hostname).or_default().push(Arc::clone(service));
        let claim = |by_vip: &mut ByAddress<Vec<Arc<Service>>>, network: &Arc<str>, ip| {
            let claims = by_vip.entry(Arc::clone(network)).or_default().entry(ip).or_default();
            // An address listed twice is still one claim.
            if !claims.iter().any(|one| Arc::ptr_eq(one, service)) {
                claims.push(Arc::clone(service));
            }
        };
        for vip in &service.vips {
            claim(&mut self.services_by_vip, &vip.network, vip.ip);
        }
        for vip in &service.cidr_vips {
            // A range of one address is an address.
            if vip.cidr.prefix_len() == vip.cidr.max_prefix_len() {
                claim(&mut self.services_by_vip, &vip.network, vip.cidr.addr());
            } else {
                let ranges: &mut CidrIndex =
                    self.services_by_cidr.entry(Arc::clone(&vip.network)).or_default();
                ranges.add(vip.cidr, Arc::clone(service));
            }
        }
    }

    /// Puts endpoints behind the services that are here.
    fn attach(&mut self, endpoints: HashMap<ServiceKey, Vec<Endpoint>>) {
        for (key, mut all) in endpoints {
            if !self.services.contains_key(&key) {
                continue;
            }
            for endpoint in &mut all {
                endpoint.workload = self.workloads.get(&endpoint.uid).cloned();
            }
            self.endpoints.insert(key, Endpoints::new(all));
        }
    }

    /// Compiles what binds each workload of this node. Workloads bound by the same policies share one set.
    fn compile_local(&mut self) {
        let mut shared: HashMap<(&str, &[PolicyKey]), Arc<PolicySet>> = HashMap::new();
        let mut sets = HashMap::new();
        for workload in self.local.values().flatten() {
            let same = (&*workload.namespace, &*workload.authorization_policies);
            let set = shared.entry(same).or_insert_with(|| Arc::new(self.compile(workload)));
            sets.insert(Arc::clone(&workload.uid), Arc::clone(set));
        }
        self.policy_sets = sets;
    }

    /// A policy that the workload names and that is not here is handed on as missing, never forgotten.
    pub(super) fn compile(&self, workload: &Workload) -> PolicySet {
        let binding = self.policies.applicable(&workload.namespace, &workload.authorization_policies);
        let (pending, missing): (Vec<_>, Vec<_>) =
            binding.missing.into_iter().partition(|key| self.pending.contains(key));
        let pending = match self.unknown_policy {
            UnknownPolicy::Close => pending.into_iter().min(),
            UnknownPolicy::Ignore => None,
        };
        PolicySet::compile(binding.policies, missing, self.unknown_policy).waiting_for(pending)
    }
}

/// A workload that stands behind `services`, and its own ports there.
pub(super) fn standing_behind(
    fields: WorkloadFields,
    services: Vec<(ServiceKey, Ports)>,
) -> (Arc<Workload>, Arc<[Ports]>) {
    let (keys, ports): (Vec<_>, Vec<_>) = services.into_iter().unzip();
    let fields = WorkloadFields { services: keys.into(), ..fields };
    (Arc::new(Workload::new(fields)), ports.into())
}

/// Drops all but the last object of each key, and keeps the order of those that stay.
fn last_of_each<T, K: Hash + Eq>(mut all: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut seen = HashSet::with_capacity(all.len());
    all.reverse();
    all.retain(|one| seen.insert(key(one)));
    all.reverse();
    all
}
