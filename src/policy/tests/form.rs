//! Policies in files and state dumps.

use super::*;

fn read(yaml: &str) -> Result<Policy, String> {
    serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
}

fn with_rules(rules: &str) -> Result<Policy, String> {
    read(&format!(
        "{{name: p, namespace: foo, scope: Namespace, action: Allow, dryRun: false, rules: {rules}}}"
    ))
}

fn everything() -> Policy {
    let text = StringMatch::Exact("t".into());
    let account = ServiceAccountMatch { namespace: "n".into(), service_account: "s".into() };
    let full = Match {
        namespaces: vec![text.clone()],
        not_namespaces: vec![StringMatch::Prefix("t".into())],
        service_accounts: vec![account.clone()],
        not_service_accounts: vec![account],
        principals: vec![StringMatch::Suffix("t".into())],
        not_principals: vec![StringMatch::Presence],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_source_ips: vec!["fd00::/8".parse().unwrap()],
        destination_ips: vec!["10.0.0.9/32".parse().unwrap()],
        not_destination_ips: vec!["::1/128".parse().unwrap()],
        destination_ports: vec![1, 65535],
        not_destination_ports: vec![80],
    };
    let rules = vec![
        Rule { clauses: vec![Clause { matches: vec![full, Match::default()] }, Clause { matches: vec![] }] },
        Rule { clauses: vec![] },
    ];
    Policy { key: key("foo/p"), scope: Scope::WorkloadSelector, action: Action::Deny, dry_run: true, rules }
}

const DUMP: &str = concat!(
    r#"{"name":"p","namespace":"foo","scope":"WorkloadSelector","action":"Deny","rules":[[[{"#,
    r#""namespaces":[{"Exact":"t"}],"notNamespaces":[{"Prefix":"t"}],"#,
    r#""serviceAccounts":[{"namespace":"n","serviceAccount":"s"}],"#,
    r#""notServiceAccounts":[{"namespace":"n","serviceAccount":"s"}],"#,
    r#""principals":[{"Suffix":"t"}],"notPrincipals":[{"Presence":[]}],"#,
    r#""sourceIps":["10.0.0.0/8"],"notSourceIps":["fd00::/8"],"#,
    r#""destinationIps":["10.0.0.9/32"],"notDestinationIps":["::1/128"],"#,
    r#""destinationPorts":[1,65535],"notDestinationPorts":[80]},{}],[]],[]],"dryRun":true}"#,
);

#[test]
fn a_policy_is_dumped_in_the_shape_istioctl_reads() {
    assert_eq!(serde_json::to_string(&everything()).unwrap(), DUMP);
}

#[test]
fn a_dump_reads_back_as_json_and_as_yaml() {
    assert_eq!(serde_json::from_str::<Policy>(DUMP).unwrap(), everything());
    assert_eq!(read(DUMP).unwrap(), everything());
    assert_eq!(read(&serde_saphyr::to_string(&everything()).unwrap()).unwrap(), everything());
}

#[test]
fn the_references_own_example_is_read() {
    let yaml = "
name: cart-only-web
namespace: shop
scope: WorkloadSelector
action: Allow
dryRun: false
rules:
- - - principals: [!Exact cluster.local/ns/web/sa/web]
      destinationPorts: [8080]
";
    let policy = read(yaml).unwrap();
    assert_eq!(
        (policy.key, policy.scope, policy.action),
        (key("shop/cart-only-web"), Scope::WorkloadSelector, Action::Allow)
    );
    let expected = Match {
        principals: vec![StringMatch::Exact("cluster.local/ns/web/sa/web".into())],
        destination_ports: vec![8080],
        ..Match::default()
    };
    assert_eq!(policy.rules, [Rule { clauses: vec![Clause { matches: vec![expected] }] }]);
}

#[test]
fn a_text_is_a_tagged_scalar_or_a_map_of_one_key() {
    let tagged =
        with_rules("[[[{principals: [!Exact a, !Prefix 'b', !Suffix c, !Presence [], !Exact 80]}]]]");
    let mapped = with_rules(
        "[[[{principals: [{Exact: a}, {Prefix: b}, {Suffix: c}, {Presence: []}, {Exact: '80'}]}]]]",
    );
    assert_eq!(tagged.unwrap(), mapped.unwrap());
}

#[test]
fn an_address_alone_is_a_network_of_one() {
    let policy = with_rules("[[[{sourceIps: [10.0.0.7, 'fd00::7', 10.0.0.7/24]}]]]").unwrap();
    let texts: Vec<_> =
        policy.rules[0].clauses[0].matches[0].source_ips.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.7/32", "fd00::7/128", "10.0.0.7/24"]);
}

#[test]
fn a_policy_without_dry_run_is_enforced() {
    let policy = read("{name: p, namespace: foo, scope: Global, action: Deny, rules: []}").unwrap();
    assert!(!policy.dry_run);
}

#[test]
fn what_a_match_says_wrongly_is_an_error() {
    for (fields, complaint) in [
        ("principal: [!Exact a]", "principal"),
        ("source_ips: [10.0.0.0/8]", "source_ips"),
        ("destinationPorts: [0]", "0 is no port: expected 1 to 65535"),
        ("destinationPorts: [65616]", "65616 is no port: expected 1 to 65535"),
        ("destinationPorts: [-1]", ""),
        ("destinationPorts: [http]", ""),
        ("destinationPorts: 80", ""),
        ("sourceIps: [10.0.0.0/33]", "\"10.0.0.0/33\" is no network"),
        ("notSourceIps: ['']", "\"\" is no network"),
        ("destinationIps: [example.com]", "\"example.com\" is no network"),
        ("principals: [a]", ""),
        ("principals: [!Regex a]", "Regex"),
        ("principals: [{Regex: a}]", "Regex"),
        ("principals: [{Exact: a, Prefix: b}]", ""),
        ("principals: [!Presence [a]]", ""),
        ("principals: [!Exact [a]]", ""),
        ("serviceAccounts: [{namespace: n}]", "serviceAccount"),
        ("serviceAccounts: [{namespace: n, serviceAccount: s, trustDomain: t}]", "trustDomain"),
        ("serviceAccounts: [n/s]", ""),
        ("principals: [!Exact a], principals: [!Exact b]", "principals"),
    ] {
        let error = with_rules(&format!("[[[{{{fields}}}]]]")).expect_err(fields);
        assert!(error.contains(complaint), "{fields}: {error}");
    }
}

#[test]
fn a_value_that_is_not_there_is_an_error_and_never_an_empty_list() {
    for rules in [
        "",
        "null",
        "[null]",
        "[[null]]",
        "[[[null]]]",
        "[[[{principals: }]]]",
        "[[[{sourceIps: null}]]]",
        "[[[{destinationPorts: ~}]]]",
        "[[[{principals: [~]}]]]",
        "[[[{principals: [!Exact ]}]]]",
        "[[[{principals: [{Exact: ~}]}]]]",
        "[[[{destinationPorts: [~]}]]]",
        "[[[{sourceIps: [~]}]]]",
    ] {
        assert!(with_rules(rules).is_err(), "{rules}");
        let json = rules.replace('~', "null");
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&json) {
            assert!(serde_json::from_value::<Vec<Rule>>(value).is_err(), "{json}");
        }
    }
}

#[test]
fn what_a_policy_says_wrongly_is_an_error() {
    for (yaml, complaint) in [
        ("{namespace: foo, scope: Global, action: Deny, rules: []}", "name"),
        ("{name: p, scope: Global, action: Deny, rules: []}", "namespace"),
        ("{name: p, namespace: foo, action: Deny, rules: []}", "scope"),
        ("{name: p, namespace: foo, scope: Global, rules: []}", "action"),
        ("{name: p, namespace: foo, scope: Global, action: Deny}", "rules"),
        ("{name: p, namespace: foo, scope: Mesh, action: Deny, rules: []}", "Mesh"),
        ("{name: p, namespace: foo, scope: Global, action: Audit, rules: []}", "Audit"),
        ("{name: p, namespace: foo, scope: Global, action: Deny, rules: [], dry_run: true}", "dry_run"),
        ("{name: p, namespace: foo, scope: Global, action: Deny, rules: [], dryRun: maybe}", ""),
        (
            "{name: p/q, namespace: foo, scope: Global, action: Deny, rules: []}",
            "\"foo/p/q\" names no policy",
        ),
        ("{name: '', namespace: foo, scope: Global, action: Deny, rules: []}", "\"foo/\" names no policy"),
    ] {
        let error = read(yaml).expect_err(yaml);
        assert!(error.contains(complaint), "{yaml}: {error}");
    }
}

#[test]
fn a_key_is_written_as_its_text() {
    assert_eq!(serde_json::to_string(&key("foo/p")).unwrap(), r#""foo/p""#);
    assert_eq!(serde_json::from_str::<PolicyKey>(r#""foo/p""#).unwrap(), key("foo/p"));
    assert!(serde_json::from_str::<PolicyKey>(r#""foo""#).is_err());
}
