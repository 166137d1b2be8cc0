//! Which rules are there? Reads the namespace, and changes its routing.

use std::io;

use nix::errno::Errno;
use serde_json::Value;

use super::commands::{Tools, run, save_program};
use super::plan::{Chain, Family, Table};
use super::{Error, compare};
use crate::net::Netns;

/// What of ours is in a namespace, for one family.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Our chains.
    pub(super) chains: Vec<(Table, Chain)>,
    /// The rules in our chains, in order, and those elsewhere that jump into them.
    pub(super) rules: Vec<FoundRule>,
    /// Whether marked packets look into table 100.
    pub(super) ip_rule: bool,
    /// Whether table 100 brings them to `lo`.
    pub(super) route: bool,
    /// Whether such a route can exist: IPv6 may be off on `lo`.
    pub(super) routable: bool,
}

/// A rule as iptables-save prints it.
#[derive(Debug)]
pub(super) struct FoundRule {
    pub(super) table: Table,
    pub(super) chain: String,
    pub(super) spec: String,
}

/// Reads what of ours there is; `None` when the family is not wanted and cannot have anything of ours.
pub(super) fn read(
    family: Family,
    netns: &Netns,
    tools: &Tools,
    wanted: bool,
) -> Result<Option<Found>, Error> {
    // What was never installed here, or what this kernel lacks, has left nothing to look for.
    let possible = || tools.have(save_program(family)) && std::path::Path::new("/proc/sys/net/ipv6").exists();
    if !wanted && !possible() {
        return Ok(None);
    }
    let saved = run(netns, tools, save_program(family), &[], "")?;
    let mut found = parse(&saved).map_err(|problem| unreadable(save_program(family).to_owned(), problem))?;
    let listed = |arguments: &[&str]| -> Result<Vec<Value>, Error> {
        let printed = run(netns, tools, "ip", arguments, "")?;
        serde_json::from_str(printed.trim())
            .map_err(|problem| unreadable(format!("ip {}", arguments.join(" ")), problem.to_string()))
    };
    found.ip_rule = listed(&["-N", "-j", flag(family), "rule", "show"])?.iter().any(is_our_ip_rule);
    // All tables: asking for one that has no route yet is an error.
    found.route =
        listed(&["-N", "-j", flag(family), "route", "show", "table", "all"])?.iter().any(is_our_route);
    found.routable = match family {
        Family::V4 => true,
        Family::V6 => netns
            .run(ipv6_on_loopback)
            .map_err(|cause| Error::Run { command: format!("read {DISABLE_IPV6}"), cause })?,
    };
    Ok(Some(found))
}

fn unreadable(command: String, problem: String) -> Error {
    Error::Unreadable { command, problem }
}

const DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";

fn ipv6_on_loopback() -> io::Result<bool> {
    match std::fs::read_to_string(DISABLE_IPV6) {
        Ok(value) => Ok(value.trim() == "0"),
        Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Picks ours from what iptables-save printed.
fn parse(saved: &str) -> Result<Found, String> {
    let mut found = Found::default();
    // `None` outside of any table; `Some(None)` in one that has nothing of ours.
    let mut current: Option<Option<Table>> = None;
    for line in saved.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            current = Some(Table::ALL.into_iter().find(|table| table.name() == name));
        } else if line == "COMMIT" {
            current = None;
        } else {
            match current {
                Some(Some(table)) => parse_in(table, line, &mut found)?,
                Some(None) => {}
                None => return Err(format!("{line:?} stands outside of any table")),
            }
        }
    }
    Ok(found)
}

fn parse_in(table: Table, line: &str, found: &mut Found) -> Result<(), String> {
    let ours = |name: &str| Chain::OURS.into_iter().find(|chain| chain.name() == name);
    if let Some(declared) = line.strip_prefix(':') {
        let name = declared.split(' ').next().unwrap_or(declared);
        found.chains.extend(ours(name).map(|chain| (table, chain)));
        return Ok(());
    }
    // Rules may be preceded by their counters.
    let rule = match line.strip_prefix('[').and_then(|counted| counted.split_once("] ")) {
        Some((_counters, rule)) => rule,
        None => line,
    };
    let rule = rule.strip_prefix("-A ").ok_or_else(|| format!("{line:?} is neither chain nor rule"))?;
    let (chain, spec) = rule.split_once(' ').unwrap_or((rule, ""));
    if ours(chain).is_some() || compare::target(spec).is_some_and(|target| ours(&target).is_some()) {
        found.rules.push(FoundRule { table, chain: chain.to_owned(), spec: spec.to_owned() });
    }
    Ok(())
}

fn flag(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// The rule that sends marked packets to table 100, and no narrower one.
fn is_our_ip_rule(rule: &Value) -> bool {
    let plain = ["priority", "src", "fwmark", "fwmask", "table", "protocol"];
    let narrow = rule.as_object().is_none_or(|keys| keys.keys().any(|key| !plain.contains(&key.as_str())));
    !narrow
        && rule["priority"] == 32764
        && rule["src"] == "all"
        && rule["fwmark"] == "0x111"
        && rule["fwmask"] == "0xfff"
        && rule["table"] == "100"
}

/// The route of table 100 that makes every address local. Types and tables are printed as numbers or names,
/// depending on the version of `ip`.
fn is_our_route(route: &Value) -> bool {
    route["table"] == "100"
        && (route["type"] == "local" || route["type"] == "2")
        && route["dst"] == "default"
        && route["dev"] == "lo"
}

const IP_RULE: [&str; 6] = ["fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"];

fn route_of(family: Family) -> [&'static str; 6] {
    let everywhere = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    ["local", everywhere, "dev", "lo", "table", "100"]
}

/// Adds what is missing of rule and route.
pub(super) fn add_routing(family: Family, netns: &Netns, tools: &Tools, found: &Found) -> Result<(), Error> {
    if !found.ip_rule {
        ip(netns, tools, &[flag(family), "rule", "add"], &IP_RULE)?;
    }
    if found.routable && !found.route {
        ip(netns, tools, &[flag(family), "route", "replace"], &route_of(family))?;
    }
    Ok(())
}

/// Removes what is there of rule and route.
pub(super) fn remove_routing(
    family: Family,
    netns: &Netns,
    tools: &Tools,
    found: &Found,
) -> Result<(), Error> {
    if found.ip_rule {
        ip(netns, tools, &[flag(family), "rule", "del"], &IP_RULE)?;
    }
    if found.route {
        ip(netns, tools, &[flag(family), "route", "del"], &route_of(family))?;
    }
    Ok(())
}

fn ip(netns: &Netns, tools: &Tools, verb: &[&str], object: &[&str]) -> Result<(), Error> {
    run(netns, tools, "ip", &[verb, object].concat(), "").map(drop)
}
