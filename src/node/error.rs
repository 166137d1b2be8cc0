//! Why a pod could not start, why a request was refused, why a session ended.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a pod's listeners are not up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be made inside the pod.
    #[error(
        "cannot listen inside the pod; does something else use ports 15001, 15006, 15008 or 15053 there?"
    )]
    Listen(#[source] io::Error),
    /// Whoever should serve the pod cannot take it now; the text says why.
    #[error("{0}")]
    Unavailable(String),
    /// The listeners were not up in time.
    #[error("the listeners were not up within {0:?}; it is tried again")]
    Late(Duration),
}

/// Why a request is answered with an error although the session goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("failure to start proxy")]
    Start(#[source] StartError),
    #[error("failure to start proxy: the descriptor that came with the pod cannot be used")]
    NoNamespace(#[source] io::Error),
    #[error(
        "failure to start proxy: the descriptor that came with the pod is the proxy's own network namespace; \
         send the pod's"
    )]
    OwnNamespace,
    #[error("keep for pod {0}, which this proxy does not serve; send it with its network namespace")]
    NotHeld(Arc<str>),
    #[error("this proxy does not know this kind of request; is the agent newer than the proxy?")]
    UnknownRequest,
}

/// How the agent broke the protocol: the session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("failure to read message: longer than {} bytes", super::socket::PACKET)]
    Truncated,
    #[error(
        "failure to read message: not all of its descriptors could be received; is the limit on open files \
         reached?"
    )]
    ControlTruncated,
    #[error("failure to read message: not a WorkloadRequest")]
    Undecodable(#[source] prost::DecodeError),
    #[error("failure to read message: an added pod comes with one descriptor, this one with none")]
    NoDescriptor,
    #[error("failure to read message: {0} descriptors with a message that takes {1}")]
    Descriptors(usize, usize),
    #[error("failure to process message: pod {0} was added without workload_info")]
    NoWorkloadInfo(Arc<str>),
    #[error("failure to process message: pod {0} is kept after the snapshot ended")]
    KeepAfterSnapshot(Arc<str>),
    #[error("failure to process message: the snapshot ended twice")]
    SecondSnapshot,
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the agent cannot be reached; is the istio-cni pod of this node running?")]
    Unreachable(#[source] io::Error),
    #[error("the agent closed the session")]
    Closed,
    #[error("the session broke")]
    Broken(#[source] io::Error),
    #[error("the agent broke the protocol")]
    Violated(#[source] Violation),
    #[error("the answer was not ready within {0:?}, and a late one would be taken for the next request's")]
    Late(Duration),
    #[error("this process is ending")]
    Stopping,
}

/// `error` and its causes in one line.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let _infallible = write!(line, ": {next}");
        cause = next.source();
    }
    line
}
