//! What a node goes through in a long life: many bytes, many connections, ends of every kind, pods, rules, agents
//! and processes that come and go.
//!
//! Two nodes in real network namespaces, each with a real `adit`; needs root. One lab runs at a time, so that no
//! deadline is missed because another test needs the machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

mod bulk;
mod busy;
mod churn;
mod control;
mod ends;
mod lifecycle;
mod many;
mod policy;
mod share;
mod stage;
mod takeover;
mod thousand;
