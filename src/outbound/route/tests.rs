//! The rows of the outbound decision table and the worked examples that are in reach, and refusals for the rest.

mod balance;

use super::*;
use crate::mesh::LoadBalancerMode;
use crate::mesh::testing::{identity, mesh, service_key, uid};

/// Draws this share of every total, in hundredths.
struct Share(u64);

impl Pick for Share {
    fn below(&mut self, n: u64) -> u64 {
        (n * self.0 / 100).min(n - 1)
    }
}

fn dst(text: &str) -> OriginalDst {
    OriginalDst::new(text.parse().unwrap())
}

/// What `client`, a workload of the mesh, gets when it dials `to`.
fn dial(mesh: &Snapshot, to: &str) -> Result<Route, NoRoute> {
    drawing(mesh, to, 0, &[])
}

fn drawing(mesh: &Snapshot, to: &str, share: u64, tried: &[Arc<str>]) -> Result<Route, NoRoute> {
    let client = mesh.workload(&uid("client")).unwrap();
    let source = Source { workload: client, client: client.ips[0] };
    route(&source, dst(to), "", mesh, &mut Share(share), tried)
}

fn tunnel(mesh: &Snapshot, to: &str) -> (String, String, Vec<SpiffeId>) {
    match dial(mesh, to) {
        Ok(Route::Tunnel(far)) => (far.to.to_string(), far.authority.to_string(), far.expected.to_vec()),
        other => panic!("{to} is reached by {other:?}, not by a tunnel"),
    }
}

fn plain(mesh: &Snapshot, to: &str) -> String {
    match dial(mesh, to) {
        Ok(Route::Plain { to, .. }) => to.to_string(),
        other => panic!("{to} is reached by {other:?}, not plainly"),
    }
}

fn who(route: Result<Route, NoRoute>) -> String {
    match route {
        Ok(Route::Plain { workload, .. } | Route::Tunnel(TunnelTo { workload, .. })) => {
            workload.name.to_string()
        }
        other => panic!("{other:?} leads to no workload"),
    }
}

fn from_client() -> crate::mesh::testing::Mesh {
    mesh().workload("client", "10.1.0.1").hbone()
}

fn nobody(to: &str) -> Result<Route, NoRoute> {
    Err(NoRoute::NoHealthyUpstream { dst: dst(to) })
}

#[test]
fn an_unknown_address_is_passed_through() {
    let mesh = from_client().snapshot();
    assert_eq!(dial(&mesh, "1.2.3.4:80"), Ok(Route::Passthrough(dst("1.2.3.4:80"))));
}

#[test]
fn a_plaintext_pod_is_dialled_at_the_port_the_application_chose() {
    let mesh = from_client().workload("server", "10.1.0.2").snapshot();
    assert_eq!(plain(&mesh, "10.1.0.2:8080"), "10.1.0.2:8080");
}

#[test]
fn an_hbone_pod_is_reached_by_a_tunnel_that_expects_it_on_any_node() {
    for node in ["here", "there"] {
        let mesh =
            from_client().on_node("here").workload("server", "10.1.0.2").hbone().on_node(node).snapshot();
        let expected = ("10.1.0.2:15008".into(), "10.1.0.2:80".into(), vec![identity("server")]);
        assert_eq!(tunnel(&mesh, "10.1.0.2:80"), expected);
    }
}

#[test]
fn a_pod_behind_a_waypoint_is_never_reached_past_it() {
    let mesh = from_client()
        .workload("server", "10.1.0.2")
        .hbone()
        .behind("gate")
        .workload("gate", "10.1.0.7")
        .hbone()
        .member_of("gate")
        .service("gate", "10.96.0.7:15008")
        .snapshot();
    let refused = NoRoute::WaypointUnsupported {
        gateway: "default/gate.default.svc.cluster.local".into(),
        dst: dst("10.1.0.2:80"),
    };
    assert_eq!(dial(&mesh, "10.1.0.2:80"), Err(refused));
}

#[test]
fn a_waypoint_reaches_the_pods_behind_it_directly() {
    let behind = |waypoint: &str| {
        mesh()
            .workload("client", "10.1.0.1")
            .hbone()
            .member_of("gate")
            .service("gate", "10.96.0.7:15008")
            .workload("server", "10.1.0.2")
            .hbone()
            .behind(waypoint)
            .snapshot()
    };
    for waypoint in ["gate", "/10.1.0.1", "/10.96.0.7"] {
        assert_eq!(tunnel(&behind(waypoint), "10.1.0.2:80").0, "10.1.0.2:15008", "{waypoint}");
    }
}

#[test]
fn a_pod_with_the_waypoints_account_and_another_address_is_not_the_waypoint() {
    let mesh = from_client()
        .with(|client| client.service_account = "gate".into())
        .workload("gate", "10.1.0.7")
        .hbone()
        .member_of("gate")
        .service("gate", "10.96.0.7:15008")
        .workload("server", "10.1.0.2")
        .hbone()
        .behind("gate")
        .snapshot();
    assert!(matches!(dial(&mesh, "10.1.0.2:80"), Err(NoRoute::WaypointUnsupported { .. })));
}

#[test]
fn a_service_leads_to_its_endpoint_at_the_mapped_port() {
    let mesh = from_client()
        .workload("cart", "10.1.0.2")
        .hbone()
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .ports(&[(80, 8080)])
        .vouching_for("friend")
        .snapshot();
    let both = vec![identity("friend"), identity("cart")];
    assert_eq!(tunnel(&mesh, "10.96.0.9:80"), ("10.1.0.2:15008".into(), "10.1.0.2:8080".into(), both));
}

#[test]
fn a_service_with_plaintext_endpoints_is_dialled_plainly() {
    let mesh = from_client()
        .workload("cart", "10.1.0.2")
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .ports(&[(80, 8080)])
        .snapshot();
    assert_eq!(plain(&mesh, "10.96.0.9:80"), "10.1.0.2:8080");
}

#[test]
fn an_endpoints_own_port_is_before_the_services() {
    let of = |service: u16, own: &[(u16, u16)]| {
        from_client()
            .workload("cart", "10.1.0.2")
            .member_at("cart", own)
            .service("cart", "10.96.0.9:80")
            .ports(&[(80, service)])
            .snapshot()
    };
    assert_eq!(plain(&of(0, &[(80, 9090)]), "10.96.0.9:80"), "10.1.0.2:9090");
    assert_eq!(plain(&of(8080, &[(80, 9090)]), "10.96.0.9:80"), "10.1.0.2:9090");
    assert_eq!(plain(&of(8080, &[(443, 8443)]), "10.96.0.9:80"), "10.1.0.2:8080");
    assert_eq!(dial(&of(0, &[]), "10.96.0.9:80"), nobody("10.96.0.9:80"));
}

#[test]
fn a_service_behind_a_waypoint_is_never_reached_past_it() {
    let behind = |gate: &str| {
        from_client()
            .workload("gate", "10.1.0.7")
            .hbone()
            .member_of("gate")
            .service("gate", "10.96.0.7:15008")
            .workload("cart", "10.1.0.2")
            .behind("elsewhere")
            .member_of("cart")
            .service("cart", "10.96.0.9:80")
            .behind(gate)
            .snapshot()
    };
    let refused = dial(&behind("gate"), "10.96.0.9:80").unwrap_err();
    assert!(matches!(refused, NoRoute::WaypointUnsupported { .. }), "{refused}");
    assert!(matches!(dial(&behind("/10.1.0.7"), "10.96.0.9:80"), Err(NoRoute::WaypointUnsupported { .. })));
    assert_eq!(
        dial(&behind("nobody"), "10.96.0.9:80").unwrap_err().to_string(),
        "unknown waypoint: waypoint default/nobody.default.svc.cluster.local not found"
    );
}

#[test]
fn a_service_without_waypoint_leads_to_its_endpoint_past_the_workloads_waypoint() {
    let mesh = from_client()
        .workload("cart", "10.1.0.2")
        .hbone()
        .behind("gate")
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .snapshot();
    assert_eq!(tunnel(&mesh, "10.96.0.9:80").0, "10.1.0.2:15008");
}

#[test]
fn weighted_waypoints_guard_unless_none_can_be_drawn() {
    let drawn_from = |weights: &[(&str, u32)]| {
        from_client()
            .workload("cart", "10.1.0.2")
            .member_of("cart")
            .service("cart", "10.96.0.9:80")
            .behind_one_of(weights)
            .snapshot()
    };
    let weighted = dial(&drawn_from(&[("a", 0), ("b", 10)]), "10.96.0.9:80").unwrap_err().to_string();
    assert!(weighted.contains("default/b."), "{weighted}");
    assert_eq!(who(dial(&drawn_from(&[("a", 0)]), "10.96.0.9:80")), "cart");
}

#[test]
fn a_service_that_nobody_can_serve_is_refused_and_not_passed_through() {
    let mesh = from_client()
        .workload("ill", "10.1.0.2")
        .unhealthy()
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .snapshot();
    assert_eq!(dial(&mesh, "10.96.0.9:80"), nobody("10.96.0.9:80"));
    assert_eq!(dial(&mesh, "10.96.0.9:81"), nobody("10.96.0.9:81"));
    assert_eq!(nobody("10.96.0.9:81").unwrap_err().to_string(), "no healthy upstream: 10.96.0.9:81");
}

#[test]
fn a_service_may_want_unhealthy_endpoints_too() {
    let mesh = from_client()
        .workload("ill", "10.1.0.2")
        .unhealthy()
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .allowing_all()
        .snapshot();
    assert_eq!(who(dial(&mesh, "10.96.0.9:80")), "ill");
}

fn passthrough_over(
    workload: impl FnOnce(crate::mesh::testing::Mesh) -> crate::mesh::testing::Mesh,
) -> Snapshot {
    workload(from_client())
        .service("outside", "10.1.0.2:80")
        .balanced(LoadBalancerMode::Passthrough, &[])
        .snapshot()
}

#[test]
fn a_passthrough_service_goes_where_the_application_dialled() {
    let passed = Ok(Route::Passthrough(dst("10.1.0.2:80")));
    assert_eq!(dial(&passthrough_over(|mesh| mesh), "10.1.0.2:80"), passed);
    assert_eq!(dial(&passthrough_over(|mesh| mesh.workload("pod", "10.1.0.2")), "10.1.0.2:80"), passed);
}

#[test]
fn no_passthrough_service_opens_a_plain_way_to_an_hbone_workload_or_past_a_waypoint() {
    let over = passthrough_over(|mesh| mesh.workload("pod", "10.1.0.2").hbone());
    assert_eq!(tunnel(&over, "10.1.0.2:80").2, [identity("pod")]);
    let guarded = passthrough_over(|mesh| mesh.workload("pod", "10.1.0.2").behind("gate"));
    assert!(matches!(dial(&guarded, "10.1.0.2:80"), Err(NoRoute::UnknownWaypoint { .. })));
}

#[test]
fn a_passthrough_service_behind_a_waypoint_is_refused() {
    let mesh = from_client()
        .service("outside", "10.96.0.9:80")
        .balanced(LoadBalancerMode::Passthrough, &[])
        .behind("gate")
        .snapshot();
    assert!(matches!(dial(&mesh, "10.96.0.9:80"), Err(NoRoute::UnknownWaypoint { .. })));
}

#[test]
fn a_service_without_endpoints_at_an_hbone_workloads_address_opens_no_plain_way() {
    let mesh = from_client().workload("pod", "10.1.0.2").hbone().service("shadow", "10.1.0.2:80").snapshot();
    assert_eq!(dial(&mesh, "10.1.0.2:80"), nobody("10.1.0.2:80"));
}

#[test]
fn an_address_in_a_services_range_is_that_services() {
    let mesh = from_client()
        .workload("db", "10.1.0.2")
        .member_of("db")
        .service("db", "10.96.0.9:5432")
        .over("10.50.0.0/24")
        .snapshot();
    assert_eq!(plain(&mesh, "10.50.0.77:5432"), "10.1.0.2:5432");
}

#[test]
fn another_namespaces_private_service_is_as_if_absent() {
    let mesh = from_client().service("hidden", "10.96.0.9:80").in_namespace("other").private().snapshot();
    assert_eq!(dial(&mesh, "10.96.0.9:80"), Ok(Route::Passthrough(dst("10.96.0.9:80"))));
}

#[test]
fn a_workload_known_by_hostname_alone_is_refused() {
    let mesh = from_client()
        .workload("db", "10.1.0.2")
        .with(|db| (db.ips, db.hostname) = (Box::default(), "db.example.com".into()))
        .member_of("db")
        .service("db", "10.96.0.9:5432")
        .snapshot();
    let hostname = "db.example.com".into();
    assert_eq!(dial(&mesh, "10.96.0.9:5432"), Err(NoRoute::HostnameUnsupported { uid: uid("db"), hostname }));
}

#[test]
fn a_host_network_workload_answers_for_services_and_never_for_its_nodes_address() {
    let mesh = from_client()
        .workload("agent", "192.0.2.1")
        .on_host_network()
        .member_of("agent")
        .service("agent", "10.96.0.9:80")
        .snapshot();
    assert_eq!(dial(&mesh, "192.0.2.1:80"), Ok(Route::Passthrough(dst("192.0.2.1:80"))));
    assert_eq!(plain(&mesh, "10.96.0.9:80"), "192.0.2.1:80");
}

fn remote(change: impl FnOnce(crate::mesh::testing::Mesh) -> crate::mesh::testing::Mesh) -> Snapshot {
    change(from_client().workload("far", "10.22.0.2").hbone().on_network("remote").member_of("cart"))
        .service("cart", "10.96.0.9:80")
        .snapshot()
}

#[test]
fn another_network_is_refused_with_the_reason() {
    let there = |mesh: crate::mesh::testing::Mesh| {
        mesh.through("remote/10.22.1.1").workload("door", "10.22.1.1").on_network("remote")
    };
    let network = "remote".into();
    assert_eq!(
        dial(&remote(there), "10.96.0.9:80"),
        Err(NoRoute::GatewayUnsupported { uid: uid("far"), network })
    );
    let unknown = dial(&remote(|mesh| mesh.through("remote/10.22.1.1")), "10.96.0.9:80").unwrap_err();
    assert_eq!(unknown.to_string(), "unknown network gateway: network gateway remote/10.22.1.1 not found");
    let none = dial(&remote(|mesh| mesh), "10.96.0.9:80").unwrap_err();
    assert_eq!(none.to_string(), "no valid routing destination for workload: c1//Pod/default/far");
}

#[test]
fn an_aggregate_of_another_network_without_address_is_refused_with_the_reason() {
    let mesh = remote(|mesh| mesh.with(|far| far.ips = Box::default()).through("remote/10.22.1.1"));
    assert!(matches!(dial(&mesh, "10.96.0.9:80"), Err(NoRoute::UnknownGateway { .. })));
}

#[test]
fn an_endpoint_of_this_network_takes_what_one_of_another_could_not() {
    let mesh = remote(|mesh| {
        mesh.through("remote/10.22.1.1")
            .with(|far| far.capacity = 100)
            .workload("near", "10.1.0.3")
            .member_of("cart")
    });
    for share in [0, 50, 99] {
        assert_eq!(who(drawing(&mesh, "10.96.0.9:80", share, &[])), "near");
    }
}

#[test]
fn a_workload_of_the_proxys_network_is_not_dialled_from_another() {
    let mesh = mesh()
        .workload("client", "10.1.0.1")
        .on_network("odd")
        .workload("pod", "10.1.0.2")
        .hbone()
        .snapshot();
    assert_eq!(dial(&mesh, "10.1.0.2:80"), Err(NoRoute::NoService { dst: dst("10.1.0.2:80") }));
}

#[test]
fn the_family_follows_the_service_then_what_was_dialled() {
    use crate::mesh::IpFamilies::{Any, Dual, V4, V6};
    let dual = |families| {
        from_client()
            .workload("cart", "10.1.0.2")
            .also_at("fd00::2")
            .member_of("cart")
            .service("cart", "10.96.0.9:80")
            .and_vip("fd96::9")
            .families(families)
            .snapshot()
    };
    for (families, to, dialled) in [
        (Any, "10.96.0.9:80", "10.1.0.2:80"),
        (Any, "[fd96::9]:80", "[fd00::2]:80"),
        (Dual, "[fd96::9]:80", "[fd00::2]:80"),
        (V6, "10.96.0.9:80", "[fd00::2]:80"),
        (V4, "[fd96::9]:80", "10.1.0.2:80"),
    ] {
        assert_eq!(plain(&dual(families), to), dialled, "{families:?} {to}");
    }
    assert_eq!(plain(&dual(Any), "[fd00::2]:80"), "[fd00::2]:80");
}

#[test]
fn an_endpoint_without_an_address_in_the_services_families_says_so() {
    let mesh = from_client()
        .workload("cart", "10.1.0.2")
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .families(IpFamilies::V6)
        .snapshot();
    assert_eq!(dial(&mesh, "10.96.0.9:80"), Err(NoRoute::NoAddress { uid: uid("cart") }));
}

#[test]
fn a_service_may_lead_back_to_the_one_who_dialled() {
    let mesh = from_client().member_of("self").service("self", "10.96.0.9:80").snapshot();
    assert_eq!(tunnel(&mesh, "10.96.0.9:80").0, "10.1.0.1:15008");
}

#[test]
fn dialling_the_proxy_on_loopback_is_refused() {
    let mesh = from_client().snapshot();
    for to in ["127.0.0.1:15001", "127.0.0.8:15006", "[::1]:15008", "[::ffff:127.0.0.1]:15008"] {
        assert_eq!(dial(&mesh, to), Err(NoRoute::RecursiveCall), "{to}");
    }
    assert_eq!(dial(&mesh, "127.0.0.1:80"), Ok(Route::Passthrough(dst("127.0.0.1:80"))));
}

#[test]
fn an_hbone_workload_that_cannot_prove_itself_is_not_dialled_at_all() {
    let mesh = from_client()
        .workload("odd", "10.1.0.2")
        .hbone()
        .with(|odd| odd.namespace = "no/namespace".into())
        .snapshot();
    assert!(matches!(dial(&mesh, "10.1.0.2:80"), Err(NoRoute::InvalidIdentity { .. })));
}

#[test]
fn an_address_that_a_pod_shares_is_the_pods() {
    let mesh = from_client()
        .workload("pod", "10.1.0.2")
        .workload("entry", "10.1.0.2")
        .hbone()
        .with(|entry| entry.uid = "c1/networking.istio.io/WorkloadEntry/default/entry".into())
        .snapshot();
    assert_eq!(who(dial(&mesh, "10.1.0.2:80")), "pod");
}

#[test]
fn the_route_names_the_service_that_was_dialled() {
    let mesh = from_client()
        .workload("cart", "10.1.0.2")
        .hbone()
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .snapshot();
    let service = |to| match dial(&mesh, to) {
        Ok(Route::Tunnel(far)) => far.service.map(|service| service.key.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(service("10.96.0.9:80"), Some(service_key("cart")));
    assert_eq!(service("10.1.0.2:80"), None);
}

#[test]
fn where_a_workload_of_the_mesh_was_nobody_is_let_through_in_plaintext() {
    use std::time::{Duration, Instant};

    use crate::mesh::{Change, Model, WorkloadFields};
    use crate::policy::UnknownPolicy;

    let at = |name: &str, ip: [u8; 4], protocol| {
        let fields = WorkloadFields {
            uid: uid(name),
            namespace: "default".into(),
            ips: [ip.into()].into(),
            protocol,
            ..WorkloadFields::default()
        };
        Change::Workload(Box::new(fields), Vec::new())
    };
    let now = Instant::now();
    let mut model = Model::new(None, UnknownPolicy::Close);
    model.apply(
        [at("client", [10, 1, 0, 1], Protocol::Hbone), at("gone", [10, 1, 0, 9], Protocol::Hbone)],
        now,
    );
    tunnel(&model.snapshot(now), "10.1.0.9:80");
    model.apply([Change::RemoveAddress(uid("gone"))], now);
    let there = dst("10.1.0.9:80");
    assert_eq!(dial(&model.snapshot(now), "10.1.0.9:80"), Err(NoRoute::Unreachable { dst: there }));
    // Somebody is named there, who speaks plaintext; or nobody is for long enough.
    let later = now + Duration::from_secs(601);
    assert_eq!(dial(&model.snapshot(later), "10.1.0.9:80"), Ok(Route::Passthrough(there)));
    model.apply([at("plain", [10, 1, 0, 9], Protocol::Tcp)], now);
    assert_eq!(plain(&model.snapshot(now), "10.1.0.9:80"), "10.1.0.9:80");
}
