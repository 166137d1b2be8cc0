//! How much memory does an idle connection hold on each side of a tunnel, and how much an idle tunnel?
//!
//! Unit: bytes for each. Two processes, one per side, over the loopback of a network namespace; what they hold is read before and after
//! they have some hundred tunnels more, and again with 2,000 connections more, each idle after one byte there and back. `allocated` is
//! what Rust code asked the allocator for and has not given back, `resident` the growth of RSS, with jemalloc as it is shipped, but giving
//! back at once what is not used. Sockets are the kernel's, and in neither.
//!
//! What `outbound` and `inbound` hold for a connection, its record and its place among the live ones, is not there: `mesh memory` has all
//! of it, by the RSS of whole proxies. Needs CAP_SYS_ADMIN; without it the bench says that it did not run.
//!
//! - `near`, `far`: the side of the client and of the server, by carrier.
//! - `bare`: the reference, a tokio TcpStream that is registered, alone and with a task that owns it and does nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use adit::capture::{self, Pod};
use adit::flow::Share;
use adit::flow::relay::Meter;
use adit::hbone::{
    Carrier, Config, ConnectRequest, DialPlan, Handshakes, Incoming, Server, TraceIds, Tunnel, release_spare,
};
use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use adit::net::Netns;
use adit::net::socket::Transparent;
use cap::Cap;
use tikv_jemallocator::Jemalloc;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

/// Counts what is asked for.
#[global_allocator]
static ALLOCATOR: Cap<Jemalloc> = Cap::new(Jemalloc, usize::MAX);

/// jemalloc gives back whole pages as soon as they are free, so that RSS is what is held.
const AT_ONCE: (&str, &str) = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");
const CARRIERS: [(&str, Carrier); 2] = [("in-place", Carrier::InPlace), ("classic", Carrier::Classic)];
const PER_TUNNEL: usize = 100;
/// For what is about to be let go.
const REST: Duration = Duration::from_millis(300);

struct Uncounted;

impl Meter for Uncounted {
    fn to_upstream(&self, _bytes: usize) {}
    fn to_downstream(&self, _bytes: usize) {}
}

fn main() {
    let mut arguments = std::env::args().skip(1).skip_while(|argument| argument != "--role").skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => compare(std::env::args().any(|argument| argument == "--test")),
        (Some("bare"), ..) => work(bare),
        (Some("near"), Some(carrier), Some(dir)) => work(|orders| near(orders, named(&carrier), dir)),
        (Some("far"), Some(carrier), Some(dir)) => work(|orders| far(orders, named(&carrier), dir)),
        (Some(_), ..) => panic!("a role, and what it needs, are given by this bench alone"),
    }
}

/// Measures everything and prints it.
fn compare(brief: bool) {
    let netns = match Netns::create() {
        Ok(netns) => netns,
        Err(cause) => {
            println!("memory: not run, because making a network namespace failed: {cause}");
            return;
        }
    };
    let up = netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status());
    assert!(up.expect("the package iproute2 is installed").success());
    let (tunnels, connections) = if brief { (10, 100) } else { (200, 2000) };
    println!("memory: bytes for each of {tunnels} idle tunnels, {connections} idle connections");
    println!("  {:<32} {:>9} {:>9}", "", "allocated", "resident");
    for (name, _) in CARRIERS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().to_str().expect("a path of this bench's");
        let mut far = Side::start(&netns, &["far", name, dir]);
        let port = far.ask("port");
        let mut near = Side::start(&netns, &["near", name, dir]);
        // Whatever is made once is made now.
        near.ask(&format!("dial {port}"));
        near.ask("tunnels 1");
        near.ask("connections 1");
        for (what, count) in [("tunnel", tunnels), ("connection", connections)] {
            let before = [near.held(), far.held()];
            near.ask(&format!("{what}s {count}"));
            for (side, before, now) in [("near", before[0], near.held()), ("far", before[1], far.held())] {
                tell(&format!("{side}, {name}, {what}"), before, now, count);
            }
        }
    }
    for what in ["registered", "with task"] {
        let mut bare = Side::start(&netns, &["bare"]);
        bare.ask(&format!("{what} 1"));
        let before = bare.held();
        bare.ask(&format!("{what} {connections}"));
        tell(&format!("bare, TcpStream {what}"), before, bare.held(), connections);
    }
}

fn tell(what: &str, before: Held, now: Held, count: usize) {
    let each = |now: i64, before: i64| (now - before) / i64::try_from(count).expect("a small number");
    let [allocated, resident] = [each(now.allocated, before.allocated), each(now.resident, before.resident)];
    println!("  {what:<32} {allocated:>9} {resident:>9}");
}

/// What a process has, in bytes.
#[derive(Clone, Copy)]
struct Held {
    allocated: i64,
    resident: i64,
}

/// One process of this bench. It ends with its standard input.
struct Side {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Side {
    fn start(netns: &Netns, role: &[&str]) -> Self {
        let start = || {
            Command::new(std::env::current_exe()?)
                .arg("--role")
                .args(role)
                .env(AT_ONCE.0, AT_ONCE.1)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        };
        let mut child = netns.run(start).expect("this program can be started");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, orders, answers }
    }

    fn ask(&mut self, order: &str) -> String {
        let orders = self.orders.as_mut().expect("it is taken at the end");
        writeln!(orders, "{order}").expect("the process lives");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the process lives");
        assert!(answer.ends_with('\n'), "the process ended on {order:?}");
        answer.trim().to_owned()
    }

    fn held(&mut self) -> Held {
        let answer = self.ask("held");
        let mut numbers = answer.split(' ').map(|number| number.parse().expect("two numbers"));
        let mut next = || numbers.next().expect("two numbers");
        Held { allocated: next(), resident: next() }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// The worker of one process: its orders come from standard input, and the end of that ends it.
fn work<F: Future<Output = ()>>(role: impl FnOnce(Orders) -> F) {
    let (send, orders) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    LocalSet::new().block_on(&runtime, role(Orders(orders)));
}

struct Orders(mpsc::UnboundedReceiver<String>);

impl Orders {
    /// The next order and its number; those to tell what is held are obeyed here.
    async fn next(&mut self) -> Option<(String, usize)> {
        loop {
            let line = self.0.recv().await?;
            if line == "held" {
                tokio::time::sleep(REST).await;
                // Twice, because what has been of use since the last time is kept.
                release_spare();
                release_spare();
                let (allocated, resident) = (ALLOCATOR.allocated(), resident());
                println!("{allocated} {resident}");
                continue;
            }
            let (what, number) = line.rsplit_once(' ').unwrap_or((&line, "0"));
            return Some((what.to_owned(), number.parse().expect("a number")));
        }
    }
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux 4.14 or later");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it has that line");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

fn named(name: &str) -> Carrier {
    CARRIERS.into_iter().find(|(known, _)| *known == name).expect("one of them").1
}

fn config(carrier: Carrier) -> Config {
    Config {
        stream_window: 4 << 20,
        connection_window: 16 << 20,
        frame_size: 1 << 20,
        carrier,
        streams_per_tunnel: PER_TUNNEL,
        idle_release: Duration::from_secs(300),
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).expect("plain words")
}

/// Both sides have the same authority, by its directory.
async fn credentials(account: &str, dir: &str) -> Credentials {
    let ca = EmbeddedCa::open(Path::new(dir), "cluster.local", Clock::system()).expect("a fresh directory");
    let issued = ca.issue(id(account), Duration::from_secs(86_400)).await.expect("its own trust domain");
    Credentials::new(&id(account), issued, &TlsPolicy::new(Tls::default(), Clock::system()))
        .expect("just issued")
}

/// The client's side: its applications are a thread of it.
async fn near(mut orders: Orders, carrier: Carrier, dir: String) {
    let netns = Netns::current().expect("/proc is there");
    let sockets = capture::Config {
        mark: None,
        reuse_port: false,
        transparent: Transparent::Off,
        ipv6: false,
        keepalive: None,
    };
    let (pod, _) = Pod::listen("uid-1", ("shop", "web-1", "web"), Arc::new(netns), sockets)
        .expect("the namespace has its ports free");
    let config_of_tls = credentials("web", &dir).await.client_config([id("cart")].into());
    let to = ([127, 0, 0, 1], 0).into();
    let mut plan = DialPlan { to, pod: Arc::new(pod), config: config_of_tls, carrier };
    let (handshakes, _) = Handshakes::start(1, 64).expect("threads start");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    let (mut tunnels, mut held) = (Vec::with_capacity(1000), Vec::new());
    while let Some((what, number)) = orders.next().await {
        match what.as_str() {
            "dial" => plan.to.set_port(u16::try_from(number).expect("a port")),
            "tunnels" => {
                for _ in 0..number {
                    let secured = handshakes.connect(plan.clone()).await.expect("the far side listens");
                    tunnels.push(
                        Tunnel::start(secured, &config(carrier), Share::alone())
                            .await
                            .expect("it speaks HTTP/2"),
                    );
                }
            }
            "connections" => {
                let applications = called(addr, number);
                for nth in 0..number {
                    let (app, _) = listener.accept().await.expect("the listener lives");
                    let opened = tunnels[nth / PER_TUNNEL].open(&request()).await.expect("it answers 200");
                    spawn_local(opened.carry(app, Rc::new(Uncounted)));
                }
                held.push(applications.await.expect("all are answered"));
            }
            _ => panic!("{what:?} is no order"),
        }
        println!("done");
    }
}

/// Makes `number` connections to `addr`, one after the other, with one byte there and back on each.
fn called(addr: SocketAddr, number: usize) -> oneshot::Receiver<Vec<StdStream>> {
    let (tell, told) = oneshot::channel();
    thread::spawn(move || {
        let call = |_| {
            let mut app = StdStream::connect(addr).expect("the near side listens");
            app.write_all(&[1]).expect("the way is open");
            app.read_exact(&mut [0]).expect("it is answered");
            app
        };
        tell.send((0..number).map(call).collect()).expect("it is waited for");
    });
    told
}

/// The server's side: its application is a thread of it.
async fn far(mut orders: Orders, carrier: Carrier, dir: String) {
    let application = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let app = application.local_addr().expect("bound above");
    thread::spawn(move || {
        let mut held = Vec::with_capacity(8192);
        while let Ok((mut from, _)) = application.accept() {
            from.read_exact(&mut [0]).and_then(|()| from.write_all(&[1])).expect("the way is open");
            held.push(from);
        }
    });
    let tls = credentials("cart", &dir).await.server_config();
    let (handshakes, _) = Handshakes::start(1, 64).expect("threads start");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let port = listener.local_addr().expect("bound above").port();
    spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("the listener lives");
            let socket = socket.into_std().expect("an open socket");
            let (handshakes, tls) = (handshakes.clone(), tls.clone());
            spawn_local(async move {
                let secured = handshakes.accept(socket, tls, carrier).await.expect("both are ours");
                let server =
                    Server::start(secured, &config(carrier), Share::alone()).await.expect("both are ours");
                let each = |incoming| drop(spawn_local(answer(incoming, app)));
                let _ = server.serve(each, std::future::pending()).await;
            });
        }
    });
    while orders.next().await.is_some() {
        println!("{port}");
    }
}

async fn answer(incoming: Incoming, app: SocketAddr) {
    let app = TcpStream::connect(app).await.expect("the application listens");
    let opened = incoming.accept(None).expect("nobody takes it back");
    opened.carry(app, Rc::new(Uncounted)).await;
}

/// What tokio alone takes.
async fn bare(mut orders: Orders) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("bound above");
    let (mut calling, mut accepted) = (Vec::with_capacity(4096), Vec::with_capacity(4096));
    while let Some((what, number)) = orders.next().await {
        for _ in 0..number {
            calling.push(StdStream::connect(addr).expect("it listens"));
            let (socket, _) = listener.accept().expect("it was called");
            socket.set_nonblocking(true).expect("an open socket");
            let socket = TcpStream::from_std(socket).expect("a runtime is here");
            if what == "registered" {
                accepted.push(socket);
            } else {
                spawn_local(async move {
                    let _owned = socket;
                    std::future::pending::<()>().await;
                });
            }
        }
        println!("done");
    }
}

fn request() -> ConnectRequest {
    ConnectRequest {
        authority: ([127, 0, 0, 1], 1).into(),
        client: ([10, 0, 0, 5], 40_000).into(),
        service: None,
        baggage: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web".into(),
        trace: TraceIds::random(),
    }
}
