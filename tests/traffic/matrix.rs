//! Every way through the mesh, in both families, on one node and between two: bytes, source address, log lines and
//! counters of each connection, exactly.

use std::net::SocketAddr;

use adit::lab::{Behaviour, MeshFile, Pod, Side};

use super::evidence::{Before, Client, Exchange, Expected, First, assert_moved, exchange};
use super::stage::{Part, Stage, service, strict};

/// Where applications answer.
const RESPOND: u16 = 8080;
/// Where applications speak first.
const GREET: u16 = 2525;
/// The port of the services.
const SERVICE: u16 = 80;

const CLIENT: &str = "shop/client";
const NEAR: &str = "shop/near";
const FAR: &str = "shop/far";
const NEAR_STRICT: &str = "shop/near-strict";
const FAR_STRICT: &str = "shop/far-strict";
const NEAR_PLAIN: &str = "legacy/near";
const FAR_PLAIN: &str = "legacy/far";
const CALLER: &str = "legacy/caller";

/// Those that serve, each with a service `<namespace>/<name>-service` in front.
const SERVING: [&str; 6] = [NEAR, FAR, NEAR_STRICT, FAR_STRICT, NEAR_PLAIN, FAR_PLAIN];

fn stage() -> Stage {
    let cast = [
        (Side::One, CLIENT, Part::Mesh),
        (Side::One, NEAR, Part::Mesh),
        (Side::Two, FAR, Part::Mesh),
        (Side::One, NEAR_STRICT, Part::Mesh),
        (Side::Two, FAR_STRICT, Part::Mesh),
        (Side::One, NEAR_PLAIN, Part::Outside),
        (Side::Two, FAR_PLAIN, Part::Outside),
        (Side::One, CALLER, Part::Outside),
    ];
    let mut stage = Stage::of(&cast, |mesh| {
        let with_service = |mesh: MeshFile, pod: &str| {
            mesh.service(service(&format!("{pod}-service"), vip_of(pod), (SERVICE, RESPOND), &[pod]))
        };
        SERVING.into_iter().fold(mesh, with_service).policy(strict(&[NEAR_STRICT, FAR_STRICT]))
    });
    for pod in SERVING {
        stage.serve(pod, RESPOND, Behaviour::Respond);
        stage.serve(pod, GREET, Behaviour::Greet);
    }
    stage
}

/// The last number of the addresses of a pod's service.
fn vip_of(pod: &str) -> u8 {
    let index = SERVING.iter().position(|it| *it == pod).expect("only pods that serve have a service");
    10 + u8::try_from(index).expect("there are six")
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Pod,
    Service,
    Greeting,
}

const WAYS: [By; 3] = [By::Pod, By::Service, By::Greeting];

/// One connection: who, to whom, by what, in which family.
#[derive(Clone, Copy, Debug)]
struct Way {
    from: &'static str,
    to: &'static str,
    by: By,
    ipv6: bool,
}

impl Way {
    fn all(from: &'static str, to: &'static [&'static str]) -> impl Iterator<Item = Self> {
        to.iter().flat_map(move |&to| {
            WAYS.into_iter().flat_map(move |by| [false, true].map(|ipv6| Self { from, to, by, ipv6 }))
        })
    }

    fn first(self) -> First {
        if self.by == By::Greeting { First::Server } else { First::Client }
    }

    /// Where the application listens.
    fn target(self, to: &Pod) -> SocketAddr {
        let port = if self.by == By::Greeting { GREET } else { RESPOND };
        if self.ipv6 { to.at_v6(port) } else { to.at(port) }
    }

    /// What its client dials.
    fn dialled(self, to: &Pod) -> SocketAddr {
        if self.by != By::Service {
            return self.target(to);
        }
        let [v4, v6] = service("any/any", vip_of(self.to), (SERVICE, RESPOND), &[]).addresses[..] else {
            unreachable!("a service has two addresses")
        };
        SocketAddr::new(if self.ipv6 { v6 } else { v4 }, SERVICE)
    }

    /// The service's hostname.
    fn service(self) -> String {
        service(&format!("{}-service", self.to), 0, (SERVICE, RESPOND), &[]).host()
    }

    /// Goes this way once; the application must have seen the client's own address and exactly its bytes.
    fn go(self, stage: &Stage) -> Exchange {
        let (from, to) = (stage.pod(self.from), stage.pod(self.to));
        let marker = format!("{self:?}");
        let done = exchange(&from, self.dialled(&to), self.first(), &marker)
            .unwrap_or_else(|cause| panic!("{self:?}: {cause}\n{}", stage.last_words()));
        assert_eq!(done.seen.ip(), done.local.ip(), "{self:?}: whom the application saw");
        assert_eq!(done.local.ip(), from.ip_like(done.local.ip()), "{self:?}: the client's own address");
        let seen = stage.seen(self.to, self.target(&to).port()).pop().expect("the application was reached");
        assert_eq!((seen.peer, seen.bytes), (done.seen, done.sent), "{self:?}: what the application got");
        assert_ne!(done.sent, done.received, "the two directions must be told apart");
        done
    }
}

/// The labels that tell one connection's series.
fn labels(way: Way, reporter: &str, security: &str) -> Vec<(&'static str, String)> {
    let split = |name: &'static str| name.split_once('/').expect("pods are named namespace/name");
    let ((from_ns, from), (to_ns, to)) = (split(way.from), split(way.to));
    [
        ("reporter", reporter),
        ("source_workload", from),
        ("source_workload_namespace", from_ns),
        ("source_canonical_service", from),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", to),
        ("destination_workload_namespace", to_ns),
        ("destination_canonical_service", to),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "tcp"),
        ("connection_security_policy", security),
        ("response_flags", "-"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

/// One connection, opened, carried and closed in order.
fn counters(done: &Exchange, labels: &[(&'static str, String)]) -> [Expected; 4] {
    [
        Expected::new("istio_tcp_connections_opened_total", 1, labels),
        Expected::new("istio_tcp_connections_closed_total", 1, labels),
        Expected::new("istio_tcp_received_bytes_total", done.sent, labels),
        Expected::new("istio_tcp_sent_bytes_total", done.received, labels),
    ]
}

/// The service that both sides name: dialled, or, at the destination, the one that stands before the dialled port.
fn service_labels(way: Way, named: bool) -> Vec<(&'static str, String)> {
    let (namespace, name) = way.to.split_once('/').expect("pods are named namespace/name");
    let values = if named {
        [way.service(), namespace.to_owned(), format!("{name}-service")]
    } else {
        ["unknown", "unknown", "unknown"].map(str::to_owned)
    };
    ["destination_service", "destination_service_namespace", "destination_service_name"]
        .into_iter()
        .zip(values)
        .collect()
}

#[test]
fn between_pods_of_the_mesh_every_way_is_a_tunnel_between_two_proven_identities() {
    let stage = stage();
    for way in Way::all(CLIENT, &[NEAR, FAR, NEAR_STRICT, FAR_STRICT]) {
        let (from, to) = (stage.pod(way.from), stage.pod(way.to));
        let before = Before::now(&stage);
        let done = way.go(&stage);
        let target = way.target(&to);
        let tunnel = SocketAddr::new(target.ip(), 15008).to_string();

        let out = before.line(&stage, from.side(), "outbound", done.local);
        let into = before.line(&stage, to.side(), "inbound", done.local.ip());
        for line in [&out, &into] {
            assert_eq!(line.message, "connection complete", "{way:?}: {line:#?}");
            assert_eq!(line.level, "info", "{way:?}: {line:#?}");
            assert_eq!(line.error, None, "{way:?}: {line:#?}");
            assert_eq!(line.policy, None, "{way:?}: {line:#?}");
            assert_eq!(line.src_workload.as_deref(), Some(from.name()), "{way:?}: {line:#?}");
            assert_eq!(line.src_namespace.as_deref(), Some(from.namespace()), "{way:?}: {line:#?}");
            assert_eq!(line.src_identity.as_deref(), Some(from.identity().as_str()), "{way:?}: {line:#?}");
            assert_eq!(line.dst_addr.as_deref(), Some(tunnel.as_str()), "{way:?}: {line:#?}");
            assert_eq!(line.dst_hbone_addr, Some(target.to_string()), "{way:?}: {line:#?}");
            assert_eq!(line.dst_workload.as_deref(), Some(to.name()), "{way:?}: {line:#?}");
            assert_eq!(line.dst_namespace.as_deref(), Some(to.namespace()), "{way:?}: {line:#?}");
            assert_eq!(line.dst_identity.as_deref(), Some(to.identity().as_str()), "{way:?}: {line:#?}");
            assert!(line.duration.is_some(), "{way:?}: {line:#?}");
        }
        let of_service = |named: bool| named.then(|| way.service());
        assert_eq!(out.dst_service, of_service(way.by == By::Service), "{way:?}: {out:#?}");
        assert_eq!(into.dst_service, of_service(way.by != By::Greeting), "{way:?}: {into:#?}");
        let (sent, received) = (Some(done.sent), Some(done.received));
        assert_eq!((out.bytes_sent, out.bytes_recv), (sent, received), "{way:?}: {out:#?}");
        assert_eq!((into.bytes_sent, into.bytes_recv), (received, sent), "{way:?}: {into:#?}");

        let principals = [
            ("source_principal", from.identity().as_str().to_owned()),
            ("destination_principal", to.identity().as_str().to_owned()),
        ];
        let of = |reporter: &str, named: bool| {
            let mut labels = labels(way, reporter, "mutual_tls");
            labels.extend(principals.clone());
            labels.extend(service_labels(way, named));
            counters(&done, &labels)
        };
        let source = of("source", way.by == By::Service);
        let destination = of("destination", way.by != By::Greeting);
        let what = format!("{way:?}");
        if from.side() == to.side() {
            let both = [source, destination].concat();
            assert_moved(&what, &before.moved(&stage, from.side()), &both);
        } else {
            assert_moved(&what, &before.moved(&stage, from.side()), &source);
            assert_moved(&what, &before.moved(&stage, to.side()), &destination);
        }
    }
}

#[test]
fn out_of_the_mesh_every_way_is_plain_and_told_once_at_the_source() {
    let stage = stage();
    for way in Way::all(CLIENT, &[NEAR_PLAIN, FAR_PLAIN]) {
        let (from, to) = (stage.pod(way.from), stage.pod(way.to));
        let before = Before::now(&stage);
        let done = way.go(&stage);

        let line = before.line(&stage, from.side(), "outbound", done.local);
        assert_eq!((line.level.as_str(), &line.error), ("info", &None), "{way:?}: {line:#?}");
        assert_eq!(line.src_workload.as_deref(), Some(from.name()), "{way:?}: {line:#?}");
        assert_eq!(line.dst_addr, Some(way.target(&to).to_string()), "{way:?}: {line:#?}");
        assert_eq!(line.dst_hbone_addr, None, "{way:?}: {line:#?}");
        assert_eq!((&line.src_identity, &line.dst_identity), (&None, &None), "{way:?}: {line:#?}");
        assert_eq!(line.dst_workload.as_deref(), Some(to.name()), "{way:?}: {line:#?}");
        let service = (way.by == By::Service).then(|| way.service());
        assert_eq!(line.dst_service, service, "{way:?}: {line:#?}");
        let bytes = (Some(done.sent), Some(done.received));
        assert_eq!((line.bytes_sent, line.bytes_recv), bytes, "{way:?}: {line:#?}");

        let mut labels = labels(way, "source", "unknown");
        labels.extend(service_labels(way, way.by == By::Service));
        labels.push(("source_principal", "unknown".to_owned()));
        let what = format!("{way:?}");
        assert_moved(&what, &before.moved(&stage, from.side()), &counters(&done, &labels));
        if from.side() != to.side() {
            assert_moved(&what, &before.moved(&stage, to.side()), &[]);
        }
    }
}

#[test]
fn into_the_mesh_a_permissive_pod_is_reached_in_plaintext_and_told_once_at_the_destination() {
    let stage = stage();
    // Nobody outside the mesh knows how to reach a service's address here: they dial pods.
    for way in Way::all(CALLER, &[NEAR, FAR]).filter(|way| way.by != By::Service) {
        let (from, to) = (stage.pod(way.from), stage.pod(way.to));
        let before = Before::now(&stage);
        let done = way.go(&stage);

        let line = before.line(&stage, to.side(), "inbound", done.local);
        assert_eq!((line.level.as_str(), &line.error), ("info", &None), "{way:?}: {line:#?}");
        assert_eq!(line.src_workload.as_deref(), Some(from.name()), "{way:?}: {line:#?}");
        assert_eq!(line.dst_addr, Some(way.target(&to).to_string()), "{way:?}: {line:#?}");
        assert_eq!(line.dst_hbone_addr, None, "{way:?}: {line:#?}");
        assert_eq!((&line.src_identity, &line.dst_identity), (&None, &None), "{way:?}: {line:#?}");
        assert_eq!(line.dst_workload.as_deref(), Some(to.name()), "{way:?}: {line:#?}");
        let bytes = (Some(done.received), Some(done.sent));
        assert_eq!((line.bytes_sent, line.bytes_recv), bytes, "{way:?}: {line:#?}");

        let mut labels = labels(way, "destination", "unknown");
        labels.extend(service_labels(way, way.by == By::Pod));
        labels.push(("source_principal", "unknown".to_owned()));
        let what = format!("{way:?}");
        assert_moved(&what, &before.moved(&stage, to.side()), &counters(&done, &labels));
        if from.side() != to.side() {
            assert_moved(&what, &before.moved(&stage, from.side()), &[]);
        }
    }
}

#[test]
fn a_pod_that_dials_itself_is_left_alone() {
    let stage = stage();
    for (from, ipv6) in [(NEAR, false), (NEAR, true), (FAR_STRICT, false), (FAR_STRICT, true)] {
        let before = Before::now(&stage);
        for by in [By::Pod, By::Greeting] {
            let itself = Way { from, to: from, by, ipv6 };
            let done = itself.go(&stage);
            assert_eq!(done.seen, done.local, "{itself:?}: the very connection must reach the application");
        }
        // What comes after it shows that what came before would have been told by now.
        let witness = Way { from, to: NEAR_PLAIN, by: By::Pod, ipv6 };
        let side = stage.pod(from).side();
        let done = witness.go(&stage);
        before.line(&stage, side, "outbound", done.local);
        let told = before.lines(&stage, side);
        assert_eq!(told.len(), 1, "only the witness may be told of: {told:#?}");
        let moved = before.moved(&stage, side);
        assert!(moved.iter().all(|it| it.labels["destination_workload"] == "near"), "{moved:#?}");
        assert!(moved.iter().all(|it| it.labels["destination_workload_namespace"] == "legacy"), "{moved:#?}");
    }
}

#[test]
fn a_pod_that_dials_its_own_service_reaches_itself_through_the_mesh() {
    let stage = stage();
    for (from, ipv6) in [(NEAR, false), (NEAR, true), (FAR_STRICT, false), (FAR_STRICT, true)] {
        let way = Way { from, to: from, by: By::Service, ipv6 };
        let before = Before::now(&stage);
        let done = way.go(&stage);
        let pod = stage.pod(from);
        let out = before.line(&stage, pod.side(), "outbound", done.local);
        let into = before.line(&stage, pod.side(), "inbound", Client::At(done.local.ip()));
        for line in [&out, &into] {
            let identity = Some(pod.identity().as_str());
            assert_eq!(line.error, None, "{way:?}: {line:#?}");
            assert_eq!(line.src_identity.as_deref(), identity, "{way:?}: {line:#?}");
            assert_eq!(line.dst_identity.as_deref(), identity, "{way:?}: {line:#?}");
            assert_eq!(line.dst_service, Some(way.service()), "{way:?}: {line:#?}");
        }
    }
}
