//! From an Authorization to a policy.

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message as _;

use super::unknown;
use super::wire::security as wire;
use crate::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

/// A policy that arrived and was not understood.
#[derive(Debug)]
pub(super) struct Misunderstood {
    /// Why.
    pub why: String,
    /// What is in force instead, where no earlier version of it is.
    pub instead: Policy,
}

/// Decodes the policy called `name`.
///
/// # Errors
/// Anything that is not as it should be, or not known: half of a policy may be more open than the whole.
pub(super) fn decode(name: &PolicyKey, bytes: &Bytes) -> Result<Policy, Misunderstood> {
    let wrong = |why: String, scope, action, dry_run| Misunderstood {
        why,
        instead: Policy::not_understood(name.clone(), scope, action, dry_run),
    };
    let read = match wire::Authorization::decode(bytes.clone()) {
        Ok(read) => read,
        // Whom it is for cannot be known; its namespace can.
        Err(cause) => return Err(wrong(cause.to_string(), Scope::Namespace, Action::Deny, false)),
    };
    let scope = match wire::Scope::try_from(read.scope) {
        Ok(wire::Scope::Global) => Ok(Scope::Global),
        Ok(wire::Scope::Namespace) => Ok(Scope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(Scope::WorkloadSelector),
        Err(_) => Err(format!("the scope {} is not known", read.scope)),
    };
    let action = match wire::Action::try_from(read.action) {
        Ok(wire::Action::Allow) => Ok(Action::Allow),
        Ok(wire::Action::Deny) => Ok(Action::Deny),
        Err(_) => Err(format!("the action {} is not known", read.action)),
    };
    let rules = match unknown::in_rules(bytes) {
        Some(field) => Err(format!("{field} is not known, so what the policy means is not")),
        None => read.rules.iter().map(rule).collect::<Result<Vec<_>, _>>(),
    };
    match (scope, action, rules) {
        (Ok(scope), Ok(action), Ok(rules)) => {
            Ok(Policy { key: name.clone(), scope, action, dry_run: read.dry_run, rules })
        }
        (scope, action, rules) => {
            let stands_for =
                (scope.clone().unwrap_or(Scope::Namespace), action.clone().unwrap_or(Action::Deny));
            let why = [scope.err(), action.err(), rules.err()].into_iter().flatten().next();
            Err(wrong(why.unwrap_or_default(), stands_for.0, stands_for.1, read.dry_run))
        }
    }
}

fn rule(rule: &wire::Rule) -> Result<Rule, String> {
    Ok(Rule { clauses: rule.clauses.iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(clause: &wire::Clause) -> Result<Clause, String> {
    Ok(Clause { matches: clause.matches.iter().map(one).collect::<Result<_, _>>()? })
}

fn one(one: &wire::Match) -> Result<Match, String> {
    Ok(Match {
        namespaces: texts(&one.namespaces)?,
        not_namespaces: texts(&one.not_namespaces)?,
        service_accounts: accounts(&one.service_accounts),
        not_service_accounts: accounts(&one.not_service_accounts),
        principals: texts(&one.principals)?,
        not_principals: texts(&one.not_principals)?,
        source_ips: networks(&one.source_ips)?,
        not_source_ips: networks(&one.not_source_ips)?,
        destination_ips: networks(&one.destination_ips)?,
        not_destination_ips: networks(&one.not_destination_ips)?,
        destination_ports: ports(&one.destination_ports)?,
        not_destination_ports: ports(&one.not_destination_ports)?,
    })
}

fn texts(all: &[wire::StringMatch]) -> Result<Vec<StringMatch>, String> {
    use wire::string_match::MatchType;
    let one = |one: &wire::StringMatch| match &one.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(wire::Empty {})) => Ok(StringMatch::Presence),
        None => Err("a text is to be compared in no way".to_owned()),
    };
    all.iter().map(one).collect()
}

fn accounts(all: &[wire::ServiceAccountMatch]) -> Vec<ServiceAccountMatch> {
    let one = |one: &wire::ServiceAccountMatch| ServiceAccountMatch {
        namespace: one.namespace.as_str().into(),
        service_account: one.service_account.as_str().into(),
    };
    all.iter().map(one).collect()
}

fn networks(all: &[wire::Address]) -> Result<Vec<IpNet>, String> {
    let one = |one: &wire::Address| {
        let ip = address(&one.address)?;
        let prefix = u8::try_from(one.length).ok().and_then(|length| IpNet::new(ip, length).ok());
        prefix.ok_or_else(|| format!("{ip} has no prefix of {} bits", one.length))
    };
    all.iter().map(one).collect()
}

fn ports(all: &[u32]) -> Result<Vec<u16>, String> {
    all.iter().map(|&number| port(number)).collect()
}

/// An address of 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| format!("an address has {} bytes", bytes.len()))?;
    Ok(IpAddr::from(v6))
}

/// A port, which is never cut down to one.
pub(super) fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} is no port"))
}
