//! What do tunnels cost: to open, to open a stream on, to carry bytes through?
//!
//! Both proxies are ours and share this machine, each on a thread of its own, over the loopback of a network
//! namespace. Making that needs CAP_SYS_ADMIN; without it the bench says that it did not run.
//!
//! - `tunnel/open`: µs for TCP, mutual TLS with full verification, and both HTTP/2 prefaces, both sides' work.
//! - `tunnel/connect`: µs for entering the namespace and the TCP connection alone, the reference.
//! - `tunnel/stream`: µs for one CONNECT and its 200 on a tunnel that is there.
//! - `tunnel/carry`: GiB/s of one stream, one direction, written in chunks of 256 KiB, application to application.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use adit::capture::{self, Pod};
use adit::flow::relay::Meter;
use adit::hbone::{
    Carrier, Config, ConnectRequest, DialPlan, Handshakes, Incoming, Server, TraceIds, Tunnel,
};
use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use adit::net::Netns;
use adit::net::socket::Transparent;
use criterion::async_executor::AsyncExecutor;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::{LocalSet, spawn_local};

const BLOCK: usize = 16 << 20;
const CHUNK: usize = 256 << 10;

/// Streams to this port are answered and let go; to any other, carried to that port.
const NOWHERE: u16 = 1;

struct Uncounted;

impl Meter for Uncounted {
    fn to_upstream(&self, _bytes: usize) {}
    fn to_downstream(&self, _bytes: usize) {}
}

/// One worker: a runtime of its own with tasks that never leave it.
struct Worker {
    runtime: Runtime,
    tasks: LocalSet,
}

impl Worker {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        Self { runtime, tasks: LocalSet::new() }
    }
}

impl AsyncExecutor for &Worker {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.tasks.block_on(&self.runtime, future)
    }
}

fn config() -> Config {
    Config {
        stream_window: 4 << 20,
        connection_window: 16 << 20,
        frame_size: 1 << 20,
        carrier: Carrier::default(),
        streams_per_tunnel: 100,
        idle_release: Duration::from_secs(300),
    }
}

fn request(port: u16) -> ConnectRequest {
    ConnectRequest {
        authority: ([127, 0, 0, 1], port).into(),
        client: ([10, 0, 0, 5], 40_000).into(),
        service: None,
        baggage: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web".into(),
        trace: TraceIds::random(),
    }
}

/// How the far proxy is reached.
#[derive(Clone)]
struct Far {
    handshakes: Handshakes,
    plan: DialPlan,
}

impl Far {
    async fn tunnel(&self) -> Tunnel {
        let secured = self.handshakes.connect(self.plan.clone()).await.expect("the far proxy listens");
        Tunnel::start(secured, &config()).await.expect("the far proxy speaks HTTP/2")
    }
}

/// A namespace with both proxies; `None` without the privilege to make one.
fn far() -> Option<Far> {
    let netns = match Netns::create() {
        Ok(netns) => netns,
        Err(cause) => {
            println!("tunnel: not run, because making a network namespace failed: {cause}");
            return None;
        }
    };
    let up = netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status());
    assert!(up.expect("the package iproute2 is installed").success());
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0")).expect("loopback has a free port");
    let to = listener.local_addr().expect("bound above");
    let sockets = capture::Config {
        mark: None,
        reuse_port: false,
        transparent: Transparent::Off,
        ipv6: false,
        keepalive: None,
    };
    let (pod, _) = Pod::listen("uid-1", ("shop", "web-1", "web"), Arc::new(netns), sockets)
        .expect("a new namespace has its ports free");
    let (handshakes, _) = Handshakes::start(1, 64).expect("threads start");
    let (web, cart) = Worker::new().runtime.block_on(certificates());
    let plan = DialPlan {
        to,
        pod: Arc::new(pod),
        config: web.client_config([id("cart")].into()),
        carrier: Carrier::default(),
    };
    let (accepting, server) = (handshakes.clone(), cart.server_config());
    thread::spawn(move || (&Worker::new()).block_on(serve(listener, accepting, server)));
    Some(Far { handshakes, plan })
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).expect("plain words")
}

async fn certificates() -> (Credentials, Credentials) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).expect("a fresh directory");
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    let issue = async |account| {
        let issued = ca.issue(id(account), Duration::from_secs(86_400)).await.expect("its own trust domain");
        Credentials::new(&id(account), issued, &policy).expect("just issued")
    };
    (issue("web").await, issue("cart").await)
}

/// The far proxy.
async fn serve(listener: TcpListener, handshakes: Handshakes, tls: Arc<ServerConfig>) {
    listener.set_nonblocking(true).expect("an open socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime is here");
    loop {
        let (socket, _) = listener.accept().await.expect("the listener lives");
        socket.set_nodelay(true).expect("an open socket");
        let socket = socket.into_std().expect("an open socket");
        let (handshakes, tls) = (handshakes.clone(), tls.clone());
        spawn_local(async move {
            // A tunnel that was opened to be measured is gone at once, perhaps before it is served here.
            let Ok(secured) = handshakes.accept(socket, tls, Carrier::default()).await else { return };
            let Ok(server) = Server::start(secured, &config()).await else { return };
            let each = |incoming| drop(spawn_local(answer(incoming)));
            let _ = server.serve(each, std::future::pending()).await;
        });
    }
}

async fn answer(incoming: Incoming) {
    let port = incoming.head().uri().port_u16().expect("an authority of ours");
    let Ok(opened) = incoming.accept(None) else { return };
    if port != NOWHERE {
        let app = TcpStream::connect(("127.0.0.1", port)).await.expect("the application listens");
        opened.carry(app, Rc::new(Uncounted)).await;
    }
}

/// An application that reads; says when each block has arrived.
fn sink() -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    let (arrived, blocks) = channel();
    thread::spawn(move || {
        let (mut from, _) = listener.accept().expect("the far proxy connects");
        let mut buffer = vec![0; CHUNK];
        let mut missing = BLOCK;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            missing = missing.checked_sub(read).expect("a block is sent when the one before has arrived");
            if missing == 0 {
                missing = BLOCK;
                if arrived.send(()).is_err() {
                    return;
                }
            }
        }
    });
    (addr, blocks)
}

/// The near proxy: carries one connection to `port` behind the far one. Returns the application's socket.
fn carried_to(port: u16, far: Far) -> StdStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    thread::spawn(move || {
        (&Worker::new()).block_on(async {
            let (app, _) = listener.accept().expect("the application connects");
            app.set_nonblocking(true).expect("an open socket");
            let app = TcpStream::from_std(app).expect("a runtime is here");
            let tunnel = far.tunnel().await;
            let opened = tunnel.open(&request(port)).await.expect("the far proxy answers 200");
            opened.carry(app, Rc::new(Uncounted)).await;
        });
    });
    StdStream::connect(addr).expect("the near proxy listens")
}

fn tunnels(criterion: &mut Criterion) {
    let Some(far) = far() else { return };
    let worker = Worker::new();
    let mut group = criterion.benchmark_group("tunnel");
    let plain =
        far.plan.pod.netns.run(|| TcpListener::bind("127.0.0.1:0")).expect("loopback has a free port");
    let to = plain.local_addr().expect("bound above");
    thread::spawn(move || plain.incoming().for_each(drop));
    group.bench_function("connect", |bench| {
        bench.iter(|| far.plan.pod.netns.run(|| StdStream::connect(to)).expect("it listens"));
    });
    group.bench_function("open", |bench| bench.to_async(&worker).iter(|| far.tunnel()));
    let tunnel = (&worker).block_on(far.tunnel());
    group.bench_function("stream", |bench| {
        bench.to_async(&worker).iter(async || tunnel.open(&request(NOWHERE)).await.expect("it answers 200"));
    });
    let block = vec![0x5a; BLOCK];
    let (addr, arrived) = sink();
    let mut app = carried_to(addr.port(), far.clone());
    group.throughput(Throughput::Bytes(BLOCK as u64)).sample_size(20);
    group.bench_function("carry", |bench| {
        bench.iter(|| {
            for chunk in block.chunks(CHUNK) {
                app.write_all(chunk).expect("the way is open");
            }
            arrived.recv().expect("the sink lives");
        });
    });
}

criterion_group!(benches, tunnels);
criterion_main!(benches);
