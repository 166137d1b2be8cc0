//! One stream of a tunnel: what its application still has to take, and how far each direction is.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::Waker;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::backlog;
use super::buffers::Size;
use super::transmit::nothing_more;
use crate::flow::Side;
use crate::flow::ends::has_spoken;
use crate::flow::relay::Meter;
use crate::hbone::ended::Ended;
use crate::http2::{Response, StreamId};
use crate::net::socket::watch_half_closed;

/// The streams of one tunnel, by number.
pub(super) type Streams = HashMap<StreamId, Stream, BuildHasherDefault<ById>>;

/// Stream ids are odd and come one after another: their own bits spread well enough.
#[derive(Default)]
pub(super) struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id >> 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The application of a stream.
pub(super) struct App {
    pub socket: Rc<TcpStream>,
    pub meter: Rc<dyn Meter>,
    /// Which of the two applications it is.
    pub side: Side,
}

impl App {
    /// `bytes` that came through the tunnel were taken by it.
    pub fn took(&self, bytes: usize) {
        match self.side {
            Side::Client => self.meter.to_downstream(bytes),
            Side::Server => self.meter.to_upstream(bytes),
        }
    }

    /// `bytes` of it are on their way through the tunnel.
    pub fn gave(&self, bytes: usize) {
        match self.side {
            Side::Client => self.meter.to_upstream(bytes),
            Side::Server => self.meter.to_downstream(bytes),
        }
    }

    /// Writes what the socket takes now.
    pub fn write(&self, slices: &[IoSlice<'_>], length: usize) -> io::Result<usize> {
        #[cfg(test)]
        super::calls::count();
        let written = match slices {
            [one] => self.socket.try_write(one),
            many => self.socket.try_write_vectored(many),
        };
        match written {
            Ok(written) => {
                if written < length {
                    nothing_more(&self.socket, Interest::WRITABLE);
                }
                self.took(written);
                Ok(written)
            }
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(cause) => Err(cause),
        }
    }
}

/// One stream.
///
/// | direction | from | event | to |
/// |---|---|---|---|
/// | to the application | open | END_STREAM | ended: FIN follows the backlog |
/// | | ended | the backlog is empty | passed: FIN is out |
/// | to the tunnel | open | FIN | sent: END_STREAM is out |
/// | | open | the peer has ended and wants no more | sent |
/// | | open | the application broke behind its FIN | gone: what it said before goes on, then END_STREAM, then RST_STREAM |
/// | both | any | a reset of either side, the tunnel's death | cut: RST to the application, behind its backlog |
///
/// It is complete when FIN is passed and END_STREAM sent, unless the application is gone.
#[derive(Default)]
pub(super) struct Stream {
    /// Present while the connection is carried.
    pub app: Option<App>,
    /// Bytes that the application has not taken yet.
    pub backlog: VecDeque<u8>,
    /// END_STREAM came.
    pub got_end: bool,
    /// FIN was passed on to the application.
    pub passed_fin: bool,
    /// END_STREAM went.
    pub sent_end: bool,
    /// Bytes of the backlog for which the tunnel's credit was not returned.
    owed: u32,
    /// Bytes of it were thrown away: whatever else happens, its application must see a reset.
    pub truncated: bool,
    /// The application broke behind its FIN: it takes nothing more, but what it said before is still to be sent.
    pub gone: bool,
    /// Why it ends early.
    pub cut: Option<Ended>,
    /// The peer's answer to our request, until it is taken.
    pub response: Option<Box<Response>>,
    /// Who acts for it: the task that opens, answers or carries it.
    pub waker: Option<Waker>,
    /// How much is read from the application at a time.
    pub chunk: Chunk,
    /// It waits for its turn in the tunnel's queue.
    pub queued: bool,
    /// It waits for a window to open.
    pub shut: bool,
    /// It is its turn.
    pub turn: bool,
}

/// How much is read from an application at a time: little at first, more while it always has more to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    size: Size,
    /// Full reads of this size.
    full: u8,
}

/// Full reads after which the next one is larger.
const FULL_READS: u8 = 2;

impl Default for Chunk {
    fn default() -> Self {
        Self { size: Size::Small, full: 0 }
    }
}

impl Chunk {
    /// The size to read by; the largest only for a stream that has its tunnel for itself.
    pub fn size(self, alone: bool) -> Size {
        if alone { self.size } else { self.size.min(Size::Medium) }
    }

    /// What was read by `size` filled it.
    pub fn filled(&mut self, size: Size) {
        self.full += 1;
        if self.full >= FULL_READS {
            *self = Self { size: size.larger(), full: 0 };
        }
    }

    /// There was less to read than `size`.
    pub fn not_filled(&mut self, bytes: usize) {
        if bytes < crate::tls::MAX_BODY {
            *self = Self::default();
        }
    }
}

impl Stream {
    /// One that was asked for; `got_end` where the peer has said all there is already.
    pub fn asked(got_end: bool) -> Self {
        let mut stream = Self::default();
        stream.got_end = got_end;
        stream
    }

    pub fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Remembers whom to wake.
    pub fn wait(&mut self, waker: &Waker) {
        if self.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// The application's connection broke like this. Whether it goes on all the same, to send what the application had said before.
    pub fn outlives(&mut self, kind: io::ErrorKind) -> bool {
        if has_spoken(kind) && !self.sent_end {
            self.gone = true;
            self.wake();
        }
        self.gone
    }

    /// Ends it early, unless it has ended.
    pub fn cut(&mut self, why: Ended) {
        if !self.is_over() && self.cut.is_none() {
            self.cut = Some(why);
        }
        self.wake();
    }

    /// Throws its backlog away, and ends it by that, also when the peer and we have said all on it.
    pub fn truncate(&mut self, why: Ended) {
        self.empty();
        self.truncated = true;
        self.cut = Some(why);
        self.wake();
    }

    /// Lets go of its backlog.
    pub fn empty(&mut self) {
        backlog::remove(self.backlog.len());
        self.backlog = VecDeque::new();
    }

    /// Whether the peer and we have said all on it.
    pub fn is_over(&self) -> bool {
        self.got_end && self.sent_end
    }

    /// The tunnel's credit for the newest `bytes` of the backlog is returned when they leave it.
    pub fn owe(&mut self, bytes: usize) {
        // A backlog is no longer than a window, which is below 2^31.
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// How much of the tunnel's credit is to be returned now, for bytes that have left the backlog; oldest first.
    pub fn pay(&mut self) -> usize {
        let still = self.owed.min(u32::try_from(self.backlog.len()).unwrap_or(u32::MAX));
        (std::mem::replace(&mut self.owed, still) - still) as usize
    }

    /// The tunnel's credit for all of its backlog was returned.
    pub fn forgive(&mut self) {
        self.owed = 0;
    }

    /// Keeps `bytes` until the application takes them.
    pub fn keep(&mut self, bytes: &[u8]) {
        if self.backlog.capacity() == 0 {
            self.backlog = backlog::take();
        }
        backlog::add(bytes.len());
        self.backlog.extend(bytes);
    }

    /// Gives the application what it takes of the backlog. Returns how many bytes.
    pub fn write_backlog(&mut self) -> io::Result<usize> {
        let (Some(app), false) = (&self.app, self.backlog.is_empty()) else { return Ok(0) };
        let (front, back) = self.backlog.as_slices();
        let length = self.backlog.len();
        let written = app.write(&[IoSlice::new(front), IoSlice::new(back)], length)?;
        backlog::remove(written);
        if written == length {
            backlog::give_back(std::mem::take(&mut self.backlog));
        } else {
            self.backlog.drain(..written);
        }
        Ok(written)
    }

    /// Passes the peer's end on, once the application has everything before it.
    pub fn pass_fin(&mut self) {
        if !self.got_end || self.passed_fin || self.truncated || !self.backlog.is_empty() {
            return;
        }
        if let Some(app) = &self.app {
            // NotConnected: the application is gone and has everything it wanted.
            let _ = socket2::SockRef::from(&*app.socket).shutdown(std::net::Shutdown::Write);
            self.passed_fin = true;
            if !self.sent_end {
                watch_half_closed(&*app.socket);
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        backlog::remove(self.backlog.len());
    }
}
