//! The file that tells the proxies who lives in the lab: `LOCAL_XDS_PATH`, in YAML.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::error::Error;
use super::world::{Membership, Pod};

/// Everything the proxies know: pods, services in front of them, policies on them.
#[derive(Clone, Debug, Default)]
pub struct MeshFile {
    pods: Vec<Pod>,
    services: Vec<Service>,
    policies: Vec<Policy>,
}

/// A service: a name, virtual addresses, and the pods behind it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name; the host name follows from both.
    pub name: String,
    /// Virtual addresses, of either family.
    pub addresses: Vec<IpAddr>,
    /// Its port and the pods' port behind it.
    pub ports: Vec<(u16, u16)>,
    /// Names (`namespace/name`) of the pods behind it.
    pub behind: Vec<String>,
}

impl Service {
    /// `<name>.<namespace>.svc.cluster.local`.
    pub fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }
}

/// A policy on some pods.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What a match means.
    pub action: Action,
    /// Names (`namespace/name`) of the pods it is on.
    pub on: Vec<String>,
    /// Any of these rules; in a rule all clauses; in a clause any match.
    pub rules: Vec<Vec<Vec<Match>>>,
}

/// What a policy's match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Whoever matches may; whoever matches no such policy may not.
    Allow,
    /// Whoever matches may not.
    Deny,
}

/// One match: every list that is not empty must agree.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Identities, without `spiffe://`, any of which agrees.
    pub principals: Vec<Text>,
    /// Identities none of which may agree.
    pub not_principals: Vec<Text>,
    /// Ports dialled in the pod, any of which agrees.
    pub destination_ports: Vec<u16>,
    /// Caller's networks in CIDR notation, any of which agrees.
    pub source_ips: Vec<String>,
}

/// How one text is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// It is this text.
    Exact(String),
    /// It starts with this text.
    Prefix(String),
    /// It is not empty.
    Presence,
}

impl Text {
    fn yaml(&self) -> String {
        match self {
            Self::Exact(text) => format!("!Exact {}", quoted(text)),
            Self::Prefix(text) => format!("!Prefix {}", quoted(text)),
            Self::Presence => "!Presence []".to_owned(),
        }
    }
}

impl MeshFile {
    /// A mesh of these pods; those outside it are listed too, as workloads that speak plain TCP.
    pub fn new<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        Self { pods: pods.into_iter().cloned().collect(), ..Self::default() }
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Adds a policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, so the results say nothing.
        let _ = self.write(&mut text);
        text
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The system's answer.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        std::fs::write(path, self.yaml())
            .map_err(Error::io(format!("writing the mesh to {}", path.display())))
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "workloads:")?;
        for pod in &self.pods {
            self.write_workload(text, pod)?;
        }
        writeln!(text, "services:{}", if self.services.is_empty() { " []" } else { "" })?;
        for service in &self.services {
            let vips = service.addresses.iter().map(|ip| quoted(&format!("/{ip}")));
            writeln!(text, "- name: {}", quoted(&service.name))?;
            writeln!(text, "  namespace: {}", quoted(&service.namespace))?;
            writeln!(text, "  hostname: {}", quoted(&service.host()))?;
            writeln!(text, "  vips: [{}]", joined(vips))?;
            writeln!(text, "  ports: {}", ports(service))?;
            writeln!(text, "  canonical: true")?;
        }
        writeln!(text, "policies:{}", if self.policies.is_empty() { " []" } else { "" })?;
        for policy in &self.policies {
            writeln!(text, "- name: {}", quoted(&policy.name))?;
            writeln!(text, "  namespace: {}", quoted(&policy.namespace))?;
            writeln!(text, "  scope: WorkloadSelector")?;
            writeln!(text, "  action: {:?}", policy.action)?;
            writeln!(text, "  dryRun: false")?;
            let rules = policy.rules.iter().map(|clauses| {
                let clauses = clauses.iter().map(|matches| {
                    let matches = matches.iter().map(one_match);
                    format!("[{}]", joined(matches))
                });
                format!("[{}]", joined(clauses))
            });
            writeln!(text, "  rules: [{}]", joined(rules))?;
        }
        Ok(())
    }

    fn write_workload(&self, text: &mut String, pod: &Pod) -> std::fmt::Result {
        let full_name = pod.full_name();
        let protocol = match pod.membership() {
            Membership::Mesh => "HBONE",
            Membership::Outside => "TCP",
        };
        let policies = self.policies.iter().filter(|it| it.on.contains(&full_name));
        let policies = policies.map(|it| quoted(&format!("{}/{}", it.namespace, it.name)));
        let services = self.services.iter().filter(|it| it.behind.contains(&full_name));
        let services = services
            .map(|it| format!("{}: {}", quoted(&format!("{}/{}", it.namespace, it.host())), ports(it)));
        writeln!(text, "- uid: {}", quoted(&format!("Kubernetes//Pod/{full_name}")))?;
        writeln!(text, "  name: {}", quoted(pod.name()))?;
        writeln!(text, "  namespace: {}", quoted(pod.namespace()))?;
        writeln!(text, "  serviceAccount: {}", quoted(pod.name()))?;
        writeln!(text, "  trustDomain: {}", quoted(pod.identity().trust_domain()))?;
        writeln!(text, "  workloadName: {}", quoted(pod.name()))?;
        writeln!(text, "  workloadType: \"pod\"")?;
        writeln!(text, "  canonicalName: {}", quoted(pod.name()))?;
        writeln!(text, "  canonicalRevision: \"v1\"")?;
        writeln!(text, "  clusterId: \"Kubernetes\"")?;
        writeln!(text, "  node: {}", quoted(pod.side().name()))?;
        writeln!(text, "  workloadIps: [\"{}\", \"{}\"]", pod.ipv4(), pod.ipv6())?;
        writeln!(text, "  protocol: {protocol}")?;
        writeln!(text, "  status: Healthy")?;
        writeln!(text, "  authorizationPolicies: [{}]", joined(policies))?;
        writeln!(text, "  services: {{{}}}", joined(services))
    }
}

fn ports(service: &Service) -> String {
    // Keys of port maps are plain numbers: the reference rejects quoted ones.
    format!("{{{}}}", joined(service.ports.iter().map(|(port, target)| format!("{port}: {target}"))))
}

fn one_match(it: &Match) -> String {
    let texts = |key: &str, list: &[Text]| {
        (!list.is_empty()).then(|| format!("{key}: [{}]", joined(list.iter().map(Text::yaml))))
    };
    let ports = (!it.destination_ports.is_empty()).then(|| {
        format!("destinationPorts: [{}]", joined(it.destination_ports.iter().map(ToString::to_string)))
    });
    let ips = (!it.source_ips.is_empty())
        .then(|| format!("sourceIps: [{}]", joined(it.source_ips.iter().map(|ip| quoted(ip)))));
    let keys = [texts("principals", &it.principals), texts("notPrincipals", &it.not_principals), ports, ips];
    format!("{{{}}}", joined(keys.into_iter().flatten()))
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// A JSON string, which is a double-quoted YAML scalar too (YAML 1.2 §1.3).
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
