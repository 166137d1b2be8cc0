//! The reference's worked examples (its section 6), by their numbers: what the control plane sends, and who may
//! then reach the workload W in the namespace `foo`.

use super::*;

#[derive(Debug, PartialEq)]
enum Is {
    Ok,
    Deny,
}
use Is::{Deny, Ok};

fn check(number: &str, policies: &[Policy], verdicts: &[(Facts, Is)]) {
    let all: Policies = policies.iter().cloned().collect();
    let named: Vec<_> =
        policies.iter().filter(|p| p.scope == Scope::WorkloadSelector).map(|p| p.key.clone()).collect();
    let found = all.applicable("foo", &named);
    let set = PolicySet::compile(found.policies, found.missing, UnknownPolicy::Close);
    for (facts, expected) in verdicts {
        let verdict = if admits(&set, facts) { Ok } else { Deny };
        assert_eq!(&verdict, expected, "example {number}: {facts:?}");
    }
}

fn from_c(ip: &str) -> Facts {
    from(Some(C), ip, 80)
}

const AP4: &str = "[[[{principals: [!Exact cluster.local/ns/bar/sa/c]}]]]";
const STATIC_STRICT: &str = "[[[{notPrincipals: [!Presence []]}]]]";

#[test]
fn allow_policies_admit_whom_they_name() {
    let one = |yaml| [allow("foo/p", yaml)];
    check("1", &one("[]"), &[(c(80), Deny), (x(80), Deny), (p(80), Deny)]);
    check("2", &one("[[]]"), &[(c(80), Ok), (x(80), Ok), (p(80), Ok)]);
    check("4", &one(AP4), &[(c(80), Ok), (x(80), Deny), (p(80), Deny)]);
    check("5", &one("[[[{principals: [!Presence []]}]]]"), &[(c(80), Ok), (x(80), Ok), (p(80), Deny)]);
    check("6", &one("[[[{principals: [!Exact 'spiffe://cluster.local/ns/bar/sa/c']}]]]"), &[(c(80), Deny)]);
    check("7", &one("[[[{principals: [!Suffix /sa/c]}]]]"), &[(c(80), Ok), (x(80), Deny)]);
    check("8", &one("[[[{principals: [!Prefix cluster.local/ns/bar/]}]]]"), &[(c(80), Ok), (x(80), Deny)]);
    check(
        "9",
        &one("[[[{destinationPorts: [8080]}], [{namespaces: [!Exact bar]}]]]"),
        &[(c(8080), Ok), (c(9090), Deny), (x(8080), Deny)],
    );
    check(
        "10",
        &one("[[[{namespaces: [!Exact bar]}, {namespaces: [!Exact baz]}]]]"),
        &[(c(80), Ok), (x(80), Deny)],
    );
    check(
        "11",
        &one("[[[{namespaces: [!Exact bar], sourceIps: [10.0.0.0/24]}]]]"),
        &[(c(80), Ok), (from_c("10.1.0.5"), Deny)],
    );
    check("12", &one("[[[{notNamespaces: [!Exact evil]}]]]"), &[(c(80), Ok), (x(80), Deny), (p(80), Ok)]);
    check(
        "15",
        &one("[[[{serviceAccounts: [{namespace: foo, serviceAccount: c}]}]]]"),
        &[(c(80), Deny), (from(Some("cluster.local/ns/foo/sa/c"), "10.0.0.5", 80), Ok)],
    );
    check(
        "16",
        &one("[[[{serviceAccounts: [{namespace: bar, serviceAccount: c}]}]]]"),
        &[(c(80), Ok), (from(Some("other/ns/bar/sa/c"), "10.0.0.5", 80), Ok), (p(80), Deny)],
    );
    check("17", &one("[[[{sourceIps: [10.0.0.7/24]}]]]"), &[(c(80), Ok), (p(80), Deny)]);
    check(
        "18",
        &one("[[[{sourceIps: [10.0.0.5/32], notSourceIps: [10.0.0.66/32]}]]]"),
        &[(c(80), Ok), (x(80), Deny)],
    );
    check(
        "19",
        &one("[[[{namespaces: [!Exact bar]}], [{destinationPorts: [80]}]]]"),
        &[(c(80), Ok), (c(81), Deny)],
    );
    check("20", &one("[]"), &[(c(80), Deny), (p(80), Deny)]);
    check("21", &one("[[[{namespaces: [!Exact bar]}]]]"), &[(c(80), Ok), (x(80), Deny)]);
    check("33", &one(AP4), &[(from(Some("cluster.local/ns/foo/sa/waypoint"), "10.0.0.20", 80), Deny)]);
    check(
        "34",
        &one("[[[{namespaces: [!Exact bar]}]]]"),
        &[(from(Some("another.td/ns/bar/sa/c"), "10.0.0.5", 80), Ok)],
    );
    check("44", &one("[[[{sourceIps: [10.0.0.5/32]}]]]"), &[(c(80), Ok), (from_c("10.0.0.200"), Deny)]);
}

#[test]
fn deny_policies_refuse_whom_they_match() {
    let one = |yaml| [deny("foo/p", yaml)];
    check("3", &one("[[]]"), &[(c(80), Deny), (x(80), Deny), (p(80), Deny)]);
    check("13", &one(STATIC_STRICT), &[(p(80), Deny), (c(80), Ok), (x(80), Ok)]);
    check("14", &one("[[[{notNamespaces: [!Exact bar]}]]]"), &[(c(80), Ok), (x(80), Deny), (p(80), Deny)]);
    check("22", &one("[[[{}]]]"), &[(c(80), Ok), (x(80), Ok), (p(80), Ok)]);
    check(
        "23",
        &one("[[[{destinationPorts: [80]}]]]"),
        &[(c(80), Deny), (p(80), Deny), (c(81), Ok), (p(81), Ok)],
    );
    check("24", &one("[[[{}], [{namespaces: [!Exact evil]}]]]"), &[(x(80), Ok)]);
    check("25", &one("[[[{}, {destinationPorts: [90]}]]]"), &[(c(90), Deny), (p(90), Deny), (c(80), Ok)]);
    check("26", &one("[[[{namespaces: [!Exact evil]}], [{}]]]"), &[(x(80), Ok)]);
}

#[test]
fn policies_of_several_kinds_are_judged_together() {
    let both = [allow("foo/four", AP4), deny("foo/ssh", "[[[{destinationPorts: [22]}]]]")];
    check("27", &both, &[(c(22), Deny), (c(80), Ok), (x(80), Deny)]);
    check("28, 29", &[], &[(c(80), Ok), (x(80), Ok), (p(80), Ok)]);

    let flagged = [rehearsed(allow("foo/p", "[]"))];
    check("30", &flagged, &[(c(80), Ok), (p(80), Ok)]);
    assert_eq!(
        notes(&set(&flagged), &c(80)),
        ["dry-run: no allow policies match", "no allow policies, allow"]
    );

    let everywhere = [scoped(Scope::Global, allow("istio-system/p", AP4))];
    check("31", &everywhere, &[(c(80), Ok), (x(80), Deny)]);
    let selected = [scoped(Scope::WorkloadSelector, allow("istio-system/p", AP4))];
    check("32", &selected, &[(c(80), Ok), (x(80), Deny)]);
    assert!(selected.iter().cloned().collect::<Policies>().applicable("foo", &[]).policies.is_empty());
}

#[test]
fn converted_peer_authentication_closes_plaintext_ports() {
    let strict =
        || scoped(Scope::WorkloadSelector, deny("istio-system/istio_converted_static_strict", STATIC_STRICT));
    let converted = |yaml| scoped(Scope::WorkloadSelector, deny("foo/converted_peer_authentication_p", yaml));

    check("35", &[strict()], &[(p(80), Deny), (c(80), Ok)]);
    check("36", &[], &[(p(80), Ok), (c(80), Ok)]);
    check(
        "37",
        &[converted("[[[{notPrincipals: [!Presence []]}], [{notDestinationPorts: [9090]}]]]")],
        &[(p(9090), Ok), (p(8080), Deny), (c(8080), Ok)],
    );
    check(
        "38",
        &[converted("[[[{notPrincipals: [!Presence []], destinationPorts: [9090]}]]]")],
        &[(p(9090), Deny), (p(8080), Ok), (c(9090), Ok)],
    );
    check(
        "39",
        &[converted(
            "[[[{notPrincipals: [!Presence []], destinationPorts: [8080]}]],
              [[{notPrincipals: [!Presence []], destinationPorts: [9090]}]]]",
        )],
        &[(p(8080), Deny), (p(9090), Deny), (p(80), Ok)],
    );
    check(
        "40",
        &[converted("[[[{notDestinationPorts: [9090]}], [{notPrincipals: [!Presence []]}]]]")],
        &[(p(9090), Ok), (p(8080), Deny), (p(80), Deny)],
    );
    check("41", &[strict()], &[(p(9090), Deny)]);
    check("43", &[strict(), allow("foo/four", AP4)], &[(p(80), Deny), (c(80), Ok), (x(80), Deny)]);
    let both = set(&[strict(), allow("foo/four", AP4)]);
    let static_strict = key("istio-system/istio_converted_static_strict");
    assert_eq!(both.judge(&p(80)), Verdict::Denied(Denial::Explicit(static_strict)), "the DENY comes first");
}

#[test]
fn a_conversion_that_never_arrives_is_open_only_as_the_reference_leaves_it() {
    let compiled = |unknown| PolicySet::compile([], [key("foo/converted_peer_authentication_p")], unknown);
    for number in ["42", "42b"] {
        for port in [9090, 8080] {
            let reference = compiled(UnknownPolicy::Ignore);
            assert!(admits(&reference, &p(port)) && admits(&reference, &c(port)), "example {number}");
            let closed = compiled(UnknownPolicy::Close);
            assert!(!admits(&closed, &p(port)) && admits(&closed, &c(port)), "example {number}");
        }
    }
}
