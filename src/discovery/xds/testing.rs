//! A control plane in this process, over real TLS, that does what a test says and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails right there"
)]

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::wire::ads::{Any, DeltaDiscoveryRequest, Resource};

pub use super::wire::ads::DeltaDiscoveryResponse;
pub use super::wire::{ADDRESS, AUTHORIZATION, security, workload};

/// For anything that must happen, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// The token that the client shows.
pub const TOKEN: &str = "a-token-of-the-tests";

/// What the server's certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// As it should be.
    Good,
    /// For another name.
    OtherName,
    /// For no name.
    NoName,
    /// By an authority that nobody knows.
    OtherRoot,
    /// By itself.
    SelfSigned,
    /// No more.
    Expired,
    /// Not yet.
    NotYet,
}

/// The control plane. Its certificates are good for `127.0.0.1`.
#[derive(Debug)]
pub struct Istiod {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Holds its root, `root.pem`, and the client's token, `token`.
    directory: PathBuf,
    streams: mpsc::UnboundedReceiver<Stream>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One stream that a client has opened.
#[derive(Debug)]
pub struct Stream {
    /// The head of its request.
    pub headers: HeaderMap,
    requests: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
    answers: mpsc::UnboundedSender<Answer>,
}

#[derive(Debug)]
enum Answer {
    Message(Vec<u8>),
    Raw(Vec<u8>),
    End(i32, &'static str),
    Drop,
}

impl Istiod {
    /// Starts one on a loopback port, with its files in `directory`.
    ///
    /// # Panics
    /// Whenever something cannot be made.
    pub fn start(proof: Proof, directory: &Path) -> Self {
        Self::on(StdListener::bind("127.0.0.1:0").unwrap(), proof, directory)
    }

    /// As [`Istiod::start`], on a listener that is there.
    ///
    /// # Panics
    /// Whenever something cannot be made.
    pub fn on(listener: StdListener, proof: Proof, directory: &Path) -> Self {
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (root, tls) = certificates(proof);
        std::fs::write(directory.join("root.pem"), root).unwrap();
        std::fs::write(directory.join("token"), format!("{TOKEN}\n")).unwrap();
        let acceptor = TlsAcceptor::from(tls);
        let (arrived, streams) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, arrived) = (acceptor.clone(), arrived.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(socket).await else { return };
                    let Ok(mut connection) = h2::server::handshake(tls).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let stream = serve(request, respond);
                        let _ = arrived.send(stream);
                    }
                });
            }
        });
        Self { addr, directory: directory.to_owned(), streams, task }
    }

    /// The file with its root.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// The file with the client's token.
    pub fn token(&self) -> PathBuf {
        self.directory.join("token")
    }

    /// The next stream that a client opens.
    ///
    /// # Panics
    /// When none is opened soon.
    pub async fn stream(&mut self) -> Stream {
        timeout(SOON, self.next()).await.expect("no stream is opened")
    }

    /// The next stream that a client opens, whenever that is.
    ///
    /// # Panics
    /// When the server has failed.
    pub async fn next(&mut self) -> Stream {
        self.streams.recv().await.expect("the server runs")
    }

    /// Whether a client has opened a stream by now.
    pub fn has_stream(&self) -> bool {
        !self.streams.is_empty()
    }
}

impl Stream {
    /// What the client says next.
    ///
    /// # Panics
    /// When it says nothing, or is gone.
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        timeout(SOON, self.requests.recv()).await.expect("nothing is said").expect("the stream is open")
    }

    /// Says something.
    pub fn send(&self, response: &DeltaDiscoveryResponse) {
        let _ = self.answers.send(Answer::Message(response.encode_to_vec()));
    }

    /// Says a message that is none.
    pub fn send_raw(&self, bytes: &[u8]) {
        let _ = self.answers.send(Answer::Raw(bytes.to_vec()));
    }

    /// Ends it with a status.
    pub fn end(self, status: i32, message: &'static str) {
        let _ = self.answers.send(Answer::End(status, message));
    }

    /// Breaks it off.
    pub fn cut(self) {
        let _ = self.answers.send(Answer::Drop);
    }
}

fn serve(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) -> Stream {
    let (head, mut body) = request.into_parts();
    let (said, requests) = mpsc::unbounded_channel();
    let (answers, mut to_send) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
            buffer.extend_from_slice(&chunk);
            while buffer.len() >= 5 {
                let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
                if buffer.len() < 5 + length {
                    break;
                }
                let message = buffer.split_to(5 + length).split_off(5);
                let _ = said.send(DeltaDiscoveryRequest::decode(message.freeze()).unwrap());
            }
        }
    });
    tokio::spawn(async move {
        // As istiod: the head of the answer comes with the first message, and a refusal is nothing but trailers.
        let mut sending = None;
        while let Some(answer) = to_send.recv().await {
            let head = || {
                let builder = Response::builder().status(200).header("content-type", "application/grpc");
                builder.body(()).unwrap()
            };
            match answer {
                Answer::Message(_) | Answer::Raw(_) => {
                    let framed = match answer {
                        Answer::Message(bytes) => {
                            let mut framed = BytesMut::with_capacity(bytes.len() + 5);
                            framed.put_u8(0);
                            framed.put_u32(u32::try_from(bytes.len()).unwrap());
                            framed.put_slice(&bytes);
                            framed.freeze()
                        }
                        Answer::Raw(bytes) => bytes.into(),
                        _ => Bytes::new(),
                    };
                    let stream = sending.get_or_insert_with(|| respond.send_response(head(), false).unwrap());
                    if stream.send_data(framed, false).is_err() {
                        return;
                    }
                }
                Answer::End(status, message) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", status.into());
                    trailers.insert("grpc-message", message.parse().unwrap());
                    match sending.take() {
                        Some(mut stream) => drop(stream.send_trailers(trailers)),
                        None => {
                            let mut head = head();
                            head.headers_mut().extend(trailers);
                            drop(respond.send_response(head, true));
                        }
                    }
                    return;
                }
                Answer::Drop => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        }
    });
    Stream { headers: head.headers, requests, answers }
}

/// The root that clients know, and what the server shows.
fn certificates(proof: Proof) -> (String, Arc<ServerConfig>) {
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), Issuer::new(params, key))
    };
    let (root, issuer) = authority();
    let name = match proof {
        Proof::OtherName => vec!["istiod.istio-system.svc".to_owned()],
        Proof::NoName => Vec::new(),
        _ => vec!["127.0.0.1".to_owned()],
    };
    let mut params = CertificateParams::new(name).unwrap();
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let (from, to) = match proof {
        Proof::Expired => (now - 2 * day, now - day),
        Proof::NotYet => (now + day, now + 2 * day),
        _ => (now - day, now + day),
    };
    (params.not_before, params.not_after) = (from.into(), to.into());
    let key = KeyPair::generate().unwrap();
    let leaf = match proof {
        Proof::SelfSigned => params.self_signed(&key),
        Proof::OtherRoot => params.signed_by(&key, &authority().1),
        _ => params.signed_by(&key, &issuer),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.unwrap().into()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    (root, Arc::new(tls))
}

/// A response with these resources: name, version, and what is in it.
pub fn response(
    type_url: &str,
    nonce: &str,
    resources: impl IntoIterator<Item = (String, String, Vec<u8>)>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resource = |(name, version, value): (String, String, Vec<u8>)| Resource {
        version,
        resource: Some(Any { type_url: type_url.into(), value: value.into() }),
        name,
    };
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources: resources.into_iter().map(resource).collect(),
        type_url: type_url.into(),
        nonce: nonce.into(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}
