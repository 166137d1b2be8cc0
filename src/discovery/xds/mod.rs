//! The mesh from the control plane: istiod's delta protocol, spoken as ztunnel speaks it.
//!
//! One stream at a time, on the discovery thread. What is refused is refused alone, and its last good version stays; what is
//! there stays while nobody answers. Nothing is shown before both types have been told once, so that no workload is seen without the
//! policies of its namespace. What the objects mean is `mesh`'s and `policy`'s matter, how the control plane is reached is `control`'s.
//!
//! ```text
//! client    the stream: opened, read, answered, opened again
//! state     what is held of each type, and what is held back       a machine, pure
//! address   an Address → a workload or a service                   pure
//! policy    an Authorization → a policy, or what stands in for it  pure
//! unknown   is there anything in it that we do not know?           pure
//! node      who we say we are
//! ```

mod address;
mod client;
mod metrics;
mod node;
mod policy;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod unknown;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{oneshot, watch};

pub use metrics::Metrics;
pub use node::Node;

use crate::control;
use crate::mesh::{Handle, Model, Publisher};
use crate::policy::UnknownPolicy;

/// Where the mesh is told, and who asks.
#[derive(Clone, Debug)]
pub struct Config {
    /// The way to the control plane.
    pub control: control::Config,
    /// Who we are.
    pub node: Node,
}

/// Follows the control plane. [`Xds::run`] belongs on a thread of its own.
pub struct Xds {
    client: client::Client,
    stopped: oneshot::Receiver<()>,
}

/// The mesh, empty until the control plane has told it; whether it has; and what ends the following.
pub fn start(
    config: Config,
    node: Option<Arc<str>>,
    unknown_policy: UnknownPolicy,
    metrics: Metrics,
) -> (Xds, Handle, watch::Receiver<bool>, oneshot::Sender<()>) {
    let mut model = Model::new(node, unknown_policy);
    let (publisher, handle) = Publisher::new(model.snapshot(Instant::now()));
    let (synced, is_synced) = watch::channel(false);
    let (stop, stopped) = oneshot::channel();
    let client = client::Client::new(config, model, publisher, synced, metrics);
    (Xds { client, stopped }, handle, is_synced, stop)
}

impl Xds {
    /// Follows until told to stop.
    ///
    /// # Errors
    /// The thread can have no runtime.
    pub fn run(self) -> io::Result<()> {
        client::block_on(self.client, self.stopped)
    }
}

impl std::fmt::Debug for Xds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xds").finish_non_exhaustive()
    }
}
