//! One running instance the mesh knows.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::names::{GatewayAddress, ServiceKey};
use crate::identity::{SpiffeError, SpiffeId};
use crate::policy::PolicyKey;

/// Trust domain of a workload that names none.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Service account of a workload that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// One workload with its identity. Its fields are read through `Deref` and cannot change, so that the identity,
/// which is made of three of them and checked once, always fits.
#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    fields: WorkloadFields,
    /// The one identity, ready to be used as the list of those a tunnel accepts.
    accepted: Result<Arc<[SpiffeId]>, SpiffeError>,
}

/// What is known of a workload.
///
/// Source: `istio.workload.Workload`; empty text is "not set".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadFields {
    /// Primary key. Opaque, except that `//Pod/` in it marks a pod.
    pub uid: Arc<str>,
    /// Name of the pod or entry.
    pub name: Arc<str>,
    /// Kubernetes namespace; part of the identity.
    pub namespace: Arc<str>,
    /// Trust domain; empty becomes `cluster.local`.
    pub trust_domain: Arc<str>,
    /// Service account; empty becomes `default`.
    pub service_account: Arc<str>,
    /// Network its addresses belong to.
    pub network: Arc<str>,
    /// Its addresses, never IPv4-mapped ones.
    pub ips: Box<[IpAddr]>,
    /// Name to resolve where it has no address.
    pub hostname: Arc<str>,
    /// Name of the node it runs on.
    pub node: Arc<str>,
    /// Cluster it runs in.
    pub cluster_id: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// How it is reached.
    pub protocol: Protocol,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// The waypoint in front of it, for connections to its own addresses.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway behind which clients on other networks find it.
    pub network_gateway: Option<GatewayAddress>,
    /// Whether the application itself speaks HBONE.
    pub native_tunnel: bool,
    /// How connections are handed to the application, if it is a proxy of its own.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Policies that name it by selector.
    pub authorization_policies: Box<[PolicyKey]>,
    /// Whether it takes traffic.
    pub status: Health,
    /// Services it stands behind.
    pub services: Box<[ServiceKey]>,
    /// Its share of a service's connections; 0 is never chosen.
    pub capacity: u32,
    /// Name of the controller it belongs to (telemetry).
    pub workload_name: Arc<str>,
    /// Kind of that controller, such as `deployment` (telemetry).
    pub workload_type: Arc<str>,
    /// Canonical service name (telemetry).
    pub canonical_name: Arc<str>,
    /// Canonical service revision (telemetry).
    pub canonical_revision: Arc<str>,
}

impl Default for WorkloadFields {
    fn default() -> Self {
        Self {
            uid: Arc::default(),
            name: Arc::default(),
            namespace: Arc::default(),
            trust_domain: Arc::default(),
            service_account: Arc::default(),
            network: Arc::default(),
            ips: Box::default(),
            hostname: Arc::default(),
            node: Arc::default(),
            cluster_id: Arc::default(),
            locality: Locality::default(),
            protocol: Protocol::Tcp,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Box::default(),
            status: Health::Healthy,
            services: Box::default(),
            // One share is what the schema says of an absent weight.
            capacity: 1,
            workload_name: Arc::default(),
            workload_type: Arc::default(),
            canonical_name: Arc::default(),
            canonical_revision: Arc::default(),
        }
    }
}

impl WorkloadFields {
    /// The identity these fields make, defaults filled in.
    ///
    /// # Errors
    /// Which part of it SPIFFE does not allow.
    pub fn identity(&self) -> Result<SpiffeId, SpiffeError> {
        let or =
            |text: &'_ Arc<str>, default| if text.is_empty() { Arc::from(default) } else { Arc::clone(text) };
        SpiffeId::new(
            &or(&self.trust_domain, DEFAULT_TRUST_DOMAIN),
            &self.namespace,
            &or(&self.service_account, DEFAULT_SERVICE_ACCOUNT),
        )
    }
}

impl Workload {
    /// Fills in the default trust domain and service account, and computes the identity.
    pub fn new(mut fields: WorkloadFields) -> Self {
        let accepted = fields.identity().map(|identity| Arc::from([identity]));
        if fields.trust_domain.is_empty() {
            fields.trust_domain = DEFAULT_TRUST_DOMAIN.into();
        }
        if fields.service_account.is_empty() {
            fields.service_account = DEFAULT_SERVICE_ACCOUNT.into();
        }
        Self { fields, accepted }
    }

    /// Its name.
    ///
    /// # Errors
    /// Which part of it SPIFFE does not allow; such a workload can neither prove itself nor be proven.
    pub fn identity(&self) -> Result<&SpiffeId, SpiffeError> {
        self.accepted.as_ref().map(|one| &one[0]).map_err(|cause| *cause)
    }

    /// The identities a tunnel to this workload accepts when no service adds more: its own alone.
    ///
    /// # Errors
    /// As [`Workload::identity`].
    pub fn accepted(&self) -> Result<&Arc<[SpiffeId]>, SpiffeError> {
        self.accepted.as_ref().map_err(|cause| *cause)
    }

    /// Which of several workloads with one address answers for it: the highest.
    pub(super) fn precedence(&self) -> u8 {
        let pod = if self.uid.contains("//Pod/") { 2 } else { 0 };
        pod + u8::from(self.protocol == Protocol::Hbone)
    }
}

impl Deref for Workload {
    type Target = WorkloadFields;

    fn deref(&self) -> &WorkloadFields {
        &self.fields
    }
}

/// Where a workload runs; empty text is "unknown", and equal to another unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The widest part.
    pub region: Arc<str>,
    /// Within the region.
    pub zone: Arc<str>,
    /// Within the zone.
    pub subzone: Arc<str>,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Plaintext.
    Tcp,
    /// Only through a tunnel.
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// They are.
    Standard,
    /// They are the node's, so they say nothing about who answers there.
    HostNetwork,
}

/// Whether a workload takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Healthy,
    /// Only for services that want all endpoints.
    Unhealthy,
}

/// How connections are handed to an application that is a proxy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// What is written before the payload.
    pub protocol: TunnelProtocol,
    /// The application's port; `None` keeps the target port.
    pub port: Option<u16>,
}

/// What is written before the payload of an application tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}
