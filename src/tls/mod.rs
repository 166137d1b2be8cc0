//! TLS 1.3 records as pure functions: after a handshake by rustls, this room protects them itself.
//!
//! A byte of a tunnel is touched once between two sockets, by the cipher, where it lies; and a tunnel can move to
//! another process, so all that goes with its keys is plain data. rustls offers neither, so it does what it alone
//! should do, the handshake, verification and key schedule of RFC 8446 §4 and §7, and leaves the record protocol (§5),
//! alerts (§6) and the messages after the handshake (§4.6) to this room: `docs/decisions/0010-own-record-protection.md`.
//! What of that RFC is implemented, refused and ignored: `docs/wire/rfc8446.md`.
//!
//! One [`Handshake`] per connection until it is established; then one [`Sealer`] and one [`Opener`], which know nothing
//! of each other: whoever drives them tells the sealer when the opener saw the peer ask for new keys. There is no I/O
//! and no clock here: bytes lie in the caller's buffers, from a socket or from a stream of another tunnel. Deadlines,
//! reading and writing are for whoever has the socket; who the peer may be is for `identity`; TLS 1.2, other ciphers and
//! `TUNNEL=classic` are for the classic carrier of `hbone`.
//!
//! ```text
//! handshake   bytes in, bytes out, until → Established { sealer, opener, .. }
//! seal        data, KeyUpdates and alerts → records, in place
//! open        records → data and news of the peer, in place
//! post        handshake messages after the handshake       a machine, pure
//! state       sealer and opener as plain data, to go on elsewhere
//! record      how a record lies in memory
//! keys        suite, traffic secret → key and iv
//! ```

mod error;
mod handshake;
mod keys;
mod open;
mod post;
mod record;
mod seal;
mod state;
#[cfg(test)]
mod tests;

pub use error::{At, HandshakeError, OpenError, SealError};
pub use handshake::{Established, Handshake};
pub use keys::{Suite, TrafficSecret};
pub use open::{Content, Opened, Opener};
pub use record::{HEADER, MAX_BODY, OVERHEAD, SLOT, SmallRecord, TRAILER, batch_length, bodies};
pub use seal::{KEY_LIMIT, KEY_UPDATE_DUE, PeerKeys, Sealer};
pub use state::{OpenerState, SealerState};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Client,
    /// We were dialled.
    Server,
}
