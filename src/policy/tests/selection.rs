//! Which policies apply to a workload.

use super::*;

fn names(found: &[&Policy]) -> Vec<String> {
    found.iter().map(|policy| policy.key.to_string()).collect()
}

fn mesh() -> Policies {
    let namespaced = |name| allow(name, "[]");
    let selecting = |name| scoped(Scope::WorkloadSelector, allow(name, "[]"));
    let global = |name| scoped(Scope::Global, allow(name, "[]"));
    // The neighbours of `foo` in key order must not be taken for it.
    let policies = [
        namespaced("fo/n"),
        namespaced("foo-a/n"),
        namespaced("foo/n2"),
        namespaced("foo/n1"),
        selecting("foo/s1"),
        selecting("foo/s2"),
        namespaced("foo0/n"),
        namespaced("foo2/n"),
        global("istio-system/g"),
        selecting("istio-system/s"),
        namespaced("istio-system/n"),
    ];
    policies.into_iter().collect()
}

#[test]
fn those_of_its_namespace_the_global_ones_and_those_it_names_apply() {
    let mesh = mesh();
    let found = mesh.applicable("foo", &[key("istio-system/s"), key("foo/s2")]);
    assert_eq!(names(&found.policies), ["foo/n1", "foo/n2", "foo/s2", "istio-system/g", "istio-system/s"]);
    assert!(found.missing.is_empty());
    assert_eq!(names(&mesh.applicable("bar", &[]).policies), ["istio-system/g"]);
}

#[test]
fn a_named_policy_applies_whatever_its_scope_and_once() {
    let named = [key("foo/n1"), key("istio-system/g"), key("foo2/n"), key("foo2/n")];
    assert_eq!(
        names(&mesh().applicable("foo", &named).policies),
        ["foo/n1", "foo/n2", "foo2/n", "istio-system/g"]
    );
}

#[test]
fn a_name_without_a_policy_is_handed_back_once() {
    let mesh = mesh();
    let found = mesh.applicable("foo", &[key("foo/z"), key("foo/a"), key("foo/s1"), key("foo/z")]);
    assert_eq!(found.missing, [key("foo/a"), key("foo/z")]);
    assert_eq!(names(&found.policies), ["foo/n1", "foo/n2", "foo/s1", "istio-system/g"]);
}

#[test]
fn a_policy_is_replaced_moved_between_scopes_and_removed() {
    let mut mesh = Policies::default();
    assert_eq!(mesh.insert(allow("foo/p", "[]")), None);
    let before = mesh.insert(scoped(Scope::Global, allow("foo/p", "[]")));
    assert_eq!(before.as_deref(), Some(&allow("foo/p", "[]")));
    assert_eq!(names(&mesh.applicable("bar", &[]).policies), ["foo/p"]);
    mesh.insert(allow("foo/p", "[]"));
    assert!(mesh.applicable("bar", &[]).policies.is_empty());
    mesh.insert(scoped(Scope::Global, allow("foo/p", "[]")));
    assert!(mesh.remove(&key("foo/p")).is_some() && mesh.remove(&key("foo/p")).is_none());
    assert!(mesh.applicable("foo", &[]).policies.is_empty() && mesh.iter().next().is_none());
}

#[test]
fn policies_are_listed_in_key_order() {
    let listed: Vec<_> = mesh().iter().map(|policy| policy.key.clone()).collect();
    assert!(listed.is_sorted() && listed.len() == 11);
}

#[test]
fn a_key_is_a_namespace_and_a_name() {
    let parsed = key("foo/my.policy_1");
    assert_eq!((parsed.namespace(), parsed.name()), ("foo", "my.policy_1"));
    assert_eq!(parsed, PolicyKey::new("foo", "my.policy_1").unwrap());
    assert_eq!(parsed.to_string(), "foo/my.policy_1");
    for text in ["", "/", "foo", "foo/", "/p", "foo/p/q", "foo//p"] {
        let error = text.parse::<PolicyKey>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{text:?} names no policy")), "{error}");
    }
    assert!(PolicyKey::new("a/b", "c").is_err());
}
