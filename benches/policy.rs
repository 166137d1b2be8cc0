//! What does one verdict cost, and how does that grow with the policies that apply to a workload?
//!
//! Unit: ns per verdict, by the number of ALLOW policies. The connection is one that the last policy in key order
//! allows, so that a scan would have to pass all others.
//!
//! - `principal`: each policy names one principal. Filed by principal: one look-up, whatever the number.
//! - `cidr`: each names one network, of lengths 16 to 32. Filed by network: one look-up per length.
//! - `suffix`: each names one ending of a principal, which cannot be filed: divide by the number for ns per match.
//! - `reference`: one look-up of the principal in a std `HashMap` of that many, and nothing else.

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit::identity::SpiffeId;
use adit::net::{ClientAddr, TargetAddr};
use adit::policy::{
    Action, Clause, Facts, Match, Policy, PolicyKey, PolicySet, Rule, Scope, StringMatch, UnknownPolicy,
    Verdict,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;

const SIZES: [u16; 4] = [1, 10, 100, 1000];

fn policy(n: u16, condition: Match) -> Policy {
    Policy {
        key: PolicyKey::new("shop", &format!("policy-{n:04}")).expect("a namespace and a name"),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![condition] }] }],
    }
}

fn principal(n: u16) -> String {
    format!("cluster.local/ns/shop/sa/account-{n:04}")
}

fn by_principal(n: u16) -> Match {
    Match { principals: vec![StringMatch::Exact(principal(n).into())], ..Match::default() }
}

fn by_suffix(n: u16) -> Match {
    Match { principals: vec![StringMatch::Suffix(format!("/sa/account-{n:04}").into())], ..Match::default() }
}

/// A network that contains the [`client`] of its number and of no other.
fn by_cidr(n: u16) -> Match {
    let length = 16 + u8::try_from(n % 17).expect("below 17");
    let net = IpNet::new(client(n), length).expect("at most 32");
    Match { source_ips: vec![net], ..Match::default() }
}

fn client(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10 + high, low, 0, 1).into()
}

fn facts(n: u16) -> Facts {
    Facts {
        source: Some(SpiffeId::parse(&format!("spiffe://{}", principal(n))).expect("an identity")),
        client: ClientAddr::new((client(n), 40_000).into()),
        target: TargetAddr::new(([10, 0, 0, 9], 8080).into()),
    }
}

fn verdicts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy/verdict");
    for size in SIZES {
        let facts = facts(size - 1);
        for (name, condition) in
            [("principal", by_principal as fn(u16) -> Match), ("cidr", by_cidr), ("suffix", by_suffix)]
        {
            let policies: Vec<Policy> = (0..size).map(|n| policy(n, condition(n))).collect();
            let set = PolicySet::compile(&policies, [], UnknownPolicy::Close);
            let Verdict::Allowed(allowance) = set.judge(&facts) else {
                panic!("{name}/{size} is not allowed")
            };
            assert_eq!(allowance.by.as_ref(), policies.last().map(|last| &last.key), "{name}/{size}");
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter(|| set.judge(black_box(&facts)))
            });
        }
        let principals: HashMap<String, u16> = (0..size).map(|n| (principal(n), n)).collect();
        let source = facts.source.as_ref().expect("set above");
        group.bench_function(BenchmarkId::new("reference", size), |bench| {
            bench.iter(|| principals.get(black_box(source).principal()));
        });
    }
}

criterion_group!(benches, verdicts);
criterion_main!(benches);
