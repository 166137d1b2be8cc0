//! The pods of this node, as the CNI's node agent reports them over ZDS. One per process.
//!
//! The agent listens on a Unix socket; we connect, say hello, and from then on only answer: one request, one
//! answer. First comes a snapshot of the node's pods, then changes. Each pod arrives with a descriptor of its
//! network namespace and is handed to whoever implements [`Pods`]; what happens inside a pod is theirs. Where this
//! differs from ztunnel: `docs/decisions/0008-node-agent-client.md`.
//!
//! `state.rs` decides, as one function over one table; `session.rs` does the I/O around it; `socket.rs` carries
//! packets with descriptors; `wire.rs` gives them meaning. Pods outlive sessions: an agent that restarts costs
//! no connection. Nothing here waits for the control plane, so pods start while it is down.

mod backoff;
mod error;
mod metrics;
mod session;
mod socket;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::StartError;
pub use metrics::Metrics;
pub use session::run;

use crate::net::{Netns, NetnsId};

/// A pod as the agent names it. The triple (name, namespace, service account) leads to its workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// The Kubernetes pod uid. Not the uid of the workload in the mesh.
    pub uid: Arc<str>,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Service account the pod runs as.
    pub service_account: String,
}

/// How a pod's proxy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The pod is gone, left the mesh or has a new namespace: close the listeners and every connection now.
    Cut,
    /// This process is ending: close the listeners, let connections finish until the drain deadline.
    Drain,
}

/// Who serves the pods. Called on the service thread; the futures need not be `Send`.
pub trait Pods {
    /// Binds the pod's listeners inside `netns` and returns when they listen. Certificates and mesh state
    /// come later, per connection: the sandbox of the pod waits for this.
    ///
    /// Never called for a uid that runs. Cancel: the future may be dropped at its deadline or when the pod
    /// goes; `stop` with [`Stop::Cut`] follows for the same uid and removes whatever had been made.
    fn start(&self, pod: PodInfo, netns: Arc<Netns>) -> impl Future<Output = Result<(), StartError>>;

    /// Ends the pod's proxy; does nothing for a uid that does not run. With [`Stop::Cut`] it returns when
    /// the listeners are closed, within [`Timing::stop`]; with [`Stop::Drain`] when the last connection
    /// ended.
    fn stop(&self, uid: &str, how: Stop) -> impl Future<Output = ()>;
}

/// What [`run`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's socket (`INPOD_UDS`).
    pub socket: PathBuf,
    /// The proxy's own network namespace, which is never served as a pod.
    pub home: NetnsId,
    /// Waits and deadlines.
    pub timing: Timing,
}

impl Config {
    /// For the agent at `socket`, with the calling thread's namespace as home and the usual [`Timing`].
    ///
    /// # Errors
    /// When the calling thread's namespace cannot be read from `/proc`.
    pub fn new(socket: PathBuf) -> io::Result<Self> {
        Ok(Self { socket, home: Netns::current()?.id(), timing: Timing::default() })
    }
}

/// Waits and deadlines. The agent gives each answer 5 s and then mistakes a late one for the next one's, so
/// `start` + `stop` stay below `answer`, and `answer` below 5 s.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For ending what an earlier start left and listening in the pod, together.
    pub start: Duration,
    /// For a pod to be cut; after it the answer goes out all the same.
    pub stop: Duration,
    /// From a request to its answer; later the session is dropped instead of answered.
    pub answer: Duration,
    /// Between attempts to start a pod that could not start; doubles.
    pub retry: Wait,
    /// Between attempts to reach the agent; doubles, with 20 % jitter.
    pub reconnect: Wait,
    /// A session that ended by a protocol error starts the wait from the bottom only after this long.
    pub settled: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(3),
            stop: Duration::from_secs(1),
            answer: Duration::from_millis(4500),
            retry: Wait { first: Duration::from_secs(1), longest: Duration::from_secs(15) },
            reconnect: Wait { first: Duration::from_millis(20), longest: Duration::from_secs(15) },
            settled: Duration::from_secs(60),
        }
    }
}

/// A wait that doubles.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The first wait.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}
