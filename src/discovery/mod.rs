//! Where the mesh comes from: reads it, builds a snapshot, publishes it by one pointer swap.
//!
//! The source is the control plane (`XDS_ADDRESS`; [`xds`]), or a file of workloads, services and policies (`LOCAL_XDS_PATH`), read
//! again when it changes, or the same text given inline (`LOCAL_XDS`), read once. A text is taken whole or not at all: what it says wrong
//! is told with its place, and the last good snapshot stays. What the objects mean is `mesh`'s and `policy`'s
//! matter. One per process, on a thread of its own, so that reading a large file stops no connection. Why so strict:
//! `docs/decisions/0007-mesh-file-strictness.md`.

mod error;
mod file;
mod read;
mod shape;
#[cfg(test)]
mod tests;
mod watch;
pub mod xds;

use std::path::PathBuf;
use std::sync::Arc;

use crate::policy::UnknownPolicy;

pub use error::{Complaint, Error, Place};
pub use file::load;
pub use watch::{Discovery, Stop, start};

/// What the mesh is read from, and for whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the text is.
    pub source: Source,
    /// The node whose workloads are this process's own (`NODE_NAME`); without one, all are.
    pub node: Option<Arc<str>>,
    /// What becomes of a workload that names a policy the text does not have (`UNKNOWN_POLICY`).
    pub unknown_policy: UnknownPolicy,
}

/// Where the text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this file, which is watched (`LOCAL_XDS_PATH`).
    File(PathBuf),
    /// Here (`LOCAL_XDS`).
    Inline(String),
}
