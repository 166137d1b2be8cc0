//! A client of our own on the tunnel port: HTTP/2 over TLS with whatever certificate a test wants to show.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use adit::identity::{Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy};
use adit::lab::{Pod, dial};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::stage::SOON;

/// The peer of a mesh proxy as we play it: where it dials from, and what it shows.
#[derive(Clone)]
pub struct Caller {
    from: Pod,
    config: Arc<ClientConfig>,
}

/// A tunnel with no stream on it yet.
pub struct Tunnel {
    requests: SendRequest<Bytes>,
}

/// An open CONNECT.
pub struct Stream {
    to: SendStream<Bytes>,
    from: RecvStream,
}

/// Shows nothing.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl Caller {
    /// Dials from `from` and proves `identity`, by the authority in `authority`; insists on `expected`.
    pub fn new(from: Pod, identity: &SpiffeId, authority: &Path, expected: &SpiffeId) -> Self {
        let policy = TlsPolicy::new(Tls::default(), Clock::system());
        let ca = EmbeddedCa::open(authority, identity.trust_domain(), Clock::system())
            .expect("the lab's authority can be opened");
        let issued = run(ca.issue(identity.clone(), std::time::Duration::from_secs(3600)))
            .expect("the authority issues for its trust domain");
        let credentials = Credentials::new(identity, issued, &policy).expect("what it issues is good");
        Self { from, config: credentials.client_config(Arc::new([expected.clone()])) }
    }

    /// The same, but with what `other` shows.
    pub fn showing(mut self, other: &Self) -> Self {
        Arc::make_mut(&mut self.config).client_auth_cert_resolver =
            other.config.client_auth_cert_resolver.clone();
        self
    }

    /// The same, showing no certificate.
    pub fn showing_nothing(mut self) -> Self {
        Arc::make_mut(&mut self.config).client_auth_cert_resolver = Arc::new(Nobody);
        self
    }

    /// Dials and goes through the TLS handshake, as far as a client sees it.
    async fn handshake(&self, to: SocketAddr) -> Result<TlsStream<TcpStream>, String> {
        let tcp = dial(self.from.netns(), to, SOON).map_err(|cause| format!("dialling: {cause}"))?;
        tcp.set_nonblocking(true).map_err(|cause| cause.to_string())?;
        let tcp = TcpStream::from_std(tcp).map_err(|cause| cause.to_string())?;
        let connector = TlsConnector::from(self.config.clone());
        let name = ServerName::IpAddress(to.ip().into());
        connector.connect(name, tcp).await.map_err(|cause| format!("TLS: {cause}"))
    }

    /// Opens a tunnel.
    ///
    /// # Errors
    /// What happened instead, with all causes.
    pub fn tunnel(&self, to: SocketAddr) -> Result<Tunnel, String> {
        run(async {
            let tls = self.handshake(to).await?;
            let (requests, connection) = h2::client::handshake(tls).await.map_err(|cause| story(&cause))?;
            tokio::spawn(connection);
            let requests = requests.ready().await.map_err(|cause| story(&cause))?;
            Ok(Tunnel { requests })
        })
    }

    /// Why the far side does not want us: what its TLS says after our handshake, of which a client that shows a
    /// bad certificate learns only by reading on (RFC 8446 appendix E.1).
    ///
    /// # Errors
    /// When it speaks HTTP/2 to us instead.
    pub fn turned_away(&self, to: SocketAddr) -> Result<String, String> {
        run(async {
            let mut tls = match self.handshake(to).await {
                Ok(tls) => tls,
                Err(cause) => return Ok(cause),
            };
            match tls.read_u8().await {
                Ok(_) => Err("it was let in".to_owned()),
                Err(cause) => Ok(cause.to_string()),
            }
        })
    }
}

impl Tunnel {
    /// Asks `method` of `authority` and says what status came back, and the stream if it is a 200 to a CONNECT.
    pub fn ask(&mut self, method: Method, authority: &str) -> (StatusCode, Stream) {
        let uri = match method {
            Method::CONNECT => authority.to_owned(),
            _ => format!("https://{authority}/"),
        };
        let request =
            Request::builder().method(method).uri(uri).body(()).expect("the test's authority is one");
        let answer = run(async {
            let mut requests = self.requests.clone().ready().await.map_err(|cause| story(&cause))?;
            let (answer, to) = requests.send_request(request, false).map_err(|cause| story(&cause))?;
            let answer = answer.await.map_err(|cause| story(&cause))?;
            Ok::<_, String>((answer.status(), Stream { to, from: answer.into_body() }))
        });
        answer.unwrap_or_else(|cause| panic!("{authority} was asked for and the stream failed: {cause}"))
    }

    /// The status of a CONNECT to `authority`.
    pub fn connect(&mut self, authority: &str) -> StatusCode {
        self.ask(Method::CONNECT, authority).0
    }
}

impl Stream {
    /// Says `text` to an echo and insists that it comes back.
    pub fn echoes(&mut self, text: &'static str) {
        self.to.send_data(Bytes::from_static(text.as_bytes()), false).expect("the stream is open");
        let back = run(async {
            let mut back = Vec::new();
            while back.len() < text.len() {
                let chunk = self.from.data().await.expect("the stream goes on").expect("the stream is whole");
                self.from.flow_control().release_capacity(chunk.len()).expect("it was received");
                back.extend_from_slice(&chunk);
            }
            back
        });
        assert_eq!(String::from_utf8_lossy(&back), text);
    }

    /// Ends our side in order and insists that the other does so too.
    pub fn finish(mut self) {
        self.to.send_data(Bytes::new(), true).expect("the stream is open");
        let more = run(async { self.from.data().await });
        assert!(more.is_none(), "after its end the stream still had: {more:?}");
    }
}

/// Runs `work` to its end while the tunnels of all tests live on a thread of their own.
fn run<T>(work: impl Future<Output = T>) -> T {
    static ALWAYS: LazyLock<Handle> = LazyLock::new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be built");
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    });
    let work = async { tokio::time::timeout(SOON, work).await };
    ALWAYS.block_on(work).unwrap_or_else(|_| panic!("the far side of a tunnel said nothing for {SOON:?}"))
}

/// An error with its causes, in one line.
fn story(cause: &dyn std::error::Error) -> String {
    let mut story = cause.to_string();
    let mut next = cause.source();
    while let Some(cause) = next {
        story.push_str(": ");
        story.push_str(&cause.to_string());
        next = cause.source();
    }
    story
}
