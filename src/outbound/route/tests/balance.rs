//! Which endpoint a service leads to.

use super::*;
use crate::mesh::Scope;
use crate::outbound::balance::Chance;

fn three(capacities: [u32; 3]) -> Snapshot {
    let mut mesh = from_client();
    for (name, capacity) in ["a", "b", "c"].into_iter().zip(capacities) {
        let ip = format!("10.1.1.{}", name.as_bytes()[0]);
        mesh = mesh.workload(name, &ip).with(|one| one.capacity = capacity).member_of("cart");
    }
    mesh.service("cart", "10.96.0.9:80").snapshot()
}

#[test]
fn capacity_is_the_share_of_connections() {
    let mesh = three([1, 0, 3]);
    let drawn: Vec<String> =
        (0..100).step_by(5).map(|share| who(drawing(&mesh, "10.96.0.9:80", share, &[]))).collect();
    assert_eq!(drawn.iter().filter(|name| *name == "a").count(), 5);
    assert_eq!(drawn.iter().filter(|name| *name == "c").count(), 15);
    assert_eq!(dial(&three([0, 0, 0]), "10.96.0.9:80"), nobody("10.96.0.9:80"));
}

#[test]
fn chance_reaches_every_endpoint() {
    let mesh = three([1, 1, 1]);
    let client = mesh.workload(&uid("client")).unwrap();
    let source = Source { workload: client, client: client.ips[0] };
    let mut chance = Chance::default();
    let drawn: std::collections::BTreeSet<String> =
        (0..300).map(|_| who(route(&source, dst("10.96.0.9:80"), "", &mesh, &mut chance, &[]))).collect();
    assert_eq!(drawn.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn an_endpoint_that_was_tried_is_left_out_until_none_is_left() {
    let mesh = three([1, 1, 1]);
    assert_eq!(who(drawing(&mesh, "10.96.0.9:80", 0, &[uid("a")])), "b");
    assert_eq!(who(drawing(&mesh, "10.96.0.9:80", 0, &[uid("a"), uid("b")])), "c");
    assert_eq!(drawing(&mesh, "10.96.0.9:80", 0, &[uid("a"), uid("b"), uid("c")]), nobody("10.96.0.9:80"));
    assert_eq!(who(drawing(&mesh, "10.1.1.97:80", 0, &[uid("a")])), "a");
}

/// Three endpoints, each sharing less with the client, under these preferences.
fn spread(mode: LoadBalancerMode, preferences: &[Scope]) -> Snapshot {
    from_client()
        .at("r", "z", "s")
        .on_node("n")
        .workload("near", "10.1.0.2")
        .at("r", "z", "t")
        .member_of("cart")
        .workload("region", "10.1.0.3")
        .at("r", "y", "s")
        .member_of("cart")
        .workload("away", "10.1.0.4")
        .at("q", "z", "s")
        .on_node("n")
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .balanced(mode, preferences)
        .snapshot()
}

#[test]
fn failover_takes_the_nearest_and_spills_only_when_they_are_gone() {
    use Scope::{Region, Zone};
    let mesh = spread(LoadBalancerMode::Failover, &[Region, Zone]);
    for (tried, nearest) in
        [(&[][..], "near"), (&[uid("near")][..], "region"), (&[uid("near"), uid("region")][..], "away")]
    {
        for share in [0, 99] {
            assert_eq!(who(drawing(&mesh, "10.96.0.9:80", share, tried)), nearest);
        }
    }
}

#[test]
fn strict_takes_only_those_that_match_everything() {
    use Scope::{Node, Region, Subzone, Zone};
    let strict = |scopes: &[Scope]| spread(LoadBalancerMode::Strict, scopes);
    assert_eq!(who(drawing(&strict(&[Node]), "10.96.0.9:80", 99, &[])), "away");
    assert_eq!(who(drawing(&strict(&[Region, Zone]), "10.96.0.9:80", 99, &[])), "near");
    assert_eq!(dial(&strict(&[Region, Zone, Subzone]), "10.96.0.9:80"), nobody("10.96.0.9:80"));
}

#[test]
fn strict_over_networks_refuses_another_locality() {
    use Scope::{Network, Region, Zone};
    let mesh = from_client()
        .at("elsewhere", "z", "")
        .workload("cart", "10.1.0.2")
        .at("r", "z", "")
        .member_of("cart")
        .service("cart", "10.96.0.9:80")
        .balanced(LoadBalancerMode::Strict, &[Network, Region, Zone])
        .snapshot();
    assert_eq!(dial(&mesh, "10.96.0.9:80"), nobody("10.96.0.9:80"));
}

#[test]
fn any_endpoint_of_this_network_is_before_any_of_another() {
    use Scope::{Network, Region, Zone};
    let near = |health: fn(crate::mesh::testing::Mesh) -> crate::mesh::testing::Mesh| {
        let mesh = from_client().at("r", "z", "").workload("here", "10.1.0.2").at("q", "y", "");
        health(mesh)
            .member_of("cart")
            .workload("far", "10.22.0.2")
            .on_network("remote")
            .at("r", "z", "")
            .through("remote/10.22.1.1")
            .member_of("cart")
            .service("cart", "10.96.0.9:80")
            .balanced(LoadBalancerMode::Failover, &[Network, Region, Zone])
            .snapshot()
    };
    assert_eq!(who(dial(&near(|mesh| mesh), "10.96.0.9:80")), "here");
    assert!(matches!(
        dial(&near(|mesh| mesh.unhealthy()), "10.96.0.9:80"),
        Err(NoRoute::UnknownGateway { .. })
    ));
}
