//! Which policies apply to a workload?

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::key::PolicyKey;
use super::rules::{Policy, Scope};

/// Every policy of the mesh as last received. Cloning copies pointers, not policies.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    by_key: BTreeMap<PolicyKey, Arc<Policy>>,
    /// Keys in `by_key` whose scope is global, so that finding them does not walk the mesh.
    global: BTreeSet<PolicyKey>,
}

/// What [`Policies::applicable`] found; what [`super::PolicySet::compile`] takes.
#[derive(Debug)]
pub struct Applicable<'a> {
    /// The policies that apply, each once, in key order.
    pub policies: Vec<&'a Policy>,
    /// What the workload names and is not there, each once, in key order.
    pub missing: Vec<PolicyKey>,
}

impl Policies {
    /// Takes `policy` in and returns the one of the same key that it replaced.
    pub fn insert(&mut self, policy: Policy) -> Option<Arc<Policy>> {
        match policy.scope {
            Scope::Global => self.global.insert(policy.key.clone()),
            Scope::Namespace | Scope::WorkloadSelector => self.global.remove(&policy.key),
        };
        self.by_key.insert(policy.key.clone(), Arc::new(policy))
    }

    /// Takes the policy called `key` out and returns it, if it was there.
    pub fn remove(&mut self, key: &PolicyKey) -> Option<Arc<Policy>> {
        self.global.remove(key);
        self.by_key.remove(key)
    }

    /// Whether there is a policy called `key`.
    pub fn has(&self, key: &PolicyKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Every policy, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// The policies that apply to a workload of `namespace` that names the policies `named`: those of its
    /// namespace, the global ones, and those it names, whatever their scope.
    ///
    /// Cost: linear in the policies of `namespace`, the global and the named ones; not in those of the mesh.
    /// Source: the reference's section 3, steps 1 to 3, except that a name without a policy is handed back.
    pub fn applicable(&self, namespace: &str, named: &[PolicyKey]) -> Applicable<'_> {
        let prefix = format!("{namespace}/");
        let of_namespace = self
            .by_key
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(&prefix))
            .map(|(_, policy)| policy)
            .filter(|policy| policy.scope == Scope::Namespace);
        let global = self.global.iter().filter_map(|key| self.by_key.get(key));
        let mut policies: Vec<&Policy> = of_namespace.chain(global).map(Arc::as_ref).collect();
        let mut missing = Vec::new();
        for key in named {
            match self.by_key.get(key) {
                Some(policy) => policies.push(policy),
                None => missing.push(key.clone()),
            }
        }
        policies.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        missing.sort_unstable();
        missing.dedup();
        Applicable { policies, missing }
    }
}

impl FromIterator<Policy> for Policies {
    fn from_iter<I: IntoIterator<Item = Policy>>(policies: I) -> Self {
        let mut all = Self::default();
        for policy in policies {
            all.insert(policy);
        }
        all
    }
}
