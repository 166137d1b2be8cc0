//! Which of many alternatives can hold for these facts?
//!
//! Most alternatives demand something definite: one of these principals, a client in one of these networks. A
//! thousand of them are filed under what they demand, so that judging asks the few that the facts could
//! satisfy. The index only narrows; whether an alternative holds is always asked of the alternative itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::condition::SCAN_UP_TO;
use super::facts::{Given, account_path};
use super::rules::{Match, Rule, ServiceAccountMatch, StringMatch};

/// Alternatives in an order that counts.
pub(super) struct AnyOf<T> {
    items: Box<[T]>,
    /// `None` for the few that are quicker asked one after the other.
    index: Option<Box<Index>>,
}

impl<T> AnyOf<T> {
    /// Takes the alternatives in order, each with what it demands.
    pub(super) fn new(items: impl IntoIterator<Item = (T, Demands)>) -> Self {
        let (items, demands): (Vec<T>, Vec<Demands>) = items.into_iter().unzip();
        let index = (items.len() > SCAN_UP_TO).then(|| Box::new(Index::of(demands)));
        Self { items: items.into(), index }
    }

    /// The first alternative that `holds`.
    ///
    /// Memory: none. Time: linear in the alternatives whose demand `given` satisfies and those without any.
    pub(super) fn first(&self, given: &Given<'_>, holds: impl Fn(&T) -> bool) -> Option<&T> {
        let Some(index) = &self.index else { return self.items.iter().find(|item| holds(item)) };
        let mut first: Option<usize> = None;
        for candidates in index.candidates(given) {
            let earlier = candidates.iter().take_while(|&&at| first.is_none_or(|first| at < first));
            first = earlier.copied().find(|&at| holds(&self.items[at])).or(first);
        }
        first.map(|at| &self.items[at])
    }
}

/// Positions of alternatives, ascending, by what they demand.
#[derive(Default)]
struct Index {
    principals: Filed<Arc<str>>,
    accounts: Filed<Arc<str>>,
    namespaces: Filed<Arc<str>>,
    ports: Filed<u16>,
    sources: Filed<IpNet>,
    /// The lengths that occur in `sources`, by family.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
    /// Those without a demand.
    rest: Vec<usize>,
}

type Filed<K> = HashMap<K, Vec<usize>, RandomState>;

impl Index {
    fn of(alternatives: Vec<Demands>) -> Self {
        let mut index = Self::default();
        for (at, demands) in alternatives.into_iter().enumerate() {
            match demands {
                Some(demands) => demands.into_iter().for_each(|demand| index.file(demand, at)),
                None => index.rest.push(at),
            }
        }
        for lengths in [&mut index.lengths_v4, &mut index.lengths_v6] {
            lengths.sort_unstable();
            lengths.dedup();
        }
        index
    }

    fn file(&mut self, demand: Demand, at: usize) {
        match demand {
            Demand::Principal(text) => file(&mut self.principals, text, at),
            Demand::Account(path) => file(&mut self.accounts, path, at),
            Demand::Namespace(text) => file(&mut self.namespaces, text, at),
            Demand::Port(port) => file(&mut self.ports, port, at),
            Demand::Source(net) => {
                match net {
                    IpNet::V4(_) => self.lengths_v4.push(net.prefix_len()),
                    IpNet::V6(_) => self.lengths_v6.push(net.prefix_len()),
                }
                file(&mut self.sources, net, at);
            }
        }
    }

    /// The lists that together hold every alternative that `given` could satisfy.
    fn candidates<'a>(&'a self, given: &'a Given<'_>) -> impl Iterator<Item = &'a [usize]> {
        let principal = given.principal.and_then(|principal| self.principals.get(principal));
        let account = given.account.and_then(|account| self.accounts.get(account));
        let namespace = self.namespaces.get(given.namespace);
        let port = self.ports.get(&given.port);
        let lengths = if given.source.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        let sources = lengths.iter().filter_map(|&length| {
            let net = IpNet::new(given.source, length).expect("a length filed for this family fits it");
            self.sources.get(&net.trunc())
        });
        let named = principal.into_iter().chain(account).chain(namespace).chain(port);
        named.chain(sources).chain([&self.rest]).map(Vec::as_slice)
    }
}

/// Adds `at`, the greatest position so far, once.
fn file<K: Hash + Eq>(filed: &mut Filed<K>, key: K, at: usize) {
    let positions = filed.entry(key).or_default();
    if positions.last() != Some(&at) {
        positions.push(at);
    }
}

/// One definite demand.
pub(super) enum Demand {
    Principal(Arc<str>),
    Account(Arc<str>),
    /// Host bits are zero.
    Source(IpNet),
    Namespace(Arc<str>),
    Port(u16),
}

/// What at least one of must be true for an alternative to hold; `None` if no such list can be given. An empty
/// list belongs to an alternative that never holds.
pub(super) type Demands = Option<Vec<Demand>>;

/// What `of` demands, by the field that fewest connections satisfy.
pub(super) fn of_match(of: &Match) -> Demands {
    if *of == Match::default() {
        return Some(Vec::new());
    }
    let principals = || exact(&of.principals, Demand::Principal);
    let accounts = || {
        let path = |account: &ServiceAccountMatch| {
            Demand::Account(account_path(&account.namespace, &account.service_account).into())
        };
        any(of.service_accounts.iter().map(path))
    };
    let sources = || any(of.source_ips.iter().map(|net| Demand::Source(net.trunc())));
    let namespaces = || exact(&of.namespaces, Demand::Namespace);
    let ports = || any(of.destination_ports.iter().copied().map(Demand::Port));
    principals().or_else(accounts).or_else(sources).or_else(namespaces).or_else(ports)
}

/// What `of` demands: every clause must hold, so the most selective one speaks for the rule.
pub(super) fn of_rule(of: &Rule) -> Demands {
    let clauses = of.clauses.iter().filter(|clause| !clause.matches.is_empty());
    let demands = clauses.filter_map(|clause| {
        let each: Option<Vec<_>> = clause.matches.iter().map(of_match).collect();
        each.map(|each| each.into_iter().flatten().collect::<Vec<_>>())
    });
    // A clause is as selective as its least selective demand; one that never holds has none and comes first.
    demands.min_by_key(|demands| demands.iter().map(rank).max())
}

/// Smaller is satisfied by fewer connections.
fn rank(demand: &Demand) -> u8 {
    match demand {
        Demand::Principal(_) => 0,
        Demand::Account(_) => 1,
        Demand::Source(_) => 2,
        Demand::Namespace(_) => 3,
        Demand::Port(_) => 4,
    }
}

fn any(demands: impl Iterator<Item = Demand>) -> Demands {
    let demands: Vec<_> = demands.collect();
    (!demands.is_empty()).then_some(demands)
}

/// The texts of `field` if it has entries and all are exact.
fn exact(field: &[StringMatch], demand: fn(Arc<str>) -> Demand) -> Demands {
    let texts = field.iter().map(|entry| match entry {
        StringMatch::Exact(text) => Some(demand(text.clone())),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    });
    texts.collect::<Demands>().filter(|demands| !demands.is_empty())
}
