//! What do tunnels cost: to open, to open a stream on, to carry bytes through? In place and by the classic carrier.
//!
//! Both proxies are ours and share this machine, each on a thread of its own, over the loopback of a network
//! namespace. Making that needs CAP_SYS_ADMIN; without it the bench says that it did not run.
//!
//! - `tunnel/connect`: µs for entering the namespace and the TCP connection alone, the reference.
//! - `tunnel/open/CARRIER`: µs for TCP, mutual TLS with full verification, and the start of HTTP/2, both sides' work.
//! - `tunnel/stream/CARRIER`: µs for one CONNECT and its 200 on a tunnel that is there.
//! - `tunnel/carry/CARRIER/S×C`: GiB/s of S streams on one tunnel, one direction, written in chunks of C KiB, from application to
//!   application. The reference is `relay/loopback` of the bench `relay`: the same without proxies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use adit::capture::{self, Pod};
use adit::flow::Share;
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
/// Streams on one tunnel, and KiB that applications write at a time.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 16), (1, 256), (8, 1), (8, 16), (8, 256), (64, 1), (64, 16), (64, 256)];
const CARRIERS: [(&str, Carrier); 2] = [("in-place", Carrier::InPlace), ("classic", Carrier::Classic)];

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

fn config(carrier: Carrier) -> Config {
    Config {
        stream_window: 4 << 20,
        connection_window: 16 << 20,
        frame_size: 1 << 20,
        carrier,
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
        Tunnel::start(secured, &config(self.plan.carrier), Share::alone())
            .await
            .expect("the far proxy speaks HTTP/2")
    }
}

/// A namespace with both proxies; `None` without the privilege to make one.
fn far(carrier: Carrier) -> Option<Far> {
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
    thread::spawn(move || (&Worker::new()).block_on(serve(listener, accepting, server, carrier)));
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
async fn serve(listener: TcpListener, handshakes: Handshakes, tls: Arc<ServerConfig>, carrier: Carrier) {
    listener.set_nonblocking(true).expect("an open socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime is here");
    loop {
        let (socket, _) = listener.accept().await.expect("the listener lives");
        socket.set_nodelay(true).expect("an open socket");
        let socket = socket.into_std().expect("an open socket");
        let (handshakes, tls) = (handshakes.clone(), tls.clone());
        spawn_local(async move {
            // A tunnel that was opened to be measured is gone at once, perhaps before it is served here.
            let Ok(secured) = handshakes.accept(socket, tls, carrier).await else { return };
            let Ok(server) = Server::start(secured, &config(carrier), Share::alone()).await else { return };
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

/// Applications that read; say how much has arrived.
fn sinks() -> (SocketAddr, Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    let (arrived, bytes) = channel();
    thread::spawn(move || {
        while let Ok((mut from, _)) = listener.accept() {
            let arrived = arrived.clone();
            thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    if arrived.send(read).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, bytes)
}

/// The near proxy: carries `streams` connections to `port` behind the far one, on one tunnel. Returns the applications' sockets.
fn carried_to(port: u16, far: Far, streams: usize) -> Vec<StdStream> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    thread::spawn(move || {
        (&Worker::new()).block_on(async {
            let tunnel = far.tunnel().await;
            let mut carrying = Vec::new();
            for _ in 0..streams {
                let (app, _) = listener.accept().expect("the application connects");
                app.set_nonblocking(true).expect("an open socket");
                let app = TcpStream::from_std(app).expect("a runtime is here");
                let opened = tunnel.open(&request(port)).await.expect("the far proxy answers 200");
                carrying.push(spawn_local(opened.carry(app, Rc::new(Uncounted))));
            }
            for carried in carrying {
                carried.await.expect("carrying does not panic");
            }
        });
    });
    (0..streams).map(|_| StdStream::connect(addr).expect("the near proxy listens")).collect()
}

/// Sends one block over all of `apps`, each from a thread of its own, and waits until all of it has arrived.
fn send(apps: &[StdStream], block: &[u8], chunk: usize, arrived: &Receiver<usize>) {
    let share = block.len() / apps.len();
    thread::scope(|scope| {
        for mut app in apps {
            scope.spawn(move || {
                for chunk in block[..share].chunks(chunk) {
                    app.write_all(chunk).expect("the way is open");
                }
            });
        }
        let mut missing = share * apps.len();
        while missing > 0 {
            missing -= arrived.recv().expect("the sinks live");
        }
    });
}

fn tunnels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tunnel");
    let block = vec![0x5a; BLOCK];
    for (name, carrier) in CARRIERS {
        let Some(far) = far(carrier) else { return };
        let worker = Worker::new();
        if carrier == Carrier::InPlace {
            let plain = far
                .plan
                .pod
                .netns
                .run(|| TcpListener::bind("127.0.0.1:0"))
                .expect("loopback has a free port");
            let to = plain.local_addr().expect("bound above");
            thread::spawn(move || plain.incoming().for_each(drop));
            group.bench_function("connect", |bench| {
                bench.iter(|| far.plan.pod.netns.run(|| StdStream::connect(to)).expect("it listens"));
            });
        }
        group.bench_function(format!("open/{name}"), |bench| bench.to_async(&worker).iter(|| far.tunnel()));
        let tunnel = (&worker).block_on(far.tunnel());
        group.bench_function(format!("stream/{name}"), |bench| {
            bench
                .to_async(&worker)
                .iter(async || tunnel.open(&request(NOWHERE)).await.expect("it answers 200"));
        });
        group.throughput(Throughput::Bytes(BLOCK as u64)).sample_size(10);
        for (streams, kib) in SHAPES {
            let (addr, arrived) = sinks();
            let apps = carried_to(addr.port(), far.clone(), streams);
            group.bench_function(format!("carry/{name}/{streams}×{kib}"), |bench| {
                bench.iter(|| send(&apps, &block, kib << 10, &arrived));
            });
        }
    }
}

criterion_group!(benches, tunnels);
criterion_main!(benches);
