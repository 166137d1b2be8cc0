//! A two-node mesh on one machine: network namespaces, a wire, rules, a node agent and real adit processes.
//!
//! `adit demo`, the end-to-end tests and the mesh bench stand on it. A [`World`] is the hardware: a bridge, two
//! nodes and their pods, all in namespaces that only this process holds, so that they end with it, however it ends.
//! A [`MeshFile`] tells the proxies who lives there, an [`Agent`] per node hands them the pods, a [`Proxy`] is one
//! real `adit` process on its node. [`Server`] and [`dial`] are the applications, and a [`Capture`] on the
//! wire says what an eavesdropper would have seen.
//!
//! Nothing here knows how a proxy works: it is judged from outside, by sockets, log lines and packets.
//! Everything needs CAP_SYS_ADMIN and CAP_NET_ADMIN, in a user namespace or as root.

mod agent;
mod capture;
mod error;
mod ip;
mod log;
mod mesh_file;
mod process;
mod server;
#[cfg(test)]
mod tests;
mod traffic;
mod world;

pub use agent::{Agent, Answer, Session};
pub use capture::{Capture, Finding, WireReport};
pub use error::Error;
pub use log::{AccessLine, AccessLog, Log, Position};
pub use mesh_file::{Action, Match, MeshFile, Policy, Service, Text};
pub use process::{Launch, Proxy};
pub use server::{Behaviour, Seen, Server};
pub use traffic::{Reply, ask, dial, hear, http_get, listen_for, pour};
pub use world::{Membership, Node, Pod, Side, World};
