use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::testing::{Mesh, identity, mesh, service_key, uid};
use super::{Change, Model, Protocol, Publisher, Snapshot, Viewer, WorkloadFields};
use crate::net::{ClientAddr, TargetAddr};
use crate::policy::{Action, Denial, Facts, Policy, PolicyKey, Rule, Scope, UnknownPolicy, Verdict};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service_at(mesh: &Snapshot, address: &str, viewer: Viewer<'_>) -> Option<String> {
    mesh.service_at("", ip(address), viewer).map(|service| service.key.to_string())
}

#[test]
fn of_workloads_with_one_address_the_pod_with_hbone_answers() {
    let entry = |mesh: Mesh, name: &str| {
        let uid = format!("c1/networking.istio.io/WorkloadEntry/default/{name}");
        mesh.workload(name, "10.1.0.2").with(|entry| entry.uid = uid.into())
    };
    let at = |mesh: &Snapshot| mesh.workload_at("", ip("10.1.0.2")).unwrap().name.to_string();
    let plain_first = entry(mesh(), "first");
    assert_eq!(at(&entry(plain_first, "second").snapshot()), "second");
    let hbone_entry = entry(mesh().workload("pod", "10.1.0.2"), "entry").hbone();
    assert_eq!(at(&hbone_entry.snapshot()), "pod");
    let pods = mesh().workload("hbone", "10.1.0.2").hbone().workload("plain", "10.1.0.2");
    assert_eq!(at(&pods.snapshot()), "hbone");
}

#[test]
fn addresses_of_networks_are_apart() {
    let mesh = mesh().workload("far", "10.1.0.2").on_network("remote").snapshot();
    assert!(mesh.workload_at("", ip("10.1.0.2")).is_none());
    assert!(mesh.workload_at("remote", ip("10.1.0.2")).is_some());
}

#[test]
fn a_shared_vip_is_the_clients_own_then_the_canonical_then_the_first() {
    let shared = |canonical: bool| {
        let mesh = mesh()
            .service("a", "10.96.0.1:80")
            .in_namespace("ns-a")
            .service("b", "10.96.0.1:80")
            .in_namespace("ns-b");
        (if canonical { mesh.canonical() } else { mesh }).snapshot()
    };
    let hostname = |letter| Some(format!("ns-{letter}/{letter}.default.svc.cluster.local"));
    assert_eq!(service_at(&shared(true), "10.96.0.1", Viewer::In("ns-a")), hostname("a"));
    assert_eq!(service_at(&shared(true), "10.96.0.1", Viewer::In("other")), hostname("b"));
    assert_eq!(service_at(&shared(false), "10.96.0.1", Viewer::In("other")), hostname("a"));
    assert_eq!(service_at(&shared(false), "10.96.0.1", Viewer::In("ns-b")), hostname("b"));
}

#[test]
fn an_invisible_vip_gives_way_to_a_range() {
    let mesh = mesh()
        .service("hidden", "10.50.0.1:80")
        .in_namespace("ns-a")
        .private()
        .service("range", "10.96.0.1:80")
        .in_namespace("ns-b")
        .over("10.50.0.0/16")
        .snapshot();
    let seen = |viewer| service_at(&mesh, "10.50.0.1", viewer).unwrap();
    assert!(seen(Viewer::In("ns-b")).starts_with("ns-b/range"));
    assert!(seen(Viewer::In("ns-a")).starts_with("ns-a/hidden"));
    assert!(seen(Viewer::Anyone).starts_with("ns-a/hidden"));
}

#[test]
fn of_ranges_the_clients_own_is_first_and_then_the_narrowest() {
    let mesh = mesh()
        .service("wide", "10.96.0.1:80")
        .in_namespace("own")
        .over("10.0.0.0/16")
        .service("narrow", "10.96.0.1:80")
        .over("10.0.0.0/24")
        .service("one", "10.96.0.1:80")
        .over("10.0.0.7/32")
        .snapshot();
    let seen = |address, viewer| service_at(&mesh, address, viewer).unwrap();
    assert!(seen("10.0.0.1", Viewer::In("own")).contains("wide"));
    assert!(seen("10.0.0.1", Viewer::In("other")).contains("narrow"));
    assert!(seen("10.0.1.1", Viewer::In("other")).contains("wide"));
    assert!(seen("10.0.0.7", Viewer::In("own")).contains("one"), "a range of one address is an address");
    assert_eq!(service_at(&mesh, "10.1.0.1", Viewer::In("own")), None);
}

#[test]
fn two_services_of_one_namespace_may_share_an_address() {
    let mesh = mesh().service("a", "10.96.0.1:80").service("b", "10.96.0.1:80").snapshot();
    assert!(service_at(&mesh, "10.96.0.1", Viewer::In("default")).unwrap().contains("/a."));
}

#[test]
fn a_hostname_is_looked_up_as_the_viewer_sees_it() {
    let mesh = mesh()
        .service("a", "10.96.0.1:80")
        .serving(|service| service.key.hostname = "shop.example.com".into())
        .in_namespace("ns-a")
        .private()
        .service("b", "10.96.0.2:80")
        .serving(|service| service.key.hostname = "shop.example.com".into())
        .in_namespace("ns-b")
        .snapshot();
    let seen =
        |viewer| mesh.service_by_hostname("shop.example.com", viewer).unwrap().key.namespace.to_string();
    assert_eq!(seen(Viewer::In("ns-a")), "ns-a");
    assert_eq!(seen(Viewer::In("ns-c")), "ns-b");
    assert!(mesh.service_by_hostname("shop", Viewer::Anyone).is_none());
}

#[test]
fn a_pod_is_found_by_all_three_of_its_names_and_on_this_node_only() {
    let mesh = mesh()
        .node("here")
        .workload("cart-0", "10.1.0.1")
        .on_node("here")
        .workload("cart-1", "10.1.0.2")
        .on_node("there")
        .snapshot();
    assert!(mesh.local_workload("cart-0", "default", "cart-0").is_some());
    assert!(mesh.local_workload("cart-0", "default", "other").is_none());
    assert!(mesh.local_workload("cart-0", "other", "cart-0").is_none());
    assert!(mesh.local_workload("cart-1", "default", "cart-1").is_none());
    assert_eq!(mesh.local_workloads().count(), 1);
}

#[test]
fn a_workload_without_trust_domain_and_account_has_the_default_ones() {
    let mesh = mesh().workload("cart", "10.1.0.1").with(|cart| cart.service_account = "".into()).snapshot();
    let cart = mesh.workload(&uid("cart")).unwrap();
    assert_eq!(cart.identity().unwrap().as_str(), "spiffe://cluster.local/ns/default/sa/default");
    assert_eq!((&*cart.trust_domain, &*cart.service_account), ("cluster.local", "default"));
}

#[test]
fn a_later_object_replaces_an_earlier_one_and_its_endpoints() {
    let mesh = mesh()
        .workload("cart", "10.1.0.1")
        .member_of("cart")
        .workload("cart", "10.1.0.2")
        .service("cart", "10.96.0.1:80")
        .snapshot();
    assert_eq!(mesh.all_workloads().count(), 1);
    assert!(mesh.workload_at("", ip("10.1.0.1")).is_none());
    assert_eq!(mesh.endpoints(&service_key("cart")).iter().count(), 0);
}

#[test]
fn a_workloads_own_port_is_before_its_services() {
    let mesh = mesh()
        .workload("cart", "10.1.0.1")
        .member_at("cart", &[(80, 9090)])
        .workload("other", "10.1.0.2")
        .service("cart", "10.96.0.1:80")
        .ports(&[(80, 8080), (443, 8443), (7, 0)])
        .snapshot();
    let service = mesh.service(&service_key("cart")).unwrap();
    let target = |name, port| mesh.target_port(mesh.workload(&uid(name)).unwrap(), service, port);
    assert_eq!([target("cart", 80), target("cart", 443)], [Some(9090), Some(8443)]);
    assert_eq!([target("cart", 7), target("cart", 8080)], [None, None]);
    assert_eq!(target("other", 80), Some(8080));
}

#[test]
fn the_service_of_a_connection_is_the_named_one_else_the_first_that_leads_to_its_port() {
    let mesh = mesh()
        .workload("cart", "10.1.0.1")
        .member_of("a")
        .member_at("b", &[(80, 9090)])
        .member_of("unknown")
        .service("a", "10.96.0.1:80")
        .ports(&[(80, 8080)])
        .service("b", "10.96.0.2:80")
        .ports(&[(80, 0), (443, 8080)])
        .snapshot();
    let cart = mesh.workload(&uid("cart")).unwrap();
    let guess = |named, port| mesh.guess_service(cart, named, port).map(|service| service.name.to_string());
    assert_eq!(guess(None, 8080).as_deref(), Some("a"));
    assert_eq!(guess(None, 9090).as_deref(), Some("b"));
    assert_eq!(guess(Some("b.default.svc.cluster.local"), 8080).as_deref(), Some("b"));
    assert_eq!(guess(Some("elsewhere.example.com"), 8080).as_deref(), Some("a"));
    assert_eq!(guess(None, 1), None);
    assert_eq!(mesh.services_of(cart).count(), 2);
}

fn key(text: &str) -> PolicyKey {
    PolicyKey::parse(text).unwrap()
}

fn nobody(name: &str, scope: Scope) -> Policy {
    Policy { key: key(name), scope, action: Action::Allow, dry_run: false, rules: Vec::new() }
}

fn judged(mesh: &Snapshot, name: &str) -> Verdict {
    let facts = Facts {
        source: Some(identity("client")),
        client: ClientAddr::new("10.1.0.1:40000".parse().unwrap()),
        target: TargetAddr::new("10.1.0.2:80".parse().unwrap()),
    };
    mesh.policies(mesh.workload(&uid(name)).unwrap()).judge(&facts)
}

#[test]
fn a_workload_is_bound_by_its_own_namespaces_and_the_meshs_policies() {
    let bound = |policy: Policy| {
        mesh().policy(policy).workload("cart", "10.1.0.2").bound_by(&key("other/named")).unknown()
    };
    for policy in [
        nobody("default/all", Scope::Namespace),
        nobody("root/all", Scope::Global),
        nobody("other/named", Scope::WorkloadSelector),
    ] {
        let none_allowed = Denial::NoneAllowed(policy.key.clone());
        assert_eq!(judged(&bound(policy), "cart"), Verdict::Denied(none_allowed));
    }
    for policy in [nobody("other/all", Scope::Namespace), nobody("default/unnamed", Scope::WorkloadSelector)]
    {
        assert!(matches!(judged(&bound(policy), "cart"), Verdict::Allowed(_)));
    }
}

impl Mesh {
    /// The mesh, with missing policies ignored.
    fn unknown(self) -> Snapshot {
        self.unknown_policy(UnknownPolicy::Ignore).snapshot()
    }
}

#[test]
fn a_policy_that_is_named_and_missing_closes_its_workload_wherever_it_runs() {
    for node in ["here", "there"] {
        let mesh = mesh()
            .node("here")
            .workload("cart", "10.1.0.2")
            .on_node(node)
            .bound_by(&key("default/late"))
            .snapshot();
        assert_eq!(judged(&mesh, "cart"), Verdict::Denied(Denial::Missing(key("default/late"))));
    }
}

#[test]
fn an_older_record_of_a_workload_is_judged_by_what_it_names_itself() {
    let before = mesh().workload("cart", "10.1.0.2").bound_by(&key("default/late")).snapshot();
    let after = mesh().workload("cart", "10.1.0.2").snapshot();
    let old = before.workload(&uid("cart")).unwrap();
    let new = after.workload(&uid("cart")).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&after.policies(old), &after.policies(new)));
    assert!(std::sync::Arc::ptr_eq(&after.policies(new), &after.policies(new)), "compiled once");
}

#[tokio::test]
async fn who_hears_of_a_change_finds_the_new_snapshot_and_who_holds_the_old_one_keeps_it() {
    let (publisher, handle) = Publisher::new(mesh().workload("old", "10.1.0.1").snapshot());
    let mut changes = handle.changes();
    assert!(!changes.has_changed().unwrap());
    let held = handle.current();
    publisher.publish(mesh().workload("new", "10.1.0.2").snapshot());
    changes.changed().await.unwrap();
    assert!(handle.load().workload(&uid("new")).is_some());
    assert!(held.workload(&uid("old")).is_some());
}

#[test]
fn a_policy_that_is_named_first_is_pending_and_then_missing() {
    let key = PolicyKey::parse("shop/late").unwrap();
    let workload = |node: &str| {
        let mut fields =
            WorkloadFields { uid: "web".into(), namespace: "shop".into(), ..WorkloadFields::default() };
        fields.authorization_policies = [key.clone()].into();
        fields.node = node.into();
        Change::Workload(Box::new(fields), Vec::new())
    };
    let policy = Policy {
        key: key.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule { clauses: Vec::new() }],
    };
    let now = Instant::now();
    let mut model = Model::new(Some("here".into()), UnknownPolicy::Close);
    let pending =
        |snapshot: &Snapshot| snapshot.policies(snapshot.workload("web").unwrap()).pending().cloned();
    model.apply([workload("here")], now);
    assert_eq!(pending(&model.snapshot(now)).as_ref(), Some(&key));
    let until = model.due(now).expect("it is given up at some time");
    assert!(until > now + Duration::from_secs(1) && until < now + Duration::from_secs(5));
    // Another change on the way does not begin the wait anew.
    model.apply([workload("here")], now);
    assert_eq!(pending(&model.snapshot(until - Duration::from_millis(1))).as_ref(), Some(&key));
    assert_eq!((pending(&model.snapshot(until)), model.due(until)), (None, None));
    // It comes all the same, and goes, and is waited for again.
    model.apply([Change::Policy(policy)], until);
    assert_eq!(pending(&model.snapshot(until)), None);
    model.apply([Change::RemovePolicy(key.clone())], until);
    assert_eq!(pending(&model.snapshot(until)).as_ref(), Some(&key));
    // What other nodes' workloads name is not this node's to wait for.
    let mut elsewhere = Model::new(Some("here".into()), UnknownPolicy::Close);
    elsewhere.apply([workload("there")], now);
    elsewhere.snapshot(now);
    assert_eq!(elsewhere.due(now), None);
}

#[test]
fn where_a_workload_of_the_mesh_was_is_remembered_until_somebody_is_named_there() {
    let at = |uid: &str, address: &str, protocol: Protocol| {
        let fields = WorkloadFields {
            uid: uid.into(),
            namespace: "shop".into(),
            ips: [ip(address)].into(),
            protocol,
            ..WorkloadFields::default()
        };
        Change::Workload(Box::new(fields), Vec::new())
    };
    let now = Instant::now();
    let mut model = Model::new(None, UnknownPolicy::Close);
    let departed = |model: &mut Model, now: Instant| -> Vec<bool> {
        let snapshot = model.snapshot(now);
        ["10.1.0.1", "10.1.0.2", "10.1.0.3"].map(|address| snapshot.is_unreachable("", ip(address))).to_vec()
    };
    model.apply([at("a", "10.1.0.1", Protocol::Hbone), at("b", "10.1.0.2", Protocol::Tcp)], now);
    assert_eq!(departed(&mut model, now), [false, false, false]);
    // One moves, and plaintext ones leave nothing.
    model.apply([at("a", "10.1.0.3", Protocol::Hbone), Change::RemoveAddress("b".into())], now);
    assert_eq!(departed(&mut model, now), [true, false, false]);
    // It goes, and somebody else is named where it first was.
    model.apply([Change::RemoveAddress("a".into()), at("c", "10.1.0.1", Protocol::Tcp)], now);
    assert_eq!(departed(&mut model, now), [false, false, true]);
    let until = model.due(now).unwrap();
    assert_eq!(until, now + Duration::from_secs(600));
    assert_eq!(departed(&mut model, until - Duration::from_millis(1)), [false, false, true]);
    assert_eq!(departed(&mut model, until), [false, false, false]);
    // In one batch too, whatever is first.
    model.apply([at("d", "10.1.0.2", Protocol::Hbone)], until);
    model.apply([Change::RemoveAddress("d".into()), at("e", "10.1.0.2", Protocol::Hbone)], until);
    assert_eq!(departed(&mut model, until), [false, false, false]);
    model.apply([at("e", "10.1.0.2", Protocol::Hbone), Change::RemoveAddress("e".into())], until);
    assert_eq!(departed(&mut model, until), [false, true, false]);
}
