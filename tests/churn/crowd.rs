//! Many connections at a time, each from its opening until nothing of it is left.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Mutex};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::SOON;
use crate::carriers::{Carried, Carrier};
use crate::life::{self, Lived, Style, live};

/// So many at a time.
const AT_ONCE: usize = 64;
/// Listeners, each on an address of its own: what has ended occupies its port pair for a minute.
const LISTENERS: u8 = 64;
/// Connections that are cut.
const BEREFT: usize = 60;

/// Where applications and proxies meet.
pub struct Place {
    /// Each is held while a connection is made, so that what is accepted is what was dialled.
    listeners: Vec<Mutex<TcpListener>>,
}

/// The four sockets of one connection.
struct Ends {
    client: TcpStream,
    downstream: TcpStream,
    upstream: TcpStream,
    server: TcpStream,
}

impl Place {
    pub async fn new() -> Self {
        let mut listeners = Vec::new();
        for nth in 1..=LISTENERS {
            let addr = SocketAddr::from((Ipv4Addr::new(127, 0, 7, nth), 0));
            listeners.push(Mutex::new(TcpListener::bind(addr).await.unwrap()));
        }
        Self { listeners }
    }

    async fn ends(&self, nth: usize) -> Ends {
        let listener = self.listeners[nth % self.listeners.len()].lock().await;
        let addr = listener.local_addr().unwrap();
        let pair = async || {
            let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
            let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
            assert_eq!(dialled.local_addr().unwrap(), accepted.peer_addr().unwrap());
            for socket in [&dialled, &accepted] {
                socket.set_nodelay(true).unwrap();
            }
            (dialled, accepted)
        };
        let (client, downstream) = pair().await;
        let (upstream, server) = pair().await;
        Ends { client, downstream, upstream, server }
    }
}

/// Makes `connections` connections, all of their own style, and waits until they are over.
pub async fn churn<C: Carrier>(carrier: &Rc<C>, place: &Rc<Place>, connections: usize, seed: u64) {
    let mut running = JoinSet::new();
    for nth in 0..connections {
        if running.len() == AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn_local(one(carrier.clone(), place.clone(), nth, seed + nth as u64));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

async fn one<C: Carrier>(carrier: Rc<C>, place: Rc<Place>, nth: usize, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let style = Style::any(&mut random, C::OPENS);
    let client_first = random.bool();
    let what = format!("{style:?}, client first: {client_first}, seed {seed}");
    let ends = place.ends(nth).await;
    // A panic does not say of which connection.
    let told = Told(&what);
    timeout(SOON, lives(carrier, ends, style, client_first, &mut random))
        .await
        .unwrap_or_else(|_| panic!("it never ends"));
    std::mem::forget(told);
}

/// Says of which connection a panic was.
struct Told<'a>(&'a str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        static SAID: AtomicBool = AtomicBool::new(false);
        // Those that go with it have nothing to do with it.
        if !SAID.swap(true, Ordering::Relaxed) {
            eprintln!("this was a connection of the style {}", self.0);
        }
    }
}

async fn lives<C: Carrier>(
    carrier: Rc<C>,
    Ends { client, downstream, upstream, server }: Ends,
    style: Style,
    client_first: bool,
    random: &mut fastrand::Rng,
) {
    if let Style::Vanish(how) = style {
        use crate::carriers::Vanishing;
        let sees_it = match how {
            // Its proxy lets go of it at once, or it never had one.
            Vanishing::Cancelled | Vanishing::Unanswered | Vanishing::Refused => None,
            Vanishing::NearGone => Some(&server),
            Vanishing::FarGone => Some(&client),
        };
        carrier.vanish(how, downstream, upstream, random).await;
        if let Some(app) = sees_it {
            life::sees_reset(app, b"", b"").await;
        }
        return;
    }
    let carrying = spawn_local(carrier.carry(downstream, upstream));
    let (first, second) = if client_first { (client, server) } else { (server, client) };
    let lived = live(style, first, second, random).await;
    let Carried { counted, complete } = carrying.await.unwrap();
    match lived {
        Lived::InOrder { there, back, open } => {
            let bytes = if client_first { (there, back) } else { (back, there) };
            assert_eq!(counted, [bytes; 2], "bytes that the proxies counted");
            assert_eq!(complete, [true; 2], "what the proxies say of an end in order");
            for app in open {
                assert!(app.take_error().unwrap().is_none(), "after its end in order it is reset");
            }
        }
        Lived::Broken => assert_eq!(complete, [false; 2], "what the proxies say of a reset"),
    }
}

/// Has everything cut that `carrier` carries, and insists that every application sees a reset.
pub async fn cut<C: Carrier>(carrier: &Rc<C>, place: &Rc<Place>) {
    let ready = Rc::new(Barrier::new(BEREFT + 1));
    let mut bereft = JoinSet::new();
    for nth in 0..BEREFT {
        let (carrier, place, ready) = (carrier.clone(), place.clone(), ready.clone());
        bereft.spawn_local(async move {
            let Ends { client, downstream, upstream, server } = place.ends(nth).await;
            let carrying = spawn_local(carrier.carry(downstream, upstream));
            let (first, second) = if nth % 2 == 0 { (client, server) } else { (server, client) };
            timeout(SOON, life::bereft(nth / 2, first, second, &ready)).await.unwrap();
            let carried = carrying.await.unwrap();
            assert_eq!(carried.complete, [false; 2], "what the proxies say of what was cut");
        });
    }
    timeout(SOON, ready.wait()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    carrier.cut();
    while let Some(ended) = bereft.join_next().await {
        ended.unwrap();
    }
}
