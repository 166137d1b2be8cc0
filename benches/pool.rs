//! What does it cost a new connection to get its tunnel from the pool?
//!
//! Unit: ns per call, median and the 5th and 95th percentile over batches of 100 calls (misses and contenders: over single ones), by how
//! many keys the pool has. The tunnels are real ones, over the loopback of a network namespace, but were opened before: a handshake is
//! in none of the figures (`benches/handshake.rs` has it). Needs CAP_SYS_ADMIN; without it the bench says that it did not run.
//!
//! - `hit`: there is a tunnel with room; `hot` asks for the same key each time, `any` for one of all.
//! - `note_room`: what each connection says when its stream has opened and when it has ended.
//! - `miss`: nobody has the key; opening yields a tunnel at once. Placement is told.
//! - `32 contenders`: as many tasks ask for one missing tunnel, of which one opens it, taking one turn for it. Time until all have it,
//!   spawning and joining included; all of them together, not each.
//! - `place`: on which worker a new connection shall live.
//! - References: finding the same keys in a map by the standard library's hash (which the pool has) and by foldhash; copying a key;
//!   32 tasks that take one turn each.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, TcpListener};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use adit::capture::{self, Pod};
use adit::flow::Share;
use adit::hbone::{
    Acquired, Carrier, Config, DialPlan, HandshakeError, Handshakes, Placement, Pool, Server, Tunnel,
    TunnelKey,
};
use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use adit::net::Netns;
use adit::net::socket::Transparent;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::task::{LocalSet, spawn_local, yield_now};

const KEYS: usize = 10_000;
/// Two sockets per tunnel, and some.
const OPEN_FILES: u64 = 2 * KEYS as u64 + 1_000;
const ROUNDS: usize = 5;
const BATCH: usize = 100;
const CONTENDERS: usize = 32;
/// How many times contenders contend, in each round.
const CONTESTS: usize = 200;

fn main() {
    let brief = std::env::args().any(|arg| arg == "--test");
    let netns = match Netns::create() {
        Ok(netns) => netns,
        Err(cause) => {
            println!("pool: not run, because making a network namespace failed: {cause}");
            return;
        }
    };
    let wanted = if brief { 2 * BATCH } else { KEYS };
    let keys = wanted.min((open_files() / 2).saturating_sub(200));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    LocalSet::new().block_on(&runtime, async {
        let far = Far::start(netns).await;
        let stock = Stock::default();
        let begun = Instant::now();
        for _ in 0..keys {
            stock.put(far.tunnel().await);
        }
        println!("pool: {keys} tunnels, opened in {:.1} s", begun.elapsed().as_secs_f64());
        let mut table = Table::default();
        for _ in 0..if brief { 1 } else { ROUNDS } {
            round(&mut table, &stock, keys).await;
            // The tunnels answer what their peers asked meanwhile.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        table.tell();
    });
}

/// Raises this process's limit of open files as far as it may. Returns what it is then.
fn open_files() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a valid resource");
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, hard.max(OPEN_FILES)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit everybody may");
    }
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a valid resource");
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// Tunnels that are open and belong to no pool.
#[derive(Default)]
struct Stock(RefCell<Vec<Tunnel>>);

impl Stock {
    fn put(&self, tunnel: Tunnel) {
        self.0.borrow_mut().push(tunnel);
    }

    fn take(&self) -> Result<Tunnel, HandshakeError> {
        Ok(self.0.borrow_mut().pop().expect("a tunnel for each key"))
    }

    /// Ends `pool`, and takes back what it had.
    fn take_back(&self, pool: Rc<Pool>, acquired: Vec<Acquired>) {
        drop(pool);
        for Acquired { tunnel, .. } in acquired {
            assert!(!tunnel.is_closed(), "a tunnel died while it was measured");
            self.put(Rc::try_unwrap(tunnel).ok().expect("nobody else has it"));
        }
    }
}

async fn round(table: &mut Table, stock: &Stock, count: usize) {
    let keys: Vec<TunnelKey> = (0..count).map(key).collect();
    let placement = Arc::new(Placement::new(2));
    let start = || Pool::start(0, config(), placement.clone());

    let pool = start();
    let contests = CONTESTS.min(count);
    let acquired = contend(table, &pool, stock, &keys[..contests]).await;
    for _ in 0..contests {
        let begun = Instant::now();
        join((0..CONTENDERS).map(|_| spawn_local(yield_now()))).await;
        table.add("reference: 32 tasks", contests, begun.elapsed());
    }
    stock.take_back(pool, acquired);

    let pool = start();
    let one = pool.acquire(&keys[0], || async { stock.take() }).await.expect("it was made before");
    hits(table, "hit, hot", 1, &pool, &keys[..1], &vec![0; BATCH * BATCH]).await;
    rooms(table, "note_room, hot", 1, &pool, &keys[..1], &vec![0; BATCH * BATCH]);
    stock.take_back(pool, vec![one]);

    let pool = start();
    let mut acquired = Vec::new();
    for key in &keys {
        let begun = Instant::now();
        let got = pool.acquire(key, || async { stock.take() }).await.expect("it was made before");
        let took = begun.elapsed();
        // Into a pool that is nearly empty, and into one that is nearly full.
        match acquired.len() {
            nth if nth < BATCH => table.add("miss", BATCH, took),
            nth if nth >= count - BATCH => table.add("miss", count, took),
            _ => {}
        }
        acquired.push(got);
    }
    let any: Vec<usize> = (0..BATCH * BATCH).map(|_| fastrand::usize(..count)).collect();
    hits(table, "hit, hot", count, &pool, &keys, &vec![0; BATCH * BATCH]).await;
    hits(table, "hit, any", count, &pool, &keys, &any).await;
    rooms(table, "note_room, any", count, &pool, &keys, &any);
    batches(table, "place, any", count, &any, |nth| placement.place(&keys[nth], 1));
    stock.take_back(pool, acquired);

    let sip: HashMap<TunnelKey, usize> = keys.iter().cloned().zip(0..).collect();
    batches(table, "reference: std hash, any", count, &any, |nth| sip.get(&keys[nth]));
    let fold: HashMap<TunnelKey, usize, foldhash::fast::RandomState> =
        keys.iter().cloned().zip(0..).collect();
    batches(table, "reference: foldhash, any", count, &any, |nth| fold.get(&keys[nth]));
    batches(table, "reference: copied key, any", count, &any, |nth| keys[nth].clone());
}

/// For each key, all contenders at once. Returns one tunnel per key.
async fn contend(table: &mut Table, pool: &Rc<Pool>, stock: &Stock, keys: &[TunnelKey]) -> Vec<Acquired> {
    let mut tunnels = Vec::new();
    for key in keys {
        let (pool, key) = (pool.clone(), Rc::new(key.clone()));
        let made = Rc::new(Cell::new(Some(stock.take())));
        let begun = Instant::now();
        let asking = (0..CONTENDERS).map(|_| {
            let (pool, key, made) = (pool.clone(), key.clone(), made.clone());
            spawn_local(async move {
                let open = || async {
                    yield_now().await;
                    made.take().expect("one of them opens it")
                };
                pool.acquire(&key, open).await.expect("it was made before")
            })
        });
        let mut acquired = join(asking).await;
        table.add("32 contenders", keys.len(), begun.elapsed());
        let first = acquired.pop().expect("there are some");
        assert!(acquired.iter().all(|other| Rc::ptr_eq(&other.tunnel, &first.tunnel)));
        tunnels.push(first);
    }
    tunnels
}

async fn join<T>(tasks: impl Iterator<Item = tokio::task::JoinHandle<T>>) -> Vec<T> {
    let tasks: Vec<_> = tasks.collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await.expect("no task panics"));
    }
    done
}

async fn hits(
    table: &mut Table,
    name: &'static str,
    count: usize,
    pool: &Pool,
    keys: &[TunnelKey],
    order: &[usize],
) {
    for batch in order.chunks(BATCH) {
        let begun = Instant::now();
        for &nth in batch {
            let open = || async { unreachable!("there is one") };
            black_box(pool.acquire(&keys[nth], open).await.expect("there is one"));
        }
        table.add(name, count, begun.elapsed().div_f64(BATCH as f64));
    }
}

fn rooms(
    table: &mut Table,
    name: &'static str,
    count: usize,
    pool: &Pool,
    keys: &[TunnelKey],
    order: &[usize],
) {
    batches(table, name, count, order, |nth| pool.note_room(&keys[nth]));
}

fn batches<T>(
    table: &mut Table,
    name: &'static str,
    count: usize,
    order: &[usize],
    each: impl Fn(usize) -> T,
) {
    for batch in order.chunks(BATCH) {
        let begun = Instant::now();
        for &nth in batch {
            black_box(each(nth));
        }
        table.add(name, count, begun.elapsed().div_f64(BATCH as f64));
    }
}

/// What was measured, in the order in which it was first.
#[derive(Default)]
struct Table(Vec<(&'static str, usize, Vec<Duration>)>);

impl Table {
    fn add(&mut self, name: &'static str, keys: usize, took: Duration) {
        match self.0.iter_mut().find(|row| (row.0, row.1) == (name, keys)) {
            Some(row) => row.2.push(took),
            None => self.0.push((name, keys, vec![took])),
        }
    }

    fn tell(&mut self) {
        for (name, keys, took) in &mut self.0 {
            took.sort_unstable();
            let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_nanos();
            println!("  {name:<28} {keys:>6} keys {:>8} ns [{} - {}]", at(50), at(5), at(95));
        }
    }
}

fn config() -> Config {
    Config {
        stream_window: 4 << 20,
        connection_window: 16 << 20,
        frame_size: 1 << 20,
        carrier: Carrier::InPlace,
        streams_per_tunnel: 100,
        idle_release: Duration::from_secs(300),
    }
}

fn key(nth: usize) -> TunnelKey {
    let [.., high, low] = nth.to_be_bytes();
    TunnelKey {
        source: id("web"),
        source_ip: IpAddr::from([10, 0, 0, 5]),
        expected: [id("cart")].into(),
        to: ([10, 1, high, low], 15008).into(),
        workload: format!("Kubernetes//Pod/shop/cart-{nth}").into(),
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).expect("plain words")
}

/// The far proxy, on a thread of its own, and how it is reached.
struct Far {
    handshakes: Handshakes,
    plan: DialPlan,
}

impl Far {
    async fn start(netns: Netns) -> Self {
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
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).expect("a fresh directory");
        let policy = TlsPolicy::new(Tls::default(), Clock::system());
        let issue = async |account| {
            let issued =
                ca.issue(id(account), Duration::from_secs(86_400)).await.expect("its own trust domain");
            Credentials::new(&id(account), issued, &policy).expect("just issued")
        };
        let (web, cart) = (issue("web").await, issue("cart").await);
        let config = web.client_config([id("cart")].into());
        let plan = DialPlan { to, pod: Arc::new(pod), config, carrier: Carrier::InPlace };
        let (accepting, tls) = (handshakes.clone(), cart.server_config());
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            LocalSet::new().block_on(&runtime, serve(listener, accepting, tls));
        });
        Self { handshakes, plan }
    }

    async fn tunnel(&self) -> Tunnel {
        let secured = self.handshakes.connect(self.plan.clone()).await.expect("the far proxy listens");
        Tunnel::start(secured, &config(), Share::alone()).await.expect("the far proxy speaks HTTP/2")
    }
}

async fn serve(listener: TcpListener, handshakes: Handshakes, tls: Arc<ServerConfig>) {
    listener.set_nonblocking(true).expect("an open socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime is here");
    loop {
        let (socket, _) = listener.accept().await.expect("the listener lives");
        let socket = socket.into_std().expect("an open socket");
        let (handshakes, tls) = (handshakes.clone(), tls.clone());
        spawn_local(async move {
            let secured = handshakes.accept(socket, tls, Carrier::InPlace).await.expect("both are ours");
            let server = Server::start(secured, &config(), Share::alone()).await.expect("both are ours");
            // No stream is ever opened; it ends with the bench.
            let _ = server.serve(drop, std::future::pending()).await;
        });
    }
}
