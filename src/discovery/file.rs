//! From the text of a file to a snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::error::{Complaint, Error, Place};
use super::read::{Reader, Targets, place};
use super::shape;
use crate::identity::{SpiffeError, SpiffeId};
use crate::mesh::{
    ApplicationTunnel, Builder, CidrVip, Health, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode,
    Locality, NetworkMode, Ports, Protocol, Scope, Service, ServiceKey, Snapshot, TunnelProtocol, Visibility,
    WeightedWaypoint, WorkloadFields,
};
use crate::policy::{PolicyKey, UnknownPolicy};

const HEALTH: &[(&str, Health)] = &[("Healthy", Health::Healthy), ("Unhealthy", Health::Unhealthy)];

/// Reads `text`, which is called `file` in complaints, whole or not at all.
///
/// `node` names this node; its workloads' policies are compiled. Source: reference of the local configuration,
/// `istioctl ztunnel-config all -o json` shapes; port keys may be quoted or not.
///
/// # Errors
/// Every value that is wrong, with its place. A text whose very shape is wrong is read up to that place only.
pub fn load(
    file: &str,
    text: &[u8],
    node: Option<Arc<str>>,
    unknown_policy: UnknownPolicy,
) -> Result<Snapshot, Error> {
    let shape = parse(file, text)?;
    let mut read = Reader::new(file);
    let mut builder = Builder::new(node, unknown_policy);
    let mut seen = HashMap::new();
    for service in &shape.services.0 {
        read_service(&mut read, &mut builder, &mut seen, service);
    }
    let mut seen = HashMap::new();
    for workload in &shape.workloads.0 {
        read_workload(&mut read, &mut builder, &mut seen, workload);
    }
    let mut seen = HashMap::new();
    for policy in shape.policies.0 {
        let key = policy.value.key.clone();
        read.unique(&mut seen, key.clone(), policy.referenced, format_args!("policy {key}"));
        builder.policy(policy.value);
    }
    read.finish(builder).map(Builder::build)
}

/// The text's shape, or the first thing wrong with it.
fn parse(file: &str, text: &[u8]) -> Result<shape::File, Error> {
    let wrong = |at, what: String| Error::one(Complaint { file: file.into(), at, what });
    let text = std::str::from_utf8(text).map_err(|cause| {
        let good = String::from_utf8_lossy(&text[..cause.valid_up_to()]);
        wrong(Some(end_of(&good)), "this byte is not UTF-8; save the file as UTF-8".into())
    })?;
    // An editor or a copy that was cut short leaves nothing; nobody means "no mesh at all" by that.
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(|line| blank(line) || line.trim_end() == "---") {
        let what = "there is nothing in it; write `workloads: []` if the mesh is meant to be empty";
        return Err(wrong(Some(Place { line: 1, column: 1 }), what.into()));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        // The file is the operator's own and may describe a large mesh. What stays limited is nesting and the
        // replay of anchors, which grow beyond the size of the text.
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 100_000_000,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|cause: serde_saphyr::Error| {
        let what = UserMessageFormatter.format_message(cause.without_snippet());
        // It may quote the file, which may hold anything.
        let what = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        wrong(cause.location().and_then(place), what)
    })
}

/// The place right after `text`.
fn end_of(text: &str) -> Place {
    let last = text.rsplit('\n').next().unwrap_or_default();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Place { line: count(text.matches('\n').count()) + 1, column: count(last.chars().count()) + 1 }
}

fn read_workload(
    read: &mut Reader<'_>,
    builder: &mut Builder,
    seen: &mut HashMap<Arc<str>, Location>,
    written: &Spanned<shape::Workload>,
) {
    let at = written.referenced;
    let written = &written.value;
    let uid = read.optional(&written.uid);
    read.unique(seen, Arc::clone(&uid), at, format_args!("a workload with uid {uid:?}"));
    let mut memberships: Vec<(ServiceKey, Ports)> = Vec::with_capacity(written.services.0.len());
    let mut named = HashMap::new();
    for (key, ports) in &written.services.0 {
        let ports = read.ports(ports, Targets::Numbers);
        if let Some(service) = read.service_key(key) {
            read.unique(&mut named, service.clone(), key.referenced, format_args!("service {service}"));
            memberships.push((service, ports));
        }
    }
    let locality = written.locality.as_ref().map(|locality| Locality {
        region: read.name(&locality.region.value),
        zone: read.name(&locality.zone.value),
        subzone: read.name(&locality.subzone.value),
    });
    let fields = WorkloadFields {
        uid,
        name: read.optional(&written.name),
        namespace: read.name(&written.namespace.value),
        trust_domain: read.optional(&written.trust_domain),
        service_account: read.optional(&written.service_account),
        network: read.optional(&written.network),
        ips: written.workload_ips.0.iter().filter_map(|ip| read.ip(ip)).collect(),
        hostname: read.optional(&written.hostname),
        node: read.optional(&written.node),
        cluster_id: read.optional(&written.cluster_id),
        locality: locality.unwrap_or_default(),
        protocol: read.word_or(
            &written.protocol,
            &[("TCP", Protocol::Tcp), ("HBONE", Protocol::Hbone)],
            Protocol::Tcp,
        ),
        network_mode: read.word_or(
            &written.network_mode,
            &[("Standard", NetworkMode::Standard), ("HostNetwork", NetworkMode::HostNetwork)],
            NetworkMode::Standard,
        ),
        waypoint: written.waypoint.as_ref().and_then(|gateway| read.gateway(gateway)),
        network_gateway: written.network_gateway.as_ref().and_then(|gateway| read.gateway(gateway)),
        native_tunnel: written.native_tunnel,
        application_tunnel: written.application_tunnel.as_ref().and_then(|tunnel| {
            let words = [("NONE", TunnelProtocol::None), ("PROXY", TunnelProtocol::Proxy)];
            let port = tunnel.port.as_ref().and_then(|port| read.port(port));
            read.word(&tunnel.protocol, &words).map(|protocol| ApplicationTunnel { protocol, port })
        }),
        authorization_policies: written
            .authorization_policies
            .0
            .iter()
            .filter_map(|key| {
                PolicyKey::parse(&key.value).map_err(|cause| read.complain(key.referenced, cause)).ok()
            })
            .collect(),
        status: read.word_or(&written.status, HEALTH, Health::Healthy),
        services: Box::default(),
        capacity: written.capacity.as_ref().map_or(Some(1), |text| read.number(text)).unwrap_or(1),
        workload_name: read.optional(&written.workload_name),
        workload_type: read.optional(&written.workload_type),
        canonical_name: read.optional(&written.canonical_name),
        canonical_revision: read.optional(&written.canonical_revision),
    };
    if let Err(cause) = fields.identity() {
        let part = match cause {
            SpiffeError::Empty(part) | SpiffeError::Character(part) => part,
            _ => "",
        };
        let text = match part {
            "namespace" => Some(&written.namespace),
            "trust domain" => written.trust_domain.as_ref(),
            "service account" => written.service_account.as_ref(),
            _ => None,
        };
        let what = format_args!(
            "this workload cannot have an identity: {cause}; write trustDomain, namespace and serviceAccount as \
             SPIFFE allows them"
        );
        read.complain(text.map_or(at, |text| text.referenced), what);
    }
    builder.workload(fields, memberships);
}

fn read_service(
    read: &mut Reader<'_>,
    builder: &mut Builder,
    seen: &mut HashMap<ServiceKey, Location>,
    written: &Spanned<shape::Service>,
) {
    let at = written.referenced;
    let written = &written.value;
    let key =
        ServiceKey { namespace: read.filled(&written.namespace), hostname: read.filled(&written.hostname) };
    read.unique(seen, key.clone(), at, format_args!("service {key}"));
    let mut named = HashMap::new();
    for (uid, endpoint) in &written.endpoints.0 {
        let ports = read.ports(&endpoint.port, Targets::Numbers);
        let status = read.word(&endpoint.status, HEALTH).unwrap_or(Health::Unhealthy);
        if uid.value != endpoint.workload_uid.value {
            let what = format_args!("this is not the endpoint's own key {:?}; write that", uid.value);
            read.complain(endpoint.workload_uid.referenced, what);
        }
        let uid_name = read.name(&uid.value);
        read.unique(&mut named, Arc::clone(&uid_name), uid.referenced, format_args!("endpoint {uid_name}"));
        builder.endpoint(key.clone(), uid_name, ports, status);
    }
    let cidr_vips = written
        .cidr_vips
        .0
        .iter()
        .filter_map(|vip| {
            Some(CidrVip { network: read.name(&vip.network.value), cidr: read.cidr(&vip.cidr)? })
        })
        .collect();
    let subject_alt_names = written
        .subject_alt_names
        .0
        .iter()
        .filter_map(|id| {
            let wrong = |cause| {
                let what = format_args!(
                    "{:?} is no identity: {cause}; write \
                     spiffe://<trust domain>/ns/<namespace>/sa/<service account>",
                    id.value
                );
                read.complain(id.referenced, what);
            };
            SpiffeId::parse(&id.value).map_err(wrong).ok()
        })
        .collect();
    let weighted_waypoints = written
        .weighted_waypoints
        .0
        .iter()
        .filter_map(|one| {
            let (gateway, weight) = (read.gateway(&one.destination), read.number(&one.weight));
            Some(WeightedWaypoint { gateway: gateway?, weight: weight? })
        })
        .collect();
    let service = Service {
        name: read.name(&written.name.value),
        vips: written.vips.0.iter().filter_map(|vip| read.network_address(vip)).collect(),
        cidr_vips,
        ports: read.ports(&written.ports, Targets::NumbersOrNamed),
        subject_alt_names,
        waypoint: written.waypoint.as_ref().and_then(|gateway| read.gateway(gateway)),
        weighted_waypoints,
        load_balancer: written.load_balancer.as_ref().and_then(|balancer| read_balancer(read, balancer)),
        ip_families: read.word_or(
            &written.ip_families,
            &[("IPv4", IpFamilies::V4), ("IPv6", IpFamilies::V6), ("Dual", IpFamilies::Dual)],
            IpFamilies::Any,
        ),
        canonical: written.canonical,
        visibility: read.word_or(
            &written.visibility,
            &[("Public", Visibility::Public), ("Namespace", Visibility::Namespace)],
            Visibility::Public,
        ),
        key,
    };
    builder.service(service);
}

fn read_balancer(read: &mut Reader<'_>, written: &shape::LoadBalancer) -> Option<LoadBalancer> {
    let scopes = [
        ("Region", Scope::Region),
        ("Zone", Scope::Zone),
        ("Subzone", Scope::Subzone),
        ("Node", Scope::Node),
        ("Cluster", Scope::Cluster),
        ("Network", Scope::Network),
    ];
    let modes = [
        ("Standard", LoadBalancerMode::Standard),
        ("Strict", LoadBalancerMode::Strict),
        ("Failover", LoadBalancerMode::Failover),
        ("Passthrough", LoadBalancerMode::Passthrough),
    ];
    let policies = [("OnlyHealthy", HealthPolicy::OnlyHealthy), ("AllowAll", HealthPolicy::AllowAll)];
    let preferences =
        written.routing_preferences.0.iter().filter_map(|scope| read.word(scope, &scopes)).collect();
    let (mode, health_policy) =
        (read.word(&written.mode, &modes), read.word(&written.health_policy, &policies));
    Some(LoadBalancer { preferences, mode: mode?, health_policy: health_policy? })
}
