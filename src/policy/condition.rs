//! Does one match hold? Matches, compiled: only the fields that are set, each as a set that is quick to ask.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::facts::{Given, account_path};
use super::rules::{Match, ServiceAccountMatch, StringMatch};

/// Up to this many entries, comparing each costs less than hashing once.
pub(super) const SCAN_UP_TO: usize = 8;

/// A compiled [`Match`]: holds if every condition does, and never without conditions.
pub(super) struct Conditions(Box<[Condition]>);

struct Condition {
    test: Test,
    /// `false` for the `not_` fields.
    wanted: bool,
}

enum Test {
    Namespace(Texts),
    Principal(Texts),
    Account(Texts),
    Source(Networks),
    Target(Networks),
    /// Sorted.
    Port(Box<[u16]>),
}

impl Conditions {
    pub(super) fn compile(from: &Match) -> Self {
        // Taken apart whole, so that a field added to `Match` and forgotten here does not compile.
        let Match {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = from;
        // Numbers before texts: what is cheap to ask may spare the rest.
        let fields = [
            (ports(destination_ports), true),
            (ports(not_destination_ports), false),
            (networks(source_ips).map(Test::Source), true),
            (networks(not_source_ips).map(Test::Source), false),
            (networks(destination_ips).map(Test::Target), true),
            (networks(not_destination_ips).map(Test::Target), false),
            (texts(principals).map(Test::Principal), true),
            (texts(not_principals).map(Test::Principal), false),
            (accounts(service_accounts).map(Test::Account), true),
            (accounts(not_service_accounts).map(Test::Account), false),
            (texts(namespaces).map(Test::Namespace), true),
            (texts(not_namespaces).map(Test::Namespace), false),
        ];
        let set = fields.into_iter().filter_map(|(test, wanted)| Some(Condition { test: test?, wanted }));
        Self(set.collect())
    }

    pub(super) fn hold(&self, given: &Given<'_>) -> bool {
        !self.0.is_empty() && self.0.iter().all(|condition| condition.test.hits(given) == condition.wanted)
    }
}

impl Test {
    fn hits(&self, given: &Given<'_>) -> bool {
        match self {
            Self::Namespace(texts) => texts.contain(given.namespace),
            Self::Principal(texts) => given.principal.is_some_and(|principal| texts.contain(principal)),
            Self::Account(texts) => given.account.is_some_and(|account| texts.contain(account)),
            Self::Source(networks) => networks.contain(given.source),
            Self::Target(networks) => networks.contain(given.target),
            Self::Port(ports) => ports.binary_search(&given.port).is_ok(),
        }
    }
}

/// A set of [`StringMatch`]es.
struct Texts {
    exact: Exact,
    others: Box<[StringMatch]>,
}

enum Exact {
    Few(Box<[Arc<str>]>),
    Many(HashSet<Arc<str>, RandomState>),
}

impl Exact {
    fn of(texts: Vec<Arc<str>>) -> Self {
        if texts.len() <= SCAN_UP_TO {
            Self::Few(texts.into())
        } else {
            Self::Many(texts.into_iter().collect())
        }
    }
}

impl Texts {
    fn contain(&self, text: &str) -> bool {
        let exact = match &self.exact {
            Exact::Few(few) => few.iter().any(|one| &**one == text),
            Exact::Many(many) => many.contains(text),
        };
        exact || self.others.iter().any(|other| other.matches(text))
    }
}

/// A set of networks, as sorted ranges that do not overlap.
struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    fn contain(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => in_ranges(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => in_ranges(&self.v6, ip.to_bits()),
        }
    }
}

fn in_ranges<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let started = ranges.partition_point(|(first, _)| *first <= address);
    started.checked_sub(1).is_some_and(|last| address <= ranges[last].1)
}

fn without_overlap<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
    ranges.into()
}

fn texts(field: &[StringMatch]) -> Option<Texts> {
    let (mut exact, mut others) = (Vec::new(), Vec::new());
    for entry in field {
        match entry {
            StringMatch::Exact(text) => exact.push(text.clone()),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => {
                others.push(entry.clone())
            }
        }
    }
    (!field.is_empty()).then(|| Texts { exact: Exact::of(exact), others: others.into() })
}

fn accounts(field: &[ServiceAccountMatch]) -> Option<Texts> {
    let paths =
        field.iter().map(|entry| account_path(&entry.namespace, &entry.service_account).into()).collect();
    (!field.is_empty()).then(|| Texts { exact: Exact::of(paths), others: Box::default() })
}

fn networks(field: &[IpNet]) -> Option<Networks> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for entry in field {
        match entry {
            IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
        }
    }
    (!field.is_empty()).then(|| Networks { v4: without_overlap(v4), v6: without_overlap(v6) })
}

fn ports(field: &[u16]) -> Option<Test> {
    let mut sorted = field.to_vec();
    sorted.sort_unstable();
    (!field.is_empty()).then(|| Test::Port(sorted.into()))
}
