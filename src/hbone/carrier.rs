//! What the rest of the process sees of tunnels, whichever of the two carriers is behind them.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::net::TcpStream;

use super::connect::ConnectRequest;
use super::ended::Ended;
use super::error::{HandshakeError, OpenError};
use super::handshake::{Secured, Session};
use super::placement::Carried;
use super::{Config, classic, in_place};
use crate::flow::Share;
use crate::flow::relay::Meter;
use crate::identity::VerifiedPeer;

/// How tunnels are carried (`TUNNEL`). The bytes on the wire are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// Own records and frames, sealed and opened where they lie.
    #[default]
    InPlace,
    /// The h2 crate over tokio-rustls. The only one for peers that may choose TLS 1.2.
    Classic,
}

/// Does the same with either carrier's value.
macro_rules! either {
    ($of:ident, $value:expr, $inner:pat => $result:expr) => {
        match $value {
            $of::InPlace($inner) => $result,
            $of::Classic($inner) => $result,
        }
    };
}

/// One tunnel, as client. Lives on one worker; clones of its `Rc` are its users.
pub struct Tunnel(Client);

enum Client {
    InPlace(in_place::Tunnel),
    Classic(classic::Tunnel),
}

impl Tunnel {
    /// Starts HTTP/2 on a finished handshake and adopts its socket. What it carries counts as `share`'s.
    ///
    /// # Errors
    /// The socket cannot be watched, or the peer breaks off.
    pub async fn start(secured: Secured, config: &Config, share: Share) -> Result<Self, HandshakeError> {
        let Secured { session, peer, .. } = secured;
        Ok(Self(match session {
            Session::InPlace { socket, established } => {
                Client::InPlace(in_place::Tunnel::start(socket, *established, peer, config, share)?)
            }
            Session::Classic(stream) => {
                Client::Classic(Box::pin(classic::Tunnel::start(*stream, peer, config, share)).await?)
            }
        }))
    }

    /// Has the tunnel count as carried until its connection has ended: bytes of streams that are over may still be
    /// on their way, and the end of the process waits for what is carried.
    pub fn count(&self, carried: Carried) {
        either!(Client, &self.0, tunnel => tunnel.count(carried));
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &VerifiedPeer {
        either!(Client, &self.0, tunnel => tunnel.peer())
    }

    /// Streams open or being opened.
    pub fn streams(&self) -> usize {
        either!(Client, &self.0, tunnel => tunnel.streams())
    }

    /// Whether the tunnel can take another stream, by our limit and by the peer's.
    pub fn has_room(&self, limit: usize) -> bool {
        either!(Client, &self.0, tunnel => tunnel.has_room(limit))
    }

    /// Whether the tunnel takes no more streams for good.
    pub fn is_closed(&self) -> bool {
        either!(Client, &self.0, tunnel => tunnel.is_closed())
    }

    /// Keeps new streams away; those open run on.
    pub fn retire(&self) {
        either!(Client, &self.0, tunnel => tunnel.retire());
    }

    /// Opens one stream and waits for the peer's 200.
    ///
    /// No byte of the application is sent before that answer. Cancel: the stream is reset.
    ///
    /// # Errors
    /// [`OpenError`]: nothing was delivered.
    pub async fn open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        Ok(Opened(match &self.0 {
            Client::InPlace(tunnel) => Stream::InPlace(tunnel.open(request).await?),
            Client::Classic(tunnel) => Stream::Classic(Box::new(tunnel.open(request).await?)),
        }))
    }
}

/// One tunnel, as server: yields the peer's CONNECT streams.
pub struct Server(Serving);

enum Serving {
    InPlace(Box<in_place::Server>),
    Classic(Box<classic::Server>),
}

impl Server {
    /// Waits for the client's preface on a finished handshake and adopts its socket. What it carries counts as `share`'s.
    ///
    /// # Errors
    /// The client's first bytes are no HTTP/2, or do not come in time.
    pub async fn start(secured: Secured, config: &Config, share: Share) -> Result<Self, HandshakeError> {
        Ok(Self(match secured.session {
            Session::InPlace { socket, established } => {
                Serving::InPlace(in_place::Server::start(socket, *established, config, share).await?.into())
            }
            Session::Classic(stream) => {
                Serving::Classic(Box::pin(classic::Server::start(*stream, config, share)).await?.into())
            }
        }))
    }

    /// Serves until the tunnel ends: `each` gets every stream, `drain` begins a graceful end (GOAWAY, streams
    /// run on).
    ///
    /// Returns why the tunnel ended; `Ok` when the peer closed it in order.
    ///
    /// # Errors
    /// The text for the log.
    pub async fn serve(
        self,
        mut each: impl FnMut(Incoming),
        drain: impl Future<Output = ()>,
    ) -> Result<(), String> {
        match self.0 {
            Serving::InPlace(server) => {
                server.serve(|incoming| each(Incoming(Asking::InPlace(Box::new(incoming)))), drain).await
            }
            // Boxed, so that tunnels that are carried in place do not pay for its size.
            Serving::Classic(server) => {
                let each = |incoming| each(Incoming(Asking::Classic(Box::new(incoming))));
                Box::pin(server.serve(each, drain)).await
            }
        }
    }
}

/// A CONNECT that waits for its answer.
pub struct Incoming(Asking);

enum Asking {
    InPlace(Box<in_place::Incoming>),
    Classic(Box<classic::Incoming>),
}

impl Incoming {
    /// The request's head.
    pub fn head(&self) -> &Request<()> {
        either!(Asking, &self.0, incoming => incoming.head())
    }

    /// Answers with `status` and no body; the stream is over.
    pub fn refuse(self, status: StatusCode) {
        either!(Asking, self.0, incoming => incoming.refuse(status));
    }

    /// Answers 200: from here on DATA frames are the connection's bytes.
    ///
    /// # Errors
    /// The peer took its request back, or the tunnel died.
    pub fn accept(self, baggage: Option<HeaderValue>) -> Result<Opened, OpenError> {
        Ok(Opened(match self.0 {
            Asking::InPlace(incoming) => Stream::InPlace(incoming.accept(baggage)?),
            Asking::Classic(incoming) => Stream::Classic(Box::new(incoming.accept(baggage)?)),
        }))
    }

    /// Ready when the peer took its request back.
    pub async fn cancelled(&mut self) {
        either!(Asking, &mut self.0, incoming => incoming.cancelled().await);
    }
}

/// An established stream, before its first byte.
pub struct Opened(Stream);

enum Stream {
    InPlace(in_place::Opened),
    Classic(Box<classic::Opened>),
}

impl Opened {
    /// The head of the other side: the request's headers for a server, the answer's for a client.
    pub fn headers(&self) -> &HeaderMap {
        either!(Stream, &self.0, opened => opened.headers())
    }

    /// Carries bytes both ways until both ends are done.
    ///
    /// One end's close is passed on as a half-close. A reset of either end, and the death of the tunnel, reach
    /// the other end as a reset: nothing that was cut short looks complete. What the peer sent before its reset is
    /// written to the application first.
    ///
    /// - Memory: none of ours while both ends are idle. While bytes move, the in-place carrier borrows one buffer per tunnel and
    ///   direction, 16 KiB to 1 MiB; the classic one allocates chunks of 16 to 256 KiB.
    /// - Cancel: dropping the future resets both ends, and so does the death of the process.
    /// - Source: RFC 9113 §8.5, RFC 9293 §3.6.1.
    pub fn carry(self, app: TcpStream, meter: Rc<dyn Meter>) -> Carry {
        Carry(match self.0 {
            Stream::InPlace(opened) => Way::InPlace(opened.carry(app, meter)),
            // Boxed, so that those who are carried in place do not pay for its size.
            Stream::Classic(opened) => Way::Classic(Box::pin(opened.carry(app, meter))),
        })
    }
}

/// A stream under way; see [`Opened::carry`]. It is small, and can be moved.
#[must_use = "bytes move while this is polled"]
pub struct Carry(Way);

enum Way {
    InPlace(in_place::Carry),
    Classic(Pin<Box<dyn Future<Output = Ended>>>),
}

impl Future for Carry {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        either!(Way, &mut self.0, carried => Pin::new(carried).poll(cx))
    }
}
