//! The mesh as a control plane tells it: object by object, each replaced or taken away by its name.

use std::collections::HashMap;
use std::sync::Arc;

use super::build::Builder;
use super::names::{Ports, ServiceKey};
use super::service::Service;
use super::snapshot::Snapshot;
use super::workload::WorkloadFields;
use crate::policy::{Policy, PolicyKey, UnknownPolicy};

/// One thing that is new, other than before, or gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// This workload, which stands behind these services with its own ports there.
    Workload(Box<WorkloadFields>, Vec<(ServiceKey, Ports)>),
    /// This service.
    Service(Box<Service>),
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
    workloads: HashMap<Arc<str>, (u64, WorkloadFields, Vec<(ServiceKey, Ports)>)>,
    services: HashMap<Arc<str>, (u64, Service)>,
    policies: HashMap<PolicyKey, Policy>,
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
            policies: HashMap::new(),
        }
    }

    /// Takes changes over, in their order.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.next += 1;
            match change {
                Change::Workload(fields, services) => {
                    self.workloads.insert(Arc::clone(&fields.uid), (self.next, *fields, services));
                }
                Change::Service(service) => {
                    self.services.insert(service.key.to_string().into(), (self.next, *service));
                }
                Change::Policy(policy) => {
                    self.policies.insert(policy.key.clone(), policy);
                }
                Change::RemoveAddress(name) => {
                    self.workloads.remove(&name);
                    self.services.remove(&name);
                }
                Change::RemovePolicy(key) => {
                    self.policies.remove(&key);
                }
            }
        }
    }

    /// Whether there is a policy of this name.
    pub fn has_policy(&self, key: &PolicyKey) -> bool {
        self.policies.contains_key(key)
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut builder = Builder::new(self.node.clone(), self.unknown_policy);
        let mut workloads: Vec<_> = self.workloads.values().collect();
        workloads.sort_by_key(|(nth, ..)| *nth);
        for (_, fields, services) in workloads {
            builder.workload(fields.clone(), services.clone());
        }
        let mut services: Vec<_> = self.services.values().collect();
        services.sort_by_key(|(nth, _)| *nth);
        for (_, service) in services {
            builder.service(service.clone());
        }
        self.policies.values().for_each(|policy| builder.policy(policy.clone()));
        builder.build()
    }
}
