//! One pod's sockets: the rules that bring its traffic here, its listeners, and where a connection was going.
//!
//! Three listeners exist per pod, made inside the pod's network namespace and served by one worker. Accepted
//! descriptors stay raw, in no reactor, until it is known which worker will own the connection. What happens to a
//! connection is decided by [`crate::outbound`] and [`crate::inbound`]. Source ports that are chosen in a client's
//! name: `docs/decisions/0003-spoofed-source-ports.md`; how sockets towards applications are made:
//! `docs/decisions/0016-sockets-on-a-node.md`.

mod accept;
mod pod;
pub mod rules;
mod spoof;

pub use accept::{Accepted, Acceptor, Unanswered};
pub use pod::{Config, Crowded, Listeners, Pod, Unproven};
pub use spoof::{Downstream, SpoofError, Spoofed, connected};

/// Port of the listener that the pod's outgoing connections are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the listener that plaintext connections to the pod are redirected to.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Port of the listener for tunnels, which is dialled directly.
pub const TUNNEL_PORT: u16 = 15008;

/// Whether `port` is one of the proxy's own, which no application traffic may be sent to.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | PLAINTEXT_PORT | TUNNEL_PORT)
}
