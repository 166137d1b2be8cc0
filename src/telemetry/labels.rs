//! How traffic is labelled: the closed sets, what is said of a workload and a service, and their spelling.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// A label value that many label sets share.
pub type Text = Arc<str>;

/// What stands for a value that is not known.
const UNKNOWN: &str = "unknown";

/// Names are hashed with keys of this process: peers choose some of them (baggage), and must not be able to
/// choose collisions.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Which of the two proxies tells of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The one at the client's side: outbound.
    Source,
    /// The one at the server's side: inbound.
    Destination,
}

impl Reporter {
    /// Both, in the order of their cells.
    pub(super) const ALL: [Self; 2] = [Self::Source, Self::Destination];

    /// The value of the label `reporter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The value of the log field `direction`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// Whether the connection between the two proxies is mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Both ends showed a certificate.
    MutualTls,
    /// Plaintext, or nothing was said about it.
    Unknown,
}

impl Security {
    fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => UNKNOWN,
        }
    }
}

/// How a connection ended, as coarsely as Istio's dashboards know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Success, or cut because we were told to drain: `-`.
    None,
    /// Policy, when it opened or later.
    Deny,
    /// Could not be dialled, and every failure without a flag of its own.
    Connect,
    /// Our own TLS configuration could not be built.
    TlsFailure,
    /// HTTP/2 failed before the stream was open.
    H2HandshakeFailure,
    /// The tunnel port did not answer in time.
    NetworkPolicy,
    /// No certificate for the workload.
    IdentityError,
    /// The peer's certificate was revoked.
    CertRevoked,
}

impl ResponseFlag {
    /// The value of the label `response_flags`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// Whose move it is after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The other proxy, or the workload behind it.
    Peer,
    /// The workload on this node.
    Pod,
    /// Whoever configures the mesh: istiod, its CA, the cluster's rules.
    ControlPlane,
    /// This process.
    Ourselves,
}

impl Fault {
    pub(super) const ALL: [Self; 4] = [Self::Peer, Self::Pod, Self::ControlPlane, Self::Ourselves];

    /// The value of the label `fault`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Pod => "pod",
            Self::ControlPlane => "control_plane",
            Self::Ourselves => "ourselves",
        }
    }
}

/// Why a connection was refused before it had a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The mesh does not know the workload on this node.
    UnknownWorkload,
    /// It would come back to a port of this proxy.
    RecursiveCall,
    /// The caller's CONNECT makes no sense.
    BadRequest,
    /// Nothing in the mesh has that name or address.
    UnknownDestination,
    /// The service is known and nothing healthy stands behind it.
    NoHealthyUpstream,
    /// The waypoint or the gateway in front of it is not known.
    UnknownWaypoint,
    /// The caller's TLS handshake failed or took too long.
    TlsHandshake,
    /// A budget of sockets, handshakes or streams is used up.
    OverBudget,
    /// We are going away.
    Draining,
}

impl Refusal {
    pub(super) const ALL: [Self; 9] = [
        Self::UnknownWorkload,
        Self::RecursiveCall,
        Self::BadRequest,
        Self::UnknownDestination,
        Self::NoHealthyUpstream,
        Self::UnknownWaypoint,
        Self::TlsHandshake,
        Self::OverBudget,
        Self::Draining,
    ];

    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownWorkload => "unknown_workload",
            Self::RecursiveCall => "recursive_call",
            Self::BadRequest => "bad_request",
            Self::UnknownDestination => "unknown_destination",
            Self::NoHealthyUpstream => "no_healthy_upstream",
            Self::UnknownWaypoint => "unknown_waypoint",
            Self::TlsHandshake => "tls_handshake",
            Self::OverBudget => "over_budget",
            Self::Draining => "draining",
        }
    }
}

/// A value hashed once, when it was made, and then shared: looking a label set up reads no text twice.
#[derive(Debug)]
pub struct Shared<T>(Arc<(u64, T)>);

impl<T: Hash> Shared<T> {
    fn new(value: T) -> Self {
        Self(Arc::new((KEYS.hash_one(&value), value)))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T: Eq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.0);
    }
}

/// What the labels say of the workload at one end. A missing value is spelled `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the deployment, job or the like.
    pub workload: Option<Text>,
    /// Canonical service.
    pub canonical_service: Option<Text>,
    /// Canonical revision.
    pub canonical_revision: Option<Text>,
    /// Kubernetes namespace.
    pub namespace: Option<Text>,
    /// Application.
    pub app: Option<Text>,
    /// Version.
    pub version: Option<Text>,
    /// Cluster id.
    pub cluster: Option<Text>,
    /// Region of its node.
    pub region: Option<Text>,
    /// Zone of its node.
    pub zone: Option<Text>,
}

impl WorkloadLabels {
    /// Ready for label sets. An empty value, and the word `unknown` itself, become a missing one, so that two
    /// label sets that are spelled alike are equal.
    pub fn share(mut self) -> Shared<Self> {
        for value in [
            &mut self.workload,
            &mut self.canonical_service,
            &mut self.canonical_revision,
            &mut self.namespace,
            &mut self.app,
            &mut self.version,
            &mut self.cluster,
            &mut self.region,
            &mut self.zone,
        ] {
            normalise(value);
        }
        Shared::new(self)
    }
}

/// What the labels say of the service that was addressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Its hostname.
    pub hostname: Option<Text>,
    /// Its name.
    pub name: Option<Text>,
    /// Its namespace.
    pub namespace: Option<Text>,
}

impl ServiceLabels {
    /// As [`WorkloadLabels::share`].
    pub fn share(mut self) -> Shared<Self> {
        for value in [&mut self.hostname, &mut self.name, &mut self.namespace] {
            normalise(value);
        }
        Shared::new(self)
    }
}

fn normalise(value: &mut Option<Text>) {
    if value.as_deref().is_some_and(|text| text.is_empty() || text == UNKNOWN) {
        *value = None;
    }
}

/// The 27 labels of the `istio_tcp_*` families, as five shared parts: some pointers, not some text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Who tells.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Shared<WorkloadLabels>,
    /// The client's identity as a SPIFFE URI.
    pub source_principal: Option<Text>,
    /// The server's workload.
    pub destination: Shared<WorkloadLabels>,
    /// The server's identity as a SPIFFE URI.
    pub destination_principal: Option<Text>,
    /// The service that was addressed.
    pub service: Option<Shared<ServiceLabels>>,
    /// How it ended.
    pub response_flag: ResponseFlag,
    /// How it is protected.
    pub security: Security,
}

impl TrafficLabels {
    /// The set that stands for all sets beyond the budget: everything that others choose is unknown, so there
    /// are no more of these than reporters times flags times protections.
    pub(super) fn folded(&self) -> Self {
        let nobody = WorkloadLabels::default().share();
        Self {
            source: nobody.clone(),
            source_principal: None,
            destination: nobody,
            destination_principal: None,
            service: None,
            ..*self
        }
    }

    /// `name="value"` for every label, comma-separated, in Istio's order.
    pub(super) fn spell(&self, out: &mut String) {
        let (source, destination) = (&*self.source, &*self.destination);
        let nothing = ServiceLabels::default();
        let service = self.service.as_deref().unwrap_or(&nothing);
        let mut label = |name, value: Option<&str>| spell(out, name, value.unwrap_or(UNKNOWN));

        label("reporter", Some(self.reporter.as_str()));
        label("source_workload", source.workload.as_deref());
        label("source_canonical_service", source.canonical_service.as_deref());
        label("source_canonical_revision", source.canonical_revision.as_deref());
        label("source_workload_namespace", source.namespace.as_deref());
        label("source_principal", self.source_principal.as_deref());
        label("source_app", source.app.as_deref());
        label("source_version", source.version.as_deref());
        label("source_cluster", source.cluster.as_deref());
        label("destination_service", service.hostname.as_deref());
        label("destination_service_namespace", service.namespace.as_deref());
        label("destination_service_name", service.name.as_deref());
        label("destination_workload", destination.workload.as_deref());
        label("destination_canonical_service", destination.canonical_service.as_deref());
        label("destination_canonical_revision", destination.canonical_revision.as_deref());
        label("destination_workload_namespace", destination.namespace.as_deref());
        label("destination_principal", self.destination_principal.as_deref());
        label("destination_app", destination.app.as_deref());
        label("destination_version", destination.version.as_deref());
        label("destination_cluster", destination.cluster.as_deref());
        label("request_protocol", Some("tcp"));
        label("response_flags", Some(self.response_flag.as_str()));
        label("connection_security_policy", Some(self.security.as_str()));
        label("source_region", source.region.as_deref());
        label("source_zone", source.zone.as_deref());
        label("destination_region", destination.region.as_deref());
        label("destination_zone", destination.zone.as_deref());
    }
}

/// Appends `name="value"`, after a comma if something stands there; escapes as OpenMetrics 1.0 asks.
pub(super) fn spell(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}
