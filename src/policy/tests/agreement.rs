//! Compiled sets decide as the reference's text does, on any policies and facts; and ask few of many rules.

use std::cell::Cell;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::facts::Given;
use super::super::index::{AnyOf, of_rule};
use super::*;

/// Small worlds, so that conditions and facts meet often.
const NAMESPACES: [&str; 5] = ["foo", "bar", "ba", "evil", ""];
const ACCOUNTS: [&str; 3] = ["c", "x", "sa"];
const DOMAINS: [&str; 2] = ["cluster.local", "td"];
const TEXTS: [&str; 6] = ["cluster.local", "/sa/c", "ba", "r", "spiffe://td", ""];
const NETS: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.2.3/16",
    "10.0.0.5/32",
    "10.0.0.4/31",
    "::/0",
    "fd00::/8",
    "fd00::5/128",
    "fd00::9/64",
    "::ffff:10.0.0.5/128",
];
const IPS: [&str; 7] =
    ["10.0.0.5", "10.0.0.4", "10.1.9.9", "192.0.2.1", "fd00::5", "fd01::1", "::ffff:10.0.0.5"];

fn principal() -> impl Strategy<Value = String> {
    (select(&DOMAINS[..]), select(&NAMESPACES[..4]), select(&ACCOUNTS[..]))
        .prop_map(|(domain, namespace, account)| format!("{domain}/ns/{namespace}/sa/{account}"))
}

fn text(exact: impl Strategy<Value = String>) -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        6 => exact.prop_map(|text| StringMatch::Exact(text.into())),
        1 => select(&TEXTS[..]).prop_map(|text| StringMatch::Prefix(text.into())),
        1 => select(&TEXTS[..]).prop_map(|text| StringMatch::Suffix(text.into())),
        1 => Just(StringMatch::Presence),
    ]
}

/// Mostly unset, sometimes a few entries, rarely more than are scanned.
fn field<S: Strategy>(entry: impl Fn() -> S) -> impl Strategy<Value = Vec<S::Value>> {
    prop_oneof![8 => vec(entry(), 0..1), 3 => vec(entry(), 1..3), 1 => vec(entry(), 9..14)]
}

fn any_match() -> impl Strategy<Value = Match> {
    let namespaces = || field(|| text(select(&NAMESPACES[..]).prop_map(String::from)));
    let principals = || field(|| text(principal()));
    let account = || {
        (select(&NAMESPACES[..]), select(&ACCOUNTS[..])).prop_map(|(namespace, account)| {
            ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
        })
    };
    let nets = || field(|| select(&NETS[..]).prop_map(|net| net.parse::<IpNet>().unwrap()));
    let ports = || field(|| 1..5u16);
    (
        (namespaces(), namespaces(), field(account), field(account), principals(), principals()),
        (nets(), nets(), nets(), nets(), ports(), ports()),
    )
        .prop_map(|(who, at)| Match {
            namespaces: who.0,
            not_namespaces: who.1,
            service_accounts: who.2,
            not_service_accounts: who.3,
            principals: who.4,
            not_principals: who.5,
            source_ips: at.0,
            not_source_ips: at.1,
            destination_ips: at.2,
            not_destination_ips: at.3,
            destination_ports: at.4,
            not_destination_ports: at.5,
        })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let matches = prop_oneof![6 => vec(any_match(), 1..3), 1 => vec(any_match(), 0..12)];
    let clause = matches.prop_map(|matches| Clause { matches });
    prop_oneof![8 => vec(clause.clone(), 1..3), 1 => vec(clause, 0..1)].prop_map(|clauses| Rule { clauses })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let action = select(&[Action::Allow, Action::Deny][..]);
    (0..60u8, action, prop::bool::weighted(0.2), vec(any_rule(), 0..3)).prop_map(
        |(n, action, dry_run, rules)| Policy {
            key: key(&format!("foo/p{n}")),
            scope: Scope::Namespace,
            action,
            dry_run,
            rules,
        },
    )
}

/// Each key once, as a store has them.
fn any_policies() -> impl Strategy<Value = Vec<Policy>> {
    prop_oneof![vec(any_policy(), 0..4), vec(any_policy(), 10..40)].prop_map(|policies| {
        let all: Policies = policies.into_iter().collect();
        all.iter().map(|policy| (**policy).clone()).collect()
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    (prop::option::weighted(0.8, principal()), select(&IPS[..]), select(&IPS[..]), 1..6u16).prop_map(
        |(source, client, target, port)| Facts {
            target: TargetAddr::new((target.parse::<std::net::IpAddr>().unwrap(), port).into()),
            ..from(source.as_deref(), client, port)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_compiled_set_agrees_with_the_references_text(
        policies in any_policies().prop_shuffle(),
        facts in vec(any_facts(), 8),
    ) {
        let compiled = set(&policies);
        for facts in &facts {
            let (verdict, lines) = naive::judge(&policies, facts);
            prop_assert_eq!(compiled.judge(facts), verdict, "{:?}", facts);
            prop_assert_eq!(notes(&compiled, facts), lines, "{:?}", facts);
        }
    }

    #[test]
    fn what_is_dumped_reads_back(policy in any_policy()) {
        let json = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Policy>(&json).unwrap(), &policy);
        prop_assert_eq!(&serde_saphyr::from_str::<Policy>(&json).unwrap(), &policy);
    }
}

/// How many of `rules` are asked before `facts` are decided, if none of them holds.
fn asked(rules: &[Rule], facts: &Facts) -> usize {
    let any = AnyOf::new(rules.iter().map(|rule| (rule, of_rule(rule))));
    let asked = Cell::new(0);
    any.first(&Given::of(facts), |_| {
        asked.set(asked.get() + 1);
        false
    });
    asked.get()
}

#[test]
fn of_a_thousand_rules_only_those_that_can_hold_are_asked() {
    let thousand = |rule: &dyn Fn(usize) -> String| {
        (0..1000).flat_map(|n| rules(&format!("[{}]", rule(n)))).collect::<Vec<_>>()
    };
    let by_principal = thousand(&|n| format!("[[{{principals: [!Exact cluster.local/ns/bar/sa/c{n}]}}]]"));
    let by_account =
        thousand(&|n| format!("[[{{serviceAccounts: [{{namespace: bar, serviceAccount: c{n}}}]}}]]"));
    let by_namespace = thousand(&|n| format!("[[{{namespaces: [!Exact bar{n}]}}]]"));
    let by_source = thousand(&|n| format!("[[{{sourceIps: [10.{}.{}.0/24]}}]]", n / 250, n % 250));
    let by_port = thousand(&|n| format!("[[{{destinationPorts: [{}]}}]]", n + 1));
    let converted = thousand(&|n| {
        format!("[[{{destinationPorts: [80]}}], [{{principals: [!Exact cluster.local/ns/bar/sa/c{n}]}}]]")
    });
    let mixed = thousand(&|n| {
        format!(
            "[[{{principals: [!Exact td/ns/bar/sa/c{n}]}}, {{destinationPorts: [80]}}], [{{namespaces: [!Exact bar{n}]}}]]"
        )
    });
    let never = thousand(&|_| "[[{}], [{destinationPorts: [80]}]]".into());
    let by_pattern = thousand(&|n| format!("[[{{principals: [!Suffix /sa/c{n}]}}]]"));

    let facts = from(Some("cluster.local/ns/bar/sa/c7"), "10.1.7.9", 80);
    let in_bar7 = from(Some("td/ns/bar7/sa/c"), "10.1.7.9", 80);
    assert_eq!(asked(&by_principal, &facts), 1);
    assert_eq!(asked(&by_account, &facts), 1);
    assert_eq!(asked(&by_namespace, &in_bar7), 1);
    assert_eq!(asked(&by_source, &facts), 1);
    assert_eq!(asked(&by_port, &facts), 1);
    assert_eq!(asked(&converted, &facts), 1, "the clause that fewest satisfy speaks for the rule");
    assert_eq!(asked(&mixed, &in_bar7), 1, "and a clause is as selective as its least selective match");
    assert_eq!(asked(&never, &facts), 0);
    assert_eq!(asked(&by_pattern, &facts), 1000, "a pattern can only be asked");
    assert_eq!(asked(&by_principal, &p(80)), 0);
}
