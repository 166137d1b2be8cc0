//! Who is who and the proof: SPIFFE names, trust roots, certificates and their renewal, peer verification.
//!
//! One [`Store`] per process holds the certificate of every identity on this node. Its [`Keeper`] runs on the
//! service thread, asks an [`Authority`] and renews; data workers read the published [`Credentials`] without a
//! lock. From credentials come the two TLS configurations of a tunnel, and from a finished handshake the
//! [`VerifiedPeer`] that policy may rely on. What a peer may then do is for `policy`; how a tunnel is carried is
//! for `hbone`. The authority of our own: `docs/decisions/0006-embedded-authority.md`.
//!
//! ```text
//! ca · root      an authority of our own, and the file its root lives in
//! istiod         the authority of a cluster
//! store · keeper lend a certificate; the task that asks, serves and renews
//! state          one identity's certificate over time      a machine, pure
//! certificate    what was issued, checked → `Credentials`
//! tls            what both ends of a handshake insist on → configurations
//! verify         what a peer must show → `VerifiedPeer`
//! x509           what a certificate says
//! ```

mod ca;
mod certificate;
mod clock;
mod dump;
mod error;
mod istiod;
mod keeper;
mod root;
mod spiffe;
mod state;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod verify;
mod x509;

pub use ca::{Authority, EmbeddedCa, Issuing};
pub use certificate::{Credentials, Issued, PrivateKey};
pub use clock::Clock;
pub use dump::{CertificateDump, CertificateText};
pub use error::{AuthorityError, CertificateError, CredentialError, PeerError, RootError, SanError};
pub use istiod::{IstiodCa, IstiodError};
pub use keeper::Keeper;
pub use spiffe::{SpiffeError, SpiffeId};
pub use store::{Store, Wanted};
pub use tls::{Tls, TlsPolicy, require_h2};
pub use verify::VerifiedPeer;
