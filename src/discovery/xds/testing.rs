//! What a control plane says of the mesh, for tests.

use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;

use super::address::Decoder;
use super::policy;
use super::wire::ads::{Any, Resource};
use crate::mesh::{Model, Snapshot};
use crate::policy::{Action, PolicyKey, UnknownPolicy};

pub use super::wire::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
pub use super::wire::{ADDRESS, AUTHORIZATION, security, workload};

/// A response with these resources: name, version, and what is in it.
pub fn response(
    type_url: &str,
    nonce: &str,
    resources: impl IntoIterator<Item = (String, String, Vec<u8>)>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resource = |(name, version, value): (String, String, Vec<u8>)| Resource {
        version,
        resource: Some(Any { type_url: type_url.into(), value: value.into() }),
        name,
    };
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources: resources.into_iter().map(resource).collect(),
        type_url: type_url.into(),
        nonce: nonce.into(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// The mesh of a client without a stream.
#[derive(Debug)]
pub struct Replica {
    model: Model,
    decoder: Decoder,
}

impl Replica {
    /// An empty one, of the node `worker`.
    pub fn new() -> Self {
        Self { model: Model::new(Some("worker".into()), UnknownPolicy::Close), decoder: Decoder::default() }
    }

    /// Takes a message with addresses as the client does; what is refused is counted.
    pub fn take(&mut self, message: Bytes) -> (Snapshot, usize) {
        let response = DeltaDiscoveryResponse::decode(message).unwrap_or_default();
        let mut refused = 0;
        let mut changes = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            let decoded = self.decoder.decode(&resource.name, resource.resource.unwrap_or_default().value);
            match decoded {
                Ok(change) => changes.push(change),
                Err(_) => refused += 1,
            }
        }
        let now = Instant::now();
        self.model.apply(changes, now);
        (self.model.snapshot(now), refused)
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self::new()
    }
}

/// Whatever bytes a control plane sends as an address and as a policy: nothing panics, and a policy that is not understood is
/// replaced by one that lets nobody in.
pub fn hostile(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let _ = Decoder::default().decode("east//Pod/shop/web", bytes.clone());
    let key = PolicyKey::parse("shop/who").expect("it is one");
    if let Err(misunderstood) = policy::decode(&key, &bytes) {
        let instead = misunderstood.instead;
        let closes = match instead.action {
            Action::Allow => instead.rules.is_empty(),
            Action::Deny => {
                instead.rules.iter().all(|rule| rule.clauses.is_empty()) && !instead.rules.is_empty()
            }
        };
        assert!(closes, "{instead:?}");
    }
}
