//! What each frame of the peer does: RFC 9113 §6, frame by frame, and the rules of §5 and §8 around them.

use std::time::Instant;

use http::StatusCode;

use super::budget::Nuisance;
use super::clock::{LAST_CALL, SIGN_OF_LIFE};
use super::error::{Error, Malformed, StreamError};
use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{Code, FIRST_WINDOW, FrameHead, FrameKind, StreamId, flag};
use super::head::Collector;
use super::machine::{Action, Block, Closing, Cut, Machine};
use super::output::Output;
use super::read::{Reading, Step, prefix};
use super::settings::{PeerSettings, Role};
use super::stream::{Gone, Stream};

/// Frames that one header block may come in.
pub(super) const BLOCK_FRAMES: u32 = 64;
/// Frames that a peer may reasonably send on a stream before it knows of its end.
const STALE_FRAMES: u32 = 4;
/// What is kept of the buffer for header blocks between two of them.
const BLOCK_KEPT: usize = 4 << 10;
/// Entries that one SETTINGS frame may have: there are eight settings, and each need be said but once.
const SETTINGS_LIMIT: u32 = 64 * 6;
/// Of unknown frames, so many bytes cost as much as another frame.
const UNKNOWN_UNIT: u32 = 16 << 10;

/// Who gets the payload of DATA.
enum Taker {
    /// The caller, for the stream's application.
    Application,
    /// The stream was reset by us.
    Nobody,
    /// The frame breaks a rule of its stream.
    Broken(StreamError),
}

impl Machine {
    /// Judges a frame by its head and sets out to read its payload.
    pub(super) fn begin(&mut self, head: FrameHead, now: Instant) -> Result<(), Error> {
        let FrameHead { length, kind, stream, .. } = head;
        if length > self.config.frame_size {
            return Err(Error::FrameTooLong { kind, length, limit: self.config.frame_size });
        }
        if !self.greeted && (kind != FrameKind::SETTINGS || head.has(flag::ACK)) {
            return Err(Error::FirstFrame(kind));
        }
        if let Some(block) = self.block_of
            && (kind != FrameKind::CONTINUATION || stream != block.stream)
        {
            return Err(Error::Interleaved { kind, stream, block: block.stream });
        }
        let of_the_tunnel = match kind {
            FrameKind::SETTINGS | FrameKind::PING | FrameKind::GOAWAY => Some(true),
            FrameKind::DATA | FrameKind::HEADERS | FrameKind::PRIORITY => Some(false),
            FrameKind::RST_STREAM | FrameKind::CONTINUATION => Some(false),
            _ => None,
        };
        if of_the_tunnel.is_some_and(|tunnel| tunnel != (stream == 0)) {
            return Err(Error::WrongStream { kind, stream });
        }
        match kind {
            FrameKind::DATA => self.begin_data(head, now),
            FrameKind::HEADERS => self.begin_headers(head),
            FrameKind::CONTINUATION => self.begin_continuation(head, now),
            FrameKind::SETTINGS => self.begin_settings(head, now),
            FrameKind::PRIORITY => self.begin_fixed(head, length == 5),
            FrameKind::RST_STREAM | FrameKind::WINDOW_UPDATE => self.begin_fixed(head, length == 4),
            FrameKind::PING => self.begin_fixed(head, length == 8),
            FrameKind::GOAWAY => self.begin_fixed(head, length >= 8),
            FrameKind::PUSH_PROMISE => Err(Error::Push),
            _ => {
                for _ in 0..=length / UNKNOWN_UNIT {
                    self.spend(Nuisance::Unknown, now)?;
                }
                self.reading = Reading::Skip { left: length, give_back: false };
                Ok(())
            }
        }
    }

    fn begin_fixed(&mut self, head: FrameHead, fits: bool) -> Result<(), Error> {
        if !fits {
            return Err(Error::FrameLength { kind: head.kind, length: head.length });
        }
        self.check_output()?;
        self.reading = Reading::Fixed { head, have: 0, bytes: [0; 8] };
        Ok(())
    }

    /// Whether nobody has opened `stream` yet.
    fn is_idle(&self, stream: u32) -> bool {
        stream > self.last_id || stream.is_multiple_of(2)
    }

    // DATA, §6.1.

    fn begin_data(&mut self, head: FrameHead, now: Instant) -> Result<(), Error> {
        let FrameHead { length, kind, stream, .. } = head;
        if self.is_idle(stream) {
            return Err(Error::Idle { kind, stream });
        }
        let left = self.receive.open();
        if !self.receive.charge(length) {
            return Err(Error::Window { length, left });
        }
        if !head.has(flag::PADDED) {
            return self.begin_payload(head, None, now);
        }
        if length == 0 {
            return Err(Error::FrameLength { kind, length });
        }
        self.reading = Reading::PadLength { head };
        Ok(())
    }

    /// Sets out to read the payload of DATA, of which `padding` is not payload: pass it on, or skip it.
    pub(super) fn begin_payload(
        &mut self,
        head: FrameHead,
        padding: Option<u8>,
        now: Instant,
    ) -> Result<(), Error> {
        let FrameHead { length, stream: id, .. } = head;
        let count = u32::from(padding.is_some());
        let padding = u32::from(padding.unwrap_or(0));
        let payload = length - count - padding;
        let end = head.has(flag::END_STREAM);
        if payload == 0 && !end {
            self.spend(Nuisance::EmptyData, now)?;
        }
        match self.charge_stream(head)? {
            Taker::Application => {
                // Padding and its count use up both windows too; nobody will take them, so they return at once.
                if count > 0 {
                    if let Some(stream) = self.streams.get(id) {
                        stream.receive.give_back(count + padding);
                    }
                    self.announce_stream(id);
                    self.give_back(count + padding);
                }
                self.reading = if payload > 0 || end {
                    Reading::Data { stream: id, left: payload, padding, end }
                } else {
                    Reading::behind(padding)
                };
            }
            Taker::Nobody => self.skip_data(payload + padding, count),
            Taker::Broken(broken) => {
                self.break_stream(id, broken, now)?;
                self.skip_data(payload + padding, count);
            }
        }
        Ok(())
    }

    /// Takes DATA's length from its stream's window, if the stream can have it.
    fn charge_stream(&mut self, head: FrameHead) -> Result<Taker, Error> {
        let FrameHead { length, kind, stream: id, .. } = head;
        let is_client = self.role == Role::Client;
        let Some(stream) = self.streams.get(id) else {
            return match self.streams.gone(id) {
                Some(Gone::Ended) => Err(Error::Ended { kind, stream: id }),
                Some(Gone::ResetByPeer) => Ok(Taker::Broken(StreamError::AfterEnd(kind))),
                // Sent before our reset arrived.
                Some(Gone::ResetByUs) | None => Ok(Taker::Nobody),
            };
        };
        if stream.got_end {
            Ok(Taker::Broken(StreamError::AfterEnd(kind)))
        } else if is_client && !stream.connected {
            Ok(Taker::Broken(StreamError::EarlyData))
        } else if !stream.receive.charge(length) {
            Ok(Taker::Broken(StreamError::Window))
        } else {
            Ok(Taker::Application)
        }
    }

    /// Sets out to skip what is left of DATA for nobody; all of it, and what was read, returns to the tunnel's window.
    fn skip_data(&mut self, left: u32, read: u32) {
        self.give_back(read);
        self.reading = Reading::Skip { left, give_back: true };
    }

    // HEADERS and CONTINUATION, §6.2 and §6.10.

    fn begin_headers(&mut self, head: FrameHead) -> Result<(), Error> {
        let FrameHead { length, kind, stream, .. } = head;
        match self.role {
            Role::Server if stream.is_multiple_of(2) => {
                return Err(Error::StreamOrder { stream, last: self.last_id });
            }
            Role::Client if self.is_idle(stream) => return Err(Error::Idle { kind, stream }),
            Role::Client | Role::Server => {}
        }
        if (length as usize) < prefix(head) {
            return Err(Error::FrameLength { kind, length });
        }
        self.check_output()?;
        let (end_stream, end_headers) = (head.has(flag::END_STREAM), head.has(flag::END_HEADERS));
        self.block_of = Some(Block { stream, end_stream, end_headers, frames: 1 });
        if prefix(head) > 0 {
            self.reading = Reading::Prefix { head, have: 0, bytes: [0; 6] };
            return Ok(());
        }
        self.begin_fragment(head, 0)
    }

    /// Sets out to read a fragment; `first` is the first byte of what is in front of it.
    pub(super) fn begin_fragment(&mut self, head: FrameHead, first: u8) -> Result<(), Error> {
        let padded = head.kind == FrameKind::HEADERS && head.has(flag::PADDED);
        let padding = if padded { u32::from(first) } else { 0 };
        // Priority, if it is there, is read and ignored (§5.3).
        let rest = head.length - u32::try_from(prefix(head)).expect("at most six");
        let left = rest.checked_sub(padding).ok_or(Error::Padding { kind: head.kind })?;
        let limit = self.config.block_limit();
        if self.block.len() + left as usize > limit {
            return Err(Error::HeaderBlock { bytes: limit, frames: BLOCK_FRAMES });
        }
        self.reading = Reading::Fragment { left, padding };
        Ok(())
    }

    fn begin_continuation(&mut self, head: FrameHead, now: Instant) -> Result<(), Error> {
        self.spend(Nuisance::Continuation, now)?;
        let limit = self.config.block_limit();
        let Some(block) = &mut self.block_of else {
            return Err(Error::Continuation { stream: head.stream });
        };
        block.frames += 1;
        if block.frames > BLOCK_FRAMES {
            return Err(Error::HeaderBlock { bytes: limit, frames: BLOCK_FRAMES });
        }
        block.end_headers = head.has(flag::END_HEADERS);
        self.begin_fragment(head, 0)
    }

    pub(super) fn end_fragment<'a>(&mut self, now: Instant) -> Result<Step<'a>, Error> {
        let Some(block) = self.block_of.take_if(|block| block.end_headers) else { return Ok(Step::On) };
        let mut head = Collector::new(self.config.header_list);
        // Decoded whatever becomes of the stream: both sides' tables must stay in step (§4.3).
        self.decoder
            .decode(&self.block, self.config.decode_limit(), |name, value| head.field(name, value))
            .map_err(Error::Compression)?;
        self.block.clear();
        self.block.shrink_to(BLOCK_KEPT);
        let action = if self.role == Role::Server && block.stream > self.last_id {
            self.request(block, head, now)?
        } else {
            self.head(block, head, now)?
        };
        Ok(action.map_or(Step::On, Step::Action))
    }

    /// A request that opens a stream.
    fn request(
        &mut self,
        block: Block,
        head: Collector,
        now: Instant,
    ) -> Result<Option<Action<'static>>, Error> {
        let Block { stream: id, end_stream, .. } = block;
        self.last_id = id;
        if matches!(self.closing, Closing::Final(_)) {
            // Our GOAWAY has told the peer that this one is not served (§6.8).
            self.spend(Nuisance::Stale, now)?;
            self.streams.remember(id, Gone::ResetByUs);
            return Ok(None);
        }
        if self.streams.len() >= self.config.streams as usize || !self.budgets.has(Nuisance::Reset, now) {
            self.spend(Nuisance::Refusal, now)?;
            self.budgets.earn(Nuisance::Stale, STALE_FRAMES);
            self.output.answer(|output| output.reset(id, Code::REFUSED_STREAM));
            self.streams.remember(id, Gone::ResetByUs);
            return Ok(None);
        }
        if head.is_too_long() {
            self.spend(Nuisance::Provoked, now)?;
            let before = self.output.unsent().len();
            self.write_refusal(id, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, end_stream);
            self.output.answered(before);
            self.streams.remember(id, if end_stream { Gone::Ended } else { Gone::ResetByUs });
            return Ok(None);
        }
        let request = match head.request() {
            Ok(request) => request,
            Err(malformed) => {
                self.break_stream(id, StreamError::Malformed(malformed), now)?;
                self.streams.remember(id, Gone::ResetByUs);
                return Ok(None);
            }
        };
        let mut stream = self.new_stream(id);
        stream.got_end = end_stream;
        self.streams.insert(stream);
        Ok(Some(Action::Request { stream: StreamId::new(id), request, end: end_stream }))
    }

    /// A stream that has just been opened, by whichever side.
    pub(super) fn new_stream(&mut self, id: u32) -> Stream {
        // A peer may raise each stream's window at once, and see its end later than we do.
        self.budgets.earn(Nuisance::WindowUpdate, 2);
        self.budgets.earn(Nuisance::Stale, STALE_FRAMES);
        let first = self.config.first_stream_window();
        // Until it has read our SETTINGS the peer counts from the window that everybody starts with.
        let window = if self.acked { first } else { first.max(FIRST_WINDOW) };
        Stream {
            id,
            connected: false,
            sent_end: false,
            got_end: false,
            send: SendWindow::new(self.peer.stream_window),
            receive: ReceiveWindow::new(window),
            untaken: 0,
        }
    }

    /// A head on a stream that is or was there.
    fn head(
        &mut self,
        block: Block,
        head: Collector,
        now: Instant,
    ) -> Result<Option<Action<'static>>, Error> {
        let Block { stream: id, end_stream: end, .. } = block;
        let kind = FrameKind::HEADERS;
        let Some(stream) = self.streams.get(id) else {
            return match (self.streams.gone(id), self.role) {
                (Some(Gone::Ended), _) => Err(Error::Ended { kind, stream: id }),
                (Some(Gone::ResetByPeer), _) => {
                    self.break_stream(id, StreamError::AfterEnd(kind), now).map(|()| None)
                }
                // A lower id than the last one's that never was a stream (§5.1.1).
                (None, Role::Server) if !self.streams.has_forgotten() => {
                    Err(Error::StreamOrder { stream: id, last: self.last_id })
                }
                (Some(Gone::ResetByUs) | None, _) => self.spend(Nuisance::Stale, now).map(|()| None),
            };
        };
        let broken = if stream.got_end {
            StreamError::AfterEnd(kind)
        } else if stream.connected {
            StreamError::HeadersOnConnected
        } else if head.is_too_long() {
            StreamError::HeadTooLong(self.config.header_list)
        } else if self.role == Role::Server {
            match head.trailers() {
                Ok(()) if end => {
                    stream.got_end = true;
                    self.remove_if_over(id);
                    return Ok(Some(Action::Data { stream: StreamId::new(id), bytes: &[], end }));
                }
                Ok(()) => StreamError::Malformed(Malformed::End),
                Err(malformed) => StreamError::Malformed(malformed),
            }
        } else {
            match head.response() {
                Ok(response) if response.status.is_informational() => {
                    if !end {
                        return self.spend(Nuisance::Interim, now).map(|()| None);
                    }
                    StreamError::Malformed(Malformed::End)
                }
                Ok(response) => {
                    let connected = response.status.is_success();
                    stream.connected = connected;
                    stream.got_end = end;
                    if connected {
                        self.remove_if_over(id);
                    } else {
                        self.reset(StreamId::new(id), Code::CANCEL);
                    }
                    return Ok(Some(Action::Response { stream: StreamId::new(id), response, end }));
                }
                Err(malformed) => StreamError::Malformed(malformed),
            }
        };
        self.break_stream(id, broken, now).map(|()| None)
    }

    // SETTINGS, §6.5.

    fn begin_settings(&mut self, head: FrameHead, now: Instant) -> Result<(), Error> {
        let FrameHead { length, kind, .. } = head;
        self.spend(Nuisance::Settings, now)?;
        self.check_output()?;
        if head.has(flag::ACK) {
            if length != 0 {
                return Err(Error::FrameLength { kind, length });
            }
            self.reading = Reading::HEAD;
            return self.settings_acked();
        }
        if !length.is_multiple_of(6) {
            return Err(Error::FrameLength { kind, length });
        }
        if length > SETTINGS_LIMIT {
            return Err(Error::SettingsLength { length, limit: SETTINGS_LIMIT });
        }
        self.reading = Reading::Settings { left: length, have: 0, entry: [0; 6], next: self.peer };
        Ok(())
    }

    /// A whole SETTINGS frame, which makes of the peer's settings `next`.
    pub(super) fn settings(&mut self, next: PeerSettings) -> Result<(), Error> {
        let change = i64::from(next.stream_window) - i64::from(self.peer.stream_window);
        if change != 0 {
            // The windows of open streams change by the difference (§6.9.2), and may fall below zero by it.
            let mut opened = false;
            for stream in self.streams.iter_mut() {
                let too_large = Error::Setting { id: 4, value: next.stream_window };
                opened |= stream.send.change(change).ok_or(too_large)?;
            }
            if opened {
                self.queue.push_back(Action::Writable { stream: None });
            }
        }
        let more_streams = match (next.streams, self.peer.streams) {
            (Some(next), before) => next > before.unwrap_or(self.config.streams),
            (None, _) => false,
        };
        if more_streams && self.greeted && self.role == Role::Client {
            self.queue.push_back(Action::MayOpen);
        }
        if next.header_table != self.peer.header_table {
            self.encoder.set_peer_limit(next.header_table);
        }
        self.peer = next;
        self.output.answer(Output::settings_ack);
        if !self.greeted {
            self.greeted = true;
            self.queue.push_back(Action::Ready);
        }
        Ok(())
    }

    fn settings_acked(&mut self) -> Result<(), Error> {
        if self.acked {
            return Err(Error::UnaskedAck);
        }
        self.acked = true;
        self.decoder.set_limit(self.config.table_limit(true));
        let first = self.config.first_stream_window();
        if first < FIRST_WINDOW {
            for stream in self.streams.iter_mut() {
                stream.receive.shrink(FIRST_WINDOW - first);
            }
        }
        Ok(())
    }

    // PRIORITY §6.3, RST_STREAM §6.4, PING §6.7, GOAWAY §6.8, WINDOW_UPDATE §6.9.

    /// A whole payload of fixed length; for GOAWAY its first part.
    pub(super) fn fixed<'a>(
        &mut self,
        head: FrameHead,
        bytes: [u8; 8],
        now: Instant,
    ) -> Result<Step<'a>, Error> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let first = u32::from_be_bytes([a, b, c, d]);
        match head.kind {
            FrameKind::RST_STREAM => self.peer_reset(head.stream, Code(first), now),
            FrameKind::WINDOW_UPDATE => self.window_update(head.stream, first & 0x7fff_ffff, now),
            FrameKind::PING if head.has(flag::ACK) => {
                self.pong(bytes);
                Ok(Step::On)
            }
            FrameKind::PING => {
                self.spend(Nuisance::Ping, now)?;
                self.output.answer(|output| output.ping(bytes, true));
                Ok(Step::On)
            }
            FrameKind::GOAWAY => {
                self.spend(Nuisance::GoAway, now)?;
                let (last, code) = (first & 0x7fff_ffff, Code(u32::from_be_bytes([e, f, g, h])));
                self.block.clear();
                self.reading = Reading::Debug { left: head.length - 8, last, code };
                Ok(Step::On)
            }
            // PRIORITY is deprecated and ignored (§5.3).
            _ => self.spend(Nuisance::Priority, now).map(|()| Step::On),
        }
    }

    fn peer_reset<'a>(&mut self, id: u32, code: Code, now: Instant) -> Result<Step<'a>, Error> {
        if self.is_idle(id) {
            return Err(Error::Idle { kind: FrameKind::RST_STREAM, stream: id });
        }
        let Some(stream) = self.streams.remove(id, Gone::ResetByPeer) else {
            return self.spend(Nuisance::Stale, now).map(|()| Step::On);
        };
        if self.role == Role::Server && !stream.connected {
            // Whether any is left shows when the next stream is opened.
            self.budgets.spend(Nuisance::Reset, now);
        }
        let cut = match code {
            Code::NO_ERROR if stream.got_end => Cut::Unwanted,
            Code::REFUSED_STREAM if self.role == Role::Client && !stream.connected => Cut::Refused,
            _ => Cut::ByPeer(code),
        };
        Ok(Step::Action(Action::Reset { stream: StreamId::new(id), cut }))
    }

    fn window_update<'a>(&mut self, id: u32, increment: u32, now: Instant) -> Result<Step<'a>, Error> {
        self.spend(Nuisance::WindowUpdate, now)?;
        if id == 0 {
            return match self.send.change(increment.into()) {
                Some(opened) if increment > 0 => {
                    Ok(if opened { Step::Action(Action::Writable { stream: None }) } else { Step::On })
                }
                _ => Err(Error::Increment { increment }),
            };
        }
        if self.is_idle(id) {
            return Err(Error::Idle { kind: FrameKind::WINDOW_UPDATE, stream: id });
        }
        let Some(stream) = self.streams.get(id) else {
            return self.spend(Nuisance::Stale, now).map(|()| Step::On);
        };
        match stream.send.change(increment.into()) {
            Some(true) => Ok(Step::Action(Action::Writable { stream: Some(StreamId::new(id)) })),
            Some(false) if increment > 0 => Ok(Step::On),
            _ => self.break_stream(id, StreamError::Increment(increment), now).map(|()| Step::On),
        }
    }

    fn pong(&mut self, opaque: [u8; 8]) {
        match (opaque, self.closing) {
            (SIGN_OF_LIFE, _) => self.pinged = None,
            (LAST_CALL, Closing::Announced(_)) => self.close(),
            // An answer to nothing costs nothing.
            _ => {}
        }
    }

    /// A whole GOAWAY.
    pub(super) fn goaway(&mut self, last: u32, code: Code, debug: Vec<u8>) {
        self.queue.push_back(Action::GoAway { code, debug });
        if self.role == Role::Server {
            // It speaks of streams that we opened, and we open none.
            return;
        }
        // From here on none is opened, so a later GOAWAY can only take more back, as §6.8 says.
        self.peer_leaves = true;
        for stream in self.streams.take_above(last) {
            self.streams.remember(stream.id, Gone::ResetByUs);
            // A stream that was answered was served, whatever the peer says now: its bytes cannot be sent again elsewhere.
            let cut = if stream.connected { Cut::ByPeer(code) } else { Cut::Refused };
            self.queue.push_back(Action::Reset { stream: StreamId::new(stream.id), cut });
        }
    }
}
