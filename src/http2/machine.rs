//! The machine's parts, what it says to its caller, and how it begins and fails.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::budget::{Budgets, Nuisance};
use super::error::{Error, StreamError};
use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{Code, FIRST_WINDOW, PREFACE, StreamId};
use super::head::{Request, Response};
use super::hpack::{Decoder, Encoder};
use super::output::Output;
use super::read::Reading;
use super::settings::{Config, PeerSettings, Role};
use super::stream::{Gone, Streams};

/// The peer's preface and SETTINGS must arrive within this.
pub const GREETING_DEADLINE: Duration = Duration::from_secs(5);
/// Our SETTINGS must be acknowledged within this.
pub const ACK_DEADLINE: Duration = Duration::from_secs(20);
/// After so long without a byte of the peer it is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(10);
/// A peer that has not sent a byte for so long after a PING is gone.
pub const PING_DEADLINE: Duration = Duration::from_secs(20);
/// The second GOAWAY follows the first when the peer has answered its PING, and at the latest after this.
pub const GOAWAY_DEADLINE: Duration = Duration::from_secs(5);

/// One tunnel's HTTP/2 connection, as client or server: a pure function of bytes, events and time.
///
/// # How it is driven
/// - [`read`](Self::read) takes bytes of the peer and returns what they mean, one [`Action`] at a time.
/// - The methods of `send.rs` are the events of our side: [`open`](Self::open), [`respond`](Self::respond),
///   [`send`](Self::send), [`taken`](Self::taken) and so on.
/// - After any call, [`output`](Self::output) may have bytes for the peer. They go behind DATA whose head was returned before,
///   and in front of DATA whose head is returned after.
/// - A caller never stops reading because output waits to be written: two that do so, each with DATA in front of the WINDOW_UPDATE that the
///   other waits for, wait for ever. What waits is bounded all the same; a peer that makes us answer and does not read is ended.
/// - At [`deadline`](Self::deadline), [`on_time`](Self::on_time) is called.
/// - The end of the transport is no event here: whatever is open then was cut.
///
/// # How it stands
/// | from | event | to |
/// |---|---|---|
/// | greeting | the peer's SETTINGS | up: [`Action::Ready`] |
/// | up | [`shutdown`](Self::shutdown) as server | announced: GOAWAY(2^31 - 1) and PING are out, streams are still served |
/// | announced | PING answered, or [`GOAWAY_DEADLINE`] | closing: GOAWAY with the last stream is out |
/// | up | [`shutdown`](Self::shutdown) as client | closing: GOAWAY is out |
/// | up | the peer's GOAWAY, as client | closing: no stream can be opened |
/// | closing | the last stream is over | finished |
/// | any | a broken rule, a flood, silence, [`abort`](Self::abort) | failed: GOAWAY with its code is out, every call is refused |
///
/// No allocation happens while DATA, WINDOW_UPDATE and PING go back and forth.
pub struct Machine {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) peer: PeerSettings,
    pub(super) budgets: Budgets,
    pub(super) streams: Streams,
    /// What we may send on the tunnel as a whole.
    pub(super) send: SendWindow,
    /// What the peer may send on the tunnel as a whole.
    pub(super) receive: ReceiveWindow,
    /// The highest stream id so far: as client the last we opened, as server the last that was opened to us.
    pub(super) last_id: u32,
    pub(super) reading: Reading,
    /// The header block that is being collected; beside it whose it is.
    pub(super) block: Vec<u8>,
    pub(super) block_of: Option<Block>,
    pub(super) output: Output,
    /// Actions that one frame had more of than one.
    pub(super) queue: VecDeque<Action<'static>>,
    pub(super) closing: Closing,
    /// Windows of streams may grow.
    pub(super) growing: bool,
    /// What [`Machine::hold_back`] was told last. Of whoever holds the bytes, and so no part of the state that moves.
    pub(super) held_back: u32,
    /// The peer has sent GOAWAY.
    pub(super) peer_leaves: bool,
    /// The peer's SETTINGS have arrived.
    pub(super) greeted: bool,
    /// Our SETTINGS are acknowledged.
    pub(super) acked: bool,
    pub(super) started: Instant,
    /// When the peer was last heard of.
    pub(super) heard: Instant,
    /// When the PING that is not answered yet was sent.
    pub(super) pinged: Option<Instant>,
    pub(super) failed: Option<Error>,
}

/// A header block of which frames are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub stream: u32,
    pub end_stream: bool,
    /// END_HEADERS was on the frame that is being read.
    pub end_headers: bool,
    pub frames: u32,
}

/// How far our own ending of the tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// The first GOAWAY of a server is out, since then.
    Announced(Instant),
    /// No stream above this id is served.
    Final(u32),
}

/// What the peer's bytes mean to the caller.
#[derive(Debug)]
pub enum Action<'a> {
    /// The peer's SETTINGS have arrived: the tunnel is up.
    Ready,
    /// As client: the peer allows more streams than before. See [`Machine::can_open`].
    MayOpen,
    /// As server: a request. It is answered by [`Machine::respond`] or [`Machine::refuse`].
    Request {
        /// Its stream.
        stream: StreamId,
        /// Its head.
        request: Request,
        /// END_STREAM came with it: the client sends nothing.
        end: bool,
    },
    /// As client: the answer to a request. Any status but 2xx ends the stream.
    Response {
        /// Its stream.
        stream: StreamId,
        /// Its head.
        response: Response,
        /// END_STREAM came with it: the server sends nothing.
        end: bool,
    },
    /// Payload, as it lies in the bytes that were given to [`Machine::read`]. To a server it may come before its response.
    ///
    /// The caller owes [`Machine::left_arena`] for it, and [`Machine::taken`].
    Data {
        /// Its stream.
        stream: StreamId,
        /// The bytes; none where only the end arrived.
        bytes: &'a [u8],
        /// These were the last: END_STREAM.
        end: bool,
    },
    /// The stream is over before both sides ended it.
    Reset {
        /// The stream.
        stream: StreamId,
        /// What that means.
        cut: Cut,
    },
    /// A window that was shut has opened.
    Writable {
        /// Whose; `None` for all that wait.
        stream: Option<StreamId>,
    },
    /// The peer ends the tunnel. As client: nothing more can be opened, and the streams that the peer will not serve follow as
    /// [`Cut::Refused`].
    GoAway {
        /// Why.
        code: Code,
        /// What the peer says of it, at most [`DEBUG_LIMIT`](super::DEBUG_LIMIT) bytes.
        debug: Vec<u8>,
    },
}

/// What the early end of a stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// RST_STREAM of the peer. No END_STREAM came before it, or it has a code that is no "enough": the application must see a reset.
    ByPeer(Code),
    /// RST_STREAM(NO_ERROR) of a peer that had sent END_STREAM: it has said all and wants no more. This is no error (RFC 9113 §8.1), but our
    /// side had not ended: what the application still writes reaches nobody, and it should be told by closing it.
    Unwanted,
    /// As client, before any answer: the peer did not take the stream, and it may be tried elsewhere.
    Refused,
    /// The peer broke a rule of the stream, and we have reset it.
    Broken(StreamError),
}

impl Machine {
    /// A machine that has its greeting in [`output`](Self::output).
    pub fn new(role: Role, config: Config, now: Instant) -> Self {
        let config = config.within_range();
        let mut output = Output::default();
        if role == Role::Client {
            output.raw(PREFACE);
        }
        output.settings(config.entries(role));
        // The window of a tunnel begins at 65,535 whatever SETTINGS say (§6.9.2).
        let window = config.first_connection_window();
        if window > FIRST_WINDOW {
            output.window_update(0, window - FIRST_WINDOW);
        }
        let reading = match role {
            Role::Client => Reading::HEAD,
            Role::Server => Reading::Preface { have: 0 },
        };
        Self {
            role,
            config,
            decoder: Decoder::new(config.table_limit(false)),
            encoder: Encoder::new(),
            peer: PeerSettings::FIRST,
            budgets: Budgets::full(now),
            streams: Streams::default(),
            send: SendWindow::new(FIRST_WINDOW),
            receive: ReceiveWindow::new(window),
            last_id: 0,
            reading,
            block: Vec::new(),
            block_of: None,
            output,
            queue: VecDeque::new(),
            closing: Closing::No,
            growing: true,
            held_back: 0,
            peer_leaves: false,
            greeted: false,
            acked: false,
            started: now,
            heard: now,
            pinged: None,
            failed: None,
        }
    }

    /// Bytes for the peer: whole frames, apart from the first of which a part may be sent already.
    pub fn output(&self) -> &[u8] {
        self.output.unsent()
    }

    /// The first `bytes` of [`output`](Self::output) are sent, or copied to where they cannot be lost.
    pub fn sent(&mut self, bytes: usize) {
        self.output.advance(bytes);
    }

    /// Why the machine failed, if it did.
    pub fn failure(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Whether nothing more will happen: the tunnel was ended in order and its last stream is over.
    pub fn is_finished(&self) -> bool {
        let closing = match self.role {
            Role::Client => self.closing != Closing::No || self.peer_leaves,
            Role::Server => matches!(self.closing, Closing::Final(_)),
        };
        closing && self.streams.len() == 0 && self.queue.is_empty()
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether the peer knows our limits. A tunnel moves to another process only after that.
    pub fn is_acknowledged(&self) -> bool {
        self.acked
    }

    /// Ends the tunnel: GOAWAY says why, and from here on everything is refused.
    pub(super) fn fail(&mut self, error: Error) -> Error {
        let last = match (self.closing, self.role) {
            // A later GOAWAY never takes in more than an earlier one (§6.8).
            (Closing::Final(last), _) => last,
            (_, Role::Server) => self.last_id,
            (_, Role::Client) => 0,
        };
        self.output.goaway(last, error.code(), error.to_string().as_bytes());
        self.failed = Some(error.clone());
        self.streams = Streams::default();
        self.queue.clear();
        error
    }

    pub(super) fn spend(&mut self, nuisance: Nuisance, now: Instant) -> Result<(), Error> {
        if self.budgets.spend(nuisance, now) { Ok(()) } else { Err(Error::Flood(nuisance)) }
    }

    /// Resets a stream whose peer broke a rule of it, and tells the caller if it knew of the stream.
    pub(super) fn break_stream(&mut self, id: u32, error: StreamError, now: Instant) -> Result<(), Error> {
        self.spend(Nuisance::Provoked, now)?;
        self.output.answer(|output| output.reset(id, error.code()));
        if self.streams.remove(id, Gone::ResetByUs).is_some() {
            let cut = Cut::Broken(error);
            self.queue.push_back(Action::Reset { stream: StreamId::new(id), cut });
        }
        Ok(())
    }

    /// Takes a stream out of which both sides have sent the end.
    pub(super) fn remove_if_over(&mut self, id: u32) {
        if self.streams.get(id).is_some_and(|stream| stream.is_over()) {
            self.streams.remove(id, Gone::Ended);
        }
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("role", &self.role)
            .field("peer", &self.peer)
            .field("streams", &self.streams.len())
            .field("last_id", &self.last_id)
            .field("send", &self.send)
            .field("receive", &self.receive)
            .field("closing", &self.closing)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
