//! What a control plane says of the mesh, for tests.

use super::wire::ads::{Any, Resource};

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
