//! What both directions share about one connection: its record, its outcome, plaintext relaying, and the list of
//! connections that are live on a worker.

pub mod live;
pub mod relay;
