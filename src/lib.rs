//! adit: a node-level L4 transparent proxy for Kubernetes ambient mesh.
//!
//! One process per node captures the TCP traffic of the node's pods, carries it to the other node over HBONE
//! (HTTP/2 CONNECT inside mutual TLS with SPIFFE identities), enforces L4 authorization there and passes the
//! rest through. The rooms below read like the data path; imports point down this list:
//!
//! ```text
//! app                                  builds every room once
//! lab · demo                           a two-node mesh on one machine
//! config                               strings to typed values, once
//! admin                                what operators see
//! node · worker                        the pods of this node; the threads that carry their connections
//! inbound · outbound                   one connection from start to end
//! hands                                what both have at hand
//! hbone                                tunnels
//! tls · http2                          TLS records and HTTP/2 frames as pure functions, no I/O
//! capture · flow · discovery           sockets in a pod; what is kept of a connection; where state comes from
//! mesh                                 workloads and services, an immutable snapshot
//! policy                               rules, facts, verdicts
//! identity                             names and their proof
//! control                              the way to the control plane
//! plain · net · telemetry              states written down; the kernel; the numbers and the lines
//! ```

pub mod admin;
pub mod app;
pub mod capture;
pub mod config;
pub mod control;
pub mod demo;
pub mod discovery;
pub mod flow;
pub mod hands;
pub mod hbone;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod lab;
pub mod mesh;
pub mod net;
pub mod node;
pub mod outbound;
pub mod plain;
pub mod policy;
pub mod telemetry;
pub mod tls;
pub mod version;
pub mod worker;
