//! What both directions share about one connection: its record, its outcome, its pod's share of the worker, plaintext relaying.
//!
//! Opened by `outbound` or `inbound` once per connection, on the worker that owns it. A [`Record`] takes plain facts
//! ([`Parties`]) and knows no tunnel and no policy; what they have to say at the end is an [`Outcome`]. How ends are
//! passed on: `docs/decisions/0004-resets-stay-resets.md`; when a record opens:
//! `docs/decisions/0005-when-a-record-opens.md`; when plaintext goes through a pipe:
//! `docs/decisions/0013-splice-plaintext.md`; what becomes of half-closed connections: `docs/decisions/0014-ends.md`.

mod baggage;
mod carrying;
mod describe;
pub mod ends;
pub mod live;
mod outcome;
mod record;
pub mod relay;
mod share;
#[cfg(test)]
mod tests;
mod timeline;

pub use baggage::{Baggage, BaggageError, WorkloadKind};
pub use carrying::Carrying;
pub use describe::{baggage_of, labels_of_service, peer_of};
pub use outcome::{Direction, Outcome, Seen, Side};
pub use record::{Parties, Peer, Record, Tally, early_deny};
pub use share::{Place, Share, Turn};
pub use timeline::{Stage, Timeline};
