//! HTTP/2 for tunnels (RFC 9113), as a pure state machine: bytes, events and time in, actions and bytes out.
//!
//! A [`Machine`] is one end of one tunnel, client or server, and there is one per tunnel. It does no I/O and asks no clock, so that
//! it can be tested, fuzzed and simulated byte by byte, and written down in the middle of a frame and taken up by another process.
//! It knows CONNECT streams and their DATA; what an authority means, who may ask, which application a stream belongs to
//! and what its bytes say is for the rooms above. TLS is for [`crate::tls`], buffers and sockets for the carrier.
//!
//! - The parts, what the caller is told, and how it all stands: `machine.rs`; written down in `state.rs`.
//! - The peer's bytes: `read.rs` cuts them into frames, `receive.rs` does what each of them says.
//! - Our side: `send.rs` opens, answers, sends, takes, resets and leaves; `clock.rs` does what is due.
//! - What they work on: `frame.rs`, `output.rs`, `stream.rs`, `flow.rs`, `settings.rs`, `head.rs`, [`hpack`], and `budget.rs` against floods.
//!
//! What of the RFC is done, refused or ignored, section by section: `docs/wire/rfc9113.md`. Why this is not the h2 crate:
//! `docs/decisions/0012-pure-frame-machine.md`.
//!
//! ```
//! use std::time::Instant;
//! use adit::http2::{Action, Config, Machine, Role};
//!
//! let config = Config {
//!     stream_window: 4 << 20,
//!     connection_window: 16 << 20,
//!     frame_size: 1 << 20,
//!     header_list: 16 << 10,
//!     header_table: 4_096,
//!     streams: 100,
//! };
//! let now = Instant::now();
//! let mut client = Machine::new(Role::Client, config, now);
//! let mut server = Machine::new(Role::Server, config, now);
//! let stream = client.open("10.77.2.1:8080", [(&b"baggage"[..], &b"k8s.namespace.name=shop"[..])])?;
//!
//! // The wire: whatever one side has to say is what the other reads.
//! let mut bytes = client.output();
//! while let Some(action) = server.read(&mut bytes, now)? {
//!     if let Action::Request { stream, request, .. } = action {
//!         assert_eq!(request.authority.as_ref().map(|to| to.as_str()), Some("10.77.2.1:8080"));
//!         server.respond(stream, [])?;
//!     }
//! }
//! let mut bytes = server.output();
//! while let Some(action) = client.read(&mut bytes, now)? {
//!     if let Action::Response { response, .. } = action {
//!         assert_eq!(response.status, 200);
//!     }
//! }
//! // A DATA frame is this head and the bytes behind it.
//! let head = client.send(stream, b"hello".len(), true)?;
//! assert_eq!(head, [0, 0, 5, 0, 1, 0, 0, 0, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod budget;
mod clock;
mod error;
mod flow;
mod frame;
mod head;
pub mod hpack;
mod machine;
mod output;
mod read;
mod receive;
mod send;
mod settings;
mod state;
mod stream;
#[cfg(test)]
mod tests;

pub use budget::Nuisance;
pub use error::{Error, Malformed, OpenError, SendError, StreamError};
pub use frame::{Code, FrameKind, HEAD, StreamId};
pub use head::{Fields, Request, Response};
pub use machine::{
    ACK_DEADLINE, Action, Cut, GOAWAY_DEADLINE, GREETING_DEADLINE, Machine, PING_AFTER, PING_DEADLINE,
};
pub use settings::{Config, FIRST_CONNECTION_WINDOW, FIRST_STREAM_WINDOW, Role};

/// What is kept of what a GOAWAY says of its reason, in bytes.
pub const DEBUG_LIMIT: usize = 256;
