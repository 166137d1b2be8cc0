//! Carries plaintext both ways until both ends are done. Tunnels carry their own bytes.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Poll, Waker};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Outcome, Seen, Side as Application};
use crate::net::socket::{close_in_order, reset_on_close};

#[cfg(test)]
mod tests;

/// One buffer's size: large enough that system calls do not dominate, small enough to stay in cache.
const BUFFER: usize = 64 << 10;
/// Buffers a worker keeps for the next connection that has something to say.
const SPARE: usize = 32;

thread_local! {
    /// This worker's spare buffers. An idle connection owns none.
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Counts bytes as they are delivered.
pub trait Meter {
    /// Bytes that reached the upstream.
    fn to_upstream(&self, bytes: usize);
    /// Bytes that reached the downstream.
    fn to_downstream(&self, bytes: usize);
}

/// Which end broke, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The one who dialled.
    Downstream(io::ErrorKind),
    /// The one who was dialled.
    Upstream(io::ErrorKind),
}

impl From<Broken> for Outcome {
    fn from(broken: Broken) -> Self {
        let by = match broken {
            Broken::Downstream(_) => Application::Client,
            Broken::Upstream(_) => Application::Server,
        };
        Self::Reset { by, seen: Seen::Socket }
    }
}

/// Carries bytes both ways until both ends are done.
///
/// One end's close is passed on as a half-close, so a client that stops sending still hears the answer. One end's
/// reset is passed on as a reset.
///
/// - Memory: none while both ends are idle; one pooled 64 KiB buffer per direction while bytes move.
/// - Errors: [`Broken`] names the end that failed; both ends are reset.
/// - Cancel: dropping the future resets both ends, and so does the death of the process; bytes in flight are lost.
/// - Source: RFC 9293 §3.6.1.
pub async fn relay(downstream: TcpStream, upstream: TcpStream, meter: &impl Meter) -> Result<(), Broken> {
    // A reset is the end unless both were done: also when this is dropped, and when the process dies.
    reset_on_close(&downstream);
    reset_on_close(&upstream);
    let (down_fin, up_fin) = (Fin::default(), Fin::default());
    let request = async {
        let sides = Sides { from: &downstream, to: &upstream, from_fin: &down_fin, to_fin: &up_fin };
        sides.carry(|bytes| meter.to_upstream(bytes)).await.map_err(|broken| match broken {
            Side::From(kind) => Broken::Downstream(kind),
            Side::To(kind) => Broken::Upstream(kind),
        })
    };
    let answer = async {
        let sides = Sides { from: &upstream, to: &downstream, from_fin: &up_fin, to_fin: &down_fin };
        sides.carry(|bytes| meter.to_downstream(bytes)).await.map_err(|broken| match broken {
            Side::From(kind) => Broken::Upstream(kind),
            Side::To(kind) => Broken::Downstream(kind),
        })
    };
    let carried = tokio::try_join!(request, answer).map(drop);
    if carried.is_ok() {
        close_in_order(&downstream);
        close_in_order(&upstream);
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
}

impl Sides<'_> {
    async fn carry(&self, delivered: impl Fn(usize)) -> Result<(), Side> {
        loop {
            tokio::select! {
                ready = self.from.readable() => ready.map_err(|cause| Side::From(cause.kind()))?,
                kind = reset_after_fin(self.to, self.to_fin) => return Err(Side::To(kind)),
            }
            let mut buffer = Borrowed::take();
            loop {
                match self.from.try_read(&mut buffer.0) {
                    Ok(0) => {
                        self.from_fin.set();
                        // NotConnected: the far end is gone and has everything it wanted.
                        let _ = socket2::SockRef::from(self.to).shutdown(std::net::Shutdown::Write);
                        return Ok(());
                    }
                    Ok(read) => {
                        tokio::select! {
                            biased;
                            written = write_all(self.to, &buffer.0[..read]) =>
                                written.map_err(|cause| Side::To(cause.kind()))?,
                            // While `to` takes nothing nobody reads `from`, so its reset must be looked for.
                            kind = broken(self.from) => return Err(Side::From(kind)),
                        }
                        delivered(read);
                        // One turn per full buffer, so that a busy connection does not hold up its worker.
                        tokio::task::consume_budget().await;
                    }
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                    Err(cause) => return Err(Side::From(cause.kind())),
                }
            }
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

/// Whether one end has sent FIN. From then on nobody reads from it, so its reset must be looked for.
#[derive(Default)]
pub struct Fin {
    seen: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Fin {
    /// Notes the FIN and wakes whoever waits in [`reset_after_fin`].
    pub fn set(&self) {
        self.seen.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn seen(&self) {
        std::future::poll_fn(|cx| {
            if self.seen.get() {
                return Poll::Ready(());
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Ready when the far end of `socket` reset the connection after it had sent `fin`.
pub async fn reset_after_fin(socket: &TcpStream, fin: &Fin) -> io::ErrorKind {
    fin.seen().await;
    broken(socket).await
}

/// Ready when the connection of `socket` broke, for those who do not read from it.
pub async fn broken(socket: &TcpStream) -> io::ErrorKind {
    if let Err(cause) = socket.ready(Interest::ERROR).await {
        return cause.kind();
    }
    match socket.take_error() {
        Ok(Some(cause)) | Err(cause) => cause.kind(),
        // Both directions are shut, which also wakes; the other half of the work sees the end itself.
        Ok(None) => std::future::pending().await,
    }
}

/// One of this worker's buffers; goes back when dropped.
struct Borrowed(Box<[u8]>);

impl Borrowed {
    fn take() -> Self {
        let spare = BUFFERS.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        BUFFERS.with_borrow_mut(|spare| {
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        });
    }
}
