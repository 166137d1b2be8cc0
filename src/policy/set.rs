//! May this connection reach this workload?

use super::condition::Conditions;
use super::facts::{Facts, Given};
use super::index::{AnyOf, of_match, of_rule};
use super::key::PolicyKey;
use super::rules::{Action, Clause, Policy, Rule};
use super::verdict::{Allowance, Denial, Note, Verdict};

/// What becomes of a workload while a policy it names has not arrived.
///
/// Short waits, which are normal since addresses are sent before policies, are the caller's: a policy that may still come is
/// [pending](PolicySet::pending), and missing only after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPolicy {
    /// What cannot be judged is refused: plaintext, if the name is one that only conversions of
    /// PeerAuthentication have, since their policies deny nothing else; everything under any other name.
    #[default]
    Close,
    /// As the reference: the policy is ignored. Set by `UNKNOWN_POLICY=ignore`.
    Ignore,
}

/// The policies that apply to one workload, compiled. Immutable; share it by `Arc`.
pub struct PolicySet {
    deny: AnyOf<Compiled>,
    allow: AnyOf<Compiled>,
    /// Not to be told from `allow`: an ALLOW without rules admits nobody, and still counts as one.
    otherwise: Otherwise,
    missing: Option<PolicyKey>,
    missing_strict: Option<PolicyKey>,
    pending: Option<PolicyKey>,
    rehearsed_deny: Box<[Rehearsed]>,
    rehearsed_allow: Box<[Rehearsed]>,
}

/// What becomes of a connection that no policy matched.
enum Otherwise {
    Admit,
    /// The first ALLOW in key order stands for all of them.
    Refuse(PolicyKey),
}

/// One rule, with the policy it is from.
struct Compiled {
    policy: PolicyKey,
    /// Only clauses that can fail: one without matches always holds.
    clauses: Box<[AnyOf<Conditions>]>,
}

/// One policy in dry run. These are asked one by one, since each that matches is reported.
struct Rehearsed {
    policy: PolicyKey,
    rules: AnyOf<Compiled>,
}

impl PolicySet {
    /// Compiles the policies that apply to one workload, and the keys it names that are not there.
    ///
    /// Order and repetitions do not matter: policies are judged in key order, each once.
    pub fn compile<'a>(
        applicable: impl IntoIterator<Item = &'a Policy>,
        missing: impl IntoIterator<Item = PolicyKey>,
        unknown: UnknownPolicy,
    ) -> Self {
        let mut policies: Vec<&Policy> = applicable.into_iter().collect();
        policies.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        let of = |action, dry_run| {
            policies
                .iter()
                .copied()
                .filter(move |policy| (policy.action, policy.dry_run) == (action, dry_run))
        };
        let (strict, missing): (Vec<_>, Vec<_>) = match unknown {
            UnknownPolicy::Close => missing.into_iter().partition(concerns_plaintext_only),
            UnknownPolicy::Ignore => Default::default(),
        };
        Self {
            deny: compile(of(Action::Deny, false)),
            allow: compile(of(Action::Allow, false)),
            otherwise: match of(Action::Allow, false).next() {
                Some(first) => Otherwise::Refuse(first.key.clone()),
                None => Otherwise::Admit,
            },
            missing: missing.into_iter().min(),
            missing_strict: strict.into_iter().min(),
            pending: None,
            rehearsed_deny: of(Action::Deny, true).map(Rehearsed::compile).collect(),
            rehearsed_allow: of(Action::Allow, true).map(Rehearsed::compile).collect(),
        }
    }

    /// As this set, of which the policy `key` is named and has not come yet, but soon may.
    #[must_use]
    pub fn waiting_for(self, key: Option<PolicyKey>) -> Self {
        Self { pending: key, ..self }
    }

    /// A policy that is named and may come soon. Until it has, or is known not to, nobody new can be judged; who is connected already
    /// is judged by the others.
    pub fn pending(&self) -> Option<&PolicyKey> {
        self.pending.as_ref()
    }

    /// Decides: a DENY that matches refuses; then a missing policy refuses; then, if there are ALLOWs, one of them
    /// must match. Policies in dry run have no part in it.
    ///
    /// Memory: none. Source: the reference's section 3.
    pub fn judge(&self, facts: &Facts) -> Verdict {
        let given = Given::of(facts);
        if let Some(rule) = first(&self.deny, &given) {
            return Verdict::Denied(Denial::Explicit(rule.policy.clone()));
        }
        if let Some(policy) = &self.missing {
            return Verdict::Denied(Denial::Missing(policy.clone()));
        }
        if let (Some(policy), None) = (&self.missing_strict, &facts.source) {
            return Verdict::Denied(Denial::MissingStrict(policy.clone()));
        }
        match (first(&self.allow, &given), &self.otherwise) {
            (Some(rule), _) => Verdict::Allowed(Allowance { by: Some(rule.policy.clone()) }),
            (None, Otherwise::Admit) => Verdict::Allowed(Allowance { by: None }),
            (None, Otherwise::Refuse(policy)) => Verdict::Denied(Denial::NoneAllowed(policy.clone())),
        }
    }

    /// Decides as [`PolicySet::judge`], and hands each step to `note`, policies in dry run included.
    ///
    /// As in the reference, ALLOWs in dry run are not asked once a connection is explicitly refused.
    /// Memory: none of its own.
    pub fn explain(&self, facts: &Facts, mut note: impl FnMut(Note<'_>)) -> Verdict {
        let given = Given::of(facts);
        for policy in self.rehearsed_deny.iter().filter(|policy| policy.matches(&given)) {
            note(Note::DryRunDeny(&policy.policy));
        }
        let verdict = self.judge(facts);
        match &verdict {
            Verdict::Denied(Denial::Explicit(policy)) => {
                note(Note::Deny(policy));
                return verdict;
            }
            Verdict::Denied(Denial::Missing(policy) | Denial::MissingStrict(policy)) => {
                note(Note::Missing(policy));
                return verdict;
            }
            Verdict::Denied(Denial::NoneAllowed(_)) | Verdict::Allowed(_) => {}
        }
        let mut none_matched = !self.rehearsed_allow.is_empty();
        for policy in self.rehearsed_allow.iter().filter(|policy| policy.matches(&given)) {
            none_matched = false;
            note(Note::DryRunAllow(&policy.policy));
        }
        match &verdict {
            Verdict::Allowed(Allowance { by: Some(policy) }) => note(Note::Allow(policy)),
            Verdict::Allowed(Allowance { by: None }) => {
                if none_matched {
                    note(Note::DryRunNoneAllowed);
                }
                note(Note::NoAllowPolicies);
            }
            Verdict::Denied(_) => note(Note::NoneAllowed),
        }
        verdict
    }
}

/// Whether the policy called `key` can only be a conversion of PeerAuthentication. The underscores in the names
/// make sure of it: Kubernetes allows none in a policy that a user writes.
fn concerns_plaintext_only(key: &PolicyKey) -> bool {
    key.name() == "istio_converted_static_strict" || key.name().starts_with("converted_peer_authentication_")
}

impl Rehearsed {
    fn compile(policy: &Policy) -> Self {
        Self { policy: policy.key.clone(), rules: compile([policy]) }
    }

    fn matches(&self, given: &Given<'_>) -> bool {
        first(&self.rules, given).is_some()
    }
}

fn compile<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> AnyOf<Compiled> {
    let rules = policies.into_iter().flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    AnyOf::new(rules.map(|(policy, rule)| (Compiled::new(&policy.key, rule), of_rule(rule))))
}

fn first<'a>(rules: &'a AnyOf<Compiled>, given: &Given<'_>) -> Option<&'a Compiled> {
    rules.first(given, |rule| {
        rule.clauses.iter().all(|clause| clause.first(given, |conditions| conditions.hold(given)).is_some())
    })
}

impl Compiled {
    fn new(policy: &PolicyKey, rule: &Rule) -> Self {
        let can_fail = rule.clauses.iter().filter(|clause| !clause.matches.is_empty());
        let alternatives = |clause: &Clause| {
            AnyOf::new(clause.matches.iter().map(|m| (Conditions::compile(m), of_match(m))))
        };
        Self { policy: policy.clone(), clauses: can_fail.map(alternatives).collect() }
    }
}
