//! Both roles over loopback, with real certificates: against each other, and against a peer that writes its frames
//! by hand (`raw.rs`) and so does what no library would.

mod carry;
mod handshake;
mod open;
mod pieces;
mod pool;
mod raw;
mod stall;
mod steady;
mod wire;

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::capture::{self, Pod};
use crate::flow::Share;
use crate::flow::relay::Meter;
use crate::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use crate::net::Netns;
use crate::net::socket::{Transparent, reset_on_close};

const MIB: usize = 1 << 20;

/// One pod with a loopback of its own, an authority, and the two proxies' certificates.
struct Place {
    pod: Arc<Pod>,
    handshakes: Handshakes,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let netns = Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN");
    let up = netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status());
    assert!(up.expect("the package iproute2 is installed").success());
    let config = capture::Config {
        mark: None,
        reuse_port: false,
        transparent: Transparent::Off,
        ipv6: false,
        keepalive: None,
    };
    let (pod, _) = Pod::listen("uid-1", ("shop", "web-1", "web"), Arc::new(netns), config).unwrap();
    // Whoever asks first may be inside a runtime.
    let (web, cart) = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(certificates())
    })
    .join()
    .unwrap();
    let (handshakes, _) = Handshakes::start(1, 64).unwrap();
    Place {
        pod: Arc::new(pod),
        handshakes,
        client: web.client_config([id("cart")].into()),
        server: cart.server_config(),
    }
});

async fn certificates() -> (Credentials, Credentials) {
    let dir = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).unwrap();
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    let issue = async |name| {
        let issued = ca.issue(id(name), Duration::from_secs(3600)).await.unwrap();
        Credentials::new(&id(name), issued, &policy).unwrap()
    };
    (issue("web").await, issue("cart").await)
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

fn config() -> Config {
    Config {
        stream_window: 4 << 20,
        connection_window: 16 << 20,
        frame_size: 1 << 20,
        carrier: CARRIER.get(),
        streams_per_tunnel: 100,
        idle_release: Duration::from_secs(300),
    }
}

fn request() -> ConnectRequest {
    ConnectRequest {
        authority: "10.0.1.9:8080".parse().unwrap(),
        client: "10.0.0.5:40000".parse().unwrap(),
        service: None,
        baggage: String::new(),
        trace: TraceIds { trace: 1, parent: 2 },
    }
}

thread_local! {
    /// Who carries the tunnels of the story that this thread runs.
    static CARRIER: Cell<Carrier> = const { Cell::new(Carrier::InPlace) };
}

/// Runs one story with each carrier.
fn story(story: impl AsyncFn()) {
    for carrier in [Carrier::InPlace, Carrier::Classic] {
        println!("with the carrier {carrier:?}");
        CARRIER.set(carrier);
        once(story());
    }
}

/// Runs one story on one worker's runtime, and fails it when it hangs.
fn once(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), story).await.expect("the story hangs");
    });
}

/// The application is told of an abnormal end, and not of an orderly one.
async fn is_reset(mut app: TcpStream) {
    let mut rest = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut app, &mut rest).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A listener on the pod's loopback.
fn listen() -> (TcpListener, SocketAddr) {
    let listener = PLACE.pod.netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn plan(to: SocketAddr) -> DialPlan {
    DialPlan { to, pod: PLACE.pod.clone(), config: PLACE.client.clone(), carrier: CARRIER.get() }
}

async fn accept_tcp(listener: TcpListener) -> StdStream {
    let (stream, _) = tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Both ends of one finished handshake, client first.
pub(super) async fn secured() -> (Secured, Secured) {
    let (listener, addr) = listen();
    secured_at(listener, addr, (CARRIER.get(), CARRIER.get())).await
}

/// As [`secured`], where what is dialled is `to`, and with a carrier of its own for either side.
async fn secured_at(
    listener: TcpListener,
    to: SocketAddr,
    (client, server): (Carrier, Carrier),
) -> (Secured, Secured) {
    let accept =
        async { PLACE.handshakes.accept(accept_tcp(listener).await, PLACE.server.clone(), server).await };
    let plan = DialPlan { carrier: client, ..plan(to) };
    let (client, server) = tokio::join!(PLACE.handshakes.connect(plan), accept);
    (client.unwrap(), server.unwrap())
}

/// A tunnel between two adits, and what arrives at its far end.
struct Pair {
    tunnel: Rc<Tunnel>,
    incoming: UnboundedReceiver<Incoming>,
    serving: JoinHandle<Result<(), String>>,
    drain: Option<tokio::sync::oneshot::Sender<()>>,
}

async fn pair() -> Pair {
    pair_of(secured().await).await
}

async fn pair_of((client, server): (Secured, Secured)) -> Pair {
    let config = config();
    let (tunnel, server) = tokio::join!(
        Tunnel::start(client, &config, Share::alone()),
        Server::start(server, &config, Share::alone())
    );
    let (server, (arrived, incoming)) = (server.unwrap(), unbounded_channel());
    let (drain, draining) = tokio::sync::oneshot::channel();
    let each = move |stream| drop(arrived.send(stream));
    let serving = spawn_local(server.serve(each, async { drop(draining.await) }));
    Pair { tunnel: Rc::new(tunnel.unwrap()), incoming, serving, drain: Some(drain) }
}

impl Pair {
    /// Opens one stream; both sides have it open afterwards.
    async fn opened(&mut self) -> (Opened, Opened) {
        let request = request();
        let accept = async { self.incoming.recv().await.unwrap().accept(None).unwrap() };
        let (near, far) = tokio::join!(self.tunnel.open(&request), accept);
        (near.unwrap(), far)
    }

    /// Opens one stream with an application at each end.
    async fn line(&mut self) -> Line {
        self.line_of(None).await
    }

    /// As [`line`](Pair::line), with socket buffers of so many bytes at both of its ends.
    async fn line_of(&mut self, buffer: Option<usize>) -> Line {
        let (near, far) = self.opened().await;
        let (client, near) = carried_for(near, buffer).await;
        let (server, far) = carried_for(far, buffer).await;
        Line { client, server, near, far }
    }
}

/// One connection from application to application.
struct Line {
    client: TcpStream,
    server: TcpStream,
    near: JoinHandle<(Ended, Rc<Counted>)>,
    far: JoinHandle<(Ended, Rc<Counted>)>,
}

/// Carries `opened` for an application whose own end is returned.
async fn carried(opened: Opened) -> (TcpStream, JoinHandle<(Ended, Rc<Counted>)>) {
    carried_for(opened, None).await
}

async fn carried_for(opened: Opened, buffer: Option<usize>) -> (TcpStream, JoinHandle<(Ended, Rc<Counted>)>) {
    let (app, ours) = socket_pair().await;
    if let Some(bytes) = buffer {
        shrink(&app, bytes);
        shrink(&ours, bytes);
    }
    let carrying = spawn_local(async move {
        let counted = Rc::new(Counted::default());
        (opened.carry(ours, counted.clone()).await, counted)
    });
    (app, carrying)
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (app, accepted) = tokio::join!(dial, listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

/// Gives a socket buffers of so many bytes: it then often takes or has less than it is asked for.
fn shrink(socket: &impl std::os::fd::AsFd, bytes: usize) {
    let socket = socket2::SockRef::from(socket);
    socket.set_send_buffer_size(bytes).and(socket.set_recv_buffer_size(bytes)).unwrap();
}

/// The application goes away without a word.
fn reset(app: TcpStream) {
    reset_on_close(&app);
}

#[derive(Debug, Default)]
struct Counted {
    upstream: Cell<usize>,
    downstream: Cell<usize>,
}

impl Meter for Counted {
    fn to_upstream(&self, bytes: usize) {
        self.upstream.set(self.upstream.get() + bytes);
    }

    fn to_downstream(&self, bytes: usize) {
        self.downstream.set(self.downstream.get() + bytes);
    }
}

/// Bytes that a lost, doubled or moved piece would change.
fn payload(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}
