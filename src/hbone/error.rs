//! Why a tunnel or a stream on it did not come to be.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

/// Why a tunnel was not established: one variant per step.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The TCP connection failed.
    #[error("io error: {cause}")]
    Connect {
        /// Where it was going.
        to: SocketAddr,
        /// What the kernel said.
        cause: SharedIo,
    },
    /// The TCP connection was not answered. On the tunnel port this is how a NetworkPolicy shows.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port {}: no answer from {to} within {}s", .to.port(), .after.as_secs())]
    ConnectTimeout {
        /// Where it was going.
        to: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
    /// The TLS handshake failed, here or at the peer.
    #[error("io error: {0}")]
    Tls(SharedIo),
    /// The TLS handshake was not finished in time.
    #[error("the TLS handshake was not finished within {}s", .0.as_secs())]
    TlsTimeout(Duration),
    /// The peer's certificate names nobody we can name.
    #[error("{0}")]
    Peer(String),
    /// The HTTP/2 preface or SETTINGS failed.
    #[error("http2 handshake failed: {0}")]
    Http2(String),
    /// The HTTP/2 preface or SETTINGS did not arrive in time.
    #[error("http2 handshake failed: no preface within {}s", .0.as_secs())]
    Http2Timeout(Duration),
    /// As many handshakes as the budget allows are under way.
    #[error("too many TLS handshakes are under way (limit {0})")]
    Busy(usize),
    /// The process is shutting down.
    #[error("pool draining")]
    Draining,
}

/// Why a CONNECT stream was not opened on a tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No tunnel.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The peer answered with another status than 200.
    #[error("http status: {0}")]
    Status(StatusCode),
    /// The peer did not take the stream: REFUSED_STREAM, or above the last stream id of its GOAWAY.
    #[error("h2 failed: {0}")]
    Refused(String),
    /// The tunnel died before an answer.
    #[error("h2 failed: {0}")]
    Lost(String),
    /// The peer reset the stream before an answer. It had taken it, so the application may have seen the connection: it is
    /// not opened again.
    #[error("h2 failed: {0}")]
    Reset(String),
    /// No answer in time.
    #[error("no answer to CONNECT within {}s", .0.as_secs())]
    Timeout(Duration),
}

impl OpenError {
    /// Whether another endpoint may be tried: nothing was delivered, and the refusal was not a verdict.
    pub fn may_try_elsewhere(&self) -> bool {
        match self {
            Self::Handshake(HandshakeError::Draining) => false,
            Self::Handshake(_) | Self::Refused(_) | Self::Lost(_) => true,
            Self::Status(status) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset(_) | Self::Timeout(_) => false,
        }
    }
}

/// An `io::Error` that several waiters of one handshake can be told.
#[derive(Clone, Debug)]
pub struct SharedIo(std::sync::Arc<io::Error>);

impl From<io::Error> for SharedIo {
    fn from(cause: io::Error) -> Self {
        Self(cause.into())
    }
}

impl SharedIo {
    /// An error of one's own with the same kind and text.
    pub fn into_io(self) -> io::Error {
        io::Error::new(self.0.kind(), self.0.to_string())
    }
}

impl std::fmt::Display for SharedIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
