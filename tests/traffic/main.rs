//! Two nodes, a real `adit` on each, real applications in their pods: who reaches whom, how, and what it leaves in
//! logs, counters and on the wire.
//!
//! Everything happens in network namespaces that the tests make themselves; needs root, iproute2 and iptables, and
//! nginx, curl, redis and iperf3 as applications.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

mod caller;
mod evidence;
mod matrix;
mod refusals;
mod retries;
mod stage;
mod strangers;
mod wire;
