//! The handshake pool: a few low-priority threads that do TCP connects and TLS handshakes of tunnels.
//!
//! A full handshake costs as much CPU as carrying a megabyte. Done on a data worker it would hold up every
//! connection of that worker; done here it holds up other handshakes only. A finished tunnel leaves this pool as
//! a [`Secured`] value that any worker can adopt.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustls::pki_types::{IpAddr as PkiIp, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::error::HandshakeError;
use super::transport::Transport;
use super::{TCP_DEADLINE, TLS_DEADLINE};
use crate::capture::{Pod, connected};
use crate::identity::{VerifiedPeer, require_h2};
use crate::net::canonical;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Handle of the pool. Cheap to clone; one pool per process.
#[derive(Clone)]
pub struct Handshakes {
    inner: Arc<Inner>,
}

struct Inner {
    threads: Vec<mpsc::UnboundedSender<Job>>,
    next: AtomicUsize,
    /// Each role has its own count: strangers that begin handshakes and do not finish them keep no pod from dialling.
    accepting: AtomicUsize,
    connecting: AtomicUsize,
    limit: usize,
}

/// A finished handshake, in no thread's reactor.
pub struct Secured {
    pub(super) stream: TlsStream<Transport>,
    /// Who proved to be at the other end.
    pub peer: VerifiedPeer,
    /// Our address of the TCP connection.
    pub local: SocketAddr,
    /// The peer's address of the TCP connection.
    pub remote: SocketAddr,
    /// When the steps were done.
    pub stamps: Stamps,
}

/// When the steps of a handshake were done.
#[derive(Clone, Copy, Debug)]
pub struct Stamps {
    /// The TCP connection was up.
    pub tcp: Instant,
    /// The TLS handshake was finished.
    pub tls: Instant,
}

/// How a client's tunnel is dialled.
#[derive(Clone)]
pub struct DialPlan {
    /// The peer's tunnel port.
    pub to: SocketAddr,
    /// The source pod: dialled from its namespace, the tunnel has the pod's address.
    pub pod: Arc<Pod>,
    /// TLS parameters: our certificate and whom we accept.
    pub config: Arc<ClientConfig>,
}

impl Handshakes {
    /// Starts `threads` threads that do at most `limit` handshakes at a time in each role, all
    /// together.
    ///
    /// The threads end when the last handle is dropped.
    pub fn start(threads: usize, limit: usize) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let mut senders = Vec::new();
        let mut handles = Vec::new();
        for n in 0..threads.max(1) {
            let (sender, receiver) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("handshake-{n}")).spawn(move || {
                crate::net::lower_thread_priority();
                LocalSet::new().block_on(&runtime, work(receiver));
            })?;
            senders.push(sender);
            handles.push(thread);
        }
        let none = AtomicUsize::default;
        let inner = Inner { threads: senders, next: none(), accepting: none(), connecting: none(), limit };
        Ok((Self { inner: Arc::new(inner) }, handles))
    }

    /// Answers a client's handshake on an accepted connection.
    pub async fn accept(&self, tcp: StdStream, config: Arc<ServerConfig>) -> Result<Secured, HandshakeError> {
        self.run(|inner| &inner.accepting, move || accept(tcp, config)).await
    }

    /// Connects and starts a handshake as client.
    pub async fn connect(&self, plan: DialPlan) -> Result<Secured, HandshakeError> {
        self.run(|inner| &inner.connecting, move || connect(plan)).await
    }

    async fn run<F>(
        &self,
        count: Count,
        job: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Secured, HandshakeError>
    where
        F: Future<Output = Result<Secured, HandshakeError>> + 'static,
    {
        let inner = &self.inner;
        let slot = Slot::take(inner.clone(), count).ok_or(HandshakeError::Busy(inner.limit))?;
        let (reply, answer) = oneshot::channel();
        let n = inner.next.fetch_add(1, Ordering::Relaxed) % inner.threads.len();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let _slot = slot;
                let mut reply = reply;
                // The asker may have gone away; then so does the handshake.
                tokio::select! {
                    done = job() => drop(reply.send(done)),
                    () = reply.closed() => {}
                }
            })
        });
        inner.threads[n].send(job).map_err(|_| HandshakeError::Draining)?;
        answer.await.unwrap_or(Err(HandshakeError::Draining))
    }
}

/// The count of one role.
type Count = fn(&Inner) -> &AtomicUsize;

/// One handshake's share of its role's budget; given back when it ends, however it ends.
struct Slot {
    inner: Arc<Inner>,
    count: Count,
}

impl Slot {
    fn take(inner: Arc<Inner>, count: Count) -> Option<Self> {
        let slot = Self { inner, count };
        // Counted first, then compared: two takers of the last place cannot both get it.
        (count(&slot.inner).fetch_add(1, Ordering::Relaxed) < slot.inner.limit).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.count)(&self.inner).fetch_sub(1, Ordering::Relaxed);
    }
}

async fn work(mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = jobs.recv().await {
        tokio::task::spawn_local(job());
    }
}

async fn accept(tcp: StdStream, config: Arc<ServerConfig>) -> Result<Secured, HandshakeError> {
    let io = |cause: io::Error| HandshakeError::Tls(cause.into());
    let tcp_done = Instant::now();
    let stream = Transport::Attached(TcpStream::from_std(tcp).map_err(io)?);
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = timeout(TLS_DEADLINE, handshake)
        .await
        .map_err(|_| HandshakeError::TlsTimeout(TLS_DEADLINE))?
        .map_err(io)?;
    secured(stream.into(), tcp_done)
}

async fn connect(plan: DialPlan) -> Result<Secured, HandshakeError> {
    let to = plan.to;
    let failed = |cause: io::Error| HandshakeError::Connect { to, cause: cause.into() };
    let socket = plan.pod.dial_tunnel(to).map_err(failed)?;
    let tcp = connected(socket, TCP_DEADLINE).await.map_err(|cause| match cause.kind() {
        io::ErrorKind::TimedOut => HandshakeError::ConnectTimeout { to, after: TCP_DEADLINE },
        _ => failed(cause),
    })?;
    let tcp_done = Instant::now();
    // The name is not sent (no SNI) and not checked: the verifier compares SPIFFE ids.
    let name = ServerName::IpAddress(PkiIp::from(to.ip()));
    let handshake = TlsConnector::from(plan.config).connect(name, Transport::Attached(tcp));
    let stream = timeout(TLS_DEADLINE, handshake)
        .await
        .map_err(|_| HandshakeError::TlsTimeout(TLS_DEADLINE))?
        .map_err(|cause| HandshakeError::Tls(cause.into()))?;
    require_h2(stream.get_ref().1).map_err(|cause| HandshakeError::Peer(cause.to_string()))?;
    secured(stream.into(), tcp_done)
}

fn secured(mut stream: TlsStream<Transport>, tcp: Instant) -> Result<Secured, HandshakeError> {
    let io = |cause: io::Error| HandshakeError::Tls(cause.into());
    let tls = Instant::now();
    let (transport, session) = stream.get_mut();
    let peer = VerifiedPeer::of(session).map_err(|cause| HandshakeError::Peer(cause.to_string()))?;
    transport.detach().map_err(io)?;
    let Transport::Detached(tcp_stream) = transport else {
        return Err(io(io::Error::other("the socket was lost on its way to a worker")));
    };
    let local = canonical(tcp_stream.local_addr().map_err(io)?);
    let remote = canonical(tcp_stream.peer_addr().map_err(io)?);
    Ok(Secured { stream, peer, local, remote, stamps: Stamps { tcp, tls } })
}

impl Secured {
    /// Registers the socket with the calling thread's reactor, where it stays.
    pub(super) fn adopt(mut self) -> io::Result<TlsStream<Transport>> {
        self.stream.get_mut().0.attach()?;
        Ok(self.stream)
    }
}
