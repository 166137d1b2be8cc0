//! Builds every room once and hands each what it needs; the only file that knows all of them.
//!
//! The calling thread becomes the service thread: node agent, certificates, admin pages and signals. Beside it run
//! the discovery thread, the handshake pool and the data workers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, LocalSet};

use crate::capture::{self, Pod};
use crate::config::{Authority, Config, MeshSource};
use crate::discovery::xds;
use crate::hbone::{Handshakes, Placement, WorkerId};
use crate::identity::{self, Clock, EmbeddedCa, IstiodCa, Keeper, RootError, Store, Tls, TlsPolicy, Wanted};
use crate::mesh::Handle;
use crate::net::{Netns, socket};
use crate::node::{self, PodInfo, Pods, StartError, Stop};
use crate::telemetry::{self, Format, Levels, Proxies, Readiness, Registry};
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
    #[error(transparent)]
    Mesh(#[from] discovery::Error),
    /// The certificate authority's root cannot be used.
    #[error("the embedded certificate authority cannot use its directory, ADIT_CA_DIR")]
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
    Bind(#[from] admin::BindError),
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
    let format = if config.log_json { Format::Json } else { Format::Plain };
    let dropped = telemetry::log_lines_dropped(&registry);
    let logs = telemetry::install(format, &config.log_filter, dropped)?;
    check_privileges(&config)?;
    raise_open_files();
    let pages = Pages::bind(&config)?;

    let Follower { follow, stop: stop_discovery, mesh, synced } = Follower::start(&config, &registry)?;

    let clock = Clock::system();
    let authority: Arc<dyn identity::Authority> = match &config.authority {
        Authority::Embedded { directory } => {
            Arc::new(EmbeddedCa::open(directory, &config.trust_domain, clock.clone())?)
        }
        Authority::Istiod(control) => Arc::new(IstiodCa::new((**control).clone())),
    };
    let tls = Tls { tls12: config.tls12, pqc_only: config.pqc_only, ..Tls::default() };
    let (store, keeper) = Store::new(authority, config.certificate_ttl, TlsPolicy::new(tls, clock));

    let (handshakes, _) = Handshakes::start(HANDSHAKE_THREADS, HANDSHAKES).map_err(Error::Thread)?;
    let (network, cluster) = (Arc::from(config.network.as_str()), Arc::from(config.cluster.as_str()));
    let fleet = Fleet::start(&Seed {
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
        placement: Arc::new(Placement::new(config.workers)),
        replaced: telemetry::source_address_replaced(&registry),
        registry: registry.clone(),
    })
    .map_err(Error::Thread)?;

    tracing::info!("version: {}", version::line());
    tracing::info!(
        workers = config.workers,
        node = config.node.as_deref().unwrap_or("every node"),
        drain = ?config.drain,
        "starting"
    );
    if config.dns_capture {
        tracing::warn!(
            "this version answers no DNS queries: pods whose DNS is redirected to port 15053 resolve nothing; turn it \
             off with ambient.dnsCapture=false in the istio-cni chart, and set ISTIO_META_DNS_CAPTURE=false here"
        );
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let discovery =
        std::thread::Builder::new().name("discovery".into()).spawn(follow).map_err(Error::Thread)?;
    let service = Service { config, registry, levels: logs.levels(), mesh, synced, store };
    LocalSet::new().block_on(&runtime, service.run(fleet, pages, keeper));
    stop_discovery();
    if discovery.join().is_err() {
        tracing::error!("the discovery thread panicked");
    }
    tracing::info!("shutdown complete");
    drop(logs);
    Ok(())
}

/// Who keeps the mesh as its source has it.
struct Follower {
    /// What its thread does.
    follow: Box<dyn FnOnce() + Send>,
    /// Ends that.
    stop: Box<dyn FnOnce()>,
    mesh: Handle,
    /// Whether the whole mesh has been told.
    synced: watch::Receiver<bool>,
}

impl Follower {
    fn start(config: &Config, registry: &Registry) -> Result<Self, discovery::Error> {
        let (node, unknown_policy) = (config.node.as_deref().map(Arc::from), config.unknown_policy);
        let source = match &config.mesh {
            MeshSource::File(path) => discovery::Source::File(path.clone()),
            MeshSource::Inline(text) => discovery::Source::Inline(text.clone()),
            MeshSource::Control(config) => {
                let metrics = xds::Metrics::new(registry);
                let (xds, mesh, synced, stop) = xds::start((**config).clone(), node, unknown_policy, metrics);
                let follow = Box::new(move || {
                    if let Err(cause) = xds.run() {
                        tracing::error!(%cause, "discovery cannot run");
                    }
                });
                return Ok(Self { follow, stop: Box::new(move || _ = stop.send(())), mesh, synced });
            }
        };
        let (discovery, mesh) = discovery::start(discovery::Config { source, node, unknown_policy })?;
        let stop = discovery.stopper();
        // It was read, or there would be nothing here.
        let (_, synced) = watch::channel(true);
        Ok(Self {
            follow: Box::new(move || discovery.run()),
            stop: Box::new(move || stop.stop()),
            mesh,
            synced,
        })
    }
}

/// What the service thread holds.
struct Service {
    config: Config,
    registry: Registry,
    levels: Levels,
    mesh: Handle,
    synced: watch::Receiver<bool>,
    store: Store,
}

impl Service {
    async fn run(self, fleet: Fleet, pages: Pages, keeper: Keeper) {
        let Self { config, registry, levels, mesh, mut synced, store } = self;
        tokio::task::spawn_local(keeper.run());

        let readiness = Readiness::default();
        let told = readiness.task("state manager");
        tokio::task::spawn_local(async move {
            // Who follows the mesh goes at the end of the process.
            if synced.wait_for(|synced| *synced).await.is_ok() {
                told.done();
            }
        });
        let pods_ready = readiness.task("workload proxy manager");
        let quit = Arc::new(Notify::new());
        let console = admin::Console {
            levels,
            dump: {
                let (mesh, store, workers) = (mesh.clone(), store.clone(), fleet.observer());
                Arc::new(move || admin::dump(&mesh.current(), &store, &workers))
            },
            quit: {
                let quit = quit.clone();
                Arc::new(move || quit.notify_one())
            },
        };
        let servers = pages.serve(&readiness, &registry, &console);

        let pods = Running {
            fleet,
            store,
            mesh: mesh.clone(),
            pods: RefCell::default(),
            sockets: config.pods,
            drain: config.drain,
        };
        let proxies = Proxies::new(&registry);
        let metrics = node::Metrics::default();
        let told = Notify::new();
        let node = match node::Config::new(config.agent_socket.clone()) {
            Ok(node) => node,
            // Read once at start already; /proc does not go away.
            Err(cause) => return tracing::error!(%cause, "the proxy's own namespace cannot be read"),
        };
        let serve = node::run(
            node,
            &pods,
            &metrics,
            |ready| if ready { pods_ready.done() } else { pods_ready.pending() },
            told.notified(),
        );
        let signals = async {
            let why = wait_for_signal(&quit).await;
            tracing::info!(why, "draining");
            for server in &servers {
                server.abort();
            }
            told.notify_one();
            match why {
                // Asked twice from a keyboard, somebody wants it to end now: without the drain, but not without telling
                // clients by a reset that they were cut short, which the kernel would not do for us.
                "SIGINT" => next_interrupt().await,
                _ => std::future::pending().await,
            }
        };
        let upkeep = upkeep(&pods, &mesh, &metrics, &proxies);
        tokio::select! {
            () = serve => {}
            () = signals => {}
            () = upkeep => {}
        }
        pods.fleet.stop();
    }
}

/// What happens now and then: a new mesh judges live connections again, and the node's numbers are shown.
async fn upkeep(pods: &Running, mesh: &Handle, metrics: &node::Metrics, proxies: &Proxies) {
    let mut changes = mesh.changes();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let (mut started, mut stopped) = (0, 0);
    let mut followed = true;
    loop {
        tokio::select! {
            change = changes.changed(), if followed => match change {
                Ok(()) => {
                    pods.fleet.judge_again();
                    pods.claim_certificates();
                }
                Err(_) => {
                    followed = false;
                    tracing::error!("nobody follows the mesh any more; restart the process to see its changes");
                }
            },
            _ = tick.tick() => {}
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        proxies.active.set(i64::try_from(read(&metrics.active)).unwrap_or(i64::MAX));
        proxies.pending.set(i64::try_from(read(&metrics.pending)).unwrap_or(i64::MAX));
        let (now_started, now_stopped) = (read(&metrics.started), read(&metrics.stopped));
        proxies.started.add(now_started - std::mem::replace(&mut started, now_started));
        proxies.stopped.add(now_stopped - std::mem::replace(&mut stopped, now_stopped));
    }
}

/// The pods that are being served, as the node agent's client starts and stops them.
struct Running {
    fleet: Fleet,
    store: Store,
    mesh: Handle,
    pods: RefCell<HashMap<Arc<str>, Served>>,
    /// How sockets in pods are made.
    sockets: capture::Config,
    drain: Duration,
}

struct Served {
    pod: Arc<Pod>,
    worker: WorkerId,
    /// Keeps the pod's certificate fresh, once the mesh has said who it is.
    certificate: Option<Wanted>,
}

impl Running {
    /// Asks for the certificate of every pod whose workload is known by now.
    fn claim_certificates(&self) {
        let mesh = self.mesh.load();
        for served in self.pods.borrow_mut().values_mut() {
            let pod = &served.pod;
            let local = mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account);
            let Some(identity) = local.and_then(|local| local.identity().ok()) else { continue };
            if served.certificate.as_ref().is_none_or(|wanted| wanted.identity() != identity) {
                served.certificate = Some(self.store.want(identity.clone()));
            }
        }
    }
}

impl Pods for Running {
    async fn start(&self, info: PodInfo, netns: Arc<Netns>) -> Result<(), StartError> {
        let name = (info.namespace.as_str(), info.name.as_str(), info.service_account.as_str());
        // Listeners are the point at which the kernel may refuse; everything after it is ours.
        let (pod, listeners) =
            Pod::listen(&info.uid, name, netns, self.sockets.clone()).map_err(StartError::Listen)?;
        let pod = Arc::new(pod);
        let worker = self.fleet.place();
        // Noted before it is served: a start that fails or is dropped half way is followed by `stop`, which must find
        // the listeners that the worker may have taken up.
        let served = Served { pod: pod.clone(), worker, certificate: None };
        self.pods.borrow_mut().insert(info.uid, served);
        self.fleet.serve(worker, pod, listeners).await.map_err(StartError::Listen)?;
        self.claim_certificates();
        Ok(())
    }

    async fn stop(&self, uid: &str, how: Stop) {
        match how {
            Stop::Cut => {
                let served = self.pods.borrow_mut().remove(uid);
                if let Some(served) = served {
                    self.fleet.cut(&served.pod, served.worker).await;
                }
            }
            Stop::Drain => {
                self.fleet.drain().await;
                let end = Instant::now() + self.drain;
                while self.fleet.carried() > 0 && Instant::now() < end {
                    tokio::time::sleep(DRAIN_POLL).await;
                }
            }
        }
    }
}

type Server = Pin<Box<dyn Future<Output = io::Result<Infallible>>>>;

/// The listeners of the three admin pages.
struct Pages {
    console: Vec<TcpListener>,
    stats: TcpListener,
    readiness: TcpListener,
}

impl Pages {
    fn bind(config: &Config) -> Result<Self, Error> {
        let ipv6 = config.pods.ipv6;
        let mut console = vec![admin::bind(
            loopback(Ipv4Addr::LOCALHOST, config.admin_port),
            "the admin page",
            Some("ADIT_ADMIN_PORT"),
        )?];
        if ipv6 && !ipv6_is_off() {
            console.push(admin::bind(
                loopback(Ipv6Addr::LOCALHOST, config.admin_port),
                "the admin page",
                Some("ADIT_ADMIN_PORT"),
            )?);
        }
        let any = |port| socket::wildcard(port, ipv6);
        Ok(Self {
            console,
            stats: admin::bind(any(config.stats_port), "metrics", Some("ADIT_STATS_PORT"))?,
            readiness: admin::bind(any(config.readiness_port), "readiness", Some("ADIT_READINESS_PORT"))?,
        })
    }

    fn serve(self, readiness: &Readiness, registry: &Registry, console: &admin::Console) -> Vec<AbortHandle> {
        let mut servers = Vec::new();
        let mut serve = |server: Server, page: &'static str| {
            let task = tokio::task::spawn_local(async move {
                let Err(cause) = server.await;
                tracing::error!(%cause, page, "an admin page is not served");
            });
            servers.push(task.abort_handle());
        };
        for listener in self.console {
            serve(Box::pin(admin::console(listener, console.clone())), "admin");
        }
        serve(Box::pin(admin::stats(self.stats, registry.clone())), "metrics");
        serve(Box::pin(admin::readiness(self.readiness, readiness.clone())), "readiness");
        servers
    }
}

fn loopback(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// Whether this namespace has no IPv6 on its loopback interface.
fn ipv6_is_off() -> bool {
    match std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(text) => text.trim() != "0",
        Err(_) => true,
    }
}

/// Tries at once what serving the first pod would need.
fn check_privileges(config: &Config) -> Result<(), Error> {
    let denied = |what| move |cause| Error::Privilege { what, cause };
    let home =
        Netns::current().map_err(denied("the proxy's own network namespace cannot be read from /proc"))?;
    home.enter().map_err(denied("network namespaces cannot be entered"))?;
    let any = socket::wildcard(0, false);
    socket::dialer(any, config.pods.mark, None).map_err(denied("sockets cannot be marked (SO_MARK)"))?;
    Ok(())
}

/// Every connection is two descriptors at least: the soft limit of open files goes up to the hard one.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(cause) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%cause, soft, hard, "the limit of open files stays low");
    }
}

/// Waits for the order to stop and says where it came from.
async fn wait_for_signal(quit: &Notify) -> &'static str {
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        tracing::error!("signals cannot be watched; stop with POST /quitquitquit");
        quit.notified().await;
        return "quitquitquit";
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = quit.notified() => "quitquitquit",
    }
}

async fn next_interrupt() {
    match signal(SignalKind::interrupt()) {
        Ok(mut interrupt) => drop(interrupt.recv().await),
        Err(_) => std::future::pending().await,
    }
}
