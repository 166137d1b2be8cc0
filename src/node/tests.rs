mod descriptors;
mod pods;
mod protocol;
mod retries;
mod schedule;
mod sessions;
mod wire;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recv, sendmsg, socket_with,
};
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::wire::proto;
use super::wire::proto::workload_request::Payload;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

fn namespace() -> Netns {
    Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN")
}

/// Everything on one thread, as on the service thread.
fn story(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, story);
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("this happens within the test's patience")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it never came to be that {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Serves pods by listening on the tunnel port in their namespaces.
#[derive(Default)]
struct TestPods {
    running: RefCell<HashMap<Arc<str>, (PodInfo, TcpListener)>>,
    /// What was asked, in order.
    log: RefCell<Vec<String>>,
    /// Pods whose start does not go on until it is released.
    stuck: RefCell<HashSet<&'static str>>,
    release: Notify,
    /// What a start answers instead of listening.
    unavailable: RefCell<Option<String>>,
    /// How long a start holds the whole thread.
    holds_thread: RefCell<Duration>,
}

impl TestPods {
    fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    fn serves(&self, uid: &str) -> bool {
        self.running.borrow().contains_key(uid)
    }
}

impl Pods for TestPods {
    async fn start(&self, pod: PodInfo, netns: Arc<Netns>) -> Result<(), StartError> {
        self.log.borrow_mut().push(format!("start {}", pod.uid));
        assert!(!self.serves(&pod.uid), "{} is started although it runs", pod.uid);
        if self.stuck.borrow().contains(&*pod.uid) {
            self.release.notified().await;
        }
        std::thread::sleep(*self.holds_thread.borrow());
        if let Some(why) = &*self.unavailable.borrow() {
            return Err(StartError::Unavailable(why.clone()));
        }
        let listener = netns.run(|| TcpListener::bind("0.0.0.0:15008")).map_err(StartError::Listen)?;
        self.running.borrow_mut().insert(Arc::clone(&pod.uid), (pod, listener));
        Ok(())
    }

    async fn stop(&self, uid: &str, how: Stop) {
        let how = match how {
            Stop::Cut => "cut",
            Stop::Drain => "drain",
        };
        self.log.borrow_mut().push(format!("{how} {uid}"));
        self.running.borrow_mut().remove(uid);
    }
}

/// A node agent.
struct Agent {
    directory: TempDir,
    listener: UnixDatagram,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = Self::listen(&Self::path_in(directory.path()));
        Self { directory, listener }
    }

    fn path_in(directory: &Path) -> PathBuf {
        directory.join("ztunnel.sock")
    }

    fn listen(path: &Path) -> UnixDatagram {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 16).unwrap();
        UnixDatagram::from_std(socket.into()).unwrap()
    }

    /// The same agent again, after it ended.
    fn restart(self) -> Self {
        let Self { directory, listener } = self;
        drop(listener);
        let path = Self::path_in(directory.path());
        std::fs::remove_file(&path).unwrap();
        Self { listener: Self::listen(&path), directory }
    }

    /// The next session, after its hello.
    async fn session(&self) -> Peer {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = self.listener.async_io(Interest::READABLE, || Ok(accept_with(&self.listener, flags)?));
        let peer = Peer::over(in_time(accepted).await.unwrap());
        assert_eq!(peer.receive().await, [0x08, 0x01], "hello comes first");
        peer
    }
}

/// The agent's end of one session.
struct Peer(UnixDatagram);

impl Peer {
    fn over(socket: OwnedFd) -> Self {
        Self(UnixDatagram::from_std(socket.into()).unwrap())
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
            }
            Ok(sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
        };
        in_time(self.0.async_io(Interest::WRITABLE, send)).await.unwrap();
    }

    /// The next packet; empty at the end of the session.
    async fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        let read = self.0.async_io(Interest::READABLE, || {
            let (length, _) = recv(&self.0, bytes.as_mut_slice(), RecvFlags::empty())?;
            Ok(length)
        });
        let length = in_time(read).await.unwrap_or(0);
        assert!(length <= 1024, "the agent reads 1024 bytes");
        bytes.truncate(length);
        bytes
    }

    /// The error text of the next answer.
    async fn answer(&self) -> String {
        let packet = self.receive().await;
        assert!(!packet.is_empty(), "the session ended instead of an answer");
        let response = proto::WorkloadResponse::decode(packet.as_slice()).unwrap();
        let Some(proto::workload_response::Payload::Ack(ack)) = response.payload else {
            panic!("an answer has an ack");
        };
        ack.error
    }

    async fn ask(&self, payload: Payload, descriptors: &[BorrowedFd<'_>]) -> String {
        let request = proto::WorkloadRequest { payload: Some(payload) };
        self.send(&request.encode_to_vec(), descriptors).await;
        self.answer().await
    }

    async fn add(&self, uid: &str, netns: &impl AsFd) -> String {
        self.ask(Payload::Add(add(uid)), &[netns.as_fd()]).await
    }

    async fn keep(&self, uid: &str) -> String {
        self.ask(Payload::Keep(proto::KeepWorkload { uid: uid.to_owned() }), &[]).await
    }

    async fn del(&self, uid: &str) -> String {
        self.ask(Payload::Del(proto::DelWorkload { uid: uid.to_owned() }), &[]).await
    }

    async fn snapshot_sent(&self) -> String {
        self.ask(Payload::SnapshotSent(proto::SnapshotSent {}), &[]).await
    }

    async fn ends(&self) {
        assert_eq!(self.receive().await, [0_u8; 0], "the session ends");
    }

    /// Nothing is said unless asked. A wait that is too short misses a fault; it never makes one.
    async fn hears_nothing(&self) {
        let mut bytes = [0; 64];
        let read = self.0.async_io(Interest::READABLE, || {
            let (length, _) = recv(&self.0, &mut bytes[..], RecvFlags::empty())?;
            Ok(length)
        });
        assert!(timeout(Duration::from_millis(50), read).await.is_err(), "an unsolicited packet");
    }
}

fn add(uid: &str) -> proto::AddWorkload {
    proto::AddWorkload {
        uid: uid.to_owned(),
        workload_info: Some(proto::WorkloadInfo {
            name: format!("pod-{uid}"),
            namespace: "shop".to_owned(),
            service_account: "till".to_owned(),
        }),
    }
}

/// This room, running.
struct Node {
    pods: Rc<TestPods>,
    metrics: Arc<Metrics>,
    ready: Rc<RefCell<Vec<bool>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Short waits between sessions; pods that fail stay so unless a test says otherwise.
fn timing() -> Timing {
    Timing {
        retry: Wait { first: HOUR, longest: HOUR },
        reconnect: Wait { first: Duration::from_millis(1), longest: Duration::from_millis(5) },
        ..Timing::default()
    }
}

impl Node {
    fn start(agent: &Agent) -> Self {
        Self::with(agent, timing())
    }

    fn with(agent: &Agent, timing: Timing) -> Self {
        Self::at(&Agent::path_in(agent.directory.path()), timing)
    }

    fn at(path: &Path, timing: Timing) -> Self {
        let (pods, metrics, ready) = (Rc::new(TestPods::default()), Arc::default(), Rc::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let config = Config { timing, ..Config::new(path.to_owned()).unwrap() };
        let task = {
            let (pods, metrics) = (Rc::clone(&pods), Arc::<Metrics>::clone(&metrics));
            let ready = Rc::<RefCell<Vec<bool>>>::clone(&ready);
            spawn_local(async move {
                let stop = async { drop(stopped.await) };
                run(config, &*pods, &metrics, |now| ready.borrow_mut().push(now), stop).await;
            })
        };
        Self { pods, metrics, ready, stop, task }
    }

    fn is_ready(&self) -> bool {
        *self.ready.borrow().last().unwrap()
    }

    fn count(&self, counter: impl Fn(&Metrics) -> &AtomicU64) -> u64 {
        counter(&self.metrics).load(Ordering::Relaxed)
    }

    async fn stop(self) -> Rc<TestPods> {
        self.stop.send(()).expect("it runs until it is told to stop");
        in_time(self.task).await.unwrap();
        self.pods
    }
}
