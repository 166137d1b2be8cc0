//! From an Address to a workload or a service.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message as _;

use super::policy::{address, port};
use super::wire::workload as wire;
use crate::identity::SpiffeId;
use crate::mesh::{
    ApplicationTunnel, Change, CidrVip, Destination, GatewayAddress, Health, HealthPolicy, IpFamilies,
    LoadBalancer, LoadBalancerMode, Locality, NetworkAddress, NetworkMode, Ports, Protocol, Scope, Service,
    ServiceKey, TunnelProtocol, Visibility, WeightedWaypoint, WorkloadFields,
};
use crate::policy::PolicyKey;

/// Decodes addresses. Texts that many of them share are kept once.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    texts: HashSet<Arc<str>>,
}

/// Something that was not understood.
#[derive(Debug)]
pub(super) struct Refused {
    /// Why.
    pub why: String,
    /// Where it is, as far as that was understood.
    pub at: Vec<NetworkAddress>,
}

impl Decoder {
    /// Decodes one address, which came under `name`.
    ///
    /// # Errors
    /// [`Refused`]: what about it is not as it should be; then none of it counts, but that it is there.
    pub fn decode(&mut self, name: &str, bytes: bytes::Bytes) -> Result<Change, Refused> {
        let read = wire::Address::decode(bytes)
            .map_err(|cause| Refused { why: cause.to_string(), at: Vec::new() })?;
        let at = self.places(&read);
        self.understand(name, read).map_err(|why| Refused { why, at })
    }

    /// The addresses that are named in it and are some.
    fn places(&mut self, read: &wire::Address) -> Vec<NetworkAddress> {
        match &read.r#type {
            None => Vec::new(),
            Some(wire::address::Type::Workload(workload)) => {
                let network = self.text(&workload.network);
                let ips = workload.addresses.iter().filter_map(|bytes| ip(bytes).ok());
                ips.map(|ip| NetworkAddress { network: Arc::clone(&network), ip }).collect()
            }
            Some(wire::address::Type::Service(service)) => {
                let hosts =
                    service.addresses.iter().filter(|vip| vip.length.is_none_or(|length| length >= 32));
                let one = |vip: &wire::NetworkAddress| (ip(&vip.address).ok(), vip.network.clone());
                let hosts: Vec<_> = hosts.map(one).collect();
                let named = |(ip, network): (Option<IpAddr>, String)| {
                    ip.map(|ip| NetworkAddress { network: self.text(&network), ip })
                };
                hosts.into_iter().filter_map(named).collect()
            }
        }
    }

    fn understand(&mut self, name: &str, read: wire::Address) -> Result<Change, String> {
        let (change, own) = match read.r#type {
            None => return Err("it is neither a workload nor a service".into()),
            Some(wire::address::Type::Workload(workload)) => {
                let own = workload.uid.clone();
                (self.workload(workload)?, own)
            }
            Some(wire::address::Type::Service(service)) => {
                let own = format!("{}/{}", service.namespace, service.hostname);
                (self.service(service)?, own)
            }
        };
        // It is removed by the name it came under, so it must not be another's.
        if own == name { Ok(change) } else { Err(format!("its own name is {own:?}")) }
    }

    /// Lets go of texts that nobody uses any more.
    pub fn forget_unused(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    fn workload(&mut self, read: wire::Workload) -> Result<Change, String> {
        if read.uid.is_empty() {
            return Err("it has no uid".into());
        }
        let mut services = Vec::with_capacity(read.services.len());
        for (key, ports) in &read.services {
            services.push((self.service_key(key)?, self::ports(&ports.ports)?));
        }
        // A map has no order, and what has none must not depend on chance.
        services.sort_by(|(a, _), (b, _)| a.cmp(b));
        let protocol = match read.tunnel_protocol() {
            wire::TunnelProtocol::None if read.tunnel_protocol == 0 => Protocol::Tcp,
            wire::TunnelProtocol::Hbone => Protocol::Hbone,
            _ => return Err(format!("the tunnel protocol {} is not known", read.tunnel_protocol)),
        };
        let network_mode = match wire::NetworkMode::try_from(read.network_mode) {
            Ok(wire::NetworkMode::Standard) => NetworkMode::Standard,
            Ok(wire::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
            Err(_) => return Err(format!("the network mode {} is not known", read.network_mode)),
        };
        let status = match wire::WorkloadStatus::try_from(read.status) {
            Ok(wire::WorkloadStatus::Healthy) => Health::Healthy,
            Ok(wire::WorkloadStatus::Unhealthy) => Health::Unhealthy,
            Err(_) => return Err(format!("the status {} is not known", read.status)),
        };
        let kind = match wire::WorkloadType::try_from(read.workload_type) {
            Ok(wire::WorkloadType::Cronjob) => "cronjob",
            Ok(wire::WorkloadType::Pod) => "pod",
            Ok(wire::WorkloadType::Job) => "job",
            // For telemetry alone.
            Ok(wire::WorkloadType::Deployment) | Err(_) => "deployment",
        };
        let application_tunnel = match &read.application_tunnel {
            None => None,
            Some(tunnel) => Some(ApplicationTunnel {
                protocol: match wire::application_tunnel::Protocol::try_from(tunnel.protocol) {
                    Ok(wire::application_tunnel::Protocol::None) => TunnelProtocol::None,
                    Ok(wire::application_tunnel::Protocol::Proxy) => TunnelProtocol::Proxy,
                    Err(_) => return Err(format!("the application tunnel {} is not known", tunnel.protocol)),
                },
                port: Some(port(tunnel.port)?).filter(|port| *port != 0),
            }),
        };
        let policies = read.authorization_policies.iter();
        let policies = policies.map(|key| PolicyKey::parse(key).map_err(|cause| cause.to_string()));
        let locality = read.locality.clone().unwrap_or_default();
        let or = |text: &str, default: &'static str| if text.is_empty() { default } else { text }.to_owned();
        let fields = WorkloadFields {
            // Unlike the rest, nobody else has it.
            uid: read.uid.as_str().into(),
            name: read.name.as_str().into(),
            namespace: self.text(&read.namespace),
            trust_domain: self.text(&or(&read.trust_domain, "cluster.local")),
            service_account: self.text(&or(&read.service_account, "default")),
            network: self.text(&read.network),
            ips: read.addresses.iter().map(|bytes| ip(bytes)).collect::<Result<_, _>>()?,
            hostname: self.text(&read.hostname),
            node: self.text(&read.node),
            cluster_id: self.text(&or(&read.cluster_id, "Kubernetes")),
            locality: Locality {
                region: self.text(&locality.region),
                zone: self.text(&locality.zone),
                subzone: self.text(&locality.subzone),
            },
            protocol,
            network_mode,
            waypoint: self.gateway(read.waypoint.as_ref())?,
            network_gateway: self.gateway(read.network_gateway.as_ref())?,
            native_tunnel: read.native_tunnel,
            application_tunnel,
            authorization_policies: policies.collect::<Result<_, _>>()?,
            status,
            services: Box::default(),
            capacity: read.capacity.as_ref().map_or(1, |capacity| capacity.value),
            workload_name: self.text(&read.workload_name),
            workload_type: self.text(kind),
            canonical_name: self.text(&read.canonical_name),
            canonical_revision: self.text(&read.canonical_revision),
        };
        fields.identity().map_err(|cause| format!("it can have no identity: {cause}"))?;
        Ok(Change::Workload(Box::new(fields), services))
    }

    fn service(&mut self, read: wire::Service) -> Result<Change, String> {
        if read.namespace.is_empty() || read.hostname.is_empty() {
            return Err("it has no namespace or no hostname".into());
        }
        let key = ServiceKey { namespace: self.text(&read.namespace), hostname: self.text(&read.hostname) };
        let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
        for vip in &read.addresses {
            let (network, ip) = (self.text(&vip.network), ip(&vip.address)?);
            let most = if ip.is_ipv4() { 32 } else { 128 };
            // What was written as IPv4 in IPv6 has its length counted there.
            let mapped = if vip.address.len() == 16 && ip.is_ipv4() { 96 } else { 0 };
            match vip.length {
                None => vips.push(NetworkAddress { network, ip }),
                Some(length) if length == most + mapped => vips.push(NetworkAddress { network, ip }),
                Some(length) => {
                    let prefix = length.checked_sub(mapped).and_then(|length| u8::try_from(length).ok());
                    let cidr = prefix.and_then(|prefix| IpNet::new(ip, prefix).ok());
                    let cidr = cidr.ok_or_else(|| format!("{ip} has no prefix of {length} bits"))?;
                    cidr_vips.push(CidrVip { network, cidr: cidr.trunc() });
                }
            }
        }
        // As istiod sends them: those that are no SPIFFE identity can prove nothing here.
        let subject_alt_names = read.subject_alt_names.iter().filter_map(|id| {
            SpiffeId::parse(id)
                .inspect_err(|cause| tracing::warn!(service = %key, name = %id, %cause, "a subject alternative name is ignored"))
                .ok()
        });
        let subject_alt_names = subject_alt_names.collect();
        let mut weighted_waypoints = Vec::new();
        for one in &read.weighted_waypoints {
            let gateway =
                self.gateway(one.destination.as_ref())?.ok_or("a weighted waypoint leads nowhere")?;
            weighted_waypoints.push(WeightedWaypoint { gateway, weight: one.weight });
        }
        let service = Service {
            name: self.text(&read.name),
            vips: vips.into(),
            cidr_vips: cidr_vips.into(),
            ports: ports(&read.ports)?,
            subject_alt_names,
            waypoint: self.gateway(read.waypoint.as_ref())?,
            weighted_waypoints: weighted_waypoints.into(),
            load_balancer: read.load_balancing.as_ref().map(balancer).transpose()?,
            ip_families: match wire::IpFamilies::try_from(read.ip_families) {
                Ok(wire::IpFamilies::Automatic) => IpFamilies::Any,
                Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::V4,
                Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::V6,
                Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
                Err(_) => return Err(format!("the address families {} are not known", read.ip_families)),
            },
            canonical: read.canonical,
            visibility: match wire::service::Visibility::try_from(read.visibility) {
                Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
                Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
            },
            key,
        };
        Ok(Change::Service(Box::new(service)))
    }

    fn service_key(&mut self, key: &str) -> Result<ServiceKey, String> {
        let (namespace, hostname) =
            key.split_once('/').ok_or_else(|| format!("{key:?} names no service: it has no slash"))?;
        Ok(ServiceKey { namespace: self.text(namespace), hostname: self.text(hostname) })
    }

    fn gateway(&mut self, read: Option<&wire::GatewayAddress>) -> Result<Option<GatewayAddress>, String> {
        use wire::gateway_address::Destination as Way;
        let Some(read) = read else { return Ok(None) };
        let destination = match &read.destination {
            None => return Err("a waypoint or gateway leads nowhere".into()),
            Some(Way::Hostname(name)) => Destination::Hostname(ServiceKey {
                namespace: self.text(&name.namespace),
                hostname: self.text(&name.hostname),
            }),
            Some(Way::Address(at)) => {
                Destination::Address(NetworkAddress { network: self.text(&at.network), ip: ip(&at.address)? })
            }
        };
        Ok(Some(GatewayAddress { destination, hbone_port: port(read.hbone_mtls_port)? }))
    }
}

fn balancer(read: &wire::LoadBalancing) -> Result<LoadBalancer, String> {
    use wire::load_balancing as lb;
    let scope = |number: &i32| match lb::Scope::try_from(*number) {
        Ok(lb::Scope::Region) => Ok(Scope::Region),
        Ok(lb::Scope::Zone) => Ok(Scope::Zone),
        Ok(lb::Scope::Subzone) => Ok(Scope::Subzone),
        Ok(lb::Scope::Node) => Ok(Scope::Node),
        Ok(lb::Scope::Cluster) => Ok(Scope::Cluster),
        Ok(lb::Scope::Network) => Ok(Scope::Network),
        Ok(lb::Scope::UnspecifiedScope) | Err(_) => Err(format!("the preference {number} is not known")),
    };
    Ok(LoadBalancer {
        preferences: read.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match lb::Mode::try_from(read.mode) {
            Ok(lb::Mode::UnspecifiedMode) => LoadBalancerMode::Standard,
            Ok(lb::Mode::Strict) => LoadBalancerMode::Strict,
            Ok(lb::Mode::Failover) => LoadBalancerMode::Failover,
            Ok(lb::Mode::Passthrough) => LoadBalancerMode::Passthrough,
            Err(_) => return Err(format!("the mode {} of load balancing is not known", read.mode)),
        },
        health_policy: match lb::HealthPolicy::try_from(read.health_policy) {
            Ok(lb::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
            Ok(lb::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
            Err(_) => return Err(format!("the health policy {} is not known", read.health_policy)),
        },
    })
}

fn ports(all: &[wire::Port]) -> Result<Ports, String> {
    all.iter().map(|one| Ok((port(one.service_port)?, port(one.target_port)?))).collect()
}

/// An address, never an IPv4-mapped one.
fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    address(bytes).map(|ip| ip.to_canonical())
}
