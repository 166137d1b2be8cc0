//! How each step of this room can fail, and whose move it then is.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{SpiffeError, SpiffeId};

/// Why a certificate names nobody: exactly one URI SAN, a workload's SPIFFE ID, is needed (X509-SVID §2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SanError {
    /// The bytes are no certificate, or its SAN extension is broken or doubled.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// No URI among the names; DNS names, addresses and mail addresses do not count.
    #[error("the certificate has no URI SAN; exactly one, a SPIFFE ID, is needed")]
    NoUri,
    /// Two identities in one certificate would leave the choice to whoever reads it.
    #[error("the certificate has {0} URI SANs; exactly one, a SPIFFE ID, is needed")]
    SeveralUris(usize),
    /// One URI, which names no workload.
    #[error("the certificate's URI SAN {uri:?} is no workload identity: {cause}")]
    NotSpiffe {
        /// The URI as it came.
        uri: String,
        /// What is wrong with it.
        cause: SpiffeError,
    },
}

/// Why a peer is not who it must be. It travels inside [`rustls::Error`] out of a failed handshake.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Its certificate names nobody.
    #[error(transparent)]
    San(#[from] SanError),
    /// We dialled somebody else.
    #[error("peer did not present the expected SAN ({}), got {got}", listed(expected))]
    Unexpected {
        /// Whom the route named; nobody when it is empty.
        expected: Arc<[SpiffeId]>,
        /// Who answered.
        got: SpiffeId,
    },
    /// A caller from a trust domain this workload does not serve.
    #[error("peer {got} is of trust domain {}; accepted here: {}", .got.trust_domain(), .accepted.join(", "))]
    ForeignTrustDomain {
        /// Who called.
        got: SpiffeId,
        /// Our own trust domain and its aliases.
        accepted: Arc<[String]>,
    },
    /// Asked before the handshake proved anything.
    #[error("the TLS handshake with the peer is not finished")]
    Unfinished,
    /// The handshake finished without a certificate, so it was not made with our configuration.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The server did not select HTTP/2, so it would not understand the tunnel.
    #[error("the peer did not select the protocol h2 (ALPN); does another service listen on that port?")]
    NotH2,
}

fn listed(ids: &[SpiffeId]) -> String {
    ids.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(", ")
}

/// The same sentence as `Display`: rustls prints the errors it carries with `Debug`, and operators read that.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why what an authority issued is not used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// No leaf.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// Peers limit what they read of a handshake; ours must stay well below.
    #[error(
        "the chain has {certificates} certificates of {bytes} bytes together; the limits are 8 and 16384"
    )]
    TooLong {
        /// Certificates in the chain.
        certificates: usize,
        /// Their DER encodings together.
        bytes: usize,
    },
    /// A certificate or root that is no X.509.
    #[error("{which} {index} cannot be read: {cause}")]
    Unreadable {
        /// `certificate` or `root`.
        which: &'static str,
        /// Counted from 0, the leaf.
        index: usize,
        /// What the parser said.
        cause: String,
    },
    /// The chain is not in the order leaf, issuer, issuer's issuer.
    #[error("certificate {index} of the chain was not issued by the one after it")]
    Order {
        /// Counted from 0, the leaf.
        index: usize,
    },
    /// The leaf names nobody.
    #[error("the leaf does not name the workload")]
    San(#[from] SanError),
    /// The leaf names somebody else.
    #[error("the certificate is for {got}, not for {wanted}")]
    WrongIdentity {
        /// For whom we asked.
        wanted: SpiffeId,
        /// For whom it is.
        got: SpiffeId,
    },
    /// Its validity ends before it starts, or at a time this machine cannot represent.
    #[error("certificate {index} of the chain has no sensible validity")]
    Validity {
        /// Counted from 0, the leaf.
        index: usize,
    },
    /// Over by this node's clock.
    #[error("the certificate has expired already; are the clocks of this node and of the authority right?")]
    Expired,
    /// The private key cannot be used or is not the leaf's.
    #[error("the private key does not serve the leaf: {0}")]
    Key(rustls::Error),
    /// Nothing to verify a peer with.
    #[error("no certificate came that can serve as a trust root")]
    NoRoots,
}

/// Why an authority issued nothing, or nothing usable.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The embedded authority proves one trust domain only.
    #[error("this authority issues for trust domain {domain} only")]
    ForeignTrustDomain {
        /// The domain of its root.
        domain: String,
    },
    /// The root's own time is over.
    #[error("the root of this authority has expired; replace root.pem on every node that shares it")]
    RootExpired,
    /// Making or exchanging the certificate failed; the source says where.
    #[error("issuing the certificate failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// No answer in time.
    #[error("the authority did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It answered, and the answer cannot be used.
    #[error("what the authority issued is unusable")]
    Unusable(#[from] CredentialError),
}

/// Why a connection got no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateError {
    /// The authority was asked and did not deliver; the source is its last answer.
    #[error("no certificate for {identity}")]
    Refused {
        /// For whom.
        identity: SpiffeId,
        /// The last refusal.
        #[source]
        cause: Arc<AuthorityError>,
    },
    /// The authority has not been asked or has not answered yet.
    #[error("no certificate for {identity} within {} s: the authority has not answered yet", waited.as_secs())]
    TimedOut {
        /// For whom.
        identity: SpiffeId,
        /// How long the connection waited.
        waited: Duration,
    },
    /// The keeper has ended, which it does when the process does.
    #[error("no certificate for {identity}: certificates are no longer kept, the proxy is stopping")]
    Stopped {
        /// For whom.
        identity: SpiffeId,
    },
}

/// Why the embedded authority did not open. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The system's answer to one step.
    #[error("{step} {}: {cause}", path.display())]
    Io {
        /// What was tried, as a verb.
        step: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A link could lead to a file that others control.
    #[error("{} is a symbolic link; put the file itself there (for a mounted Secret: mount it with subPath)", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A socket, a directory, a pipe.
    #[error("{} is no regular file; move it away, or choose another directory", path.display())]
    NotAFile {
        /// What is in the way.
        path: PathBuf,
    },
    /// Somebody else could have written it.
    #[error("{} belongs to user {owner}, not to user {us} who runs this proxy; chown it, or choose another directory", path.display())]
    ForeignOwner {
        /// File or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user.
        us: u32,
    },
    /// Others may read the key or replace the file.
    #[error("{} has mode {mode:04o}, which lets others in; run chmod {wanted:04o}, and replace the root if it was exposed", path.display())]
    OpenToOthers {
        /// File or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be at most.
        wanted: u32,
    },
    /// Truncated, edited or something else altogether.
    #[error("{} holds no usable root: {what}; restore it from another node, or remove it to start a new root", path.display())]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// The root's time is over.
    #[error("the root in {} has expired; remove the file to start a new root, on every node that shares it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// No root, and none can be written here.
    #[error("{} does not exist and its directory is read-only; copy the shared root there, or make it writable", path.display())]
    ReadOnly {
        /// The file that is missing.
        path: PathBuf,
    },
    /// Making a new root failed.
    #[error("making a new root failed")]
    Make(#[source] Box<dyn Error + Send + Sync>),
}
