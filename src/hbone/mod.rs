//! Tunnels, as client and server: mutual TLS, HTTP/2, one CONNECT stream per connection.
//!
//! A tunnel is one TLS connection between two proxies; any number of application connections of the same key
//! (see [`TunnelKey`]) share it. Handshakes happen on their own small [`Handshakes`] pool and the finished
//! connection moves to the worker that will own it, where it stays. Who may talk to whom is not decided here:
//! [`crate::outbound`] says where a tunnel goes and whom to expect, [`crate::inbound`] judges each stream. What shares
//! a tunnel and where it lives: `docs/decisions/0001-tunnels-per-source-pod.md`; how ends are passed on:
//! `docs/decisions/0004-resets-stay-resets.md`.
//!
//! The seam of the data path is [`Tunnel::open`] and [`Incoming::accept`], which both yield an [`Opened`], and
//! [`Opened::carry`]: nobody outside this room reads or writes tunnel bytes. Behind it (`carrier.rs`) stand two carriers: the one
//! that carries *in place* (`in_place.rs`), and the *classic* one (`classic.rs`), the h2 crate over tokio-rustls, for TLS 1.2 and as
//! the operator's way back (`TUNNEL=classic`). One [`Pool`] exists per pod and worker.
//!
//! Source: Istio HBONE (`ports, TLS profile, headers`), RFC 9113 §8.5 (CONNECT), RFC 8446.

use std::time::Duration;

mod carrier;
mod classic;
mod connect;
mod ended;
mod error;
mod handshake;
mod in_place;
mod keepalive;
mod placement;
mod pool;
#[cfg(test)]
mod tests;
mod transport;

pub use carrier::{Carrier, Carry, Incoming, Opened, Server, Tunnel};
pub use connect::{ConnectRequest, TraceIds};
pub use ended::Ended;
pub use error::{HandshakeError, OpenError};
pub use handshake::{DialPlan, Handshakes, Secured, Stamps};
pub use placement::{Carried, Placement, TunnelKey, WorkerId};
pub use pool::{Acquired, Pool};

/// HTTP/2 parameters of both roles and the limits of the pool.
#[derive(Clone, Debug)]
pub struct Config {
    /// How tunnels are carried (`TUNNEL`).
    pub carrier: Carrier,
    /// Receive window of one stream, in bytes (`HTTP2_STREAM_WINDOW_SIZE`).
    pub stream_window: u32,
    /// Receive window of a whole tunnel, in bytes (`HTTP2_CONNECTION_WINDOW_SIZE`).
    pub connection_window: u32,
    /// Largest frame we accept, in bytes (`HTTP2_FRAME_SIZE`).
    pub frame_size: u32,
    /// Streams that share one tunnel before another is opened (`POOL_MAX_STREAMS_PER_CONNECTION`).
    pub streams_per_tunnel: usize,
    /// How long a tunnel without streams is kept (`POOL_UNUSED_RELEASE_TIMEOUT`).
    pub idle_release: Duration,
}

/// A TLS handshake that takes longer is given up, in both roles.
pub const TLS_DEADLINE: Duration = Duration::from_secs(5);
/// The peer's HTTP/2 preface and SETTINGS must arrive within this.
pub const PREFACE_DEADLINE: Duration = Duration::from_secs(5);
/// One TCP connect attempt.
pub const TCP_DEADLINE: Duration = Duration::from_secs(5);
/// The answer to a CONNECT request.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Largest header lists we accept: a server reads other people's requests, a client reads answers.
const CLIENT_HEADER_LIST: u32 = 16 * 1024;
const SERVER_HEADER_LIST: u32 = 64 * 1024;
/// Streams one client may have open on one of our tunnels.
const SERVER_STREAMS: u32 = 200;

/// Gives memory that this worker keeps for the next bytes, and that nobody needed of late, back to the system.
pub fn release_spare() {
    in_place::release_spare();
}
