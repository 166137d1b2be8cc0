//! The messages as they are on the wire, generated from `proto/`.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documents are the .proto files"
)]

pub mod ads {
    include!(concat!(env!("OUT_DIR"), "/adit.xds.rs"));
}

pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

pub mod security {
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}

/// Workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
