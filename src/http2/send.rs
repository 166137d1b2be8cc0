//! What our side does: open, answer, send, take, reset, and end the tunnel.

use std::time::Instant;

use http::StatusCode;

use super::budget::Nuisance;
use super::clock::LAST_CALL;
use super::error::{Error, OpenError, SendError};
use super::frame::{Code, FrameHead, FrameKind, HEAD, LAST_ID, StreamId, flag};
use super::hpack::FIELD_OVERHEAD;
use super::machine::{Closing, Machine};
use super::settings::Role;
use super::stream::Gone;

/// For every so many bytes of DATA that we send, the peer may reasonably raise its two windows once more: Go's library does so for
/// each 4 KiB that are read.
const UPDATE_UNIT: usize = 4 << 10;

impl Machine {
    /// How many more streams the peer lets us open now.
    pub fn can_open(&self) -> usize {
        if self.role == Role::Server
            || self.failed.is_some()
            || self.is_leaving()
            || self.last_id >= LAST_ID - 1
        {
            return 0;
        }
        (self.allowed_streams() as usize).saturating_sub(self.streams.len())
    }

    fn allowed_streams(&self) -> u32 {
        self.peer.streams.unwrap_or(self.config.streams)
    }

    fn is_leaving(&self) -> bool {
        self.closing != Closing::No || self.peer_leaves
    }

    /// As client: sends a CONNECT for `authority`, with `fields` in lower case behind it.
    ///
    /// # Errors
    /// Nothing was sent, and another tunnel may be tried.
    pub fn open<'f>(
        &mut self,
        authority: &'f str,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])> + Clone,
    ) -> Result<StreamId, OpenError> {
        if self.last_id >= LAST_ID - 1 {
            return Err(OpenError::IdsUsedUp);
        }
        if self.role == Role::Server || self.failed.is_some() || self.is_leaving() {
            return Err(OpenError::Closing);
        }
        if self.can_open() == 0 {
            return Err(OpenError::Full(self.allowed_streams()));
        }
        let id = if self.last_id == 0 { 1 } else { self.last_id + 2 };
        let pseudo = [(&b":method"[..], &b"CONNECT"[..]), (b":authority", authority.as_bytes())];
        self.write_head(id, false, &pseudo, fields)?;
        self.last_id = id;
        let stream = self.new_stream(id);
        self.streams.insert(stream);
        Ok(StreamId::new(id))
    }

    /// As server: answers a request with 200 and `fields`; from here on DATA goes both ways.
    ///
    /// # Errors
    /// [`SendError::Gone`] if the client took its request back meanwhile; [`SendError::Turn`] if it was answered already.
    pub fn respond<'f>(
        &mut self,
        stream: StreamId,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])> + Clone,
    ) -> Result<(), SendError> {
        self.check_turn(stream)?;
        self.budgets.earn(Nuisance::Reset, 1);
        let id = stream.number();
        let status = [(&b":status"[..], &b"200"[..])];
        let before = self.output.unsent().len();
        // A client that takes only small heads is told the status alone.
        if self.write_head(id, false, &status, fields).is_err() {
            self.write_status(id, false, StatusCode::OK);
        }
        self.output.answered(before);
        if let Some(stream) = self.streams.get(id) {
            stream.connected = true;
        }
        Ok(())
    }

    /// As server: answers a request with a status that is not 2xx, and ends the stream.
    ///
    /// # Errors
    /// As of [`respond`](Self::respond).
    pub fn refuse(&mut self, stream: StreamId, status: StatusCode) -> Result<(), SendError> {
        debug_assert!(!status.is_success(), "a client would take this for a connection");
        let ended = self.check_turn(stream)?;
        self.budgets.earn(Nuisance::Reset, 1);
        let id = stream.number();
        let before = self.output.unsent().len();
        self.write_refusal(id, status, ended);
        self.output.answered(before);
        self.streams.remove(id, if ended { Gone::Ended } else { Gone::ResetByUs });
        Ok(())
    }

    /// Whether a request that waits for its answer has ended already.
    fn check_turn(&mut self, stream: StreamId) -> Result<bool, SendError> {
        let role = self.role;
        match self.streams.get(stream.number()) {
            None => Err(SendError::Gone),
            Some(stream) if stream.connected || role == Role::Client => Err(SendError::Turn),
            Some(stream) => Ok(stream.got_end),
        }
    }

    /// A whole response without a body. A client that is not finished is told that it need not go on (§8.1).
    pub(super) fn write_refusal(&mut self, id: u32, status: StatusCode, ended: bool) {
        self.write_status(id, true, status);
        if !ended {
            self.output.reset(id, Code::NO_ERROR);
        }
    }

    /// A response's head of nothing but its status. It is sent whatever the client's limit on heads is: that limit is
    /// advice (§10.5.1), and the alternative would be no answer.
    fn write_status(&mut self, id: u32, end: bool, status: StatusCode) {
        self.output.headers(id, end, self.peer.frame_size, |block| {
            self.encoder.begin(block);
            self.encoder.field(b":status", status.as_str().as_bytes(), block);
        });
    }

    fn write_head<'f>(
        &mut self,
        id: u32,
        end: bool,
        pseudo: &[(&'f [u8], &'f [u8])],
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])> + Clone,
    ) -> Result<(), OpenError> {
        if let Some(limit) = self.peer.header_list {
            let all = pseudo.iter().copied().chain(fields.clone());
            let size = all.map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum();
            if size > limit as usize {
                return Err(OpenError::HeadTooLong { size, limit });
            }
        }
        self.output.headers(id, end, self.peer.frame_size, |block| {
            self.encoder.begin(block);
            for (name, value) in pseudo.iter().copied().chain(fields) {
                self.encoder.field(name, value, block);
            }
        });
        Ok(())
    }

    /// How many bytes of DATA can be sent on a stream now, in one frame: what both windows and the peer's frame limit allow. None on
    /// a stream that is not connected, or of which our side is ended.
    pub fn room(&mut self, stream: StreamId) -> usize {
        let most = self.send.room().min(self.peer.frame_size as usize);
        match self.streams.get(stream.number()) {
            Some(stream) if stream.connected && !stream.sent_end => stream.send.room().min(most),
            _ => 0,
        }
    }

    /// The head of a DATA frame of `length` bytes, which the caller sends with the bytes behind it: they count as sent. `end` adds
    /// END_STREAM.
    ///
    /// # Errors
    /// Nothing has changed, and no frame may be sent.
    pub fn send(&mut self, stream: StreamId, length: usize, end: bool) -> Result<[u8; HEAD], SendError> {
        let id = stream.number();
        let room = self.room(stream);
        let open = self.streams.get(id).ok_or(SendError::Gone)?;
        if open.sent_end {
            return Err(SendError::Gone);
        }
        if !open.connected {
            return Err(SendError::Turn);
        }
        if length == 0 && !end {
            return Err(SendError::Nothing);
        }
        let length_on_wire = u32::try_from(length).ok().filter(|_| length <= room);
        let length_on_wire = length_on_wire.ok_or(SendError::Room { length, room })?;
        open.send.spend(length);
        open.sent_end = end;
        self.send.spend(length);
        let reads = u32::try_from(length / UPDATE_UNIT).unwrap_or(u32::MAX);
        self.budgets.earn(Nuisance::WindowUpdate, reads.saturating_add(1).saturating_mul(2));
        if end {
            self.remove_if_over(id);
        }
        let flags = if end { flag::END_STREAM } else { 0 };
        Ok(FrameHead { length: length_on_wire, kind: FrameKind::DATA, flags, stream: id }.encode())
    }

    /// Ends our side of a stream: END_STREAM on an empty DATA frame, in [`output`](Self::output).
    ///
    /// # Errors
    /// As of [`send`](Self::send).
    pub fn finish(&mut self, stream: StreamId) -> Result<(), SendError> {
        self.send(stream, 0, true)?;
        self.output.end(stream.number());
        Ok(())
    }

    /// Resets a stream. One that is over stays as it is.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        if self.streams.remove(stream.number(), Gone::ResetByUs).is_some() {
            let before = self.output.unsent().len();
            self.output.reset(stream.number(), code);
            if self.role == Role::Server {
                self.output.answered(before);
            }
        }
    }

    /// `bytes` of [`Action::Data`](super::Action::Data), of whatever stream, have left the buffer they came in: the
    /// application took them, or they were copied to its backlog, or thrown away. Returns them to the tunnel's window, which
    /// grows by that as long as [`let_windows_grow`](Self::let_windows_grow) allows it. Who holds too much returns what was
    /// copied later.
    ///
    /// Each byte leaves once: more than was brought is not returned, and a debug build says so.
    pub fn left_arena(&mut self, bytes: usize) {
        // More than a u32 cannot be owed: the window is smaller.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        debug_assert!(
            self.failed.is_some() || bytes <= self.receive.owed(),
            "bytes that left the arena twice"
        );
        self.give_back(bytes);
    }

    /// So many bytes, all together, are still to be returned by [`left_arena`](Self::left_arena), and that may take long: what is left of
    /// the tunnel's window is announced by smaller pieces.
    pub fn hold_back(&mut self, bytes: usize) {
        self.held_back = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    pub(super) fn give_back(&mut self, bytes: u32) {
        self.receive.give_back(bytes);
        if self.failed.is_some() {
            return;
        }
        let (size, largest) = (self.receive.size(), self.config.connection_window);
        if self.growing && self.receive.is_due(self.held_back) && size < largest {
            self.receive.grow(size.saturating_mul(2).min(largest));
        }
        if let Some(increment) = self.receive.announce(self.held_back) {
            self.output.window_update(0, increment);
        }
    }

    /// The application behind a stream took `bytes` of what [`Action::Data`](super::Action::Data) brought: they return to the
    /// stream's window. A stream whose application has taken nearly all of it gets a larger one, unless
    /// [`let_windows_grow`](Self::let_windows_grow) says no.
    pub fn taken(&mut self, stream: StreamId, bytes: usize) {
        let id = stream.number();
        let Some(stream) = self.streams.get(id) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(stream.untaken);
        stream.untaken -= bytes;
        stream.receive.give_back(bytes);
        self.announce_stream(id);
    }

    /// Whether the windows of streams and of the tunnel may grow from here on. They never become smaller: a worker whose backlogs
    /// fill up says no before they are full.
    pub fn let_windows_grow(&mut self, yes: bool) {
        self.growing = yes;
    }

    /// How many bytes the windows of open streams have grown by, all together: what whoever holds what applications do not take
    /// may have to hold beside the window that each stream begins with.
    pub fn grown(&self) -> usize {
        let first = self.config.first_stream_window();
        self.streams.iter().map(|stream| stream.receive.size().saturating_sub(first) as usize).sum()
    }

    /// Tells the peer what it may send on a stream again, once that is worth a frame.
    pub(super) fn announce_stream(&mut self, id: u32) {
        let largest = self.config.stream_window;
        let growing = self.growing;
        let Some(stream) = self.streams.get(id) else { return };
        if stream.got_end || !stream.receive.is_due(0) {
            return;
        }
        let size = stream.receive.size();
        if growing && stream.untaken <= size / 8 && size < largest {
            stream.receive.grow(size.saturating_mul(2).min(largest));
        }
        if let Some(increment) = stream.receive.announce(0) {
            self.output.window_update(id, increment);
        }
    }

    /// Begins to end the tunnel: nothing more is opened, and what is open runs on. Until
    /// [`is_finished`](Self::is_finished), the machine is driven as before.
    pub fn shutdown(&mut self, now: Instant) {
        if self.closing != Closing::No || self.failed.is_some() {
            return;
        }
        match self.role {
            Role::Client => self.close(),
            Role::Server => {
                // In two steps, so that a stream on its way is still served (§6.8).
                self.closing = Closing::Announced(now);
                self.output.goaway(LAST_ID, Code::NO_ERROR, b"");
                self.output.ping(LAST_CALL, false);
            }
        }
    }

    /// Ends the tunnel at once, as a drain does whose deadline is over: GOAWAY says `code`, every stream is over without a word, and
    /// from here on everything is refused.
    pub fn abort(&mut self, code: Code) {
        if self.failed.is_none() {
            self.fail(Error::Aborted(code));
        }
    }

    /// The last GOAWAY.
    pub(super) fn close(&mut self) {
        let last = if self.role == Role::Server { self.last_id } else { 0 };
        self.closing = Closing::Final(last);
        self.output.goaway(last, Code::NO_ERROR, b"");
    }
}
