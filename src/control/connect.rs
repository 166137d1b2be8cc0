//! From a name to an HTTP/2 connection with who has proven to have it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use super::{Address, Config, Error};

/// One address has so long to take a connection, and again so long for TLS, and for HTTP/2.
const DEADLINE: Duration = Duration::from_secs(5);
/// What istiod allows at most is every 15 s, and only while a stream is open.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(10);
/// Room for a large message on its way.
const WINDOW: u32 = 4 << 20;

/// One connection to the control plane, for `tonic::client::Grpc`. It ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    send: http2::SendRequest<Body>,
}

impl Connection {
    /// Whether it takes no more calls.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed()
    }
}

/// Connects, whatever is there now by that name.
///
/// - Cancel: nothing stays.
///
/// # Errors
/// [`Error`], the last address's where none answers.
pub async fn connect(config: &Config) -> Result<Connection, Error> {
    let to = &config.address;
    let tls = tls(config)?;
    let name = name(&to.host)?;
    let late = |_| Error::Late { to: to.clone(), within: DEADLINE };
    let addresses = timeout(DEADLINE, lookup_host((to.host.as_str(), to.port))).await.map_err(late)?;
    let addresses = addresses.map_err(|cause| Error::Resolve { host: to.host.clone(), cause })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut tcp = None;
    for address in addresses {
        match timeout(DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                tcp = Some(stream);
                break;
            }
            Ok(Err(cause)) => last = cause,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
        }
    }
    let tcp = tcp.ok_or_else(|| Error::Connect { to: to.clone(), cause: last })?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(300))
        .with_interval(Duration::from_secs(75))
        .with_retries(9);
    tcp.set_nodelay(true)
        .and_then(|()| SockRef::from(&tcp).set_tcp_keepalive(&keepalive))
        .map_err(|cause| Error::Connect { to: to.clone(), cause })?;
    let tls = timeout(DEADLINE, TlsConnector::from(tls).connect(name, tcp)).await.map_err(late)?;
    let tls = tls.map_err(|cause| Error::Tls { to: to.clone(), cause })?;
    let builder = &mut http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let (send, connection) = timeout(DEADLINE, builder.handshake(TokioIo::new(tls)))
        .await
        .map_err(late)?
        .map_err(|cause| Error::Http2 { to: to.clone(), cause })?;
    tokio::spawn(async move {
        if let Err(cause) = connection.await {
            tracing::debug!(%cause, "the connection to the control plane ended");
        }
    });
    Ok(Connection { send })
}

fn name(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned()).map_err(|_| Error::Name(host.to_owned()))
}

fn tls(config: &Config) -> Result<Arc<ClientConfig>, Error> {
    let roots = config.roots.load()?;
    let wrong = |why: String| Error::Roots { file: None, why };
    let chain = WebPkiServerVerifier::builder_with_provider(roots, config.provider.clone())
        .build()
        .map_err(|cause| wrong(cause.to_string()))?;
    let alternative = config.alternative.as_deref().map(name).transpose()?;
    let mut tls = ClientConfig::builder_with_provider(config.provider.clone())
        .with_protocol_versions(config.versions)
        .map_err(|cause| wrong(cause.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(EitherName { chain, alternative }))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}

/// Accepts a certificate for the name that was dialled, or for another one that was configured.
#[derive(Debug)]
struct EitherName {
    chain: Arc<WebPkiServerVerifier>,
    alternative: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let dialled = self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match (dialled, &self.alternative) {
            (Err(_), Some(other)) => self.chain.verify_server_cert(leaf, intermediates, other, ocsp, now),
            (dialled, _) => dialled,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.send.send_request(request))
    }
}

impl Address {
    /// As the origin of requests.
    pub fn origin(&self) -> http::Uri {
        self.to_string().parse().unwrap_or_default()
    }
}
