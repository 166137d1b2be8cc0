//! How does what is there differ from what should be, and which text mends it? Pure.

use std::fmt;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::plan::{Chain, Family, RestoreText, Rule, Table};
use super::state::Found;

/// One difference between plan and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// A chain of ours is not there, and so none of its rules.
    MissingChain(Family, Table, Chain),
    /// A chain of ours is there that the plan does not have.
    UnexpectedChain(Family, Table, Chain),
    /// A planned rule is not there, or not often enough.
    MissingRule(Family, Rule),
    /// A rule stands in a chain of ours, or jumps into one, that the plan does not have.
    UnexpectedRule {
        /// Family of the rule.
        family: Family,
        /// Its table.
        table: Table,
        /// The chain it stands in.
        chain: String,
        /// The rule as iptables-save prints it.
        spec: String,
    },
    /// All rules of this chain are there, in another order.
    OutOfOrder(Family, Table, Chain),
    /// Packets with mark 0x111/0xfff do not look into table 100.
    MissingIpRule(Family),
    /// They do although this family is not captured.
    UnexpectedIpRule(Family),
    /// Table 100 does not make every address local.
    MissingRoute(Family),
    /// It does although this family is not captured.
    UnexpectedRoute(Family),
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingChain(family, table, chain) => write!(f, "{family} {table} lacks the chain {chain}"),
            Self::UnexpectedChain(family, table, chain) => {
                write!(f, "{family} {table} has a leftover chain {chain}")
            }
            Self::MissingRule(family, rule) => {
                write!(f, "{family} {} lacks -A {} {}", rule.table, rule.chain, rule.spec)
            }
            Self::UnexpectedRule { family, table, chain, spec } => {
                write!(f, "{family} {table} has an unplanned -A {chain} {spec}")
            }
            Self::OutOfOrder(family, table, chain) => {
                write!(f, "{family} {table} has the rules of {chain} in another order")
            }
            Self::MissingIpRule(family) => {
                write!(f, "{family} lacks the ip rule from fwmark 0x111/0xfff to table 100")
            }
            Self::UnexpectedIpRule(family) => {
                write!(f, "{family} has a leftover ip rule from fwmark 0x111/0xfff to table 100")
            }
            Self::MissingRoute(family) => write!(f, "{family} lacks the local default route in table 100"),
            Self::UnexpectedRoute(family) => {
                write!(f, "{family} has a leftover local default route in table 100")
            }
        }
    }
}

/// Everything that differs in one family.
pub(super) fn deviations(family: Family, wanted: bool, plan: &[Rule], found: &Found) -> Vec<Deviation> {
    let mut all: Vec<_> =
        Table::ALL.into_iter().flat_map(|table| in_table(family, table, plan, found)).collect();
    match (wanted, found.ip_rule) {
        (true, false) => all.push(Deviation::MissingIpRule(family)),
        (false, true) => all.push(Deviation::UnexpectedIpRule(family)),
        _ => {}
    }
    match (wanted && found.routable, found.route) {
        (true, false) => all.push(Deviation::MissingRoute(family)),
        (false, true) => all.push(Deviation::UnexpectedRoute(family)),
        _ => {}
    }
    all
}

fn in_table(family: Family, table: Table, plan: &[Rule], found: &Found) -> Vec<Deviation> {
    let planned: Vec<_> = plan.iter().filter(|rule| rule.table == table).collect();
    let mut all = Vec::new();
    let mut missing = Vec::new();
    for chain in Chain::OURS {
        // A chain of ours stands in every table of the plan, even with no rule in it.
        match (!planned.is_empty(), found.chains.contains(&(table, chain))) {
            (true, false) => {
                missing.push(chain);
                all.push(Deviation::MissingChain(family, table, chain));
            }
            (false, true) => all.push(Deviation::UnexpectedChain(family, table, chain)),
            _ => {}
        }
    }

    let mut present: Vec<_> = found.rules.iter().filter(|rule| rule.table == table).collect();
    let mut lacking = false;
    for rule in planned.iter().filter(|rule| !missing.contains(&rule.chain)) {
        let meaning = meaning(&rule.spec);
        let same = present
            .iter()
            .position(|other| other.chain == rule.chain.name() && self::meaning(&other.spec) == meaning);
        match same {
            Some(at) => drop(present.remove(at)),
            None => {
                lacking = true;
                all.push(Deviation::MissingRule(family, (*rule).clone()));
            }
        }
    }
    all.extend(present.iter().map(|rule| Deviation::UnexpectedRule {
        family,
        table,
        chain: rule.chain.clone(),
        spec: rule.spec.clone(),
    }));

    if !lacking && present.is_empty() && missing.is_empty() {
        for chain in Chain::OURS {
            let wanted = planned.iter().filter(|rule| rule.chain == chain).map(|rule| meaning(&rule.spec));
            let there = found.rules.iter().filter(|rule| rule.table == table && rule.chain == chain.name());
            if wanted.ne(there.map(|rule| meaning(&rule.spec))) {
                all.push(Deviation::OutOfOrder(family, table, chain));
            }
        }
    }
    all
}

/// What iptables-restore must read, with `--noflush`, to bring the tables of `family` from `found` to `plan`.
/// Tables without a difference are not mentioned; each other one is rewritten in one transaction.
pub(super) fn mend(family: Family, plan: &[Rule], found: &Found) -> RestoreText {
    let mut text = RestoreText::new();
    let mut line = |words: fmt::Arguments<'_>| {
        let _infallible = writeln!(text, "{words}");
    };
    for table in Table::ALL {
        if in_table(family, table, plan, found).is_empty() {
            continue;
        }
        let planned: Vec<_> = plan.iter().filter(|rule| rule.table == table).collect();
        let is_there = |chain: &Chain| found.chains.contains(&(table, *chain));
        line(format_args!("*{table}"));
        // Declaring a chain makes it, or empties it where it is.
        for chain in Chain::OURS.iter().filter(|chain| !planned.is_empty() || is_there(chain)) {
            line(format_args!(":{chain} - [0:0]"));
        }
        let is_ours = |name: &str| Chain::OURS.iter().any(|chain| chain.name() == name);
        for jump in found.rules.iter().filter(|rule| rule.table == table && !is_ours(&rule.chain)) {
            line(format_args!("-D {} {}", jump.chain, jump.spec));
        }
        for rule in &planned {
            line(format_args!("-A {} {}", rule.chain, rule.spec));
        }
        if planned.is_empty() {
            for chain in Chain::OURS.iter().filter(|chain| is_there(chain)) {
                line(format_args!("-X {chain}"));
            }
        }
        line(format_args!("COMMIT"));
    }
    text
}

/// The chain or target a rule ends in.
pub(super) fn target(spec: &str) -> Option<String> {
    let mut words = words(spec).into_iter();
    words.find(|word| word == "-j" || word == "-g")?;
    words.next()
}

/// What a rule says, whatever its spelling: its options with their negation and values, in a fixed order.
/// Matches of one rule must all hold, so their order means nothing.
fn meaning(spec: &str) -> Vec<(String, bool, String)> {
    let mut options: Vec<(String, bool, String)> = Vec::new();
    let mut negated = false;
    for word in words(spec) {
        if word == "!" {
            negated = true;
        } else if word.starts_with('-') || options.is_empty() {
            options.push((word, std::mem::take(&mut negated), String::new()));
        } else if let Some((_, _, value)) = options.last_mut() {
            if !value.is_empty() {
                value.push(' ');
            }
            value.push_str(&word);
        }
    }
    // Loading one of these modules says nothing by itself; others, such as `socket`, already match.
    let silent = |value: &str| ["tcp", "udp", "mark", "connmark"].contains(&value);
    options.retain(|(name, _, value)| !(name == "-m" && silent(value)));
    for (name, _, value) in &mut options {
        *value = match name.as_str() {
            "-s" | "-d" => network(value),
            "--mark" | "--set-xmark" | "--nfmask" | "--ctmask" => mark(value),
            _ => continue,
        };
    }
    options.sort_unstable();
    options
}

/// An address is the network of that address alone.
fn network(value: &str) -> String {
    let parsed = value.parse::<IpNet>().or_else(|_| value.parse::<std::net::IpAddr>().map(IpNet::from));
    parsed.map_or_else(|_| value.to_owned(), |net| net.to_string())
}

/// Numbers in one base, with a mask.
fn mark(value: &str) -> String {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let (mark, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
    match (number(mark), number(mask)) {
        (Ok(mark), Ok(mask)) => format!("{mark:#x}/{mask:#x}"),
        _ => value.to_owned(),
    }
}

/// Splits like iptables-restore: at blanks, except within double quotes, where a backslash takes the next
/// character literally.
fn words(spec: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = spec.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            blank if blank.is_whitespace() && !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}
