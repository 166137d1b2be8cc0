//! A policy that a workload names and that never arrived.

use super::*;

const STATIC: &str = "istio-system/istio_converted_static_strict";
const CONVERTED: &str = "foo/converted_peer_authentication_p";

fn missing(policies: &[Policy], names: &[&str]) -> PolicySet {
    PolicySet::compile(policies, names.iter().map(|name| key(name)), UnknownPolicy::default())
}

#[test]
fn a_missing_conversion_of_peer_authentication_refuses_plaintext_only() {
    for name in [STATIC, CONVERTED] {
        let set = missing(&[], &[name]);
        assert_eq!(set.judge(&c(80)), Verdict::Allowed(Allowance { by: None }), "{name}");
        assert_eq!(set.judge(&p(80)), Verdict::Denied(Denial::MissingStrict(key(name))), "{name}");
        assert_eq!(notes(&set, &p(80)), [format!("policy has not arrived, deny {name}")]);
    }
}

#[test]
fn any_other_missing_policy_closes_the_workload() {
    for name in ["foo/p", "foo/istio_converted_static_strict2", "foo/x_converted_peer_authentication_p"] {
        let set = missing(&[allow("foo/all", "[[]]")], &[STATIC, name, "zoo/later"]);
        for facts in [c(80), p(80)] {
            assert_eq!(set.judge(&facts), Verdict::Denied(Denial::Missing(key(name))), "{name}");
        }
        assert_eq!(notes(&set, &c(80)), [format!("policy has not arrived, deny {name}")]);
    }
}

#[test]
fn a_missing_policy_does_not_hide_who_denied() {
    let set = missing(&[deny("foo/d", "[[]]")], &["foo/a", STATIC]);
    assert_eq!(set.judge(&p(80)), Verdict::Denied(Denial::Explicit(key("foo/d"))));
}

#[test]
fn connections_with_an_identity_are_judged_on_when_a_conversion_is_missing() {
    let set = missing(&[allow("foo/a", "[[[{namespaces: [!Exact bar]}]]]")], &[CONVERTED]);
    assert_eq!(set.judge(&c(80)), Verdict::Allowed(Allowance { by: Some(key("foo/a")) }));
    assert_eq!(set.judge(&x(80)), Verdict::Denied(Denial::NoneAllowed(key("foo/a"))));
}

#[test]
fn missing_policies_can_be_ignored_as_the_reference_does() {
    let set = PolicySet::compile([], [key("foo/p"), key(STATIC)], UnknownPolicy::Ignore);
    assert_eq!(set.judge(&p(80)), Verdict::Allowed(Allowance { by: None }));
}

#[test]
fn the_refusal_names_the_missing_policy() {
    for denial in [Denial::Missing(key("foo/p")), Denial::MissingStrict(key("foo/p"))] {
        assert!(denial.to_string().contains("policy foo/p applies here but has not arrived"), "{denial}");
    }
}
