//! Builds every room once and hands each what it needs; the only file that knows all of them.
//!
//! The calling thread becomes the service thread: node agent, certificates, admin pages and signals. Beside it run
//! the discovery thread, the handshake pool and the data workers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::capture::Pod;
use crate::config::{Authority, Config, MeshSource};
use crate::hbone::{Handshakes, Placement, WorkerId};
use crate::identity::{Clock, EmbeddedCa, RootError, Store, Tls, TlsPolicy, Wanted};
use crate::net::{Netns, socket};
use crate::node::{self, PodInfo, Pods, StartError, Stop};
use crate::telemetry::{self, Format, Proxies, Readiness, Registry};
use crate::worker::{Fleet, Seed};
use crate::{admin, discovery, inbound, outbound, version};

/// Threads of the handshake pool, and handshakes under way at a time.
const HANDSHAKE_THREADS: usize = 2;
const HANDSHAKES: usize = 2048;
/// Traffic label sets per worker before new ones are folded together.
const LABEL_SETS: usize = 10_000;
/// How often the drain looks whether all is done.
const DRAIN_POLL: Duration = Duration::from_millis(25);

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log could not be set up.
    #[error("the log")]
    Log(#[from] telemetry::StartError),
    /// The mesh file cannot be used.
    #[error("{0}")]
    Mesh(discovery::Error),
    /// The certificate authority's root cannot be used.
    #[error("the embedded certificate authority")]
    Root(#[from] RootError),
    /// This process lacks a right it needs.
    #[error("{what}; run as root with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW")]
    Privilege {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A port of the admin pages.
    #[error(transparent)]
    Bind(io::Error),
    /// A thread or runtime.
    #[error("a thread could not be started")]
    Thread(#[source] io::Error),
}

/// Runs the node proxy until it is told to stop and has drained.
///
/// # Errors
/// [`Error`], before anything was served; afterwards no error ends it.
pub fn run(config: Config) -> Result<(), Error> {
    let registry = Registry::new(config.istio_version.clone(), LABEL_SETS);
    let format = if config.log_json { Format::Json } else { Format::Text };
    let logs = telemetry::install(format, &config.log_filter, telemetry::log_lines_dropped(&registry))?;
    check_privileges(&config)?;
    raise_open_files();
    let pages = Pages::bind(&config)?;

    let source = match &config.mesh {
        MeshSource::File(path) => discovery::Source::File(path.clone()),
        MeshSource::Inline(text) => discovery::Source::Inline(text.clone()),
    };
    let node = config.node.as_deref().map(Arc::from);
    let (discovery, mesh) = discovery::open(source, node, config.unknown_policy).map_err(Error::Mesh)?;

    let clock = Clock::system();
    let Authority::Embedded { directory } = &config.authority;
    let authority = EmbeddedCa::open(directory, &config.trust_domain, clock.clone())?;
    let tls = Tls { tls12: config.tls12, pqc_only: config.pqc_only, ..Tls::default() };
    let (store, keeper) = Store::new(Arc::new(authority), config.certificate_ttl, TlsPolicy::new(tls, clock));

    let (handshakes, _) = Handshakes::start(HANDSHAKE_THREADS, HANDSHAKES).map_err(Error::Thread)?;
    let placement = Arc::new(Placement::new(config.workers));
    let (network, cluster) = (Arc::from(config.network.as_str()), Arc::from(config.cluster.as_str()));
    let seed = Seed {
        inbound: inbound::Config {
            network: Arc::clone(&network),
            cluster: Arc::clone(&cluster),
            baggage: config.baggage,
            hbone: config.hbone.clone(),
        },
        outbound: outbound::Config { network, cluster, hbone: config.hbone.clone() },
        mesh: mesh.clone(),
        store: store.clone(),
        handshakes,
        placement,
        replaced: telemetry::source_address_replaced(&registry),
        registry: registry.clone(),
    };
    let fleet = Fleet::start(&seed).map_err(Error::Thread)?;
    drop(seed);

    tracing::info!("version: {}", version::line());
    tracing::info!(
        workers = config.workers,
        node = config.node.as_deref().unwrap_or(""),
        drain = ?config.drain,
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let service = Service {
        config,
        registry,
        levels: logs.levels(),
        readiness: Readiness::default(),
        mesh,
        store,
        pods: Rc::new(Running { fleet, pods: RefCell::default(), drain: Duration::ZERO }),
    };
    let watching = discovery.watch().map_err(Error::Thread)?;
    LocalSet::new().block_on(&runtime, service.run(pages, keeper));
    drop(watching);
    tracing::info!("shutdown complete");
    drop(logs);
    Ok(())
}
