//! One policy from the inside: what is empty, what is negative, what plaintext is, what a text or network covers.

use super::*;

/// Whether a DENY of these rules matches.
fn hits(yaml: &str, facts: &Facts) -> bool {
    !admits(&set(&[deny("foo/p", yaml)]), facts)
}

/// Whether a match with these fields holds.
fn holds(fields: &str, facts: &Facts) -> bool {
    hits(&format!("[[[{{{fields}}}]]]"), facts)
}

#[test]
fn empty_matches_nothing_for_policy_and_match_and_everything_for_rule_and_clause() {
    for facts in [c(80), p(80)] {
        assert!(!hits("[]", &facts), "a policy without rules");
        assert!(hits("[[]]", &facts), "a rule without clauses");
        assert!(hits("[[[]]]", &facts), "a clause without matches");
        assert!(!hits("[[[{}]]]", &facts), "a match without fields");
        assert!(!holds("principals: [], destinationPorts: []", &facts), "a match with empty fields only");
    }
}

#[test]
fn rules_or_clauses_and_matches_or_fields_and() {
    let port = |n| format!("{{destinationPorts: [{n}]}}");
    let bar = "{namespaces: [!Exact bar]}";
    assert!(hits(&format!("[[[{}]], [[{}]]]", port(80), port(81)), &c(81)));
    assert!(hits(&format!("[[[{}], [{bar}]]]", port(80)), &c(80)));
    assert!(!hits(&format!("[[[{}], [{bar}]]]", port(80)), &c(81)));
    assert!(!hits(&format!("[[[{}], [{bar}]]]", port(80)), &x(80)));
    assert!(hits(&format!("[[[{}, {bar}]]]", port(80)), &c(81)));
    assert!(!hits(&format!("[[[{}, {bar}]]]", port(80)), &x(81)));
    assert!(
        hits(&format!("[[[{}, {{}}]]]", port(80)), &x(80)),
        "an empty match beside others changes nothing"
    );
    assert!(!holds("namespaces: [!Exact bar], destinationPorts: [81]", &c(80)));
    assert!(holds("namespaces: [!Exact evil, !Exact bar], destinationPorts: [81, 80]", &c(80)));
    assert!(
        !holds("namespaces: [!Exact bar], notPrincipals: [!Suffix /sa/c]", &c(80)),
        "a pair is an AND too"
    );
}

#[test]
fn plaintext_hits_no_identity_and_passes_every_negative_one() {
    for positive in [
        "namespaces: [!Exact bar, !Presence []]",
        "principals: [!Presence [], !Prefix '', !Suffix '', !Exact '']",
        "serviceAccounts: [{namespace: bar, serviceAccount: c}, {namespace: '', serviceAccount: ''}]",
    ] {
        assert!(!holds(positive, &p(80)), "{positive}");
    }
    for negative in [
        "notNamespaces: [!Exact bar, !Presence []]",
        "notPrincipals: [!Presence [], !Prefix '', !Suffix '', !Exact '']",
        "notServiceAccounts: [{namespace: bar, serviceAccount: c}]",
    ] {
        assert!(holds(negative, &p(80)), "{negative}");
    }
    // Its namespace is compared as the empty text.
    for empty in ["!Prefix ''", "!Suffix ''", "!Exact ''"] {
        assert!(holds(&format!("namespaces: [{empty}]"), &p(80)), "{empty}");
        assert!(!holds(&format!("notNamespaces: [{empty}]"), &p(80)), "not {empty}");
    }
}

#[test]
fn a_negative_field_fails_when_any_entry_hits() {
    assert!(!holds("notNamespaces: [!Exact evil, !Exact bar]", &c(80)));
    assert!(!holds("notPrincipals: [!Presence []]", &c(80)));
    assert!(!holds("notServiceAccounts: [{namespace: bar, serviceAccount: c}]", &c(80)));
    assert!(!holds("notSourceIps: [10.0.0.5]", &c(80)));
    assert!(!holds("notDestinationIps: [10.0.0.0/24]", &c(80)));
    assert!(!holds("notDestinationPorts: [80]", &c(80)));
    assert!(holds(
        "notSourceIps: [10.0.0.6], notDestinationIps: [10.0.1.0/24], notDestinationPorts: [81]",
        &c(80)
    ));
}

#[test]
fn texts_match_whole_from_the_start_from_the_end_or_by_being_there() {
    assert!(holds("namespaces: [!Exact bar]", &c(80)));
    for other in ["ba", "barr", "Bar", "BAR"] {
        assert!(!holds(&format!("namespaces: [!Exact {other}]"), &c(80)), "{other}");
    }
    assert!(holds("namespaces: [!Prefix ba]", &c(80)) && !holds("namespaces: [!Prefix ar]", &c(80)));
    assert!(holds("namespaces: [!Suffix ar]", &c(80)) && !holds("namespaces: [!Suffix ba]", &c(80)));
    assert!(!holds("namespaces: [!Prefix BA, !Suffix AR]", &c(80)), "case counts");
    assert!(holds("namespaces: [!Presence []]", &c(80)));
}

#[test]
fn a_principal_written_with_its_scheme_is_nobody() {
    for text in [
        "!Exact 'spiffe://cluster.local/ns/bar/sa/c'",
        "!Prefix 'spiffe://'",
        "!Suffix '://cluster.local/ns/bar/sa/c'",
    ] {
        assert!(!holds(&format!("principals: [{text}]"), &c(80)), "{text}");
        assert!(holds(&format!("notPrincipals: [{text}]"), &c(80)), "not {text}");
    }
}

#[test]
fn a_service_account_is_its_namespace_and_name_in_any_trust_domain() {
    let account = |namespace: &str, name: &str| {
        format!("serviceAccounts: [{{namespace: '{namespace}', serviceAccount: '{name}'}}]")
    };
    assert!(holds(&account("bar", "c"), &c(80)));
    assert!(holds(&account("bar", "c"), &from(Some("other.td/ns/bar/sa/c"), "10.0.0.5", 80)));
    for (namespace, name) in
        [("bar", "x"), ("evil", "c"), ("", "c"), ("bar", ""), ("ar", "c"), ("bar/sa/c", ""), ("", "")]
    {
        assert!(!holds(&account(namespace, name), &c(80)), "{namespace:?} {name:?}");
    }
}

#[test]
fn a_network_ignores_host_bits_and_never_holds_the_other_family() {
    let v6 = from(None, "fd00::5", 80);
    assert!(holds("sourceIps: [10.0.0.7/24]", &c(80)));
    assert!(!holds("sourceIps: [10.0.0.7/24]", &p(80)));
    assert!(holds("sourceIps: [0.0.0.0/0]", &c(80)) && !holds("sourceIps: [0.0.0.0/0]", &v6));
    assert!(holds("sourceIps: ['::/0']", &v6) && !holds("sourceIps: ['::/0']", &c(80)));
    assert!(holds("sourceIps: ['fd00::99/64']", &v6) && !holds("sourceIps: ['fd00::99/128']", &v6));
    assert!(!holds("sourceIps: ['::ffff:10.0.0.5']", &c(80)), "a mapped network is of the IPv6 family");
    let mapped = from(None, "::ffff:10.0.0.5", 80);
    assert!(holds("sourceIps: [10.0.0.5]", &mapped), "a mapped client is of the IPv4 family");
}

#[test]
fn networks_of_one_field_add_up_however_they_overlap() {
    let fields =
        "sourceIps: [10.0.0.0/25, 10.0.0.128/25, 10.0.0.64/26, 10.0.2.0/24, 192.168.0.0/16, 192.168.3.0/24]";
    for (ip, inside) in [
        ("9.255.255.255", false),
        ("10.0.0.0", true),
        ("10.0.0.127", true),
        ("10.0.0.128", true),
        ("10.0.0.255", true),
        ("10.0.1.0", false),
        ("10.0.2.255", true),
        ("10.0.3.0", false),
        ("192.168.200.1", true),
        ("192.169.0.0", false),
    ] {
        assert_eq!(holds(fields, &from(None, ip, 80)), inside, "{ip}");
    }
}

#[test]
fn destinations_are_the_pods_address_and_port() {
    assert!(holds("destinationIps: [10.0.0.9]", &c(80)) && !holds("destinationIps: [10.0.0.5]", &c(80)));
    assert!(
        holds("destinationPorts: [9090, 80, 443]", &c(80)) && !holds("destinationPorts: [9090, 443]", &c(80))
    );
}

#[test]
fn no_policy_admits_and_an_allow_without_match_refuses() {
    assert_eq!(set(&[]).judge(&p(80)), Verdict::Allowed(Allowance { by: None }));
    let verdict = set(&[allow("foo/p", "[]")]).judge(&c(80));
    let none_allowed = Denial::NoneAllowed(key("foo/p"));
    assert_eq!(none_allowed.to_string(), "allow policies exist, but none allowed");
    assert_eq!(verdict, Verdict::Denied(none_allowed));
    let verdict = set(&[deny("foo/p", "[]")]).judge(&c(80));
    assert_eq!(
        verdict,
        Verdict::Allowed(Allowance { by: None }),
        "a DENY alone admits what it does not match"
    );
}

#[test]
fn the_first_policy_in_key_order_is_the_one_reported() {
    let all = |make: fn(&str, &str) -> Policy| {
        let names =
            ["foo/m", "foo/b", "zoo/a", "foo/n", "bar/z", "foo/a", "foo/k", "foo/l", "foo/o", "foo/q"];
        names.map(|name| make(name, if name == "bar/z" { "[]" } else { "[[[{destinationPorts: [80]}]]]" }))
    };
    let Verdict::Denied(denial) = set(&all(deny)).judge(&c(80)) else { panic!("not denied") };
    assert_eq!(denial.to_string(), "explicitly denied by: foo/a");
    let verdict = set(&all(allow)).judge(&c(80));
    assert_eq!(verdict, Verdict::Allowed(Allowance { by: Some(key("foo/a")) }));
}

#[test]
fn dry_run_is_told_and_never_enforced() {
    let policies = [
        rehearsed(deny("foo/d1", "[[]]")),
        rehearsed(deny("foo/d2", "[[[{destinationPorts: [81]}]]]")),
        rehearsed(deny("foo/d3", "[[]]")),
        rehearsed(allow("foo/a1", "[[[{destinationPorts: [81]}]]]")),
    ];
    assert_eq!(set(&policies).judge(&c(80)), Verdict::Allowed(Allowance { by: None }));
    assert_eq!(
        notes(&set(&policies), &c(80)),
        [
            "dry-run: deny policy match foo/d1",
            "dry-run: deny policy match foo/d3",
            "dry-run: no allow policies match",
            "no allow policies, allow"
        ]
    );
    assert_eq!(
        notes(&set(&policies[3..]), &c(81)),
        ["dry-run: allow policy match foo/a1", "no allow policies, allow"]
    );
}

#[test]
fn every_step_to_a_verdict_is_told_in_the_references_words() {
    let rehearsals = || [rehearsed(deny("foo/rd", "[[]]")), rehearsed(allow("foo/ra", "[[]]"))];
    let with = |policies: &[Policy]| set(&[&rehearsals()[..], policies].concat());
    assert_eq!(
        notes(&with(&[deny("foo/d", "[[]]")]), &c(80)),
        ["dry-run: deny policy match foo/rd", "deny policy match foo/d"],
        "a DENY that is enforced ends the telling"
    );
    assert_eq!(
        notes(&with(&[allow("foo/a", "[[]]")]), &c(80)),
        [
            "dry-run: deny policy match foo/rd",
            "dry-run: allow policy match foo/ra",
            "allow policy match foo/a"
        ]
    );
    let refused = with(&[allow("foo/a", "[]")]);
    assert_eq!(notes(&refused, &c(80)).last().unwrap(), "no allow policies matched");
    let with_enforced_allow = set(&[rehearsed(allow("foo/ra", "[]")), allow("foo/a", "[[]]")]);
    assert_eq!(notes(&with_enforced_allow, &c(80)), ["allow policy match foo/a"]);
    assert_eq!(notes(&set(&[]), &c(80)), ["no allow policies, allow"]);
}

#[test]
fn what_was_not_understood_never_widens() {
    let stand_in = |action, dry_run| Policy::not_understood(key("foo/p"), Scope::Namespace, action, dry_run);
    let verdict = set(&[stand_in(Action::Allow, false)]).judge(&c(80));
    assert_eq!(verdict, Verdict::Denied(Denial::NoneAllowed(key("foo/p"))));
    let verdict = set(&[stand_in(Action::Deny, false), allow("foo/a", "[[]]")]).judge(&c(80));
    assert_eq!(verdict, Verdict::Denied(Denial::Explicit(key("foo/p"))));
    for action in [Action::Allow, Action::Deny] {
        assert!(admits(&set(&[stand_in(action, true)]), &c(80)), "{action:?} in dry run");
    }
}
