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
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

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
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Holds its root, `root.pem`, and the client's token, `token`.
    directory: PathBuf,
    calls: mpsc::UnboundedReceiver<Call>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One call that a client has begun.
#[derive(Debug)]
pub struct Call {
    /// What it calls.
    pub path: String,
    /// The head of its request.
    pub headers: HeaderMap,
    messages: mpsc::UnboundedReceiver<Bytes>,
    answers: mpsc::UnboundedSender<Answer>,
}

#[derive(Debug)]
enum Answer {
    Message(Vec<u8>),
    Raw(Vec<u8>),
    End(i32, &'static str),
    Drop,
}

impl Server {
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
        let (arrived, calls) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, arrived) = (acceptor.clone(), arrived.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(socket).await else { return };
                    let Ok(mut connection) = h2::server::handshake(tls).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let _ = arrived.send(serve(request, respond));
                    }
                });
            }
        });
        Self { addr, directory: directory.to_owned(), calls, task }
    }

    /// The file with its root.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// The file with the client's token.
    pub fn token(&self) -> PathBuf {
        self.directory.join("token")
    }

    /// The next call that a client begins.
    pub async fn call(&mut self) -> Call {
        timeout(SOON, self.next()).await.expect("nobody calls")
    }

    /// The next call that a client begins, whenever that is.
    pub async fn next(&mut self) -> Call {
        self.calls.recv().await.expect("the server runs")
    }

    /// Whether a client has begun a call by now.
    pub fn is_called(&self) -> bool {
        !self.calls.is_empty()
    }
}

impl Call {
    /// What the client says next.
    pub async fn message<M: Message + Default>(&mut self) -> M {
        let next = timeout(SOON, self.messages.recv()).await.expect("nothing is said");
        M::decode(next.expect("the call goes on")).unwrap()
    }

    /// Says something.
    pub fn send(&self, message: &impl Message) {
        let _ = self.answers.send(Answer::Message(message.encode_to_vec()));
    }

    /// Says it, and that this was all.
    pub fn answer(self, message: &impl Message) {
        self.send(message);
        self.end(0, "");
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

fn serve(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) -> Call {
    let (head, mut body) = request.into_parts();
    let (said, messages) = mpsc::unbounded_channel();
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
                let _ = said.send(message.freeze());
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
    Call { path: head.uri.path().to_owned(), headers: head.headers, messages, answers }
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
