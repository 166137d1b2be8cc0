//! The classic carrier: HTTP/2 by the h2 crate over tokio-rustls.
//!
//! One per tunnel and role. Bytes are copied twice and allocated once per chunk; what it is for is to be plain
//! and well-trodden.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::connect::ConnectRequest;
use super::ended::Ended;
use super::error::{HandshakeError, OpenError};
use super::placement::Carried;
use super::transport::Transport;
use super::{
    CLIENT_HEADER_LIST, CONNECT_DEADLINE, Config, PREFACE_DEADLINE, SERVER_HEADER_LIST, SERVER_STREAMS,
    keepalive,
};
use crate::flow::ends::{DELIVERY, Fin, broken, delivered, has_spoken, reset_after_fin};
use crate::flow::relay::{Meter, write_all};
use crate::flow::{Place, Share, Side};
use crate::http2::Code;
use crate::identity::VerifiedPeer;
use crate::net::socket::{close_in_order, reset_on_close, watch_half_closed};

/// Bytes of one stream that may wait for the tunnel's socket, per role.
const CLIENT_SEND_BUFFER: usize = 4 << 20;
const SERVER_SEND_BUFFER: usize = 400 << 10;
/// Chunks read from an application: small at first, larger once a read filled one.
const FIRST_CHUNK: usize = 16 << 10;
const LARGEST_CHUNK: usize = 256 << 10;
/// How long a peer that no longer answers may take to take our GOAWAY.
const LAST_WORD: Duration = Duration::from_secs(1);

/// One tunnel, as client. Lives on one worker; clones of its `Rc` are its users.
pub(super) struct Tunnel {
    requests: SendRequest<Bytes>,
    peer: VerifiedPeer,
    streams: Rc<Cell<usize>>,
    share: Share,
    /// Set once no new stream may be opened: the peer is going away, or the connection died.
    closed: Rc<Cell<bool>>,
    /// What [`Tunnel::count`] was given; goes when the connection ends, which may be after this value went.
    counted: Rc<Cell<Option<Carried>>>,
    driver: JoinHandle<()>,
}

impl Tunnel {
    /// Starts HTTP/2 on a finished handshake and adopts its socket.
    pub async fn start(
        stream: TlsStream<Transport>,
        peer: VerifiedPeer,
        config: &Config,
        share: Share,
    ) -> Result<Self, HandshakeError> {
        let stream = adopt(stream).map_err(|cause| HandshakeError::Tls(cause.into()))?;
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_frame_size(config.frame_size)
            .max_header_list_size(CLIENT_HEADER_LIST)
            .max_send_buffer_size(CLIENT_SEND_BUFFER)
            .handshake::<_, Bytes>(stream);
        let (requests, mut connection) = timeout(PREFACE_DEADLINE, handshake)
            .await
            .map_err(|_| HandshakeError::Http2Timeout(PREFACE_DEADLINE))?
            .map_err(|cause| HandshakeError::Http2(cause.to_string()))?;
        let pings = connection.ping_pong();
        let closed = Rc::new(Cell::new(false));
        let flag = closed.clone();
        let counted = Rc::new(Cell::new(None));
        let count = counted.clone();
        let driver = tokio::task::spawn_local(async move {
            let watch = async {
                match pings {
                    Some(pings) => keepalive::watch(pings).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = connection => if let Err(cause) = ended {
                    tracing::debug!(%cause, "tunnel ended");
                },
                reason = watch => tracing::warn!(%reason, "tunnel cut"),
            }
            flag.set(true);
            drop(count.take());
        });
        Ok(Self { requests, peer, share, streams: Rc::new(Cell::new(0)), closed, counted, driver })
    }

    /// Has the tunnel count as carried until its connection has ended: bytes of streams that are over may still be
    /// on their way, and the end of the process waits for what is carried.
    pub fn count(&self, carried: Carried) {
        if !self.driver.is_finished() {
            self.counted.set(Some(carried));
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Streams open or being opened.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Whether the tunnel can take another stream, by our limit and by the peer's.
    pub fn has_room(&self, limit: usize) -> bool {
        !self.is_closed() && self.streams.get() < limit.min(self.requests.current_max_send_streams())
    }

    /// Whether the tunnel takes no more streams for good.
    pub fn is_closed(&self) -> bool {
        self.closed.get() || self.driver.is_finished()
    }

    /// Keeps new streams away; those open run on.
    pub fn retire(&self) {
        self.closed.set(true);
    }

    /// Opens one stream and waits for the peer's 200.
    ///
    /// No byte of the application is sent before that answer. Cancel: the stream is reset.
    pub async fn open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        let count = StreamCount::new(&self.streams);
        let head = request.head().ok_or_else(|| OpenError::Lost("the authority forms no URI".into()))?;
        let opening = async {
            let mut requests = self.requests.clone().ready().await.map_err(|cause| self.lost(&cause))?;
            let (response, send) = requests.send_request(head, false).map_err(|cause| self.lost(&cause))?;
            let response = self.answer(response).await?;
            if response.status() != StatusCode::OK {
                return Err(OpenError::Status(response.status()));
            }
            let (parts, receive) = response.into_parts();
            Ok(Opened {
                send,
                receive,
                headers: parts.headers,
                app: Side::Client,
                share: self.share.clone(),
                _count: Some(count),
            })
        };
        timeout(CONNECT_DEADLINE, opening).await.unwrap_or(Err(OpenError::Timeout(CONNECT_DEADLINE)))
    }

    async fn answer(&self, response: ResponseFuture) -> Result<Response<RecvStream>, OpenError> {
        response.await.map_err(|cause| self.lost(&cause))
    }

    fn lost(&self, cause: &h2::Error) -> OpenError {
        if cause.is_go_away() || cause.is_io() {
            self.closed.set(true);
        }
        // A stream above the last id of a GOAWAY was not processed; h2 reports it as that GOAWAY.
        let refused =
            cause.reason() == Some(Reason::REFUSED_STREAM) || (cause.is_go_away() && cause.is_remote());
        let text = cause.to_string();
        match cause.is_reset() {
            _ if refused => OpenError::Refused(text),
            true => OpenError::Reset(text),
            false => OpenError::Lost(text),
        }
    }
}

/// One tunnel, as server: yields the peer's CONNECT streams.
pub(super) struct Server {
    connection: h2::server::Connection<TlsStream<Transport>, Bytes>,
    pings: Option<h2::PingPong>,
    share: Share,
}

impl Server {
    /// Waits for the client's preface on a finished handshake and adopts its socket.
    pub async fn start(
        stream: TlsStream<Transport>,
        config: &Config,
        share: Share,
    ) -> Result<Self, HandshakeError> {
        let stream = adopt(stream).map_err(|cause| HandshakeError::Tls(cause.into()))?;
        let handshake = h2::server::Builder::new()
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_frame_size(config.frame_size)
            .max_header_list_size(SERVER_HEADER_LIST)
            .max_concurrent_streams(SERVER_STREAMS)
            .max_send_buffer_size(SERVER_SEND_BUFFER)
            .handshake::<_, Bytes>(stream);
        let mut connection = timeout(PREFACE_DEADLINE, handshake)
            .await
            .map_err(|_| HandshakeError::Http2Timeout(PREFACE_DEADLINE))?
            .map_err(|cause| HandshakeError::Http2(cause.to_string()))?;
        let pings = connection.ping_pong();
        Ok(Self { connection, pings, share })
    }

    /// Serves until the tunnel ends: `each` gets every stream, `drain` begins a graceful end (GOAWAY, streams
    /// run on).
    ///
    /// Returns why the tunnel ended; `Ok` when the peer closed it in order.
    pub async fn serve(
        mut self,
        mut each: impl FnMut(Incoming),
        drain: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let pings = self.pings.take();
        let watch = async {
            match pings {
                Some(pings) => keepalive::watch(pings).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(watch, drain);
        let mut draining = false;
        loop {
            tokio::select! {
                stream = self.connection.accept() => match stream {
                    None => return Ok(()),
                    Some(Err(cause)) => return Err(cause.to_string()),
                    Some(Ok((request, respond))) => {
                        let (parts, receive) = request.into_parts();
                        let head = Request::from_parts(parts, ());
                        each(Incoming { head, receive, respond, share: self.share.clone() });
                    }
                },
                reason = &mut watch => {
                    self.connection.abrupt_shutdown(Reason::NO_ERROR);
                    // Mostly it lies in the socket's buffer at once; a peer that takes nothing hears nothing.
                    let closed = std::future::poll_fn(|cx| self.connection.poll_closed(cx));
                    let _ = timeout(LAST_WORD, closed).await;
                    return Err(reason);
                }
                () = &mut drain, if !draining => {
                    draining = true;
                    self.connection.graceful_shutdown();
                }
            }
        }
    }
}

/// A CONNECT that waits for its answer.
pub(super) struct Incoming {
    head: Request<()>,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
    share: Share,
}

impl Incoming {
    /// The request's head.
    pub fn head(&self) -> &Request<()> {
        &self.head
    }

    /// Answers with `status` and no body; the stream is over.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // The only error is a stream or tunnel that is gone already; then nobody waits for the answer.
        let _ = self.respond.send_response(response, true);
        // Dropping both halves queues RST_STREAM(NO_ERROR) behind the answer (RFC 9113 §8.1: the rest of the request
        // is not needed). An explicit reset would take the answer's place.
    }

    /// Answers 200: from here on DATA frames are the connection's bytes.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<Opened, OpenError> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert("baggage", baggage);
        }
        let send = self
            .respond
            .send_response(response, false)
            .map_err(|cause| OpenError::Lost(cause.to_string()))?;
        let (parts, ()) = self.head.into_parts();
        let Self { receive, share, .. } = self;
        Ok(Opened { send, receive, headers: parts.headers, app: Side::Server, share, _count: None })
    }

    /// Ready when the peer took its request back.
    pub async fn cancelled(&mut self) {
        let _ = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// An established stream, before its first byte.
pub(super) struct Opened {
    send: SendStream<Bytes>,
    receive: RecvStream,
    headers: HeaderMap,
    /// Which of the two applications is on this node.
    app: Side,
    share: Share,
    _count: Option<StreamCount>,
}

/// Counts for the application on this node.
struct Counted<'a> {
    app: Side,
    meter: &'a dyn Meter,
}

impl Counted<'_> {
    fn sent(&self, bytes: usize) {
        match self.app {
            Side::Client => self.meter.to_upstream(bytes),
            Side::Server => self.meter.to_downstream(bytes),
        }
    }

    fn received(&self, bytes: usize) {
        match self.app {
            Side::Client => self.meter.to_downstream(bytes),
            Side::Server => self.meter.to_upstream(bytes),
        }
    }
}

impl Opened {
    /// The head of the other side: the request's headers for a server, the answer's for a client.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// See [`super::Opened::carry`].
    pub async fn carry(self, app: TcpStream, meter: Rc<dyn Meter>) -> Ended {
        let Self { mut send, mut receive, app: side, share, _count, .. } = self;
        let meter = &Counted { app: side, meter: &*meter };
        // A reset is the end unless both were done: also when this is dropped, and when the process dies.
        reset_on_close(&app);
        let (app_fin, peer_fin) = (Fin::default(), Fin::default());
        let left = Cell::new(None);
        let ended = {
            let to_tunnel = to_tunnel(&app, &mut send, meter, (&app_fin, &left), share.place());
            let to_app = to_app(&app, &mut receive, meter, &app_fin, &peer_fin, share.place());
            tokio::pin!(to_tunnel, to_app);
            tokio::select! {
                sent = &mut to_tunnel => match sent {
                    // The peer, or the tunnel, takes no more. What the peer had said before is the application's
                    // all the same, and whether that was all of it shows in its END_STREAM.
                    Err(sent) if !matches!(sent, Ended::AppReset(_)) => {
                        to_app.await.and(unless_unwanted(sent))
                    }
                    Err(reset) => Err(reset),
                    Ok(()) => to_app.await,
                },
                received = &mut to_app => match received {
                    Ok(()) => to_tunnel.await.or_else(unless_unwanted),
                    Err(ended) => Err(ended),
                },
            }
        };
        match ended {
            Ok(()) => {
                close_in_order(&app);
                Ended::Complete
            }
            Err(ended) => {
                match ended {
                    // Dropped, the stream is reset behind what waits in h2's queue, the answer to the request included, which
                    // `send_reset` would throw away. Behind our END_STREAM h2 would call the reset a server sends NO_ERROR.
                    Ended::AppReset(_) => {
                        if let Some(left) = left.take() {
                            let _ = timeout(DELIVERY, left).await;
                            send.send_reset(Reason::CANCEL);
                        }
                    }
                    Ended::PeerReset(_) if peer_fin.is_set() => delivered(&app).await,
                    _ => {}
                }
                ended
            }
        }
    }
}

/// Registers the socket with the calling thread's reactor, where it stays.
fn adopt(mut stream: TlsStream<Transport>) -> io::Result<TlsStream<Transport>> {
    stream.get_mut().0.attach()?;
    Ok(stream)
}

async fn to_tunnel(
    app: &TcpStream,
    send: &mut SendStream<Bytes>,
    meter: &Counted<'_>,
    (app_fin, left): (&Fin, &Cell<Option<Left>>),
    mut place: Place,
) -> Result<(), Ended> {
    let mut chunk = FIRST_CHUNK;
    loop {
        // Whoever waits holds none of the tunnel's window: what stays reserved here is missing to the other streams
        // for as long as this application is silent.
        send.reserve_capacity(0);
        // A reset may come while the application says nothing.
        tokio::select! {
            ready = app.readable() => ready.map_err(|cause| Ended::AppReset(cause.kind()))?,
            reset = std::future::poll_fn(|cx| send.poll_reset(cx)) => return Err(reset_while_sending(reset)),
        }
        let room = tokio::select! {
            biased;
            room = capacity(send, chunk) => room?,
            // While the peer takes nothing nobody reads from the application, so its reset must be looked for.
            kind = broken(app) => {
                if !has_spoken(kind) {
                    return Err(Ended::AppReset(kind));
                }
                app_fin.broke();
                capacity(send, chunk).await?
            }
        };
        let turn = place.turn().await;
        let mut buffer = BytesMut::with_capacity(room);
        match app.try_read_buf(&mut buffer) {
            Ok(0) => {
                app_fin.set();
                watch_half_closed(app);
                let (end, gone) = end_stream();
                left.set(Some(gone));
                return send.send_data(end, true).map_err(|cause| lost_while_sending(send, &cause));
            }
            Ok(read) => {
                turn.moved(read, read == room);
                if read == chunk && chunk < LARGEST_CHUNK {
                    chunk *= 4;
                }
                send.send_data(packed(buffer), false).map_err(|cause| lost_while_sending(send, &cause))?;
                meter.sent(read);
                // A busy application lets the worker's others have their turn.
                tokio::task::consume_budget().await;
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => return Err(Ended::AppReset(cause.kind())),
        }
    }
}

/// Ready when the END_STREAM it was made with has left h2's queue, where a reset would have thrown it away.
type Left = oneshot::Receiver<Infallible>;

/// The empty payload of an END_STREAM, whose end tells that h2 is done with it.
struct EndStream(#[expect(dead_code, reason = "its drop is what it is for")] oneshot::Sender<Infallible>);

fn end_stream() -> (Bytes, Left) {
    let (held, left) = oneshot::channel();
    (Bytes::from_owner(EndStream(held)), left)
}

impl AsRef<[u8]> for EndStream {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}

/// What was read, in a buffer of about its size: it may wait for the tunnel's socket, and limits count its bytes, not
/// the memory it keeps.
fn packed(read: BytesMut) -> Bytes {
    if read.len() < read.capacity() / 4 { Bytes::copy_from_slice(&read) } else { read.freeze() }
}

/// Waits until the flow-control windows and our send buffer have room; at most `wanted`.
async fn capacity(send: &mut SendStream<Bytes>, wanted: usize) -> Result<usize, Ended> {
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Ok(room.min(wanted));
        }
        let granted = std::future::poll_fn(|cx| match send.poll_capacity(cx) {
            Poll::Ready(granted) => Poll::Ready(granted),
            Poll::Pending => {
                send.poll_reset(cx).map(|reset| Some(Err(reset.map_or_else(|cause| cause, h2::Error::from))))
            }
        })
        .await;
        match granted {
            Some(Ok(_)) => {}
            Some(Err(cause)) => return Err(lost_while_sending(send, &cause)),
            None => return Err(lost_while_sending(send, &"the stream closed while bytes were on their way")),
        }
    }
}

async fn to_app(
    app: &TcpStream,
    receive: &mut RecvStream,
    meter: &Counted<'_>,
    app_fin: &Fin,
    peer_fin: &Fin,
    mut place: Place,
) -> Result<(), Ended> {
    loop {
        // Once the application has sent FIN nobody reads from it, so its reset must be looked for.
        let data = tokio::select! {
            data = receive.data() => data,
            cause = reset_after_fin(app, app_fin) => return Err(Ended::AppReset(cause)),
        };
        match data {
            Some(Ok(data)) => {
                let bytes = data.len();
                place.turn().await.moved(bytes, bytes >= FIRST_CHUNK);
                if let Err(cause) = write_all(app, &data).await {
                    if has_spoken(cause.kind()) {
                        // What it said before is still carried on.
                        app_fin.broke();
                        app_fin.seen().await;
                    }
                    return Err(Ended::AppReset(cause.kind()));
                }
                meter.received(bytes);
                tokio::task::consume_budget().await;
                // Credit only for what the application took.
                receive.flow_control().release_capacity(bytes).map_err(|cause| ended_by(&cause))?;
            }
            Some(Err(cause)) => return Err(ended_by(&cause)),
            None => {
                // NotConnected: the application is gone and has everything it wanted.
                let _ = socket2::SockRef::from(app).shutdown(std::net::Shutdown::Write);
                peer_fin.set();
                if !app_fin.is_set() {
                    watch_half_closed(app);
                }
                return Ok(());
            }
        }
    }
}

/// The peer's RST_STREAM while we still had something to send.
fn reset_while_sending(reset: Result<Reason, h2::Error>) -> Ended {
    match reset {
        Ok(reason) => Ended::PeerReset(Code(reason.into())),
        Err(cause) => ended_by(&cause),
    }
}

/// Why the stream took nothing more. A send that comes after the peer's reset only says that it is too late for
/// one; the reset itself says why.
fn lost_while_sending(send: &mut SendStream<Bytes>, cause: &dyn std::fmt::Display) -> Ended {
    match send.poll_reset(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reset) => reset_while_sending(reset),
        Poll::Pending => Ended::TunnelLost(cause.to_string()),
    }
}

/// RST_STREAM(NO_ERROR) from a peer that has finished its own side: it wants no more of us, and that is no error.
fn unless_unwanted(sent: Ended) -> Result<(), Ended> {
    if sent == Ended::PeerReset(Code::NO_ERROR) { Ok(()) } else { Err(sent) }
}

fn ended_by(cause: &h2::Error) -> Ended {
    match cause.reason() {
        Some(reason) if cause.is_reset() => Ended::PeerReset(Code(reason.into())),
        _ => Ended::TunnelLost(cause.to_string()),
    }
}

struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests;
