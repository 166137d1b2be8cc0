//! Environment and files to typed values, once, at start; all complaints at once.
//!
//! The variables are those that Istio's ztunnel chart sets, so that a changed image needs no other change; what is
//! ours alone starts with `ADIT_`. Variables nobody reads are ignored, because the chart sets some for other
//! versions. A file given with `--config` may hold the same settings (see [`source::Layered`]).

pub mod read;
pub mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use read::{Complaints, Reader};
use source::Source;

use crate::control::{self, Address, Roots, Token};
use crate::discovery::xds;
use crate::hbone::{self, Carrier};
use crate::identity::{Clock, Tls, TlsPolicy};
use crate::net::socket::{Keepalive, Transparent};
use crate::policy::UnknownPolicy;

/// Everything the node proxy needs to know at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node (`NODE_NAME`). Unset: every workload counts as local.
    pub node: Option<String>,
    /// This cluster (`ISTIO_META_CLUSTER_ID`, else `CLUSTER_ID`).
    pub cluster: String,
    /// The network this node is on (`NETWORK`); the empty name is a network too.
    pub network: String,
    /// Version shown in `istio_build` (`ISTIO_META_ISTIO_VERSION`).
    pub istio_version: String,
    /// Where workloads, services and policies come from.
    pub mesh: MeshSource,
    /// Who issues certificates.
    pub authority: Authority,
    /// Trust domain that the embedded authority issues for (`TRUST_DOMAIN`).
    pub trust_domain: String,
    /// Requested lifetime of certificates (`SECRET_TTL`).
    pub certificate_ttl: Duration,
    /// Only the hybrid post-quantum key exchange (`COMPLIANCE_POLICY=pqc`).
    pub pqc_only: bool,
    /// TLS 1.2 peers are served too (`TLS12_ENABLED=true`). What a peer will choose is not known in time, so every tunnel is then
    /// carried by the classic carrier, whatever `TUNNEL` says.
    pub tls12: bool,
    /// The node agent's socket (`INPOD_UDS`).
    pub agent_socket: PathBuf,
    /// How sockets in pods are made.
    pub pods: crate::capture::Config,
    /// Tunnel parameters.
    pub hbone: hbone::Config,
    /// Data workers (`ZTUNNEL_WORKER_THREADS` and the CPU settings).
    pub workers: usize,
    /// Whether answers carry, and requests are read for, workload metadata (`ENABLE_RESPONSE_BAGGAGE`).
    pub baggage: bool,
    /// What a policy that a workload names but nobody sent means (`UNKNOWN_POLICY`).
    pub unknown_policy: UnknownPolicy,
    /// How long connections may run on after the order to stop
    /// (`CONNECTION_TERMINATION_DEADLINE`, `TERMINATION_GRACE_PERIOD_SECONDS`).
    pub drain: Duration,
    /// Whether the pods' DNS is captured (`ISTIO_META_DNS_CAPTURE`), which this version does not answer.
    pub dns_capture: bool,
    /// Log filter (`RUST_LOG`).
    pub log_filter: String,
    /// One JSON object per log line (`LOG_FORMAT=json`).
    pub log_json: bool,
    /// Admin port on loopback (`ADIT_ADMIN_PORT`).
    pub admin_port: u16,
    /// Metrics port (`ADIT_STATS_PORT`).
    pub stats_port: u16,
    /// Readiness port (`ADIT_READINESS_PORT`).
    pub readiness_port: u16,
}

/// Where the mesh is described.
#[derive(Clone, Debug)]
pub enum MeshSource {
    /// A file, watched (`LOCAL_XDS_PATH`).
    File(PathBuf),
    /// The text itself (`LOCAL_XDS`).
    Inline(String),
    /// With the control plane (`XDS_ADDRESS`).
    Control(Box<xds::Config>),
}

/// Who issues certificates.
#[derive(Clone, Debug)]
pub enum Authority {
    /// This process, with the root in a directory that the nodes of one mesh share.
    Embedded {
        /// Holds the root (`ADIT_CA_DIR`).
        directory: PathBuf,
    },
    /// istiod (`CA_ADDRESS`).
    Istiod(Box<control::Config>),
}

/// Every setting this version reads.
pub const KNOWN: &[&str] = &[
    "PROXY_MODE",
    "NODE_NAME",
    "CLUSTER_ID",
    "ISTIO_META_CLUSTER_ID",
    "ISTIO_META_ISTIO_VERSION",
    "NETWORK",
    "LOCAL_XDS_PATH",
    "LOCAL_XDS",
    "XDS_ADDRESS",
    "XDS_ROOT_CA",
    "ALT_XDS_HOSTNAME",
    "AUTH_TOKEN",
    "CA_ADDRESS",
    "CA_ROOT_CA",
    "ALT_CA_HOSTNAME",
    "POD_NAME",
    "POD_NAMESPACE",
    "INSTANCE_IP",
    "ADIT_CA",
    "ADIT_CA_DIR",
    "TRUST_DOMAIN",
    "SECRET_TTL",
    "COMPLIANCE_POLICY",
    "TLS12_ENABLED",
    "CRL_PATH",
    "INPOD_UDS",
    "INPOD_PORT_REUSE",
    "PACKET_MARK",
    "ENABLE_ORIG_SRC",
    "IPV6_ENABLED",
    "KEEPALIVE_ENABLED",
    "KEEPALIVE_TIME",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "HTTP2_STREAM_WINDOW_SIZE",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "TUNNEL",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "ZTUNNEL_WORKER_THREADS",
    "ZTUNNEL_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_REQUEST",
    "ENABLE_RESPONSE_BAGGAGE",
    "UNKNOWN_POLICY",
    "ISTIO_META_DNS_CAPTURE",
    "CONNECTION_TERMINATION_DEADLINE",
    "TERMINATION_GRACE_PERIOD_SECONDS",
    "RUST_LOG",
    "LOG_FORMAT",
    "ADIT_ADMIN_PORT",
    "ADIT_STATS_PORT",
    "ADIT_READINESS_PORT",
];

/// Reads every setting.
///
/// # Errors
/// All complaints, each naming the variable or the file's key, its value, and what to write instead.
pub fn load(source: &impl Source) -> Result<Config, Complaints> {
    let mut env = Reader::new(source);
    env.optional("PROXY_MODE", |text| match text {
        "shared" => Ok(()),
        "dedicated" => Err("this version serves the pods of a node; only shared is possible".into()),
        _ => Err("write shared".into()),
    });
    let node = env.optional("NODE_NAME", read::text);
    let cluster = env.optional("ISTIO_META_CLUSTER_ID", read::text);
    let cluster_id = env.or("CLUSTER_ID", read::text, "Kubernetes".into());
    let network = env.or("NETWORK", read::any, String::new());
    let istio_version = env.or("ISTIO_META_ISTIO_VERSION", read::any, "unknown".into());

    let pqc_only = env.or("COMPLIANCE_POLICY", |text| Ok(text == "pqc"), false);
    let tls12 = env.or("TLS12_ENABLED", |text| Ok(text == "true"), false);
    let who = Who { node: node.clone(), cluster: cluster.clone(), cluster_id: cluster_id.clone() };
    let tls = Tls { tls12, pqc_only, ..Tls::default() };
    let mesh = mesh(&mut env, &who, &tls);
    let authority = authority(&mut env, &who, &tls);
    let trust_domain = env.or("TRUST_DOMAIN", read::text, "cluster.local".into());
    let certificate_ttl =
        env.or("SECRET_TTL", at_least(Duration::from_secs(60)), Duration::from_secs(86_400));

    env.optional("CRL_PATH", |text| match text {
        "" => Ok(()),
        _ => {
            Err("this version checks no revocation lists, and none must be ignored in silence; unset it"
                .into())
        }
    });

    let agent_socket = env.or("INPOD_UDS", path, "/var/run/ztunnel/ztunnel.sock".into());
    let ipv6 = env.or("IPV6_ENABLED", read::flag, true);
    let mark = env.or("PACKET_MARK", read::number, 1337u32);
    let pods = crate::capture::Config {
        mark: (mark != 0).then_some(mark),
        reuse_port: env.or("INPOD_PORT_REUSE", read::flag, true),
        transparent: match env.optional("ENABLE_ORIG_SRC", read::flag) {
            None => Transparent::BestEffort,
            Some(true) => Transparent::Required,
            Some(false) => Transparent::Off,
        },
        ipv6,
        keepalive: keepalive(&mut env),
    };
    let hbone = hbone(&mut env, tls12);
    let workers = workers(&mut env);
    let baggage = env.or("ENABLE_RESPONSE_BAGGAGE", read::flag, true);
    let unknown_policy = env.or(
        "UNKNOWN_POLICY",
        |text| match text {
            "close" => Ok(UnknownPolicy::Close),
            "ignore" => Ok(UnknownPolicy::Ignore),
            _ => Err("write close or ignore".into()),
        },
        UnknownPolicy::Close,
    );
    let drain = drain(&mut env);
    let dns_capture = env.or("ISTIO_META_DNS_CAPTURE", |text| Ok(text.eq_ignore_ascii_case("true")), true);
    let log_filter = env.or("RUST_LOG", read::any, "info".into());
    let log_json = env.or("LOG_FORMAT", |text| Ok(text == "json"), false);
    let admin_port = env.or("ADIT_ADMIN_PORT", read::port, 15000);
    let stats_port = env.or("ADIT_STATS_PORT", read::port, 15020);
    let readiness_port = env.or("ADIT_READINESS_PORT", read::port, 15021);

    let config = match (mesh, authority) {
        (Some(mesh), Some(authority)) => Some(Config {
            node,
            cluster: cluster.unwrap_or(cluster_id),
            network,
            istio_version,
            mesh,
            authority,
            trust_domain,
            certificate_ttl,
            pqc_only,
            tls12,
            agent_socket,
            pods,
            hbone,
            workers,
            baggage,
            unknown_policy,
            drain,
            dns_capture,
            log_filter,
            log_json,
            admin_port,
            stats_port,
            readiness_port,
        }),
        _ => None,
    };
    env.finish(config)
}

fn path(text: &str) -> Result<PathBuf, String> {
    read::text(text).map(PathBuf::from)
}

fn at_least(shortest: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| match read::duration(text)? {
        given if given < shortest => Err(format!("write at least {}s", shortest.as_secs())),
        given => Ok(given),
    }
}

/// What several settings say of who this process is.
struct Who {
    node: Option<String>,
    cluster: Option<String>,
    cluster_id: String,
}

fn mesh(env: &mut Reader<'_, impl Source>, who: &Who, tls: &Tls) -> Option<MeshSource> {
    let file = env.optional("LOCAL_XDS_PATH", path);
    let inline = env.optional("LOCAL_XDS", read::text);
    // Empty switches it off, as in the reference.
    let address = env.optional("XDS_ADDRESS", |text| match text {
        "" => Ok(None),
        _ => Address::parse(text).map(Some),
    });
    let address = address.flatten();
    match (file, inline, address) {
        (Some(file), None, None) => Some(MeshSource::File(file)),
        (None, Some(text), None) => Some(MeshSource::Inline(text)),
        (None, None, Some(address)) => {
            Some(MeshSource::Control(Box::new(control_plane(env, address, who, tls))))
        }
        (None, None, None) => {
            env.complain(
                "the mesh is described nowhere: set XDS_ADDRESS to the control plane, such as \
                 https://istiod.istio-system.svc:15012, or LOCAL_XDS_PATH to a file of workloads, services and policies"
                    .into(),
            );
            None
        }
        _ => {
            env.complain(
                "of LOCAL_XDS_PATH, LOCAL_XDS and XDS_ADDRESS several are set: unset all but one".into(),
            );
            None
        }
    }
}

/// Where the stock chart mounts the root of the control plane, and the token.
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

fn control_plane(env: &mut Reader<'_, impl Source>, address: Address, who: &Who, tls: &Tls) -> xds::Config {
    let mut more: BTreeMap<String, serde_json::Value> = env
        .family("ISTIO_META_", read::any)
        .into_iter()
        .map(|(key, text)| (key, serde_json::Value::String(text)))
        .collect();
    let json = |text: &str| serde_json::from_str(text).map_err(|cause| format!("this is no JSON: {cause}"));
    more.extend(env.family("ISTIO_METAJSON_", json));
    xds::Config {
        control: channel(env, address, "XDS", who, tls),
        node: xds::Node {
            name: env.or("POD_NAME", read::any, String::new()),
            namespace: env.or("POD_NAMESPACE", read::any, String::new()),
            // An address, which the control plane insists on.
            ip: env.or("INSTANCE_IP", read::text, "1.1.1.1".into()),
            node: who.node.clone(),
            cluster: who.cluster.clone(),
            more,
        },
    }
}

/// The way to the control plane for one `purpose`, `XDS` or `CA`, which is part of the names of its settings.
fn channel(
    env: &mut Reader<'_, impl Source>,
    address: Address,
    purpose: &str,
    who: &Who,
    tls: &Tls,
) -> control::Config {
    let header =
        |text: &str| text.parse().map_err(|_| "it has characters that a header may not have".to_owned());
    let mut headers = Vec::new();
    let prefix = format!("{purpose}_HEADER_");
    for (name, value) in env.family(&prefix, header) {
        match name.to_ascii_lowercase().parse() {
            Ok(name) => headers.push((name, value)),
            Err(_) => env.complain(format!("{prefix}{name}: this is no name of a header; rename it")),
        }
    }
    let token = |text: &str| match text {
        "" => Err("it is empty; give a path or a token, or unset it".to_owned()),
        path if std::path::Path::new(path).exists() => Ok(Token::File(path.into())),
        literal => Ok(Token::Literal(literal.into())),
    };
    let chart = if std::path::Path::new(TOKEN).exists() { Token::File(TOKEN.into()) } else { Token::None };
    let (provider, versions) = TlsPolicy::new(tls.clone(), Clock::system()).parameters();
    control::Config {
        address,
        alternative: env.optional(&format!("ALT_{purpose}_HOSTNAME"), read::text),
        roots: env.or(&format!("{purpose}_ROOT_CA"), Roots::parse, Roots::File(ROOT.into())),
        token: env.or("AUTH_TOKEN", token, chart),
        cluster: who.cluster.clone().unwrap_or_else(|| who.cluster_id.clone()),
        headers,
        provider,
        versions,
    }
}

fn authority(env: &mut Reader<'_, impl Source>, who: &Who, tls: &Tls) -> Option<Authority> {
    let embedded = env.optional("ADIT_CA", |text| match text {
        "embedded" => Ok(()),
        _ => Err("write embedded, or unset it and set CA_ADDRESS".into()),
    });
    let directory = env.or("ADIT_CA_DIR", path, "/var/lib/adit/ca".into());
    let address = env.optional("CA_ADDRESS", |text| match text {
        "" => Ok(None),
        _ => Address::parse(text).map(Some),
    });
    match (embedded, address.flatten()) {
        (Some(()), _) => Some(Authority::Embedded { directory }),
        (None, Some(address)) => Some(Authority::Istiod(Box::new(channel(env, address, "CA", who, tls)))),
        (None, None) => {
            env.complain(
                "no certificate authority is chosen: set CA_ADDRESS to that of the cluster, such as \
                 https://istiod.istio-system.svc:15012, or ADIT_CA=embedded (and ADIT_CA_DIR) to let the nodes issue \
                 certificates from a root they share"
                    .into(),
            );
            None
        }
    }
}

fn keepalive(env: &mut Reader<'_, impl Source>) -> Option<Keepalive> {
    let enabled = env.or("KEEPALIVE_ENABLED", read::flag, true);
    let second = Duration::from_secs(1);
    let keepalive = Keepalive {
        idle: env.or("KEEPALIVE_TIME", at_least(second), Duration::from_secs(180)),
        interval: env.or("KEEPALIVE_INTERVAL", at_least(second), Duration::from_secs(180)),
        probes: env.or("KEEPALIVE_RETRIES", in_range(1, 127), 9),
    };
    enabled.then_some(keepalive)
}

/// A number from `low` to `high`, both included.
fn in_range(low: u32, high: u32) -> impl Fn(&str) -> Result<u32, String> {
    move |text| match read::number(text)? {
        given if (low..=high).contains(&given) => Ok(given),
        _ => Err(format!("write a number from {low} to {high}")),
    }
}

fn hbone(env: &mut Reader<'_, impl Source>, tls12: bool) -> hbone::Config {
    // RFC 9113 §6.9.1 and §6.5.2: windows end at 2^31 - 1, frames lie between 2^14 and 2^24 - 1.
    let window = in_range(65_535, (1 << 31) - 1);
    let streams = env.or("POOL_MAX_STREAMS_PER_CONNECTION", in_range(1, u16::MAX.into()), 100);
    let wanted = env.optional("TUNNEL", |text| match text {
        "in-place" => Ok(Carrier::InPlace),
        "classic" => Ok(Carrier::Classic),
        _ => Err("write in-place or classic".into()),
    });
    if tls12 && wanted == Some(Carrier::InPlace) {
        env.complain(
            "TUNNEL=in-place carries TLS 1.3 only, and TLS12_ENABLED=true lets peers choose TLS 1.2: unset one of them".into(),
        );
    }
    let carrier = if tls12 { Carrier::Classic } else { wanted.unwrap_or_default() };
    hbone::Config {
        carrier,
        stream_window: env.or("HTTP2_STREAM_WINDOW_SIZE", &window, 4 << 20),
        connection_window: env.or("HTTP2_CONNECTION_WINDOW_SIZE", &window, 16 << 20),
        frame_size: env.or("HTTP2_FRAME_SIZE", in_range(1 << 14, (1 << 24) - 1), 1 << 20),
        streams_per_tunnel: usize::try_from(streams).unwrap_or(usize::MAX),
        idle_release: env.or("POOL_UNUSED_RELEASE_TIMEOUT", read::duration, Duration::from_secs(300)),
    }
}

/// An explicit number wins; then an explicit CPU limit; else a quarter of the cores, the request, or two.
fn workers(env: &mut Reader<'_, impl Source>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let available = env.or("ZTUNNEL_CPU_LIMIT", whole_cores, cores).max(1);
    let limit = env.optional("ZTUNNEL_RESOURCE_CPU_LIMIT", whole_cores);
    let request = env.optional("ZTUNNEL_RESOURCE_CPU_REQUEST", whole_cores).unwrap_or(0);
    let available = limit.unwrap_or(available);
    let automatic = match limit {
        Some(limit) => limit.max(request),
        None => available.div_ceil(4).max(request).max(2),
    };
    env.or("ZTUNNEL_WORKER_THREADS", |text| threads(text, available), automatic).max(1)
}

fn threads(text: &str, available: usize) -> Result<usize, String> {
    let wrong = || {
        "write a number of threads (0 for all cores, at most 256) or a share of the cores such as 50%"
            .to_owned()
    };
    if let Some(share) = text.strip_suffix('%') {
        let share: f64 = share.parse().map_err(|_| wrong())?;
        if !(share > 0.0 && share <= 100.0) {
            return Err(wrong());
        }
        // Whole thousandths of a percent, so that no float is cut down to a count.
        let wanted = (1..=available).find(|&n| n as f64 * 100.0 >= share * available as f64);
        return Ok(wanted.unwrap_or(available));
    }
    match text.parse() {
        Ok(0) => Ok(available),
        Ok(n @ 1..=256) => Ok(n),
        _ => Err(wrong()),
    }
}

/// A CPU quantity (`2`, `1.5`, `500m`) in whole cores, rounded up.
fn whole_cores(text: &str) -> Result<usize, String> {
    let wrong = || "write a positive number of cores such as 2, 1.5 or 500m".to_owned();
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<usize>().map_err(|_| wrong())?,
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, ""));
            let digits: String = part.chars().chain("000".chars()).take(3).collect();
            let (whole, part) =
                (whole.parse::<usize>().map_err(|_| wrong())?, digits.parse::<usize>().map_err(|_| wrong())?);
            whole.checked_mul(1000).and_then(|milli| milli.checked_add(part)).ok_or_else(wrong)?
        }
    };
    if milli == 0 { Err(wrong()) } else { Ok(milli.div_ceil(1000)) }
}

fn drain(env: &mut Reader<'_, impl Source>) -> Duration {
    let explicit = env.optional("CONNECTION_TERMINATION_DEADLINE", read::duration);
    let grace = env.optional("TERMINATION_GRACE_PERIOD_SECONDS", read::number::<u64>);
    let from_grace = |grace: u64| match grace {
        11.. => grace - 5,
        _ => grace.saturating_sub(1).max(1),
    };
    explicit.unwrap_or(Duration::from_secs(grace.map_or(5, from_grace)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn tunnels_are_carried_in_place_unless_told_otherwise_or_tls_1_2_is_served() {
        let carrier = |more: &[(&'static str, &'static str)]| {
            let mut settings = minimal();
            settings.extend(more.iter().copied());
            load(&settings).map(|config| config.hbone.carrier)
        };
        assert_eq!(carrier(&[]).unwrap(), Carrier::InPlace);
        assert_eq!(carrier(&[("TUNNEL", "in-place")]).unwrap(), Carrier::InPlace);
        assert_eq!(carrier(&[("TUNNEL", "classic")]).unwrap(), Carrier::Classic);
        assert_eq!(carrier(&[("TLS12_ENABLED", "true")]).unwrap(), Carrier::Classic);
        assert!(carrier(&[("TUNNEL", "fast")]).is_err());
        assert!(carrier(&[("TLS12_ENABLED", "true"), ("TUNNEL", "in-place")]).is_err());
    }

    fn minimal() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([("LOCAL_XDS_PATH", "/etc/adit/mesh.yaml"), ("ADIT_CA", "embedded")])
    }

    #[test]
    fn the_defaults_are_those_of_the_chart() {
        let config = load(&minimal()).unwrap();
        assert_eq!(config.agent_socket.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
        assert_eq!(config.pods.mark, Some(1337));
        assert_eq!((config.hbone.stream_window, config.hbone.connection_window), (4 << 20, 16 << 20));
        assert_eq!(config.drain, Duration::from_secs(5));
        assert!(config.workers >= 2);
    }

    #[test]
    fn a_bare_environment_is_told_everything_it_lacks() {
        let Complaints(told) = load(&BTreeMap::new()).unwrap_err();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("XDS_ADDRESS") && told[1].contains("CA_ADDRESS"));
    }

    #[test]
    fn each_bad_value_is_refused_with_its_name_and_remedy() {
        for (name, value, remedy) in [
            ("ADIT_STATS_PORT", "65616", "a port from 1 to 65535"),
            ("ADIT_ADMIN_PORT", "0", "a port from 1 to 65535"),
            ("IPV6_ENABLED", "yes", "true or false"),
            ("PROXY_MODE", "dedicated", "only shared"),
            ("HTTP2_FRAME_SIZE", "1000", "from 16384 to 16777215"),
            ("POOL_MAX_STREAMS_PER_CONNECTION", "0", "from 1 to 65535"),
            ("SECRET_TTL", "5s", "at least 60s"),
            ("UNKNOWN_POLICY", "maybe", "close or ignore"),
            ("ADIT_CA", "vault", "embedded"),
            ("CRL_PATH", "/etc/crl.pem", "unset it"),
            ("ZTUNNEL_WORKER_THREADS", "-1", "0 for all cores"),
            ("KEEPALIVE_RETRIES", "128", "from 1 to 127"),
        ] {
            let mut env = minimal();
            env.insert(name, value);
            let told = load(&env).unwrap_err().to_string();
            assert!(told.contains(name) && told.contains(value) && told.contains(remedy), "{told}");
        }
    }

    #[test]
    fn the_drain_deadline_leaves_time_within_the_grace_period() {
        for (grace, seconds) in [("30", 25), ("11", 6), ("10", 9), ("1", 1), ("0", 1)] {
            let mut env = minimal();
            env.insert("TERMINATION_GRACE_PERIOD_SECONDS", grace);
            assert_eq!(load(&env).unwrap().drain, Duration::from_secs(seconds), "{grace}");
        }
    }

    #[test]
    fn cpu_quantities_round_up_to_whole_cores() {
        for (text, cores) in [("2", 2), ("1.5", 2), ("500m", 1), ("1001m", 2), ("0.001", 1)] {
            assert_eq!(whole_cores(text), Ok(cores), "{text}");
        }
        for text in ["0", "-1", "two", "", "m"] {
            assert!(whole_cores(text).is_err(), "{text}");
        }
        assert_eq!((threads("50%", 4), threads("10%", 4), threads("0", 4)), (Ok(2), Ok(1), Ok(4)));
    }
}
