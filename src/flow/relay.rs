//! Carries plaintext both ways until both ends are done. Tunnels carry their own bytes.

use std::io;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::net::TcpStream;

use self::pool::{Buffer, FILL, Lent};
use super::ends::{Fin, broken, delivered, forget, has_spoken, reset_after_fin};
use super::{Outcome, Place, Seen, Share, Side as Application, Turn};
use crate::net::socket::{close_in_order, receive, reset_on_close, tell_what_is_left, watch_half_closed};

mod pool;
#[cfg(test)]
mod tests;

pub use pool::{Spare, spare};

/// Bytes that one direction moves before the worker's other connections have their turn.
const TURN: usize = 1 << 20;

/// Counts bytes as they are delivered.
pub trait Meter {
    /// Bytes that reached the upstream.
    fn to_upstream(&self, bytes: usize);
    /// Bytes that reached the downstream.
    fn to_downstream(&self, bytes: usize);
}

impl<M: Meter + ?Sized> Meter for Rc<M> {
    fn to_upstream(&self, bytes: usize) {
        (**self).to_upstream(bytes);
    }

    fn to_downstream(&self, bytes: usize) {
        (**self).to_downstream(bytes);
    }
}

/// Which end broke, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The one who dialled.
    Downstream(io::ErrorKind),
    /// The one who was dialled.
    Upstream(io::ErrorKind),
}

impl From<Result<(), Broken>> for Outcome {
    fn from(ended: Result<(), Broken>) -> Self {
        let by = match ended {
            Ok(()) => return Self::Complete,
            Err(Broken::Downstream(_)) => Application::Client,
            Err(Broken::Upstream(_)) => Application::Server,
        };
        Self::Reset { by, seen: Seen::Socket }
    }
}

/// When bytes go through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splice {
    /// Once a direction has moved this many bytes, and as long as it moves at least `chunk` at a time: less is cheaper
    /// to copy.
    After {
        /// Bytes.
        moved: usize,
        /// Bytes.
        chunk: usize,
    },
    /// Never.
    Off,
}

impl Default for Splice {
    /// What `docs/decisions/0013-splice-plaintext.md` found.
    fn default() -> Self {
        Self::After { moved: 64 << 10, chunk: 32 << 10 }
    }
}

/// Carries bytes both ways until both ends are done.
///
/// One end's close is passed on as a half-close, so a client that stops sending still hears the answer. One end's
/// reset is passed on as a reset. While only one direction lives, probes find out whether both ends are still there.
///
/// - What it carries counts as `share`'s.
/// - Memory: none while both ends are idle; one pooled 64 KiB buffer, or one pipe, per direction while bytes move.
/// - Errors: [`Broken`] names the end that failed; both ends are reset.
/// - Cancel: dropping the future resets both ends, and so does the death of the process; bytes in flight are lost.
/// - Source: RFC 9293 §3.6.1.
pub async fn relay(
    downstream: TcpStream,
    upstream: TcpStream,
    meter: impl Meter,
    share: Share,
) -> Result<(), Broken> {
    relay_by(Splice::default(), downstream, upstream, meter, share).await
}

/// As [`relay`], with another choice of when to splice.
pub async fn relay_by(
    splice: Splice,
    downstream: TcpStream,
    upstream: TcpStream,
    meter: impl Meter,
    share: Share,
) -> Result<(), Broken> {
    // A reset is the end unless both were done: also when this is dropped, and when the process dies.
    reset_on_close(&downstream);
    reset_on_close(&upstream);
    tell_what_is_left(&downstream);
    tell_what_is_left(&upstream);
    let (down_fin, up_fin) = (Fin::default(), Fin::default());
    let request = async {
        let sides = Sides { from: &downstream, to: &upstream, from_fin: &down_fin, to_fin: &up_fin, splice };
        let ended = sides.carry(share.place(), |bytes| meter.to_upstream(bytes)).await;
        sides.settle(ended).await.map_err(|broken| match broken {
            Side::From(kind) => Broken::Downstream(kind),
            Side::To(kind) => Broken::Upstream(kind),
        })
    };
    let answer = async {
        let sides = Sides { from: &upstream, to: &downstream, from_fin: &up_fin, to_fin: &down_fin, splice };
        let ended = sides.carry(share.place(), |bytes| meter.to_downstream(bytes)).await;
        sides.settle(ended).await.map_err(|broken| match broken {
            Side::From(kind) => Broken::Upstream(kind),
            Side::To(kind) => Broken::Downstream(kind),
        })
    };
    let carried = tokio::try_join!(request, answer).map(drop);
    match carried {
        Ok(()) => {
            close_in_order(&downstream);
            close_in_order(&upstream);
        }
        // What it said and its FIN were passed on: the reset must not overtake them.
        Err(Broken::Downstream(_)) if down_fin.is_set() => delivered(&upstream).await,
        Err(Broken::Upstream(_)) if up_fin.is_set() => delivered(&downstream).await,
        Err(_) => {}
    }
    carried
}

enum Side {
    From(io::ErrorKind),
    To(io::ErrorKind),
}

struct Sides<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    from_fin: &'a Fin,
    to_fin: &'a Fin,
    splice: Splice,
}

/// What came of one chunk.
enum Moved {
    /// So many bytes; there may be more to read.
    Some(usize),
    /// So many bytes, which was all there is.
    Last(usize),
    /// The source said that it is done.
    End,
}

impl Sides<'_> {
    async fn carry(&self, mut place: Place, delivered: impl Fn(usize)) -> Result<(), Side> {
        // Bytes so far, of this turn, and of the chunk before.
        let (mut total, mut turn, mut chunk) = (0usize, 0, 0);
        loop {
            tokio::select! {
                ready = self.from.readable() => ready.map_err(|cause| Side::From(cause.kind()))?,
                kind = reset_after_fin(self.to, self.to_fin) => return Err(Side::To(kind)),
            }
            loop {
                let right = place.turn().await;
                let moved = match self.pipe(total, chunk) {
                    Some(pipe) => self.splice(pipe, right, &delivered).await?,
                    None => self.copy(right, &delivered).await?,
                };
                chunk = match moved {
                    Moved::Some(bytes) | Moved::Last(bytes) => bytes,
                    Moved::End => {
                        self.end();
                        return Ok(());
                    }
                };
                total = total.saturating_add(chunk);
                turn += chunk;
                if turn >= TURN {
                    turn = 0;
                    tokio::task::yield_now().await;
                } else {
                    tokio::task::consume_budget().await;
                }
                if matches!(moved, Moved::Last(_)) {
                    break;
                }
            }
        }
    }

    /// The pipe for the next chunk, if there shall be one.
    fn pipe(&self, total: usize, chunk: usize) -> Option<Lent> {
        match self.splice {
            Splice::After { moved, chunk: least } if total >= moved && chunk >= least => Lent::borrow(),
            _ => None,
        }
    }

    async fn splice(
        &self,
        mut pipe: Lent,
        right: Turn<'_>,
        delivered: &impl Fn(usize),
    ) -> Result<Moved, Side> {
        match pipe.fill(self.from, FILL) {
            // Nothing to read, or the end, or urgent data next: `recv` tells which.
            Ok(0) => return self.copy(right, delivered).await,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                return self.copy(right, delivered).await;
            }
            Err(cause) => return Err(Side::From(cause.kind())),
            Ok(_) => {}
        }
        let filled = pipe.held();
        right.moved(filled, true);
        while pipe.held() > 0 {
            match pipe.drain(self.to) {
                Ok(taken) => delivered(taken),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                Err(cause) => return Err(Side::To(cause.kind())),
            }
        }
        Ok(Moved::Some(filled))
    }

    async fn copy(&self, right: Turn<'_>, delivered: &impl Fn(usize)) -> Result<Moved, Side> {
        let mut buffer = Buffer::borrow();
        let (read, more) = match receive(self.from, &mut buffer) {
            Ok((0, _)) => return Ok(Moved::End),
            Ok(read) => read,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => (0, false),
            Err(cause) => return Err(Side::From(cause.kind())),
        };
        right.moved(read, more);
        if !more {
            // At once: after the next wait it could be the readiness of bytes that have come since.
            forget(self.from, Interest::READABLE);
        }
        let mut left = &buffer[..read];
        while !left.is_empty() {
            match self.to.try_write(left) {
                Ok(written) => {
                    delivered(written);
                    left = &left[written..];
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                Err(cause) => return Err(Side::To(cause.kind())),
            }
        }
        Ok(if more { Moved::Some(read) } else { Moved::Last(read) })
    }

    /// Waits until `to`, which was full, takes more.
    async fn room(&self) -> Result<(), Side> {
        forget(self.to, Interest::WRITABLE);
        tokio::select! {
            biased;
            ready = self.to.writable() => ready.map_err(|cause| Side::To(cause.kind())),
            // Meanwhile nobody reads `from`, so its reset must be looked for.
            kind = broken(self.from) => {
                if !has_spoken(kind) {
                    return Err(Side::From(kind));
                }
                self.from_fin.broke();
                self.to.writable().await.map_err(|cause| Side::To(cause.kind()))
            }
        }
    }

    /// Where `to` broke behind its FIN, lets the other direction carry on what it said before.
    async fn settle(&self, ended: Result<(), Side>) -> Result<(), Side> {
        if let Err(Side::To(kind)) = ended
            && has_spoken(kind)
        {
            self.to_fin.broke();
            self.to_fin.seen().await;
        }
        ended
    }

    /// `from` is done: passes that on.
    fn end(&self) {
        self.from_fin.set();
        // NotConnected: the far end is gone and has everything it wanted.
        let _ = socket2::SockRef::from(self.to).shutdown(std::net::Shutdown::Write);
        if !self.to_fin.is_set() {
            watch_half_closed(self.from);
            watch_half_closed(self.to);
        }
    }
}

/// Writes all of `data`, waiting while the socket is full.
pub async fn write_all(to: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match to.try_write(data) {
            Ok(written) => data = &data[written..],
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}
