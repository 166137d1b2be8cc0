//! The carrier that is used unless told otherwise: bytes are touched once between two sockets, by the cipher, where they lie.
//!
//! It puts the rooms [`crate::tls`] and [`crate::http2`] onto sockets. The way of a byte, and how to look at it with a profiler, is
//! told in `docs/hot-path.md`; why it is done so, and what did not help, in `docs/decisions/0015-in-place-carrier.md`.
//!
//! - `connection.rs`: one tunnel, shared by its own task and those of its connections; sending, and whose turn it is.
//! - `driver.rs`: the tunnel's task; receiving, and everything that time brings.
//! - `stream.rs`: one connection's part of it.
//! - `transmit.rs`: frames and DATA become records and leave.
//! - `buffers.rs`, `backlog.rs`: what a worker's tunnels hold, and how much that may be.

mod backlog;
mod buffers;
#[cfg(test)]
pub(super) mod calls;
mod connection;
mod driver;
mod stream;
#[cfg(test)]
mod tests;
mod transmit;

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::TcpStream as StdStream;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::connection::{Connection, Inner, Sent};
use self::driver::Driver;
use self::stream::{App, Stream};
use self::transmit::Transmit;
use super::connect::ConnectRequest;
use super::ended::Ended;
use super::error::{HandshakeError, OpenError};
use super::placement::Carried;
use super::{CLIENT_HEADER_LIST, CONNECT_DEADLINE, Config, SERVER_HEADER_LIST, SERVER_STREAMS};
use crate::flow::ends::{broken, delivered};
use crate::flow::relay::Meter;
use crate::flow::{Place, Share, Side};
use crate::http2::{self, Code, Fields, Machine, Role, StreamId};
use crate::identity::VerifiedPeer;
use crate::net::socket::{close_in_order, reset_on_close, tell_what_is_left, watch_half_closed};
use crate::tls::Established;

/// Gives back what the buffers of this worker hold and nobody needed of late.
pub(super) fn release_spare() {
    buffers::trim(Instant::now());
    backlog::release_spare();
}

/// What this worker's tunnels hold: bytes in backlogs, and in borrowed buffers.
#[cfg(test)]
pub(super) fn held() -> (usize, usize) {
    (backlog::held(), buffers::held().0)
}

/// As if backlogs of this worker held `bytes` more, or no longer did.
#[cfg(test)]
pub(super) fn pretend(bytes: usize, held: bool) {
    if held { backlog::add(bytes) } else { backlog::remove(bytes) }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A tunnel at its start. Its greeting is not sent before its task runs, or a request goes with it.
fn start(
    role: Role,
    socket: StdStream,
    established: Established,
    config: &Config,
    share: Share,
) -> Result<Driver, HandshakeError> {
    let socket = TcpStream::from_std(socket).map_err(|cause| HandshakeError::Tls(cause.into()))?;
    let (header_list, streams) = match role {
        Role::Client => (CLIENT_HEADER_LIST, u32::try_from(config.streams_per_tunnel).unwrap_or(u32::MAX)),
        Role::Server => (SERVER_HEADER_LIST, SERVER_STREAMS),
    };
    let limits = http2::Config {
        stream_window: config.stream_window,
        connection_window: config.connection_window,
        frame_size: config.frame_size,
        header_list,
        header_table: 4096,
        streams,
    };
    let Established { sealer, opener, received, .. } = established;
    let inner = Inner::new(Machine::new(role, limits, now()), Transmit::new(sealer));
    let connection = Rc::new(Connection { socket, share, inner: RefCell::new(inner) });
    Ok(Driver::new(connection, opener, received))
}

/// One tunnel, as client. Lives on one worker; clones of its `Rc` are its users.
pub(super) struct Tunnel {
    /// Gone with the tunnel's task: a tunnel that has ended holds no descriptor, whoever still knows of it.
    connection: Weak<Connection>,
    peer: VerifiedPeer,
    /// What [`Tunnel::count`] was given; goes when the connection ends, which may be after this value went.
    counted: Rc<Cell<Option<Carried>>>,
    driver: JoinHandle<()>,
}

impl Tunnel {
    /// Starts HTTP/2 on a finished handshake and adopts its socket.
    pub fn start(
        socket: StdStream,
        established: Established,
        peer: VerifiedPeer,
        config: &Config,
        share: Share,
    ) -> Result<Self, HandshakeError> {
        let mut driver = start(Role::Client, socket, established, config, share)?;
        let connection = Rc::downgrade(&driver.connection);
        let counted = Rc::new(Cell::new(None));
        let count = counted.clone();
        let driver = tokio::task::spawn_local(async move {
            if let Some(Err(cause)) = driver.run(|_| false).await {
                tracing::debug!(%cause, "tunnel ended");
            }
            drop(driver);
            drop(count.take());
        });
        Ok(Self { connection, peer, counted, driver })
    }

    /// Has the tunnel count as carried until its connection has ended.
    pub fn count(&self, carried: Carried) {
        if !self.driver.is_finished() {
            self.counted.set(Some(carried));
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Streams that are carried, opened, or about to be.
    pub fn streams(&self) -> usize {
        self.connection.upgrade().map_or(0, |connection| {
            let inner = connection.inner.borrow();
            inner.streams.len() + inner.openers.len()
        })
    }

    /// Whether the tunnel can take another stream, by our limit and by the peer's.
    pub fn has_room(&self, limit: usize) -> bool {
        self.connection.upgrade().is_some_and(|connection| {
            let inner = connection.inner.borrow();
            !inner.closed && inner.machine.can_open() > inner.openers.len() && inner.streams.len() < limit
        })
    }

    /// Whether the tunnel takes no more streams for good.
    pub fn is_closed(&self) -> bool {
        self.connection.upgrade().is_none_or(|connection| connection.inner.borrow().closed)
    }

    /// Keeps new streams away; those open run on.
    pub fn retire(&self) {
        if let Some(connection) = self.connection.upgrade() {
            let mut inner = connection.inner.borrow_mut();
            inner.closed = true;
            inner.wake_openers();
        }
    }

    /// Opens one stream and waits for the peer's 200.
    ///
    /// No byte of the application is sent before that answer. Cancel: the stream is reset.
    pub async fn open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        timeout(CONNECT_DEADLINE, self.try_open(request))
            .await
            .unwrap_or(Err(OpenError::Timeout(CONNECT_DEADLINE)))
    }

    async fn try_open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        let connection = self.connection.upgrade();
        let connection = connection.ok_or_else(|| OpenError::Lost("the tunnel has ended".into()))?;
        let authority = request.authority.to_string();
        let fields = request.fields();
        let head = || fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let mut waits = Waits { connection: &connection, number: None };
        let id = std::future::poll_fn(|cx| {
            let inner = &mut *connection.inner.borrow_mut();
            if let Some(why) = &inner.lost {
                return Poll::Ready(Err(OpenError::Lost(why.clone())));
            }
            if inner.closed {
                return Poll::Ready(Err(OpenError::Refused("the tunnel takes no more streams".into())));
            }
            match inner.machine.open(&authority, head()) {
                Ok(id) => Poll::Ready(Ok(id)),
                Err(http2::OpenError::Full(_)) => {
                    waits.queue(inner, cx.waker());
                    Poll::Pending
                }
                Err(refused @ (http2::OpenError::Closing | http2::OpenError::IdsUsedUp)) => {
                    inner.closed = true;
                    Poll::Ready(Err(OpenError::Refused(refused.to_string())))
                }
                Err(cause) => Poll::Ready(Err(OpenError::Lost(cause.to_string()))),
            }
        })
        .await?;
        let held = Held { connection: connection.clone(), id };
        {
            let inner = &mut *connection.inner.borrow_mut();
            inner.insert(id, Stream::default());
            inner.flush_soon(&connection.socket);
        }
        let response = std::future::poll_fn(|cx| {
            let inner = &mut *connection.inner.borrow_mut();
            let lost = || OpenError::Lost("the tunnel was cut".into());
            let Some(stream) = inner.streams.get_mut(&id) else { return Poll::Ready(Err(lost())) };
            stream.wait(cx.waker());
            if let Some(response) = stream.response.take() {
                return Poll::Ready(Ok(response));
            }
            match &stream.cut {
                None => Poll::Pending,
                Some(Ended::PeerReset(Code::REFUSED_STREAM)) => {
                    Poll::Ready(Err(OpenError::Refused("the peer did not take the stream".into())))
                }
                Some(Ended::PeerReset(code)) => {
                    Poll::Ready(Err(OpenError::Reset(format!("stream reset by the peer: {code}"))))
                }
                Some(Ended::TunnelLost(why)) => Poll::Ready(Err(OpenError::Lost(why.clone()))),
                Some(Ended::Complete | Ended::AppReset(_)) => Poll::Ready(Err(lost())),
            }
        })
        .await?;
        if response.status != StatusCode::OK {
            return Err(OpenError::Status(response.status));
        }
        Ok(Opened { held, headers: headers(&response.fields), app: Side::Client })
    }
}

/// One who waits for room on a tunnel. Who gives up waits no more, and counts no more.
struct Waits<'a> {
    connection: &'a Connection,
    number: Option<u64>,
}

impl Waits<'_> {
    fn queue(&mut self, inner: &mut Inner, waker: &Waker) {
        if let Some((_, known)) = inner.openers.iter_mut().find(|(number, _)| Some(*number) == self.number) {
            known.clone_from(waker);
            return;
        }
        let number = inner.next_opener;
        inner.next_opener += 1;
        inner.openers.push_back((number, waker.clone()));
        self.number = Some(number);
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.number {
            self.connection.inner.borrow_mut().openers.retain(|(number, _)| *number != own);
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.upgrade() {
            let mut inner = connection.inner.borrow_mut();
            inner.closed = true;
            inner.machine.shutdown(now());
            inner.wake_driver();
        }
    }
}

/// One tunnel, as server: yields the peer's CONNECT streams.
pub(super) struct Server {
    driver: Driver,
}

impl Server {
    /// Waits for the client's preface on a finished handshake and adopts its socket.
    pub async fn start(
        socket: StdStream,
        established: Established,
        config: &Config,
        share: Share,
    ) -> Result<Self, HandshakeError> {
        let mut driver = start(Role::Server, socket, established, config, share)?;
        let begun = driver.run(|inner| inner.ready).await;
        match begun {
            None => Ok(Self { driver }),
            Some(ended) => {
                let why = ended.err().unwrap_or_else(|| "the peer closed the tunnel".into());
                match driver.connection.inner.borrow().machine.failure() {
                    Some(http2::Error::Silent(after)) => Err(HandshakeError::Http2Timeout(*after)),
                    _ => Err(HandshakeError::Http2(why)),
                }
            }
        }
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
        let connection = self.driver.connection.clone();
        let mut drain = pin!(drain);
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                () = &mut drain, if !draining => {
                    draining = true;
                    connection.inner.borrow_mut().machine.shutdown(now());
                }
                ended = self.driver.run(|inner| !inner.requests.is_empty()) => {
                    if let Some(ended) = ended {
                        return ended;
                    }
                }
            }
            loop {
                let next = connection.inner.borrow_mut().requests.pop_front();
                let Some((id, request)) = next else { break };
                let held = Held { connection: connection.clone(), id };
                match head(request) {
                    Some(head) => each(Incoming { held, head }),
                    // A value that h2 would not take either.
                    None => {
                        let inner = &mut *connection.inner.borrow_mut();
                        inner.machine.reset(id, Code::PROTOCOL_ERROR);
                        tracing::debug!(stream = %id, "reset, because its head has a value that is none");
                    }
                }
            }
        }
    }
}

/// The head as the http crate has it; `None` where that knows a value to be none.
fn head(request: http2::Request) -> Option<Request<()>> {
    let mut head = Request::new(());
    *head.method_mut() = request.method;
    *head.uri_mut() = match request.authority {
        Some(authority) => Uri::builder().authority(authority).build().ok()?,
        None => Uri::default(),
    };
    *head.headers_mut() = headers(&request.fields);
    (head.headers().len() == request.fields.len()).then_some(head)
}

/// The fields that are values for the http crate.
fn headers(fields: &Fields) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// One stream that somebody is responsible for. Dropping it takes the stream out of its tunnel, and resets what is still open of it.
struct Held {
    connection: Rc<Connection>,
    id: StreamId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.inner.borrow_mut().remove(self.id, &self.connection.socket);
    }
}

/// A CONNECT that waits for its answer.
pub(super) struct Incoming {
    held: Held,
    head: Request<()>,
}

impl Incoming {
    /// The request's head.
    pub fn head(&self) -> &Request<()> {
        &self.head
    }

    /// Answers with `status` and no body; the stream is over.
    pub fn refuse(self, status: StatusCode) {
        let Held { connection, id } = &self.held;
        let inner = &mut *connection.inner.borrow_mut();
        // The only error is a stream or tunnel that is gone already; then nobody waits for the answer.
        let _ = inner.machine.refuse(*id, status);
        inner.flush_soon(&connection.socket);
    }

    /// Answers 200: from here on DATA frames are the connection's bytes.
    pub fn accept(self, baggage: Option<HeaderValue>) -> Result<Opened, OpenError> {
        {
            let Held { connection, id } = &self.held;
            let inner = &mut *connection.inner.borrow_mut();
            let fields = baggage.iter().map(|value| (&b"baggage"[..], value.as_bytes()));
            inner.machine.respond(*id, fields).map_err(|cause| OpenError::Lost(cause.to_string()))?;
            inner.flush_soon(&connection.socket);
        }
        let (head, ()) = self.head.into_parts();
        Ok(Opened { held: self.held, headers: head.headers, app: Side::Server })
    }

    /// Ready when the peer took its request back.
    pub async fn cancelled(&mut self) {
        let Held { connection, id } = &self.held;
        std::future::poll_fn(|cx| {
            let inner = &mut *connection.inner.borrow_mut();
            match inner.streams.get_mut(id) {
                Some(stream) if stream.cut.is_none() => {
                    stream.wait(cx.waker());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

/// An established stream, before its first byte.
pub(super) struct Opened {
    held: Held,
    headers: HeaderMap,
    app: Side,
}

impl Opened {
    /// The head of the other side.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Carries bytes both ways until both ends are done. See [`super::Opened::carry`].
    pub fn carry(self, app: TcpStream, meter: Rc<dyn Meter>) -> Carry {
        let Self { held, app: side, .. } = self;
        // A reset is the end unless both were done: also when this is dropped, and when the process dies.
        reset_on_close(&app);
        tell_what_is_left(&app);
        let app = Rc::new(app);
        if let Some(stream) = held.connection.inner.borrow_mut().streams.get_mut(&held.id) {
            stream.app = Some(App { socket: app.clone(), meter, side });
        }
        let place = held.connection.share.place();
        Carry { held, app, place, watch: Watch::Nothing }
    }
}

/// A stream that is carried. As small as can be: most connections are idle most of the time.
pub(super) struct Carry {
    held: Held,
    app: Rc<TcpStream>,
    /// Where what the application sends waits for the pod's turn.
    place: Place,
    watch: Watch,
}

/// What is waited for besides bytes.
enum Watch {
    Nothing,
    /// The application's reset, from when nobody reads from it for the first time.
    Reset(Pin<Box<dyn Future<Output = ErrorKind>>>),
    /// That the application has everything, before the peer's reset is passed on to it; nothing else any more.
    Delivery(Pin<Box<dyn Future<Output = Ended>>>),
}

impl Future for Carry {
    type Output = Ended;

    /// Moves what can be moved in both directions.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { held, app, place, watch } = &mut *self;
        if let Watch::Delivery(delivery) = watch {
            return delivery.as_mut().poll(cx);
        }
        let inner = &mut *held.connection.inner.borrow_mut();
        let (ended, given_back) = held.give(inner, cx, app);
        let (ended, reads) = match ended {
            Some(ended) => (Some(ended), false),
            None => held.take(inner, cx, app, place),
        };
        if given_back && ended.is_none() {
            inner.flush_soon(&held.connection.socket);
        }
        let mut stream = inner.streams.get_mut(&held.id);
        match ended {
            Some(Ended::Complete) => {
                close_in_order(app);
                Poll::Ready(Ended::Complete)
            }
            // The peer said all and then broke off: the reset must not overtake what it said.
            Some(ended @ Ended::PeerReset(_)) if stream.as_ref().is_some_and(|stream| stream.passed_fin) => {
                let app = app.clone();
                let mut delivery: Pin<Box<dyn Future<Output = Ended>>> = Box::pin(async move {
                    delivered(&app).await;
                    ended
                });
                let delivered = delivery.as_mut().poll(cx);
                *watch = Watch::Delivery(delivery);
                delivered
            }
            Some(ended) => Poll::Ready(ended),
            // While nobody reads from the application its reset must be looked for.
            None if !reads && stream.as_ref().is_some_and(|stream| !stream.gone) => {
                if let Watch::Nothing = watch {
                    let app = app.clone();
                    *watch = Watch::Reset(Box::pin(async move { broken(&app).await }));
                }
                let Watch::Reset(reset) = watch else { return Poll::Pending };
                match reset.as_mut().poll(cx) {
                    Poll::Ready(kind) if !stream.as_mut().is_some_and(|stream| stream.outlives(kind)) => {
                        Poll::Ready(Ended::AppReset(kind))
                    }
                    _ => Poll::Pending,
                }
            }
            None => Poll::Pending,
        }
    }
}

impl Held {
    /// From the tunnel to the application: what the tunnel's task could not write at once, and the end.
    fn give(&self, inner: &mut Inner, cx: &mut Context<'_>, app: &TcpStream) -> (Option<Ended>, bool) {
        let mut given_back = false;
        let lost = || (Some(Ended::TunnelLost("the tunnel was cut".into())), false);
        let Some(stream) = inner.streams.get_mut(&self.id) else { return lost() };
        stream.wait(cx.waker());
        while let Some(stream) = inner.streams.get_mut(&self.id)
            && !stream.backlog.is_empty()
        {
            if stream.gone {
                stream.empty();
                let paid = stream.pay();
                inner.pay(paid);
                given_back = true;
                break;
            }
            if let Some(Ended::AppReset(kind)) = stream.cut {
                return (Some(Ended::AppReset(kind)), given_back);
            }
            match app.poll_write_ready(cx) {
                Poll::Pending => return (None, given_back),
                Poll::Ready(Err(cause)) => return (Some(Ended::AppReset(cause.kind())), given_back),
                Poll::Ready(Ok(())) => match stream.write_backlog() {
                    Ok(written) => {
                        given_back |= written > 0;
                        let paid = stream.pay();
                        inner.pay(paid);
                        inner.machine.taken(self.id, written);
                    }
                    Err(cause) if stream.outlives(cause.kind()) => {}
                    Err(cause) => return (Some(Ended::AppReset(cause.kind())), given_back),
                },
            }
        }
        let Some(stream) = inner.streams.get_mut(&self.id) else { return lost() };
        stream.pass_fin();
        if let Some(cut) = stream.cut.take() {
            return (Some(cut), given_back);
        }
        if stream.gone && stream.sent_end {
            return (Some(Ended::AppReset(ErrorKind::BrokenPipe)), given_back);
        }
        let complete = stream.passed_fin && stream.sent_end;
        (complete.then_some(Ended::Complete), given_back)
    }

    /// From the application to the tunnel, one batch. Says also whether the application is being read from, so that its reset
    /// will show.
    fn take(
        &self,
        inner: &mut Inner,
        cx: &mut Context<'_>,
        app: &TcpStream,
        place: &mut Place,
    ) -> (Option<Ended>, bool) {
        let had_turn = inner.streams.get(&self.id).is_some_and(|stream| stream.turn);
        let mut result = (None, false);
        while let Some(stream) = inner.streams.get(&self.id)
            && !stream.sent_end
            && stream.cut.is_none()
        {
            match app.poll_read_ready(cx) {
                Poll::Pending => {
                    result = (None, true);
                    break;
                }
                Poll::Ready(Err(cause)) => {
                    result = (Some(Ended::AppReset(cause.kind())), false);
                    break;
                }
                Poll::Ready(Ok(())) => {}
            }
            let Poll::Ready(turn) = place.poll_turn(cx) else {
                // Soon, and then its reset shows.
                result = (None, true);
                break;
            };
            if !inner.is_turn(self.id) {
                break;
            }
            match inner.send_from(self.id, &self.connection.socket) {
                Sent::Some { bytes, more } => {
                    turn.moved(bytes, more);
                    if more {
                        // The others first.
                        cx.waker().wake_by_ref();
                        break;
                    }
                }
                Sent::Nothing => {}
                Sent::End => {
                    if let Some(stream) = inner.streams.get_mut(&self.id) {
                        stream.sent_end = true;
                        match (stream.gone, stream.passed_fin) {
                            (true, _) => result.0 = Some(Ended::AppReset(ErrorKind::BrokenPipe)),
                            (false, true) => result.0 = Some(Ended::Complete),
                            (false, false) => watch_half_closed(app),
                        }
                    }
                }
                Sent::Wait | Sent::NoRoom => break,
                Sent::Broken(kind) => {
                    result = (Some(Ended::AppReset(kind)), false);
                    break;
                }
            }
        }
        if had_turn {
            if let Some(stream) = inner.streams.get_mut(&self.id) {
                stream.turn = false;
            }
            inner.next_turn();
        }
        result
    }
}
