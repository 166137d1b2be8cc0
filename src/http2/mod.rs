//! HTTP/2 for tunnels, as a pure state machine: bytes, events and time in, actions and bytes out.

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
pub use settings::{Config, FIRST_STREAM_WINDOW, Role};

/// What is kept of what a GOAWAY says of its reason, in bytes.
pub const DEBUG_LIMIT: usize = 256;
