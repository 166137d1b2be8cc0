//! A whole adit process and the proxies of other people at the other end of its tunnels: Envoy, as waypoints and gateways are, and
//! Python's `h2` over Python's `ssl`. Each is once the server of the tunnels that adit opens, and once the client of adit's port 15008.
//!
//! `make conformance` installs both and runs this. Everything happens in network namespaces that the tests make themselves; needs root,
//! iproute2 and iptables. Certificates are of the lab's own authority, and identities are verified both ways.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

mod checks;
mod envoy;
mod python;
mod stage;
