//! Small meshes in few words, for tests.
//!
//! A workload `gate` is pod `gate` of namespace `default` with service account `gate`; a service `reviews` is
//! `reviews.default.svc.cluster.local`. What follows a workload or service changes that one.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    ApplicationTunnel, Builder, CidrVip, Destination, GatewayAddress, Health, HealthPolicy, IpFamilies,
    LoadBalancer, LoadBalancerMode, Locality, NetworkAddress, NetworkMode, Ports, Protocol, Scope, Service,
    ServiceKey, Snapshot, TunnelProtocol, Visibility, WeightedWaypoint, WorkloadFields,
};
use crate::identity::SpiffeId;
use crate::policy::{Policy, PolicyKey, UnknownPolicy};

const NAMESPACE: &str = "default";
const HBONE_PORT: u16 = 15008;

/// An empty mesh. Every workload is local until [`Mesh::node`] says otherwise.
pub fn mesh() -> Mesh {
    Mesh {
        node: None,
        unknown_policy: UnknownPolicy::Close,
        workloads: Vec::new(),
        services: Vec::new(),
        policies: Vec::new(),
        last: Last::Workload,
    }
}

/// The uid of [`Mesh::workload`] `name`, as long as it stays in its namespace.
pub fn uid(name: &str) -> Arc<str> {
    format!("c1//Pod/{NAMESPACE}/{name}").into()
}

/// The identity of [`Mesh::workload`] `name`.
pub fn identity(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", NAMESPACE, name).expect("test names fit into SPIFFE ids")
}

/// The key of [`Mesh::service`] `name`.
pub fn service_key(name: &str) -> ServiceKey {
    key(NAMESPACE, name)
}

fn key(namespace: &str, name: &str) -> ServiceKey {
    let hostname =
        if name.contains('.') { name.to_owned() } else { format!("{name}.{namespace}.svc.cluster.local") };
    ServiceKey { namespace: namespace.into(), hostname: hostname.into() }
}

/// A mesh being described.
#[derive(Debug)]
pub struct Mesh {
    node: Option<Arc<str>>,
    unknown_policy: UnknownPolicy,
    workloads: Vec<(WorkloadFields, Vec<(String, Ports)>)>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    last: Last,
}

#[derive(Debug)]
enum Last {
    Workload,
    Service,
}

impl Mesh {
    /// Makes only workloads on this node local.
    pub fn node(mut self, node: &str) -> Self {
        self.node = Some(node.into());
        self
    }

    /// What a missing policy does.
    pub fn unknown_policy(mut self, what: UnknownPolicy) -> Self {
        self.unknown_policy = what;
        self
    }

    /// Adds a policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// Adds a pod that speaks plaintext.
    pub fn workload(mut self, name: &str, ip: &str) -> Self {
        let fields = WorkloadFields {
            uid: uid(name),
            name: name.into(),
            namespace: NAMESPACE.into(),
            service_account: name.into(),
            ips: Box::new([address(ip)]),
            ..WorkloadFields::default()
        };
        self.workloads.push((fields, Vec::new()));
        self.last = Last::Workload;
        self
    }

    /// Adds a service at `vip`, an address with the port it listens on; its target port is the same.
    pub fn service(mut self, name: &str, vip: &str) -> Self {
        let at: std::net::SocketAddr = vip.parse().expect("a service's address has a port");
        let mut service = Service::named(service_key(name));
        service.name = name.into();
        service.vips = Box::new([NetworkAddress { network: "".into(), ip: at.ip() }]);
        service.ports = [(at.port(), at.port())].into_iter().collect();
        self.services.push(service);
        self.last = Last::Service;
        self
    }

    /// Changes anything of the last workload.
    pub fn with(mut self, change: impl FnOnce(&mut WorkloadFields)) -> Self {
        change(&mut self.workloads.last_mut().expect("a workload comes first").0);
        self
    }

    /// Changes anything of the last service.
    pub fn serving(mut self, change: impl FnOnce(&mut Service)) -> Self {
        change(self.services.last_mut().expect("a service comes first"));
        self
    }

    /// The last workload speaks HBONE.
    pub fn hbone(self) -> Self {
        self.with(|workload| workload.protocol = Protocol::Hbone)
    }

    /// The last workload is a member of a service, with the service's ports.
    pub fn member_of(self, service: &str) -> Self {
        self.member_at(service, &[])
    }

    /// The last workload is a member of a service, with target ports of its own.
    pub fn member_at(mut self, service: &str, ports: &[(u16, u16)]) -> Self {
        let (_, services) = self.workloads.last_mut().expect("a workload comes first");
        services.push((service.to_owned(), ports.iter().copied().collect()));
        self
    }

    /// The last workload has one more address.
    pub fn also_at(self, ip: &str) -> Self {
        self.with(|workload| {
            workload.ips = workload.ips.iter().copied().chain([address(ip)]).collect();
        })
    }

    /// The last workload is named by a policy.
    pub fn bound_by(self, policy: &PolicyKey) -> Self {
        let policy = policy.clone();
        self.with(|workload| {
            workload.authorization_policies =
                workload.authorization_policies.iter().cloned().chain([policy]).collect();
        })
    }

    /// The last workload runs on this node.
    pub fn on_node(self, node: &str) -> Self {
        self.with(|workload| workload.node = node.into())
    }

    /// The last workload's addresses belong to this network.
    pub fn on_network(self, network: &str) -> Self {
        self.with(|workload| workload.network = network.into())
    }

    /// The last workload runs here.
    pub fn at(self, region: &str, zone: &str, subzone: &str) -> Self {
        let locality = Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() };
        self.with(|workload| workload.locality = locality)
    }

    /// The last workload is not ready.
    pub fn unhealthy(self) -> Self {
        self.with(|workload| workload.status = Health::Unhealthy)
    }

    /// The last workload's addresses are its node's.
    pub fn on_host_network(self) -> Self {
        self.with(|workload| workload.network_mode = NetworkMode::HostNetwork)
    }

    /// The last workload is a waypoint that is handed its connections here.
    pub fn tunnelled_to(self, port: u16) -> Self {
        self.with(|workload| {
            workload.application_tunnel =
                Some(ApplicationTunnel { protocol: TunnelProtocol::Proxy, port: Some(port) });
        })
    }

    /// The last workload is found through this gateway from other networks.
    pub fn through(self, gateway: &str) -> Self {
        let gateway = reference(gateway);
        self.with(|workload| workload.network_gateway = Some(gateway))
    }

    /// Puts the last workload or service into another namespace; a service's hostname stays.
    pub fn in_namespace(self, namespace: &str) -> Self {
        match self.last {
            Last::Workload => self.with(|workload| workload.namespace = namespace.into()),
            Last::Service => self.serving(|service| service.key.namespace = namespace.into()),
        }
    }

    /// The last workload or service is behind this waypoint: `network/ip`, a service's name, or `ns/hostname`.
    pub fn behind(self, waypoint: &str) -> Self {
        let gateway = Some(reference(waypoint));
        match self.last {
            Last::Workload => self.with(|workload| workload.waypoint = gateway),
            Last::Service => self.serving(|service| service.waypoint = gateway),
        }
    }

    /// The last service draws its waypoint among these.
    pub fn behind_one_of(self, waypoints: &[(&str, u32)]) -> Self {
        let all = waypoints
            .iter()
            .map(|(name, weight)| WeightedWaypoint { gateway: reference(name), weight: *weight })
            .collect();
        self.serving(|service| service.weighted_waypoints = all)
    }

    /// The last service listens here, in place of what it listened on.
    pub fn ports(self, ports: &[(u16, u16)]) -> Self {
        self.serving(|service| service.ports = ports.iter().copied().collect())
    }

    /// The last service has one more address.
    pub fn and_vip(self, ip: &str) -> Self {
        let vip = NetworkAddress { network: "".into(), ip: address(ip) };
        self.serving(|service| service.vips = service.vips.iter().cloned().chain([vip]).collect())
    }

    /// The last service has a range instead of its address.
    pub fn over(self, cidr: &str) -> Self {
        let cidr = cidr.parse().expect("a range is written address/length");
        self.serving(|service| {
            service.vips = Box::default();
            service.cidr_vips = Box::new([CidrVip { network: "".into(), cidr }]);
        })
    }

    /// The last service chooses its endpoints so, among the healthy ones.
    pub fn balanced(self, mode: LoadBalancerMode, preferences: &[Scope]) -> Self {
        let balancer =
            LoadBalancer { preferences: preferences.into(), mode, health_policy: HealthPolicy::OnlyHealthy };
        self.serving(|service| service.load_balancer = Some(balancer))
    }

    /// The last service takes unhealthy endpoints too.
    pub fn allowing_all(self) -> Self {
        self.serving(|service| {
            let balancer = service.load_balancer.get_or_insert(LoadBalancer {
                preferences: Box::default(),
                mode: LoadBalancerMode::Standard,
                health_policy: HealthPolicy::AllowAll,
            });
            balancer.health_policy = HealthPolicy::AllowAll;
        })
    }

    /// The last service is dialled in these families.
    pub fn families(self, families: IpFamilies) -> Self {
        self.serving(|service| service.ip_families = families)
    }

    /// Only the last service's own namespace sees it.
    pub fn private(self) -> Self {
        self.serving(|service| service.visibility = Visibility::Namespace)
    }

    /// The last service is preferred among those that share its name or address.
    pub fn canonical(self) -> Self {
        self.serving(|service| service.canonical = true)
    }

    /// The last service's endpoints may show this workload's identity too.
    pub fn vouching_for(self, name: &str) -> Self {
        self.serving(|service| service.subject_alt_names = Box::new([identity(name)]))
    }

    /// The mesh as described.
    pub fn snapshot(self) -> Snapshot {
        let mut builder = Builder::new(self.node, self.unknown_policy);
        for (fields, memberships) in self.workloads {
            let key_of = |name: &str| {
                let known = self.services.iter().find(|service| &*service.name == name);
                known.map_or_else(|| service_key(name), |service| service.key.clone())
            };
            let memberships = memberships.into_iter().map(|(name, ports)| (key_of(&name), ports)).collect();
            builder.workload(fields, memberships);
        }
        self.services.into_iter().for_each(|service| builder.service(service));
        self.policies.into_iter().for_each(|policy| builder.policy(policy));
        builder.build()
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("tests write addresses that parse")
}

fn reference(text: &str) -> GatewayAddress {
    let destination = match text.split_once('/') {
        Some((network, ip)) if ip.parse::<IpAddr>().is_ok() => {
            Destination::Address(NetworkAddress { network: network.into(), ip: address(ip) })
        }
        Some((namespace, name)) => Destination::Hostname(key(namespace, name)),
        None => Destination::Hostname(service_key(text)),
    };
    GatewayAddress { destination, hbone_port: HBONE_PORT }
}
