//! The state of this node as JSON, in the shape that `istioctl ztunnel-config` reads.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::capture::Pod;
use crate::identity::Store;
use crate::mesh::{
    GatewayAddress, Health, HealthPolicy, IpFamilies, LoadBalancerMode, NetworkMode, Ports, Protocol,
    Service, Snapshot, Visibility, Workload,
};
use crate::policy::Policy;
use crate::telemetry::Reporter;
use crate::version;
use crate::worker::{Observer, Shown};

/// Renders `mesh`, the certificates of `store` and what the workers carry. Blocks until the certificate keeper and the
/// workers have answered, so it must not run on one of their threads.
///
/// # Errors
/// A text for the operator when the answer of the keeper cannot be waited for.
pub fn dump(mesh: &Snapshot, store: &Store, workers: &Observer) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|cause| format!("no runtime to wait for the certificates with: {cause}"))?;
    let certificates = runtime.block_on(store.snapshot());
    let (pods, connections) = runtime.block_on(workers.look());
    let mut workloads: Vec<_> = mesh.all_workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = mesh.all_services().collect();
    services.sort_by(|a, b| (&a.key.hostname, &a.key.namespace).cmp(&(&b.key.hostname, &b.key.namespace)));
    let mut policies: Vec<_> = mesh.all_policies().iter().collect();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    let policies: Vec<_> = policies.into_iter().map(AsRef::as_ref).collect::<Vec<&Policy>>();
    let whole = json!({
        "workloads": workloads.iter().map(|one| workload(one)).collect::<Vec<_>>(),
        "services": services.iter().map(|one| service(one, mesh)).collect::<Vec<_>>(),
        "policies": policies,
        "certificates": certificates,
        "workloadState": workload_state(&pods, &connections),
        "version": { "version": version::VERSION, "cryptoProvider": "tls-aws-lc" },
    });
    serde_json::to_string_pretty(&whole).map_err(|cause| format!("the state cannot be rendered: {cause}"))
}

/// Adds what is not empty.
fn put(object: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        object.insert(key.into(), value.into());
    }
}

fn gateway(gateway: &GatewayAddress) -> Value {
    json!({ "destination": gateway.to_string(), "hboneMtlsPort": gateway.hbone_port })
}

fn ports(ports: &Ports) -> Value {
    ports.iter().map(|(from, to)| (from.to_string(), json!(to))).collect::<Map<_, _>>().into()
}

fn health(status: Health) -> &'static str {
    match status {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn workload(workload: &Workload) -> Value {
    let mut object = Map::new();
    for (key, value) in [
        ("uid", &workload.uid),
        ("trustDomain", &workload.trust_domain),
        ("serviceAccount", &workload.service_account),
        ("network", &workload.network),
        ("workloadName", &workload.workload_name),
        ("workloadType", &workload.workload_type),
        ("canonicalName", &workload.canonical_name),
        ("canonicalRevision", &workload.canonical_revision),
        ("hostname", &workload.hostname),
        ("node", &workload.node),
    ] {
        put(&mut object, key, value);
    }
    let always = [
        ("workloadIps", json!(workload.ips)),
        ("name", json!(workload.name)),
        ("namespace", json!(workload.namespace)),
        ("clusterId", json!(workload.cluster_id)),
        ("capacity", json!(workload.capacity)),
        ("status", json!(health(workload.status))),
        ("protocol", json!(if workload.protocol == Protocol::Hbone { "HBONE" } else { "TCP" })),
        (
            "networkMode",
            json!(if workload.network_mode == NetworkMode::HostNetwork { "HostNetwork" } else { "Standard" }),
        ),
    ];
    object.extend(always.map(|(key, value)| (key.to_owned(), value)));
    if let Some(one) = &workload.waypoint {
        object.insert("waypoint".into(), gateway(one));
    }
    if let Some(one) = &workload.network_gateway {
        object.insert("networkGateway".into(), gateway(one));
    }
    let listed = |texts: Vec<String>| (!texts.is_empty()).then(|| json!(texts));
    let policies = workload.authorization_policies.iter().map(ToString::to_string).collect();
    let services = workload.services.iter().map(ToString::to_string).collect();
    object.extend(listed(policies).map(|list| ("authorizationPolicies".to_owned(), list)));
    object.extend(listed(services).map(|list| ("services".to_owned(), list)));
    object.into()
}

/// The pods by uid, each with its live connections.
fn workload_state(pods: &[Arc<Pod>], connections: &[Shown]) -> Value {
    let of = |pod: &Pod, reporter| {
        let shown = connections.iter().filter(|one| one.reporter == reporter && one.pod.uid == pod.uid);
        let shown = shown.map(|one| {
            json!({
                "src": one.src.to_string(),
                "originalDst": one.original_dst,
                "actualDst": one.actual_dst.to_string(),
                "protocol": if one.tunnel { "HBONE" } else { "TCP" },
            })
        });
        shown.collect::<Vec<_>>()
    };
    let entries = pods.iter().map(|pod| {
        let value = json!({
            "state": "Up",
            "info": { "name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account },
            "connections": {
                "inbound": of(pod, Reporter::Destination),
                "outbound": of(pod, Reporter::Source),
            },
        });
        (pod.uid.to_string(), value)
    });
    entries.collect::<Map<_, _>>().into()
}

fn service(service: &Service, mesh: &Snapshot) -> Value {
    let endpoints: Map<_, _> = mesh
        .endpoints(&service.key)
        .iter()
        .map(|one| {
            let value =
                json!({ "workloadUid": one.uid, "port": ports(&one.ports), "status": health(one.status) });
            (one.uid.to_string(), value)
        })
        .collect();
    let mut object = Map::new();
    let always = [
        ("name", json!(service.name)),
        ("namespace", json!(service.key.namespace)),
        ("hostname", json!(service.key.hostname)),
        ("vips", json!(service.vips.iter().map(ToString::to_string).collect::<Vec<_>>())),
        ("ports", ports(&service.ports)),
        ("endpoints", endpoints.into()),
        (
            "subjectAltNames",
            json!(service.subject_alt_names.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ),
        ("canonical", json!(service.canonical)),
        ("visibility", json!(if service.visibility == Visibility::Public { "Public" } else { "Namespace" })),
    ];
    object.extend(always.map(|(key, value)| (key.to_owned(), value)));
    if let Some(one) = &service.waypoint {
        object.insert("waypoint".into(), gateway(one));
    }
    if let Some(balancer) = &service.load_balancer {
        let mode = match balancer.mode {
            LoadBalancerMode::Standard => "Standard",
            LoadBalancerMode::Strict => "Strict",
            LoadBalancerMode::Failover => "Failover",
            LoadBalancerMode::Passthrough => "Passthrough",
        };
        let health = match balancer.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        };
        let preferences: Vec<_> = balancer.preferences.iter().map(|scope| format!("{scope:?}")).collect();
        object.insert(
            "loadBalancer".into(),
            json!({ "routingPreferences": preferences, "mode": mode, "healthPolicy": health }),
        );
    }
    let families = match service.ip_families {
        IpFamilies::Any => None,
        IpFamilies::V4 => Some("IPv4"),
        IpFamilies::V6 => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    };
    object.extend(families.map(|families| ("ipFamilies".to_owned(), json!(families))));
    object.into()
}
