//! HTTP/2 as a pure state machine: bytes and events in, actions out.

pub mod hpack;
