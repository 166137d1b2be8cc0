//! What lies between two applications: the relay for plaintext, or both ends of a tunnel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use adit::flow::Share;
use adit::flow::relay::{Meter, relay};
use adit::hbone::{
    Carrier as How, ConnectRequest, Ended, Incoming, OpenError, Opened, Server, TraceIds, Tunnel,
};
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

use crate::SOON;
use crate::life::pause;
use crate::proxies::{Proxies, config};

/// Tunnels that are open at a time.
const TUNNELS: usize = 8;
/// Streams until a tunnel is replaced, whether they are over or not.
const STREAMS: usize = 5_000;

/// What the proxies say of a connection that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that reached upstream and downstream, as counted, by each proxy.
    pub counted: [(usize, usize); 2],
    /// Whether they took its end for one in order.
    pub complete: [bool; 2],
}

/// Ways for a connection not to be opened, or to be lost in that moment.
#[derive(Clone, Copy, Debug)]
pub enum Vanishing {
    /// The near proxy asks, and takes it back at any time.
    Cancelled,
    /// The far proxy drops the request without an answer.
    Unanswered,
    /// The far proxy says no.
    Refused,
    /// The near proxy goes once the stream is open.
    NearGone,
    /// The far proxy goes once the stream is open.
    FarGone,
}

/// Carries connections between two sockets each. Lives on one thread.
pub trait Carrier: 'static {
    /// Whether connections are opened here, and so can fail to be.
    const OPENS: bool;

    /// Returns when both ends are over.
    async fn carry(self: Rc<Self>, downstream: TcpStream, upstream: TcpStream) -> Carried;

    /// Begins a connection that comes to nothing. Whatever socket has been answered for is reset.
    async fn vanish(
        self: Rc<Self>,
        how: Vanishing,
        downstream: TcpStream,
        upstream: TcpStream,
        random: &mut fastrand::Rng,
    );

    /// Connections that it knows of.
    fn holds(&self) -> usize;

    /// Everything that is carried is lost at once, as by the death of the far proxy.
    fn cut(&self);
}

#[derive(Default)]
struct Counted {
    up: Cell<usize>,
    down: Cell<usize>,
}

impl Counted {
    fn get(&self) -> (usize, usize) {
        (self.up.get(), self.down.get())
    }
}

impl Meter for Counted {
    fn to_upstream(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes);
    }

    fn to_downstream(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes);
    }
}

/// The relay for plaintext.
#[derive(Default)]
pub struct Plain {
    relays: RefCell<HashMap<usize, AbortHandle>>,
    next: Cell<usize>,
}

impl Carrier for Plain {
    const OPENS: bool = false;

    async fn carry(self: Rc<Self>, downstream: TcpStream, upstream: TcpStream) -> Carried {
        let share = share(self.next.get());
        let relaying = spawn_local(async move {
            let counted = Rc::new(Counted::default());
            let complete = relay(downstream, upstream, counted.clone(), share).await.is_ok();
            Carried { counted: [counted.get(); 2], complete: [complete; 2] }
        });
        let nth = self.next.replace(self.next.get() + 1);
        self.relays.borrow_mut().insert(nth, relaying.abort_handle());
        let carried = relaying.await;
        self.relays.borrow_mut().remove(&nth);
        match carried {
            Ok(carried) => carried,
            Err(cut) if cut.is_cancelled() => Carried { counted: [(0, 0); 2], complete: [false; 2] },
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    async fn vanish(
        self: Rc<Self>,
        how: Vanishing,
        _downstream: TcpStream,
        _upstream: TcpStream,
        _random: &mut fastrand::Rng,
    ) {
        panic!("{how:?}: plaintext has no request");
    }

    fn holds(&self) -> usize {
        self.relays.borrow().len()
    }

    fn cut(&self) {
        self.relays.borrow().values().for_each(AbortHandle::abort);
    }
}

/// Two pods share the thread, so that connections wait for each other's bytes, and end while they do.
fn share(nth: usize) -> Share {
    Share::of(&["one", "other"][nth % 2].into())
}

/// The task that ends the rounds of a thread's pods is made when somebody waits for the first time, and stays.
pub async fn share_once() {
    let mut places = [0, 1].map(|nth| share(nth).place());
    for nth in [1, 0, 1, 0] {
        places[nth].turn().await.moved(2 << 20, false);
    }
}

/// Who waits for the request of a connection, by the number of that connection.
type Expected = Rc<RefCell<HashMap<u32, oneshot::Sender<Incoming>>>>;

/// Both ends of some tunnels.
pub struct Tunnels {
    proxies: Proxies,
    how: How,
    tunnels: RefCell<Vec<Open>>,
    expected: Expected,
    next: Cell<u32>,
    /// Connections between their opening and their end.
    carried: Cell<usize>,
    replaced: Cell<usize>,
}

struct Open {
    near: Rc<Tunnel>,
    far: AbortHandle,
    streams: usize,
}

impl Tunnels {
    pub async fn new(how: How, proxies: Proxies) -> Self {
        let tunnels = Self {
            proxies,
            how,
            tunnels: RefCell::default(),
            expected: Rc::default(),
            next: Cell::new(1),
            carried: Cell::new(0),
            replaced: Cell::new(0),
        };
        for _ in 0..TUNNELS {
            let open = tunnels.open_tunnel().await;
            tunnels.tunnels.borrow_mut().push(open);
        }
        tunnels
    }

    async fn open_tunnel(&self) -> Open {
        let (near, far) = self.proxies.handshake(self.how).await;
        let config = config(self.how);
        let expected = self.expected.clone();
        let share = share(self.replaced.get() + self.tunnels.borrow().len());
        let shared = share.clone();
        // Each may wait for the other's greeting.
        let far = spawn_local(async move {
            let server = Server::start(far, &config, shared).await.unwrap();
            let each = |incoming: Incoming| {
                let authority = incoming.head().uri().host().unwrap().parse::<Ipv4Addr>().unwrap();
                match expected.borrow_mut().remove(&authority.to_bits()) {
                    // Where nobody waits any more the request is dropped.
                    Some(waiting) => drop(waiting.send(incoming)),
                    None => drop(spawn_local(is_taken_back(incoming))),
                }
            };
            // How tunnels end is seen by the connections in them.
            let _ = server.serve(each, std::future::pending()).await;
        });
        let near = Tunnel::start(near, &self::config(self.how), share).await.unwrap();
        Open { near: Rc::new(near), far: far.abort_handle(), streams: 0 }
    }

    /// A tunnel for the next connection; some are preferred, so that they have many streams and others one.
    async fn pick(&self) -> Rc<Tunnel> {
        let nth = fastrand::usize(..TUNNELS).min(fastrand::usize(..TUNNELS));
        let worn = self.tunnels.borrow_mut().get_mut(nth).is_some_and(|open| {
            open.streams += 1;
            // Once only: whoever comes while the next is being opened takes this one.
            open.streams == STREAMS
        });
        if worn {
            let fresh = self.open_tunnel().await;
            let old = std::mem::replace(&mut self.tunnels.borrow_mut()[nth], fresh);
            // What it carries runs on.
            drop(old);
            self.replaced.set(self.replaced.get() + 1);
        }
        self.tunnels.borrow()[nth].near.clone()
    }

    /// The number of a new connection, and its request when it arrives at the far proxy.
    fn expect(&self) -> (u32, oneshot::Receiver<Incoming>) {
        let number = self.next.replace(self.next.get() + 1);
        let (arrived, request) = oneshot::channel();
        self.expected.borrow_mut().insert(number, arrived);
        (number, request)
    }

    async fn opened(&self) -> (Opened, Opened) {
        let tunnel = self.pick().await;
        let (number, arrived) = self.expect();
        let request = request(number);
        let far = async { arrived.await.unwrap().accept(None).unwrap() };
        let (near, far) = tokio::join!(tunnel.open(&request), far);
        (near.unwrap(), far)
    }
}

/// Nobody waits for this request, because the near proxy has taken it back.
async fn is_taken_back(mut incoming: Incoming) {
    timeout(SOON, incoming.cancelled()).await.expect("a request that is taken back is cancelled");
}

fn request(number: u32) -> ConnectRequest {
    ConnectRequest {
        authority: (Ipv4Addr::from_bits(number), 80).into(),
        client: ([10, 0, 0, 5], 40_000).into(),
        service: None,
        baggage: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web".into(),
        trace: TraceIds::random(),
    }
}

impl Carrier for Tunnels {
    const OPENS: bool = true;

    async fn carry(self: Rc<Self>, downstream: TcpStream, upstream: TcpStream) -> Carried {
        self.carried.set(self.carried.get() + 1);
        let (near, far) = self.opened().await;
        let counted = [Rc::<Counted>::default(), Rc::default()];
        // Each has a task of its own, as in two processes.
        let far = spawn_local(far.carry(upstream, counted[1].clone()));
        let near = near.carry(downstream, counted[0].clone()).await;
        let far = far.await.unwrap();
        self.carried.set(self.carried.get() - 1);
        let complete = [near, far].map(|ended| ended == Ended::Complete);
        Carried { counted: counted.map(|counted| counted.get()), complete }
    }

    async fn vanish(
        self: Rc<Self>,
        how: Vanishing,
        downstream: TcpStream,
        upstream: TcpStream,
        random: &mut fastrand::Rng,
    ) {
        let tunnel = self.pick().await;
        match how {
            Vanishing::Cancelled => {
                let (number, mut arrived) = self.expect();
                let request = request(number);
                tokio::select! {
                    biased;
                    () = async {
                        pause(random).await;
                        pause(random).await;
                    } => {}
                    opened = tunnel.open(&request) => drop(opened.map(|_| panic!("nobody has answered"))),
                }
                self.expected.borrow_mut().remove(&number);
                if let Ok(incoming) = arrived.try_recv() {
                    is_taken_back(incoming).await;
                }
            }
            Vanishing::Unanswered | Vanishing::Refused => {
                let (number, arrived) = self.expect();
                let request = request(number);
                let far = async {
                    let incoming = arrived.await.unwrap();
                    pause(random).await;
                    match how {
                        Vanishing::Refused => incoming.refuse(StatusCode::SERVICE_UNAVAILABLE),
                        _ => drop(incoming),
                    }
                };
                let (answer, ()) = tokio::join!(tunnel.open(&request), far);
                let as_it_is = match (how, answer.map(drop)) {
                    (Vanishing::Refused, Err(OpenError::Status(StatusCode::SERVICE_UNAVAILABLE))) => Ok(()),
                    (Vanishing::Unanswered, Err(OpenError::Reset(_))) => Ok(()),
                    (_, answer) => Err(answer),
                };
                assert!(as_it_is.is_ok(), "{how:?}, and the near proxy is told {as_it_is:?}");
            }
            Vanishing::NearGone | Vanishing::FarGone => {
                let (near, far) = self.opened().await;
                let (stays, goes, app, other) = match how {
                    Vanishing::NearGone => (far, near, upstream, downstream),
                    _ => (near, far, downstream, upstream),
                };
                let counted = Rc::new(Counted::default());
                let carrying = spawn_local(stays.carry(app, counted.clone()));
                pause(random).await;
                drop(goes);
                let ended = timeout(SOON, carrying).await.unwrap().unwrap();
                assert!(
                    matches!(ended, Ended::PeerReset(_)),
                    "{how:?}, and the other proxy is told {ended:?}"
                );
                assert_eq!(counted.get(), (0, 0));
                drop(other);
            }
        }
    }

    fn holds(&self) -> usize {
        let streams: usize = self.tunnels.borrow().iter().map(|open| open.near.streams()).sum();
        self.carried.get() + self.expected.borrow().len() + streams
    }

    fn cut(&self) {
        self.tunnels.borrow().iter().for_each(|open| open.far.abort());
    }
}
