//! The reference's sections 2 and 3 as they are written: no compiling, no index. What compiled sets are held to.

use std::net::IpAddr;

use super::*;
use ipnet::IpNet;

fn text(entry: &StringMatch, value: &str) -> bool {
    match entry {
        StringMatch::Exact(t) => value == t.as_ref(),
        StringMatch::Prefix(t) => value.starts_with(t.as_ref()),
        StringMatch::Suffix(t) => value.ends_with(t.as_ref()),
        StringMatch::Presence => !value.is_empty(),
    }
}

fn network(net: &IpNet, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(net.prefix_len())).unwrap_or(0);
            ip.to_bits() & mask == net.addr().to_bits() & mask
        }
        (IpNet::V6(net), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(net.prefix_len())).unwrap_or(0);
            ip.to_bits() & mask == net.addr().to_bits() & mask
        }
        _ => false,
    }
}

fn pair<T>(positive: &[T], negative: &[T], hits: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hits))
        && (negative.is_empty() || !negative.iter().any(&hits))
}

fn match_holds(m: &Match, facts: &Facts) -> bool {
    if *m == Match::default() {
        return false;
    }
    let id = facts.source.as_ref().map(|id| id.to_string());
    let principal = id.as_deref().and_then(|id| id.strip_prefix("spiffe://"));
    let parts: Option<Vec<&str>> = principal.map(|principal| principal.split('/').collect());
    let namespace = parts.as_ref().map_or("", |parts| parts[2]);
    let account = parts.as_ref().map(|parts| (parts[2], parts[4]));
    pair(&m.namespaces, &m.not_namespaces, |n| text(n, namespace))
        && pair(&m.principals, &m.not_principals, |p| principal.is_some_and(|principal| text(p, principal)))
        && pair(&m.service_accounts, &m.not_service_accounts, |s| {
            account == Some((s.namespace.as_ref(), s.service_account.as_ref()))
        })
        && pair(&m.source_ips, &m.not_source_ips, |net| network(net, facts.client.ip()))
        && pair(&m.destination_ips, &m.not_destination_ips, |net| network(net, facts.target.ip()))
        && pair(&m.destination_ports, &m.not_destination_ports, |port| *port == facts.target.port())
}

fn policy_matches(policy: &Policy, facts: &Facts) -> bool {
    let clause =
        |clause: &Clause| clause.matches.is_empty() || clause.matches.iter().any(|m| match_holds(m, facts));
    policy.rules.iter().any(|rule| rule.clauses.iter().all(clause))
}

/// The verdict and the log lines, each with its policy.
pub(super) fn judge(policies: &[Policy], facts: &Facts) -> (Verdict, Vec<String>) {
    let mut sorted = policies.to_vec();
    sorted.sort_by_key(|policy| policy.key.to_string());
    let of = |action, dry_run| sorted.iter().filter(move |p| p.action == action && p.dry_run == dry_run);
    let mut lines = Vec::new();
    for policy in of(Action::Deny, true).filter(|policy| policy_matches(policy, facts)) {
        lines.push(format!("dry-run: deny policy match {}", policy.key));
    }
    if let Some(policy) = of(Action::Deny, false).find(|policy| policy_matches(policy, facts)) {
        lines.push(format!("deny policy match {}", policy.key));
        return (Verdict::Denied(Denial::Explicit(policy.key.clone())), lines);
    }
    let mut rehearsed = false;
    for policy in of(Action::Allow, true).filter(|policy| policy_matches(policy, facts)) {
        rehearsed = true;
        lines.push(format!("dry-run: allow policy match {}", policy.key));
    }
    if of(Action::Allow, false).next().is_none() {
        if !rehearsed && of(Action::Allow, true).next().is_some() {
            lines.push("dry-run: no allow policies match".into());
        }
        lines.push("no allow policies, allow".into());
        return (Verdict::Allowed(Allowance { by: None }), lines);
    }
    if let Some(policy) = of(Action::Allow, false).find(|policy| policy_matches(policy, facts)) {
        lines.push(format!("allow policy match {}", policy.key));
        return (Verdict::Allowed(Allowance { by: Some(policy.key.clone()) }), lines);
    }
    lines.push("no allow policies matched".into());
    let first = of(Action::Allow, false).next().expect("there is one: none would have admitted").key.clone();
    (Verdict::Denied(Denial::NoneAllowed(first)), lines)
}
