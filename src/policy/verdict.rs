//! What was decided, and why?

use std::fmt;

use super::key::PolicyKey;

/// Whether a connection may reach its workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed(Allowance),
    /// It may not.
    Denied(Denial),
}

/// What an admission rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The ALLOW policy that matched, the first in key order; `None` if the workload has no ALLOW policy.
    pub by: Option<PolicyKey>,
}

/// Why a connection was refused. The first two texts are the reference's, word for word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY policy matched: this one, the first in key order.
    #[error("explicitly denied by: {0}")]
    Explicit(PolicyKey),
    /// The workload has ALLOW policies, this one the first of them in key order, and none of them matched.
    #[error("allow policies exist, but none allowed")]
    NoneAllowed(PolicyKey),
    /// The workload names a policy that has not arrived, and what it would say is unknown.
    #[error(
        "policy {0} applies here but has not arrived: until it does, or no longer applies, nothing is admitted"
    )]
    Missing(PolicyKey),
    /// As `Missing`, for a policy that can only be about plaintext; connections with an identity are judged on.
    #[error(
        "policy {0} applies here but has not arrived: until it does, or no longer applies, plaintext is refused"
    )]
    MissingStrict(PolicyKey),
}

/// One step on the way to a verdict, in the order taken. `Display` is the reference's log line, word for word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// A DENY in dry run would have refused.
    DryRunDeny(&'a PolicyKey),
    /// A DENY refuses.
    Deny(&'a PolicyKey),
    /// A policy that has not arrived refuses.
    Missing(&'a PolicyKey),
    /// An ALLOW in dry run would have admitted.
    DryRunAllow(&'a PolicyKey),
    /// There are ALLOWs in dry run only, and none would have admitted.
    DryRunNoneAllowed,
    /// No ALLOW is enforced, so everything is admitted.
    NoAllowPolicies,
    /// An ALLOW admits.
    Allow(&'a PolicyKey),
    /// ALLOWs are enforced and none admits.
    NoneAllowed,
}

impl<'a> Note<'a> {
    /// The policy this note is about, if it is about one.
    pub fn policy(&self) -> Option<&'a PolicyKey> {
        match *self {
            Self::DryRunDeny(key)
            | Self::Deny(key)
            | Self::Missing(key)
            | Self::DryRunAllow(key)
            | Self::Allow(key) => Some(key),
            Self::DryRunNoneAllowed | Self::NoAllowPolicies | Self::NoneAllowed => None,
        }
    }
}

impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DryRunDeny(_) => "dry-run: deny policy match",
            Self::Deny(_) => "deny policy match",
            Self::Missing(_) => "policy has not arrived, deny",
            Self::DryRunAllow(_) => "dry-run: allow policy match",
            Self::DryRunNoneAllowed => "dry-run: no allow policies match",
            Self::NoAllowPolicies => "no allow policies, allow",
            Self::Allow(_) => "allow policy match",
            Self::NoneAllowed => "no allow policies matched",
        })
    }
}
