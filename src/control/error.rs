use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Address;

/// Why the control plane is not reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust roots cannot be had.
    #[error("{}: {why}", match file {
        Some(file) => format!("the roots that the control plane is to be verified by, in {}", file.display()),
        None => "the roots that the control plane is to be verified by".into(),
    })]
    Roots {
        /// The file they are in, if they are in one.
        file: Option<PathBuf>,
        /// What is wrong.
        why: String,
    },
    /// The token cannot be had.
    #[error("the token in {}: {why}", .file.display())]
    Token {
        /// The file it is in.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The token that was given as text cannot be sent.
    #[error("the token in AUTH_TOKEN cannot be sent: it has characters that a header may not have")]
    Literal,
    /// The name of the cluster cannot be sent.
    #[error("the cluster's name {0:?} cannot be sent: it has characters that a header may not have")]
    Cluster(String),
    /// The server can have no such name.
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    /// The name was not resolved.
    #[error("resolving {}: {cause}", .host)]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's answer.
        cause: io::Error,
    },
    /// None of its addresses took a connection; this is the last one's answer.
    #[error("connecting to {to}: {cause}")]
    Connect {
        /// Where.
        to: Address,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The TLS handshake failed, or the server has not proven its name.
    #[error("TLS with {to}: {cause}")]
    Tls {
        /// With whom.
        to: Address,
        /// Why.
        cause: io::Error,
    },
    /// HTTP/2 did not begin.
    #[error("HTTP/2 with {to}: {cause}")]
    Http2 {
        /// With whom.
        to: Address,
        /// Why.
        cause: hyper::Error,
    },
    /// It took too long.
    #[error("{to} did not answer within {}s", .within.as_secs())]
    Late {
        /// Who.
        to: Address,
        /// For how long it was waited.
        within: Duration,
    },
}
