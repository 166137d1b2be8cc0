//! What both directions of a worker have at hand: one [`Hands`] per worker and direction.
//!
//! The rooms `inbound` and `outbound` add what is theirs; nothing here decides anything.

use std::sync::Arc;
use std::time::Duration;

use crate::capture::Pod;
use crate::hbone::{Handshakes, Placement, WorkerId};
use crate::identity::Store;
use crate::mesh::{Handle, Snapshot, Workload};
use crate::net::mailbox::Post;
use crate::telemetry::Shard;

/// How long a connection waits for the control plane to name its pod.
const WORKLOAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection waits for policies that its pod's workload names; discovery gives them up after 2 s.
const POLICIES_DEADLINE: Duration = Duration::from_secs(5);

/// The handles of one worker's direction `T`. Never leaves its thread.
pub struct Hands<T> {
    /// Which worker this is.
    pub worker: WorkerId,
    /// The mesh.
    pub mesh: Handle,
    /// Certificates.
    pub store: Store,
    /// The handshake pool.
    pub handshakes: Handshakes,
    /// Who owns which tunnel, and who carries how much.
    pub placement: Arc<Placement>,
    /// The same direction on the other workers.
    pub post: Post<T>,
    /// This worker's counters.
    pub shard: Shard,
}

impl<T> Hands<T> {
    /// The pod's workload, waiting for the control plane to name it.
    ///
    /// # Errors
    /// The text for the log line, when it did not in time.
    pub async fn workload(&self, pod: &Pod) -> Result<Arc<Workload>, String> {
        let find =
            |mesh: &Snapshot| mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account).cloned();
        self.mesh.wait_for(WORKLOAD_DEADLINE, find).await.ok_or_else(|| {
            let (sa, ns, name) = (&pod.service_account, &pod.namespace, &pod.name);
            format!("failed to fetch information about local workload: {sa}.{ns} ({name})")
        })
    }

    /// Waits until the policies that the pod's workload names have come, or are known not to.
    pub async fn policies(&self, pod: &Pod) {
        let settled = |mesh: &Snapshot| {
            let local = mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account);
            local.is_none_or(|local| mesh.policies(local).pending().is_none()).then_some(())
        };
        // What is still pending then is refused.
        self.mesh.wait_for(POLICIES_DEADLINE, settled).await;
    }
}
