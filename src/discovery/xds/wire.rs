//! The messages as they are on the wire, generated from `proto/`.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documents are the .proto files"
)]

pub(super) mod ads {
    include!(concat!(env!("OUT_DIR"), "/adit.xds.rs"));
}

pub(super) mod workload {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

pub(super) mod security {
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}

/// Workloads and services.
pub(super) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Policies.
pub(super) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
