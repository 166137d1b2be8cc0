//! What can a policy say? The source form: as decoded, before it is compiled for a workload.
//!
//! Rules are ORed, the clauses of a rule ANDed, the matches of a clause ORed, the fields of a match ANDed, the
//! entries of a field ORed. "Empty" means match-all for a rule and a clause, match-nothing for a policy and a
//! match.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::form;
use super::key::PolicyKey;

/// One authorization policy. Files and state dumps write it as [`PolicyKey`]'s two parts beside the rest.
///
/// Source: `istio.security.Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, unique in the mesh.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What follows when it matches.
    pub action: Action,
    /// Reported, never enforced.
    pub dry_run: bool,
    /// It matches if any of them does; without rules it never matches.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Stands in for a policy that arrived and was not understood, so that it cannot widen access by its absence.
    ///
    /// An ALLOW matches nothing: it still turns its workloads to "only what is allowed". A DENY matches
    /// everything. In dry run either is only reported.
    pub fn not_understood(key: PolicyKey, scope: Scope, action: Action, dry_run: bool) -> Self {
        let rules = match action {
            Action::Allow => Vec::new(),
            Action::Deny => vec![Rule { clauses: Vec::new() }],
        };
        Self { key, scope, action, dry_run, rules }
    }
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's own namespace.
    Namespace,
    /// Workloads that name it.
    WorkloadSelector,
}

/// What follows when a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// The connection is admitted, unless something denies it; what no ALLOW matches is refused.
    Allow,
    /// The connection is refused, whatever else allows it.
    Deny,
}

/// Matches if every clause does; without clauses it matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rule {
    /// ANDed.
    #[serde(deserialize_with = "form::list")]
    pub clauses: Vec<Clause>,
}

/// Matches if any of its matches does; without matches it matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clause {
    /// ORed.
    #[serde(deserialize_with = "form::list")]
    pub matches: Vec<Match>,
}

/// Holds if every field that is set does; with none set it never holds.
///
/// A field holds if any of its entries hits; a `not_` field if none does. Plaintext has no identity: no
/// principal or service account hits it, and its namespace is compared as the empty text, so every negative
/// identity field holds for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The namespace in the source's identity.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    /// As `namespaces`, none may hit.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// The source's service account, in whatever trust domain.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// As `service_accounts`, none may hit.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The source's identity without `spiffe://`; an entry written with the scheme hits nobody.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    /// As `principals`, none may hit.
    #[serde(deserialize_with = "form::list", skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// The client's address; host bits are ignored, and a network never contains the other family.
    #[serde(deserialize_with = "form::networks", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// As `source_ips`, none may hit.
    #[serde(deserialize_with = "form::networks", skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// The pod's address.
    #[serde(deserialize_with = "form::networks", skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    /// As `destination_ips`, none may hit.
    #[serde(deserialize_with = "form::networks", skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// The port dialled in the pod, 1 to 65535.
    #[serde(deserialize_with = "form::ports", skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    /// As `destination_ports`, none may hit.
    #[serde(deserialize_with = "form::ports", skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

/// One text, or a family of them. Case counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StringMatch {
    /// The same bytes.
    Exact(Arc<str>),
    /// Starts with this.
    Prefix(Arc<str>),
    /// Ends with this.
    Suffix(Arc<str>),
    /// Any text with characters. Written `!Presence []` or `{"Presence": []}`.
    #[serde(with = "form::empty_list")]
    Presence,
}

impl StringMatch {
    /// Whether `text` is the one, or of the family.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// One Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}
