//! The way to the control plane: a TLS connection to the address that was given, and who says so on it.
//!
//! Used by whoever speaks gRPC to istiod; knows nothing of what is said. Each [`connect()`] resolves the name, reads the trust roots
//! and makes a connection of its own, so that a changed root or address counts from the next one on. The bearer token is read for
//! each call, and no byte of it leaves before the server has proven its name. How gRPC is spoken:
//! `docs/decisions/0018-control-plane-channel.md`.
//!
//! ```text
//! connect   a name → addresses → TCP → TLS → HTTP/2
//! roots     whom we believe: a file, a text, or the system
//! token     what we are believed by
//! ```

mod connect;
mod error;
mod roots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod token;

use std::fmt;
use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

pub use connect::{Connection, connect};
pub use error::Error;
pub use roots::Roots;
pub use token::Token;

/// How the control plane is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub address: Address,
    /// A name its certificate may have instead of the address's own.
    pub alternative: Option<String>,
    /// Whose word for its name counts.
    pub roots: Roots,
    /// What we show.
    pub token: Token,
    /// The cluster in which that is to be checked.
    pub cluster: String,
    /// Sent with every call.
    pub headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    /// Suites and key exchange.
    pub provider: Arc<CryptoProvider>,
    /// TLS versions.
    pub versions: &'static [&'static SupportedProtocolVersion],
}

impl Config {
    /// What goes with a call, the token read now.
    ///
    /// # Errors
    /// [`Error::Token`].
    pub fn credentials(&self) -> Result<MetadataMap, Error> {
        let mut metadata = MetadataMap::new();
        if let Some(bearer) = self.token.bearer()? {
            metadata.insert("authorization", bearer);
            let cluster = self.cluster.parse().map_err(|_| Error::Cluster(self.cluster.clone()))?;
            metadata.insert("clusterid", cluster);
        }
        for (key, value) in &self.headers {
            metadata.insert(key.clone(), value.clone());
        }
        Ok(metadata)
    }
}

/// A host and a port, reached by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The name, or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Parses `https://host:port`. Without a scheme it is https, without a port 443.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: http::Uri =
            whole.parse().map_err(|cause| format!("write https://<host>:<port> ({cause})"))?;
        if uri.scheme_str() != Some("https") {
            return Err("write https://<host>:<port>; the token is sent over TLS alone".into());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("write https://<host>:<port>, without a path".into());
        }
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("write https://<host>:<port>".into());
        }
        Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(443) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}
