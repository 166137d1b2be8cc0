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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::carrier::Carrier;
use super::error::HandshakeError;
use super::transport::Transport;
use super::{TCP_DEADLINE, TLS_DEADLINE};
use crate::capture::{Pod, connected};
use crate::identity::{PeerError, VerifiedPeer, require_h2};
use crate::net::canonical;
use crate::tls::{self, Established, Handshake};

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
    pub(super) session: Session,
    /// Who proved to be at the other end.
    pub peer: VerifiedPeer,
    /// Our address of the TCP connection.
    pub local: SocketAddr,
    /// The peer's address of the TCP connection.
    pub remote: SocketAddr,
    /// When the steps were done.
    pub stamps: Stamps,
}

/// What a handshake yields to the carrier that it was made for.
pub(super) enum Session {
    /// Keys and socket, apart.
    InPlace { socket: StdStream, established: Box<Established> },
    /// rustls goes on.
    Classic(Box<TlsStream<Transport>>),
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
    /// Who will carry it.
    pub carrier: Carrier,
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
    ///
    /// # Errors
    /// [`HandshakeError`], never one of HTTP/2.
    pub async fn accept(
        &self,
        tcp: StdStream,
        config: Arc<ServerConfig>,
        carrier: Carrier,
    ) -> Result<Secured, HandshakeError> {
        self.run(|inner| &inner.accepting, move || accept(tcp, config, carrier)).await
    }

    /// Connects and starts a handshake as client.
    ///
    /// # Errors
    /// As of [`accept`](Self::accept).
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

async fn accept(
    tcp: StdStream,
    config: Arc<ServerConfig>,
    carrier: Carrier,
) -> Result<Secured, HandshakeError> {
    let tcp_done = Instant::now();
    let tcp = TcpStream::from_std(tcp).map_err(tls_failed)?;
    match carrier {
        Carrier::InPlace => {
            let handshake =
                Handshake::server(&config).map_err(|cause| tls_failed(io::Error::other(cause)))?;
            let (tcp, handshake) = in_time(shake(tcp, handshake)).await?;
            taken_over(tcp, handshake, tcp_done)
        }
        Carrier::Classic => {
            let stream = in_time(TlsAcceptor::from(config).accept(Transport::Attached(tcp))).await?;
            classic(stream.into(), tcp_done)
        }
    }
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
    let no_h2 = |cause: PeerError| HandshakeError::Peer(cause.to_string());
    match plan.carrier {
        Carrier::InPlace => {
            let handshake =
                Handshake::client(&plan.config, name).map_err(|cause| tls_failed(io::Error::other(cause)))?;
            let (tcp, handshake) = in_time(shake(tcp, handshake)).await?;
            require_h2(handshake.connection()).map_err(no_h2)?;
            taken_over(tcp, handshake, tcp_done)
        }
        Carrier::Classic => {
            let connecting = TlsConnector::from(plan.config).connect(name, Transport::Attached(tcp));
            let stream = in_time(connecting).await?;
            require_h2(stream.get_ref().1).map_err(no_h2)?;
            classic(stream.into(), tcp_done)
        }
    }
}

fn tls_failed(cause: io::Error) -> HandshakeError {
    HandshakeError::Tls(cause.into())
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<T, HandshakeError> {
    timeout(TLS_DEADLINE, handshake)
        .await
        .map_err(|_| HandshakeError::TlsTimeout(TLS_DEADLINE))?
        .map_err(tls_failed)
}

/// Brings a handshake to its end. The error is the one that rustls has for it, as tokio-rustls would pass it on.
async fn shake(mut tcp: TcpStream, mut handshake: Handshake) -> io::Result<(TcpStream, Handshake)> {
    let mut send = Vec::new();
    let mut received = [0; 4096];
    let mut step = handshake.start(&mut send);
    loop {
        // Also of a handshake that failed: the alert tells the peer why.
        let sent = if send.is_empty() { Ok(()) } else { tcp.write_all(&send).await };
        step.map_err(|cause| match cause {
            tls::HandshakeError::Tls(cause) => io::Error::new(io::ErrorKind::InvalidData, cause),
            cause => io::Error::new(io::ErrorKind::InvalidData, cause),
        })?;
        sent?;
        send.clear();
        if handshake.is_done() {
            return Ok((tcp, handshake));
        }
        let bytes = tcp.read(&mut received).await?;
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
        }
        step = handshake.receive(&received[..bytes], &mut send);
    }
}

/// The keys are ours from here on.
fn taken_over(tcp: TcpStream, handshake: Handshake, tcp_done: Instant) -> Result<Secured, HandshakeError> {
    let done = Instant::now();
    let peer =
        VerifiedPeer::of(handshake.connection()).map_err(|cause| HandshakeError::Peer(cause.to_string()))?;
    let established = handshake.finish().map_err(|cause| tls_failed(io::Error::other(cause)))?.into();
    let socket = tcp.into_std().map_err(tls_failed)?;
    let (local, remote) = ends(&socket)?;
    let session = Session::InPlace { socket, established };
    Ok(Secured { session, peer, local, remote, stamps: Stamps { tcp: tcp_done, tls: done } })
}

fn classic(mut stream: TlsStream<Transport>, tcp: Instant) -> Result<Secured, HandshakeError> {
    let done = Instant::now();
    let (transport, session) = stream.get_mut();
    let peer = VerifiedPeer::of(session).map_err(|cause| HandshakeError::Peer(cause.to_string()))?;
    transport.detach().map_err(tls_failed)?;
    let Transport::Detached(socket) = transport else {
        return Err(tls_failed(io::Error::other("the socket was lost on its way to a worker")));
    };
    let (local, remote) = ends(socket)?;
    let session = Session::Classic(Box::new(stream));
    Ok(Secured { session, peer, local, remote, stamps: Stamps { tcp, tls: done } })
}

/// Our address and the peer's.
fn ends(socket: &StdStream) -> Result<(SocketAddr, SocketAddr), HandshakeError> {
    Ok((
        canonical(socket.local_addr().map_err(tls_failed)?),
        canonical(socket.peer_addr().map_err(tls_failed)?),
    ))
}
