//! L4 authorization: rules, facts, verdicts. A decision, pure: no I/O, no clock, no lock, no allocation.
//!
//! What comes in: [`Policies`], every policy of the mesh, one immutable value per node; and [`Facts`], what is
//! proven about one connection. What decides: a [`PolicySet`], the policies of one workload compiled once and
//! shared by all its connections. What goes out: a [`Verdict`], with the policy it rests on.
//!
//! Judged once per tunnel stream and once per passthrough connection, on the destination's node only, after the
//! final port is known; and again for live connections whenever the set of their workload changes. Left to
//! others: decoding the wire, waiting for a policy that is still on its way, cutting who lost, and logging. One
//! set serves every workload with the same namespace and the same named policies, so callers share it by `Arc`.
//!
//! **Nothing here can widen access by being misread.** A [`Match`] holds typed conditions only, so whoever
//! decodes one either understands each entry or has no match; a file with a misspelt condition is an error; a
//! policy that arrived but was not understood is kept as [`Policy::not_understood`], and one that was named but
//! never arrived closes its workload ([`UnknownPolicy`]).

mod condition;
mod facts;
mod form;
mod index;
mod key;
mod rules;
mod set;
mod store;
#[cfg(test)]
mod tests;
mod verdict;

pub use facts::Facts;
pub use key::{KeyError, PolicyKey};
pub use rules::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use set::{PolicySet, UnknownPolicy};
pub use store::{Applicable, Policies};
pub use verdict::{Allowance, Denial, Note, Verdict};
