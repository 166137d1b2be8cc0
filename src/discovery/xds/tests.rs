//! What the client makes of what a control plane tells it, in order or not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message as _;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::address::Decoder;
use super::policy;
use super::state::{Backoff, HOLD, Subscription, Told};
use super::testing::response;
use super::wire::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::wire::{ADDRESS, AUTHORIZATION, security, workload};
use super::{Config, Metrics, Node, Xds, start};
use crate::control::testing::{Call, Proof, Server, TOKEN};
use crate::control::{self, Address, Roots, Token};
use crate::identity::{Clock, Tls, TlsPolicy};
use crate::mesh::{Change, Handle};
use crate::policy::{Action, Facts, PolicyKey, Scope, UnknownPolicy, Verdict};
use crate::telemetry::Registry;

const SOON: Duration = Duration::from_secs(20);

/// A client of `istiod`, and what it has learned.
struct Following {
    mesh: Handle,
    synced: watch::Receiver<bool>,
    registry: Registry,
    _stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(istiod: &Server) -> Config {
    let (provider, versions) = TlsPolicy::new(Tls::default(), Clock::system()).parameters();
    Config {
        control: control::Config {
            address: Address::parse(&format!("https://{}", istiod.addr)).unwrap(),
            alternative: None,
            roots: Roots::File(istiod.root()),
            token: Token::File(istiod.token()),
            cluster: "east".into(),
            headers: vec![("x-more".parse().unwrap(), "of it".parse().unwrap())],
            provider,
            versions,
        },
        node: Node {
            name: "adit-1".into(),
            namespace: "istio-system".into(),
            ip: "10.0.0.1".into(),
            node: Some("worker".into()),
            cluster: Some("east".into()),
            more: BTreeMap::from([
                ("ISTIO_VERSION".to_owned(), "1.30".into()),
                ("LABELS".to_owned(), serde_json::json!({"app": "adit", "n": 1})),
            ]),
        },
    }
}

fn follow(config: Config) -> Following {
    let registry = Registry::new("tests", 10);
    let (Xds { client, stopped }, mesh, synced, stop) =
        start(config, None, UnknownPolicy::Close, Metrics::new(&registry));
    let task = tokio::spawn(client.run(stopped));
    Following { mesh, synced, registry, _stop: stop, task }
}

impl Following {
    async fn is_synced(&mut self) {
        timeout(SOON, self.synced.wait_for(|synced| *synced)).await.expect("it is never told all").unwrap();
    }

    /// Waits until there are so many workloads.
    async fn has(&self, workloads: usize) {
        let found = |mesh: &crate::mesh::Snapshot| (mesh.all_workloads().count() == workloads).then_some(());
        let now = || self.mesh.load().all_workloads().count();
        self.mesh
            .wait_for(SOON, found)
            .await
            .unwrap_or_else(|| panic!("{} workloads, not {workloads}", now()));
    }
}

fn pod(nth: u32) -> workload::Workload {
    let [.., high, low] = nth.to_be_bytes();
    workload::Workload {
        uid: format!("east//Pod/shop/web-{nth}"),
        name: format!("web-{nth}"),
        namespace: "shop".into(),
        service_account: "web".into(),
        addresses: vec![vec![10, 1, high, low].into()],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        services: std::collections::HashMap::from([(
            "shop/web.shop.svc.cluster.local".to_owned(),
            workload::PortList { ports: vec![workload::Port { service_port: 80, target_port: 8080 }] },
        )]),
        ..Default::default()
    }
}

fn of_workload(one: workload::Workload) -> (String, String, Vec<u8>) {
    let name = one.uid.clone();
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(one)) };
    (name, "1".into(), address.encode_to_vec())
}

fn of_service(one: workload::Service) -> (String, String, Vec<u8>) {
    let name = format!("{}/{}", one.namespace, one.hostname);
    let address = workload::Address { r#type: Some(workload::address::Type::Service(one)) };
    (name, "1".into(), address.encode_to_vec())
}

fn pods(range: std::ops::Range<u32>) -> Vec<(String, String, Vec<u8>)> {
    range.map(|nth| of_workload(pod(nth))).collect()
}

fn allow(namespace: &str) -> security::Authorization {
    let exact = security::string_match::MatchType::Exact(namespace.into());
    let one = security::Match {
        namespaces: vec![security::StringMatch { match_type: Some(exact) }],
        ..Default::default()
    };
    security::Authorization {
        name: "who".into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Allow.into(),
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![one] }] }],
        dry_run: false,
    }
}

fn of_policy(bytes: Vec<u8>) -> Vec<(String, String, Vec<u8>)> {
    vec![("shop/who".into(), String::new(), bytes)]
}

/// Opens a stream as every client does, and tells it `addresses` and `policies`.
async fn told(
    istiod: &mut Server,
    addresses: Vec<(String, String, Vec<u8>)>,
    policies: Vec<(String, String, Vec<u8>)>,
) -> Call {
    let mut stream = istiod.call().await;
    for _ in 0..2 {
        stream.message::<DeltaDiscoveryRequest>().await;
    }
    stream.send(&response(ADDRESS, "a1", addresses, &[]));
    stream.send(&response(AUTHORIZATION, "p1", policies, &[]));
    for _ in 0..2 {
        stream.message::<DeltaDiscoveryRequest>().await;
    }
    stream
}

async fn answer(stream: &mut Call, response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    stream.send(response);
    stream.message().await
}

#[tokio::test]
async fn the_mesh_is_told_once_both_types_have_been() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let mut stream = istiod.call().await;
    let header = |name: &str| stream.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("authorization").as_deref(), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!((header("clusterid").as_deref(), header("x-more").as_deref()), (Some("east"), Some("of it")));

    // Both are asked for before anything is answered.
    let (first, second) =
        (stream.message::<DeltaDiscoveryRequest>().await, stream.message::<DeltaDiscoveryRequest>().await);
    assert_eq!((first.type_url.as_str(), second.type_url.as_str()), (ADDRESS, AUTHORIZATION));
    assert!(first.resource_names_subscribe.is_empty() && first.initial_resource_versions.is_empty());
    let node = first.node.unwrap();
    assert_eq!(node.id, "ztunnel~10.0.0.1~adit-1.istio-system~istio-system.svc.cluster.local");
    let metadata = format!("{:?}", node.metadata.unwrap().fields);
    for text in ["NAME", "INSTANCE_IPS", "10.0.0.1", "NODE_NAME", "worker", "CLUSTER_ID", "1.30", "LABELS"] {
        assert!(metadata.contains(text), "{text} is not in {metadata}");
    }
    let service = workload::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![workload::NetworkAddress {
            network: String::new(),
            address: vec![10, 96, 0, 1].into(),
            length: None,
        }],
        ports: vec![workload::Port { service_port: 80, target_port: 8080 }],
        canonical: true,
        ..Default::default()
    };
    let mut all = pods(0..3);
    all.push(of_service(service));
    let ack = answer(&mut stream, &response(ADDRESS, "a1", all, &[])).await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail, ack.node), ("a1", None, None));
    // Their policies may still come.
    assert_eq!((*following.synced.borrow(), following.mesh.load().all_workloads().count()), (false, 0));
    let ack =
        answer(&mut stream, &response(AUTHORIZATION, "p1", of_policy(allow("web").encode_to_vec()), &[]))
            .await;
    assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str()), (AUTHORIZATION, "p1"));
    following.is_synced().await;
    let mesh = following.mesh.current();
    let service = mesh.service_at("", [10, 96, 0, 1].into(), crate::mesh::Viewer::Anyone).unwrap();
    assert_eq!(mesh.endpoints(&service.key).iter().count(), 3);
    let web = mesh.workload("east//Pod/shop/web-1").unwrap();
    assert_eq!(web.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(mesh.workload_at("", [10, 1, 0, 1].into()).map(|one| &one.uid), Some(&web.uid));

    // And what changes: gone, other, new.
    let mut changed = pod(1);
    changed.addresses = vec![vec![10, 1, 9, 9].into()];
    let update =
        response(ADDRESS, "a2", [of_workload(changed), of_workload(pod(7))], &["east//Pod/shop/web-2"]);
    answer(&mut stream, &update).await;
    following.has(3).await;
    let mesh = following.mesh.current();
    assert!(
        mesh.workload("east//Pod/shop/web-2").is_none()
            && mesh.workload_at("", [10, 1, 0, 1].into()).is_none()
    );
    assert!(mesh.workload_at("", [10, 1, 9, 9].into()).is_some());
    let page = following.registry.page();
    assert!(page.contains(&format!("istio_xds_message_total{{url=\"{ADDRESS}\"}} 2")), "{page}");
}

#[tokio::test]
async fn one_bad_object_among_a_thousand_is_refused_alone() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let mut stream = istiod.call().await;
    let mut all = pods(0..1_000);
    let mut short = pod(500);
    short.addresses = vec![vec![10, 1, 1, 2, 3].into()];
    all[500] = of_workload(short);
    all[501].2 = b"\xff\xff no message".to_vec();
    // Each is the other's waypoint.
    for (one, other) in [(10, 11), (11, 10)] {
        let mut one = pod(one);
        one.waypoint = Some(workload::GatewayAddress {
            destination: Some(workload::gateway_address::Destination::Address(workload::NetworkAddress {
                network: String::new(),
                address: vec![10, 1, 0, other].into(),
                length: None,
            })),
            hbone_mtls_port: 15008,
        });
        all[usize::from(21 - other)] = of_workload(one);
    }
    let _ =
        (stream.message::<DeltaDiscoveryRequest>().await, stream.message::<DeltaDiscoveryRequest>().await);
    let nack = answer(&mut stream, &response(ADDRESS, "a1", all, &[])).await;
    let why = nack.error_detail.unwrap().message;
    assert!(why.contains("web-500: an address has 5 bytes") && why.contains("web-501: "), "{why}");
    answer(&mut stream, &response(AUTHORIZATION, "p1", [], &[])).await;
    // Readiness does not hang on it.
    following.is_synced().await;
    following.has(998).await;
    // Nobody knows how to reach one that speaks something unheard of: in plaintext nobody goes there.
    let new = |protocol: i32| {
        let mut one = pod(2_000);
        one.tunnel_protocol = protocol;
        of_workload(one)
    };
    let there = IpAddr::from([10, 1, 7, 208]);
    let unreachable = |following: &Following| following.mesh.load().is_unreachable("", there);
    assert!(!unreachable(&following));
    assert!(answer(&mut stream, &response(ADDRESS, "a2", [new(77)], &[])).await.error_detail.is_some());
    assert!(unreachable(&following));
    answer(&mut stream, &response(ADDRESS, "a3", [new(0)], &[])).await;
    assert!(!unreachable(&following));
    answer(&mut stream, &response(ADDRESS, "a4", [new(77)], &[])).await;
    answer(&mut stream, &response(ADDRESS, "a5", [], &["east//Pod/shop/web-2000"])).await;
    assert!(!unreachable(&following));
    assert!(following.registry.page().contains("adit_xds_refused_total 4"));
    // A good one replaced by a bad one stays, and is asked for by the version that is held.
    let mut bad = pod(7);
    bad.tunnel_protocol = 77;
    let (name, _, bytes) = of_workload(bad);
    let nack = answer(&mut stream, &response(ADDRESS, "a2", [(name, "2".to_owned(), bytes)], &[])).await;
    assert!(nack.error_detail.unwrap().message.contains("tunnel protocol 77"));
    assert!(following.mesh.load().workload("east//Pod/shop/web-7").is_some());
    stream.end(14, "transport is closing");
    let mut stream = istiod.call().await;
    let again = stream.message::<DeltaDiscoveryRequest>().await;
    assert_eq!(again.initial_resource_versions.len(), 1_000);
    assert_eq!(again.initial_resource_versions["east//Pod/shop/web-7"], "1");
    // What was never understood is there, in no version, so that it is told again.
    assert_eq!(again.initial_resource_versions["east//Pod/shop/web-500"], "");
    following.has(998).await;
}

#[tokio::test]
async fn a_policy_that_is_not_understood_closes_unless_an_earlier_one_is_there() {
    let judged = |following: &Following| {
        let mesh = following.mesh.current();
        let source = crate::identity::SpiffeId::new("cluster.local", "web", "cart").unwrap();
        let facts = Facts {
            source: Some(source),
            client: crate::net::ClientAddr::new("10.0.0.5:40000".parse().unwrap()),
            target: crate::net::TargetAddr::new("10.1.0.1:8080".parse().unwrap()),
        };
        matches!(
            mesh.policies(mesh.workload("east//Pod/shop/web-1").unwrap()).judge(&facts),
            Verdict::Allowed(_)
        )
    };
    // A condition that a newer control plane knows: field 20 of a match.
    let newer = |policy: &security::Authorization| {
        let one = policy.rules[0].clauses[0].matches[0].encode_to_vec();
        let one = [&one[..], b"\xa2\x01\x02hi"].concat();
        let nest =
            |field: u8, inner: &[u8]| [&[field << 3 | 2, u8::try_from(inner.len()).unwrap()], inner].concat();
        let bare = security::Authorization { rules: Vec::new(), ..policy.clone() };
        [bare.encode_to_vec(), nest(5, &nest(1, &nest(2, &one)))].concat()
    };
    for earlier in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let mut istiod = Server::start(Proof::Good, place.path());
        let mut following = follow(config(&istiod));
        let first = if earlier { of_policy(allow("web").encode_to_vec()) } else { Vec::new() };
        let mut stream = told(&mut istiod, pods(0..3), first).await;
        following.is_synced().await;
        assert!(judged(&following));
        let nack =
            answer(&mut stream, &response(AUTHORIZATION, "p2", of_policy(newer(&allow("web"))), &[])).await;
        let why = nack.error_detail.unwrap().message;
        assert!(why.contains("shop/who: field 5.1.2.20 is not known"), "{why}");
        assert_eq!(judged(&following), earlier);
        // The next good one counts.
        let ack =
            answer(&mut stream, &response(AUTHORIZATION, "p3", of_policy(allow("web").encode_to_vec()), &[]))
                .await;
        assert_eq!(ack.error_detail, None);
        assert!(judged(&following));
    }
}

#[tokio::test]
async fn what_was_told_stays_while_nobody_answers_and_what_is_gone_goes_afterwards() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let stream = told(&mut istiod, pods(0..5), of_policy(allow("web").encode_to_vec())).await;
    following.is_synced().await;
    stream.cut();
    // A message that is none, one that is cut short, and a server that goes away, again and again.
    for nth in 0..4 {
        let mut stream = istiod.call().await;
        let first = stream.message::<DeltaDiscoveryRequest>().await;
        assert_eq!(first.initial_resource_versions.len(), 5, "stream {nth}");
        assert_eq!(stream.message::<DeltaDiscoveryRequest>().await.initial_resource_versions.len(), 1);
        match nth {
            0 => stream.send_raw(b"\0\0\0\0\x04\xff\xff\xff\xff"),
            1 => stream.send_raw(b"\0\0\0\xff\xff short"),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.cut();
        assert_eq!(following.mesh.load().all_workloads().count(), 5);
    }
    let mut stream = istiod.call().await;
    let _ =
        (stream.message::<DeltaDiscoveryRequest>().await, stream.message::<DeltaDiscoveryRequest>().await);
    let ack =
        answer(&mut stream, &response(ADDRESS, "b1", [of_workload(pod(8))], &["east//Pod/shop/web-0"])).await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("b1", None));
    following.has(5).await;
    assert!(following.mesh.load().workload("east//Pod/shop/web-0").is_none());
}

#[tokio::test]
async fn a_server_for_which_our_versions_are_too_large_tells_all_anew() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let stream = told(&mut istiod, pods(0..5), of_policy(allow("web").encode_to_vec())).await;
    following.is_synced().await;
    stream.cut();
    let mut stream = istiod.call().await;
    assert_eq!(stream.message::<DeltaDiscoveryRequest>().await.initial_resource_versions.len(), 5);
    stream.end(8, "received message larger than max");
    let mut stream = istiod.call().await;
    for _ in 0..2 {
        assert!(stream.message::<DeltaDiscoveryRequest>().await.initial_resource_versions.is_empty());
    }
    assert_eq!(following.mesh.load().all_workloads().count(), 5);
    answer(&mut stream, &response(ADDRESS, "c1", pods(2..6), &[])).await;
    following.has(4).await;
    assert!(following.mesh.load().all_policies().iter().count() == 1);
    answer(&mut stream, &response(AUTHORIZATION, "c2", [], &[])).await;
    let none = |mesh: &crate::mesh::Snapshot| mesh.all_policies().iter().next().is_none().then_some(());
    following.mesh.wait_for(SOON, none).await.expect("the policy is not named any more");
}

#[tokio::test]
async fn a_server_that_does_not_prove_its_name_gets_no_token() {
    for proof in
        [Proof::OtherName, Proof::NoName, Proof::OtherRoot, Proof::SelfSigned, Proof::Expired, Proof::NotYet]
    {
        let place = tempfile::tempdir().unwrap();
        let istiod = Server::start(proof, place.path());
        let config = config(&istiod);
        let why = control::connect(&config.control).await.expect_err("it is no proof").to_string();
        assert!(why.contains("TLS with https://127.0.0.1"), "{proof:?}: {why}");
        assert!(!istiod.is_called(), "{proof:?}");
    }
    // The control: a name that is expected besides, and a good one.
    for (proof, alternative) in [(Proof::OtherName, Some("istiod.istio-system.svc")), (Proof::Good, None)] {
        let place = tempfile::tempdir().unwrap();
        let istiod = Server::start(proof, place.path());
        let mut config = config(&istiod);
        config.control.alternative = alternative.map(str::to_owned);
        control::connect(&config.control).await.unwrap();
    }
}

#[tokio::test]
async fn a_mesh_larger_than_the_usual_limit_of_a_message_comes_as_one() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let all = pods(0..60_000);
    let size: usize = all.iter().map(|(_, _, bytes)| bytes.len()).sum();
    assert!(size > 4 << 20, "{size}");
    let _stream = told(&mut istiod, all, Vec::new()).await;
    following.is_synced().await;
    following.has(60_000).await;
}

#[tokio::test]
async fn a_control_plane_that_forgets_everything_takes_nothing_away_at_once() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut following = follow(config(&istiod));
    let stream = told(&mut istiod, pods(0..200), Vec::new()).await;
    following.is_synced().await;
    stream.cut();
    // It has lost all its state, so that everything that is reported is gone.
    let mut stream = istiod.call().await;
    let first: DeltaDiscoveryRequest = stream.message().await;
    stream.message::<DeltaDiscoveryRequest>().await;
    let names: Vec<&str> = first.initial_resource_versions.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 200);
    let ack = answer(&mut stream, &response(ADDRESS, "e1", [], &names)).await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("e1", None));
    answer(&mut stream, &response(AUTHORIZATION, "e2", [], &[])).await;
    assert_eq!(following.mesh.load().all_workloads().count(), 200);
    // What it learns again meanwhile is new, or as it was.
    answer(&mut stream, &response(ADDRESS, "e3", pods(190..201), &[])).await;
    following.has(201).await;
    // And still: on the next stream all of it is reported.
    stream.cut();
    let mut stream = istiod.call().await;
    let first: DeltaDiscoveryRequest = stream.message().await;
    assert_eq!(first.initial_resource_versions.len(), 201);
}

#[tokio::test]
async fn another_root_and_another_token_count_from_the_next_stream_on() {
    let place = tempfile::tempdir().unwrap();
    let mut istiod = Server::start(Proof::Good, place.path());
    let mut config = config(&istiod);
    // Somebody else's root, at first.
    let other = tempfile::tempdir().unwrap();
    let elsewhere = Server::start(Proof::Good, other.path());
    let root = place.path().join("mounted.pem");
    std::fs::copy(elsewhere.root(), &root).unwrap();
    config.control.roots = Roots::File(root.clone());
    let mut following = follow(config);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!istiod.is_called());
    std::fs::copy(istiod.root(), &root).unwrap();
    let stream = told(&mut istiod, pods(0..3), Vec::new()).await;
    following.is_synced().await;
    assert_eq!(stream.headers["authorization"], format!("Bearer {TOKEN}"));
    std::fs::write(istiod.token(), "another").unwrap();
    stream.cut();
    assert_eq!(istiod.call().await.headers["authorization"], "Bearer another");
}

fn take(subscription: &mut Subscription, names: &[&str], removed: &[String], now: Instant) -> Vec<String> {
    let resources = names.iter().map(|name| (*name, "1", None)).collect();
    let (gone, _) = subscription.take(Told { resources, removed, nonce: "n" }, now);
    gone.iter().map(|name| name.to_string()).collect()
}

#[test]
fn a_removal_of_most_of_the_mesh_waits_and_what_is_named_meanwhile_stays() {
    let now = Instant::now();
    let names: Vec<String> = (0..1_000).map(|nth| format!("w{nth}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut subscription = Subscription::new(ADDRESS);
    assert!(take(&mut subscription, &all, &[], now).is_empty());
    // Half of it is no more than half, and goes.
    assert_eq!(take(&mut subscription, &[], &names[..500], now).len(), 500);
    // All that is left is held back.
    assert!(take(&mut subscription, &[], &names, now).is_empty());
    assert_eq!((subscription.due(), subscription.len()), (Some(now + HOLD), 500));
    // Removed again, later, it waits no longer for that; named again, it stays.
    let later = now + Duration::from_secs(10);
    assert!(take(&mut subscription, &["w700"], &names[800..], later).len() <= 200);
    assert_eq!(subscription.due(), Some(now + HOLD));
    assert!(subscription.on_time(now + HOLD - Duration::from_millis(1)).is_empty());
    subscription.on_time(now + HOLD);
    assert_eq!((subscription.due(), subscription.len()), (None, 1));
    // A few of many go at once.
    let few: Vec<String> = (0..100).map(|nth| format!("w{nth}")).collect();
    let mut small = Subscription::new(ADDRESS);
    take(&mut small, &all[..100], &[], now);
    assert_eq!(take(&mut small, &[], &few, now).len(), 100);
}

#[test]
fn waits_grow_to_fifteen_seconds_and_begin_anew_once_something_was_told() {
    let mut backoff = Backoff::default();
    let waits: Vec<Duration> = (0..12).map(|_| backoff.wait(0.5)).collect();
    assert_eq!(waits[..3], [50, 100, 200].map(Duration::from_millis));
    assert!(waits.is_sorted() && waits[11] == Duration::from_secs(15), "{waits:?}");
    assert!(backoff.wait(0.0) >= Duration::from_secs(11) && backoff.wait(1.0) <= Duration::from_secs(19));
    backoff.reset();
    assert_eq!(backoff.wait(0.5), Duration::from_millis(50));
}

#[test]
fn what_a_policy_cannot_say_is_not_understood() {
    let key = PolicyKey::parse("shop/who").unwrap();
    let good = allow("web");
    assert!(policy::decode(&key, &good.encode_to_vec().into()).is_ok());
    let with = |change: &dyn Fn(&mut security::Match)| {
        let mut policy = good.clone();
        change(&mut policy.rules[0].clauses[0].matches[0]);
        policy
    };
    let mut newer_scope = good.clone();
    newer_scope.scope = 9;
    let mut audit = good.clone();
    audit.action = 2;
    let address = |bytes: &[u8], length| security::Address { address: bytes.to_vec().into(), length };
    for (what, policy) in [
        ("the scope 9", newer_scope),
        ("the action 2", audit),
        ("5 bytes", with(&|one| one.source_ips = vec![address(&[1, 2, 3, 4, 5], 8)])),
        ("33 bits", with(&|one| one.source_ips = vec![address(&[1, 2, 3, 4], 33)])),
        ("65616 is no port", with(&|one| one.destination_ports = vec![65_616])),
        ("in no way", with(&|one| one.principals = vec![security::StringMatch { match_type: None }])),
    ] {
        let wrong = policy::decode(&key, &policy.encode_to_vec().into()).unwrap_err();
        assert!(wrong.why.contains(what), "{what}: {}", wrong.why);
        // Whatever was not understood, what stands for it lets nobody in.
        let closes = match wrong.instead.action {
            Action::Allow => wrong.instead.rules.is_empty(),
            Action::Deny => wrong.instead.rules.iter().any(|rule| rule.clauses.is_empty()),
        };
        assert!(closes && !wrong.instead.dry_run, "{what}: {:?}", wrong.instead);
    }
    let garbage = policy::decode(&key, &b"\xff\xff"[..].into()).unwrap_err();
    assert_eq!((garbage.instead.action, garbage.instead.scope), (Action::Deny, Scope::Namespace));
}

#[test]
fn addresses_mean_what_the_reference_says() {
    let decode = |one: workload::Workload| {
        let (name, _, bytes) = of_workload(one);
        Decoder::default().decode(&name, bytes.into())
    };
    let Ok(Change::Workload(fields, services)) = decode(workload::Workload {
        uid: "u".into(),
        namespace: "shop".into(),
        // An IPv4 address in the form of an IPv6 one.
        addresses: vec![[&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 7]].concat().into()],
        workload_type: 77,
        ..Default::default()
    }) else {
        panic!("a bare workload is one")
    };
    assert_eq!(*fields.ips, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    assert_eq!((&*fields.trust_domain, &*fields.service_account), ("cluster.local", "default"));
    assert_eq!(
        (&*fields.cluster_id, &*fields.workload_type, fields.capacity),
        ("Kubernetes", "deployment", 1)
    );
    assert!(services.is_empty());
    let refused = |change: &dyn Fn(&mut workload::Workload)| {
        let mut one = pod(1);
        change(&mut one);
        decode(one).expect_err("it is to be refused").why
    };
    assert!(refused(&|one| one.tunnel_protocol = 2).contains("tunnel protocol"));
    assert!(refused(&|one| one.network_mode = 9).contains("network mode"));
    assert!(refused(&|one| one.status = 9).contains("status"));
    assert!(refused(&|one| one.uid = String::new()).contains("uid"));
    assert!(refused(&|one| one.namespace = "with space".into()).contains("identity"));
    assert!(refused(&|one| one.waypoint = Some(workload::GatewayAddress::default())).contains("nowhere"));
    assert!(
        refused(&|one| drop(one.services.insert("x".into(), workload::PortList::default())))
            .contains("slash")
    );
    let port = |service_port, target_port| workload::PortList {
        ports: vec![workload::Port { service_port, target_port }],
    };
    assert!(
        refused(&|one| drop(one.services.insert("a/b".into(), port(65_616, 80))))
            .contains("65616 is no port")
    );
    // What is removed by one name must not be added by another.
    let (_, _, bytes) = of_workload(pod(1));
    assert!(Decoder::default().decode("another", bytes.into()).unwrap_err().why.contains("its own name"));
}

proptest! {
    /// Whatever comes, it is refused or taken, and nothing panics.
    #[test]
    fn bytes_from_outside_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let key = PolicyKey::parse("shop/who").unwrap();
        let _ = Decoder::default().decode("x", bytes.clone().into());
        let _ = policy::decode(&key, &bytes.into());
    }
}
