//! One tunnel as its streams and its own task share it.
//!
//! All that a tunnel is lives in one [`Inner`]. The tunnel's task ([`Driver`](super::driver::Driver)) reads from its socket and
//! hands bytes to applications; the task of each connection reads from its application and sends into the tunnel. Both run
//! on one thread and borrow [`Inner`] for the length of one turn, never across a wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use tokio::net::TcpStream;

use super::backlog::{self, Grown};
use super::buffers::Size;
use super::stream::{Stream, Streams};
use super::transmit::{Read, Transmit};
use crate::flow::Share;
use crate::hbone::ended::Ended;
use crate::http2::{Code, HEAD, Machine, Request, StreamId};
use crate::tls::SealError;

/// A small read shares a record with what is in it already if so many bytes are left, at least.
const SHARE: usize = 4 << 10;

/// One tunnel.
pub(super) struct Connection {
    pub socket: TcpStream,
    /// What its pod may move of what this worker does.
    pub share: Share,
    pub inner: RefCell<Inner>,
}

/// What a tunnel is, but for its socket and what only its task needs.
pub(super) struct Inner {
    pub machine: Machine,
    pub transmit: Transmit,
    pub streams: Streams,
    /// Streams whose application has something to say while the socket is full, in the order of their turns.
    pub turns: VecDeque<StreamId>,
    /// Streams that found a window shut, in the order they did: in that order they go on when the tunnel's opens. In any fixed
    /// order, those in front would have most of it.
    pub shut: VecDeque<StreamId>,
    /// Requests that nobody has been told of.
    pub requests: VecDeque<(StreamId, Request)>,
    /// Who waits to open a stream.
    pub openers: VecDeque<(u64, Waker)>,
    /// A number for the next of them.
    pub next_opener: u64,
    /// Wakes the tunnel's task.
    pub driver: Option<Waker>,
    /// Bytes in backlogs for which the tunnel's credit was not returned.
    pub owed: usize,
    /// What the streams' windows have grown by.
    pub grown: Grown,
    /// Something waits for the tunnel's task to send it.
    pub flush: bool,
    /// The peer's SETTINGS have come.
    pub ready: bool,
    /// Nothing can be opened any more.
    pub closed: bool,
    /// Nothing can be sent any more. What the peer sent before is still read.
    pub send_failed: Option<String>,
    /// Why it died.
    pub lost: Option<String>,
}

/// What became of an attempt to send an application's bytes.
pub(super) enum Sent {
    /// So many bytes; `more` where the application had at least as much as could be taken.
    Some { bytes: usize, more: bool },
    /// The application has ended, and the peer was told.
    End,
    /// There was nothing to send.
    Nothing,
    /// It is not this stream's turn: it is woken when it is.
    Wait,
    /// The stream's window, or the tunnel's, is shut: the stream is woken when it opens.
    NoRoom,
    /// The application's connection broke.
    Broken(io::ErrorKind),
}

impl Inner {
    pub fn new(machine: Machine, transmit: Transmit) -> Self {
        Self {
            machine,
            transmit,
            streams: Streams::default(),
            turns: VecDeque::new(),
            shut: VecDeque::new(),
            requests: VecDeque::new(),
            openers: VecDeque::new(),
            next_opener: 0,
            driver: None,
            owed: 0,
            grown: Grown::default(),
            flush: false,
            ready: false,
            closed: false,
            send_failed: None,
            lost: None,
        }
    }

    /// Wakes the tunnel's task.
    pub fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Control frames go behind what was added before.
    fn gather(&mut self) -> Result<(), SealError> {
        let added = self.transmit.add(self.machine.output())?;
        self.machine.sent(added);
        Ok(())
    }

    /// Sends what there is, as far as the socket takes it. What it does not take, the tunnel's task sends.
    ///
    /// A tunnel that cannot send is found dead by its task.
    pub fn flush(&mut self, socket: &TcpStream) {
        if let Err(cause) = self.try_flush(socket) {
            self.send_failed = Some(format!("sending failed: {cause}"));
        }
        if self.transmit.is_full() || self.send_failed.is_some() {
            self.wake_driver();
        }
    }

    /// As [`flush`](Self::flush), but wakes nobody: for the tunnel's task itself, which waits for a full socket by its readiness.
    ///
    /// # Errors
    /// The socket takes nothing any more, or nothing can be sealed.
    pub fn try_flush(&mut self, socket: &TcpStream) -> io::Result<()> {
        self.flush = false;
        if self.lost.is_some() || self.send_failed.is_some() {
            return Ok(());
        }
        while !self.transmit.is_full() {
            self.gather().map_err(io::Error::other)?;
            if !self.transmit.is_pending() {
                break;
            }
            self.transmit.send(socket)?;
        }
        Ok(())
    }

    /// Has what there is sent soon: at once where nobody else could add to it, else by the tunnel's task, when everybody who is ready
    /// has had a turn.
    pub fn flush_soon(&mut self, socket: &TcpStream) {
        if self.machine.streams() <= 1 {
            return self.flush(socket);
        }
        if !self.flush {
            self.flush = true;
            self.wake_driver();
        }
    }

    /// Reads one batch from the application of `id`, and sends it.
    pub fn send_from(&mut self, id: StreamId, socket: &TcpStream) -> Sent {
        match self.try_send_from(id, socket) {
            Ok(sent) => sent,
            Err(cause) => {
                self.lose(format!("sealing failed: {cause}"));
                self.wake_driver();
                Sent::Nothing
            }
        }
    }

    fn try_send_from(&mut self, id: StreamId, socket: &TcpStream) -> Result<Sent, SealError> {
        if self.transmit.is_full() || self.send_failed.is_some() {
            // Also with a turn: somebody else has filled the socket since. What control frames there are must go first.
            return Ok(self.wait_for_turn(id));
        }
        let window = self.machine.room(id);
        if window == 0 {
            if let Some(stream) = self.streams.get_mut(&id)
                && !std::mem::replace(&mut stream.shut, true)
            {
                self.shut.push_back(id);
            }
            return Ok(Sent::NoRoom);
        }
        let alone = self.machine.streams() == 1;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(Sent::Nothing) };
        let Some(app) = stream.app.as_ref().map(|app| app.socket.clone()) else { return Ok(Sent::Nothing) };
        let size = stream.chunk.size(alone);
        let wanted = (size.records() * crate::tls::MAX_BODY - HEAD).min(window);
        self.gather()?;
        let mut room = self.transmit.room(size, wanted)?;
        // Small reads share a record, and with it a send, as long as there is a fair piece of it left.
        let is_enough = room == wanted || (size == Size::Small && room >= SHARE);
        if !is_enough && self.transmit.is_pending() {
            // What has gathered goes first, and makes place for a larger buffer.
            self.flush(socket);
            if self.transmit.is_full() {
                return Ok(self.wait_for_turn(id));
            }
            room = self.transmit.room(size, wanted)?;
        }
        if room == 0 {
            // A read of nothing would look like the application's end.
            self.wake_driver();
            return Ok(self.wait_for_turn(id));
        }
        let read = match self.transmit.read(&app, room) {
            Ok(read) => read,
            Err(cause) => return Ok(Sent::Broken(cause.kind())),
        };
        let (bytes, more) = match read {
            Read::Nothing => {
                self.transmit.release();
                return Ok(Sent::Nothing);
            }
            Read::End => {
                self.transmit.release();
                // Only a stream that is over cannot be finished, and then there is nobody to tell.
                let _ = self.machine.finish(id);
                self.flush_soon(socket);
                return Ok(Sent::End);
            }
            Read::Some(bytes) => (bytes, false),
            Read::Full(bytes) => (bytes, true),
        };
        let head = self.machine.send(id, bytes, false).expect("the room was asked for above");
        self.transmit.commit(head, bytes)?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(Sent::Nothing) };
        if more && room == wanted && wanted < window {
            stream.chunk.filled(size);
        } else if !more {
            stream.chunk.not_filled(bytes);
        }
        if let Some(app) = &stream.app {
            app.gave(bytes);
        }
        if more {
            self.flush(socket);
        } else {
            self.flush_soon(socket);
        }
        Ok(Sent::Some { bytes, more })
    }

    /// Whether `id` may send now; if not, it is in the queue.
    pub fn is_turn(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if std::mem::take(&mut stream.turn) {
            return true;
        }
        if !self.transmit.is_full() && self.turns.is_empty() {
            return true;
        }
        self.wait_for_turn(id);
        false
    }

    fn wait_for_turn(&mut self, id: StreamId) -> Sent {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.turns.push_back(id);
        }
        Sent::Wait
    }

    /// Whether nothing more will happen and everything we said has gone to the socket.
    pub fn is_drained(&self) -> bool {
        self.machine.is_finished() && !self.transmit.is_pending() && self.machine.output().is_empty()
    }

    /// `id` does not wait for a window any more.
    pub fn shut_no_more(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && std::mem::take(&mut stream.shut)
        {
            self.shut.retain(|other| *other != id);
        }
    }

    /// The tunnel's window has opened.
    pub fn window_opened(&mut self) {
        for id in self.shut.drain(..) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.shut = false;
                stream.wake();
            }
        }
    }

    /// The tunnel's credit for `bytes` that went to a backlog is returned later.
    pub fn owe(&mut self, bytes: usize) {
        self.owed += bytes;
        self.machine.hold_back(self.owed);
    }

    /// Returns what was to be returned later for `bytes`.
    pub fn pay(&mut self, bytes: usize) {
        if bytes > 0 {
            self.owed -= bytes;
            self.machine.hold_back(self.owed);
            self.machine.left_arena(bytes);
        }
    }

    /// Lets windows grow, or not, and returns credit that was held back for no reason any more, by what this worker holds.
    pub fn weigh(&mut self) {
        if self.owed > 0 && !backlog::is_pressed() {
            self.streams.values_mut().for_each(Stream::forgive);
            self.pay(self.owed);
        }
        self.grown.set(self.machine.grown());
        self.machine.let_windows_grow(backlog::is_low());
    }

    /// Gives the next in the queue its turn, while the socket takes more.
    pub fn next_turn(&mut self) {
        while !self.transmit.is_full()
            && let Some(next) = self.turns.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&next) {
                stream.queued = false;
                stream.turn = true;
                stream.wake();
                return;
            }
        }
    }

    /// The connection of `id` is over on our side: whatever of it is still open is reset.
    pub fn remove(&mut self, id: StreamId, socket: &TcpStream) {
        self.shut_no_more(id);
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if self.lost.is_none() {
            self.machine.reset(id, Code::CANCEL);
            stream.empty();
            self.pay(stream.pay());
            // Data that waited for an application which is gone.
            self.flush_soon(socket);
        }
        if stream.turn {
            self.next_turn();
        }
        self.wake_openers();
        if self.machine.is_finished() {
            self.wake_driver();
        }
    }

    /// Whoever waits to open a stream tries again, in the order they came.
    pub fn wake_openers(&mut self) {
        self.openers.drain(..).for_each(|(_, waker)| waker.wake());
    }

    /// The tunnel is dead: so is every stream on it that had not ended.
    pub fn lose(&mut self, why: String) {
        self.closed = true;
        if self.lost.is_some() {
            return;
        }
        for stream in self.streams.values_mut() {
            stream.cut(Ended::TunnelLost(why.clone()));
        }
        self.requests.clear();
        self.turns.clear();
        self.lost = Some(why);
        self.wake_openers();
    }

    /// Adds a stream that the machine knows.
    pub fn insert(&mut self, id: StreamId, stream: Stream) {
        self.streams.insert(id, stream);
    }
}
