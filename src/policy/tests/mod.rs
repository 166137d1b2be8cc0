//! Policies are written here as files write them, so each test also reads as the operator would see it.

mod agreement;
mod examples;
mod form;
mod missing;
mod naive;
mod selection;
mod semantics;

use super::*;
use crate::identity::SpiffeId;
use crate::net::{ClientAddr, TargetAddr};

fn key(text: &str) -> PolicyKey {
    PolicyKey::parse(text).unwrap()
}

fn rules(yaml: &str) -> Vec<Rule> {
    serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"))
}

fn allow(name: &str, yaml: &str) -> Policy {
    Policy {
        key: key(name),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: rules(yaml),
    }
}

fn deny(name: &str, yaml: &str) -> Policy {
    Policy { action: Action::Deny, ..allow(name, yaml) }
}

fn rehearsed(policy: Policy) -> Policy {
    Policy { dry_run: true, ..policy }
}

fn scoped(scope: Scope, policy: Policy) -> Policy {
    Policy { scope, ..policy }
}

fn set(policies: &[Policy]) -> PolicySet {
    PolicySet::compile(policies, [], UnknownPolicy::Close)
}

/// A connection to port `port` of the pod 10.0.0.9.
fn from(source: Option<&str>, ip: &str, port: u16) -> Facts {
    Facts {
        source: source.map(|principal| SpiffeId::parse(&format!("spiffe://{principal}")).unwrap()),
        client: ClientAddr::new((ip.parse::<std::net::IpAddr>().unwrap(), 40_000).into()),
        target: TargetAddr::new(([10, 0, 0, 9], port).into()),
    }
}

const C: &str = "cluster.local/ns/bar/sa/c";
const X: &str = "cluster.local/ns/evil/sa/x";

fn c(port: u16) -> Facts {
    from(Some(C), "10.0.0.5", port)
}

fn x(port: u16) -> Facts {
    from(Some(X), "10.0.0.66", port)
}

/// Plaintext.
fn p(port: u16) -> Facts {
    from(None, "10.0.7.7", port)
}

fn admits(set: &PolicySet, facts: &Facts) -> bool {
    matches!(set.judge(facts), Verdict::Allowed(_))
}

fn notes(set: &PolicySet, facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let verdict = set.explain(facts, |note| {
        let policy = note.policy().map_or(String::new(), |key| format!(" {key}"));
        lines.push(format!("{note}{policy}"));
    });
    assert_eq!(verdict, set.judge(facts), "explaining changed the verdict");
    lines
}
