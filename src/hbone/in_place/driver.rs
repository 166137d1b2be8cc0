//! The task of one tunnel: reads from its socket, opens records where they lie, and hands their bytes to applications.
//!
//! One turn takes as much as one buffer holds. First all complete records are opened in place; then the frame machine runs
//! across them, and what belongs to one stream goes out by one `writev`, from where it was opened. Only what an application's
//! socket does not take is copied, to that stream's backlog. So the buffer is free again at the end of the turn, but for
//! a record of which the rest is still to come.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustls::AlertDescription;
use tokio::io::Interest;
use tokio::time::Sleep;

use super::backlog;
use super::buffers::{self, Buffer, Size, Use};
use super::connection::{Connection, Inner};
use super::stream::Stream;
use super::transmit::nothing_more;
use crate::flow::Place;
use crate::hbone::ended::Ended;
use crate::http2::{Action, Code, Cut, StreamId};
use crate::tls::{Content, HEADER, Opened, Opener};

/// Slices that one `writev` gets at the most: those of 1 MiB of full records.
const SLICES: usize = 66;
/// A tunnel that waits for the rest of a record keeps the whole buffer while so few of its worker do; the others keep a copy.
const KEEPERS: usize = 16;
/// How long the end of a tunnel that failed may take: the alert out, the peer's end in.
const LINGER: Duration = Duration::from_secs(2);
/// How long an orderly end may take: our last bytes out, and then the peer's end in, which says that it has them.
const ORDERLY: Duration = Duration::from_secs(30);
/// A record or frame costs as much as so many bytes, at least.
const PIECE: usize = 256;
/// Reads in a row of what nobody wants any more.
const UNWANTED_READS: usize = 16;

thread_local! {
    /// Tunnels of this worker that keep a buffer while they wait.
    static KEPT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What only the tunnel's task needs of a tunnel.
pub(super) struct Driver {
    pub connection: Rc<Connection>,
    /// Where what the peer sends waits for the pod's turn.
    place: Place,
    receive: Receive,
    /// Fires at the machine's deadline or earlier.
    timer: Pin<Box<Sleep>>,
    /// How the tunnel ended, while its end is under way.
    ending: Option<Result<(), String>>,
    /// Since when nothing more will happen but that our last bytes leave.
    finishing: Option<Instant>,
    /// It has not run yet.
    fresh: bool,
}

/// The receiving half.
struct Receive {
    opener: Opener,
    /// Bytes that are not opened yet, the beginning of a record, while no buffer is borrowed.
    rest: Vec<u8>,
    /// A buffer that is kept between two turns, and what of it is not opened.
    kept: Option<Kept>,
    /// How large a buffer the next turn borrows.
    size: Size,
    /// Full reads of that size.
    full: u8,
    /// Where the records of this turn were opened to. Kept for its memory.
    opened: Vec<Range<usize>>,
    /// The peer's close_notify, or the end of the connection, was seen.
    end: Option<End>,
}

/// How far a turn of the tunnel's task came with what there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// There is no more.
    Done,
    /// There is probably more.
    More,
    /// There is more, and it is others' turn: the task is woken when it is its own.
    Waits,
}

/// What one read brought.
struct Took {
    /// Bytes, as they count against the pod's share: small pieces count for more.
    cost: usize,
    /// The buffer was filled: there is probably more.
    more: bool,
}

/// A buffer that waits for the rest of a record.
struct Kept {
    buffer: Buffer,
    bytes: Range<usize>,
}

impl Kept {
    fn new(buffer: Buffer, bytes: Range<usize>) -> Self {
        KEPT.set(KEPT.get() + 1);
        Self { buffer, bytes }
    }

    fn into_parts(self) -> (Buffer, Range<usize>) {
        KEPT.set(KEPT.get() - 1);
        (self.buffer, self.bytes)
    }
}

/// How the peer's bytes ended.
enum End {
    /// In order, with close_notify.
    Closed,
    /// Because of this; the alert says it to the peer.
    Failed { why: String, alert: Option<AlertDescription> },
}

/// What belongs to one stream and lies one behind the other.
struct Gather<'a> {
    stream: Option<StreamId>,
    slices: [IoSlice<'a>; SLICES],
    count: usize,
    bytes: usize,
    end: bool,
}

impl<'a> Gather<'a> {
    fn new() -> Self {
        let slices = std::array::from_fn(|_| IoSlice::new(&[]));
        Self { stream: None, slices, count: 0, bytes: 0, end: false }
    }

    /// Adds a piece; false where it belongs to another stream, or there is no place.
    fn add(&mut self, stream: StreamId, bytes: &'a [u8], end: bool) -> bool {
        if self.stream.is_some_and(|own| own != stream) || self.count == SLICES {
            return false;
        }
        self.stream = Some(stream);
        if !bytes.is_empty() {
            self.slices[self.count] = IoSlice::new(bytes);
            self.count += 1;
            self.bytes += bytes.len();
        }
        self.end |= end;
        true
    }
}

impl Driver {
    /// The task of `connection`, which opens with `opener`. `received` came with the handshake.
    pub fn new(connection: Rc<Connection>, opener: Opener, received: Vec<u8>) -> Self {
        let place = connection.share.place();
        Self {
            connection,
            place,
            receive: Receive {
                opener,
                rest: received,
                kept: None,
                size: Size::Medium,
                full: 0,
                opened: Vec::new(),
                end: None,
            },
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            ending: None,
            finishing: None,
            fresh: true,
        }
    }

    /// Drives the tunnel until `done` says so or it ends; then why it did.
    pub async fn run(&mut self, mut done: impl FnMut(&mut Inner) -> bool) -> Option<Result<(), String>> {
        if std::mem::take(&mut self.fresh) && !self.receive.rest.is_empty() {
            // What came with the handshake is there, whatever the socket says.
            let turn = self.receive.take_in(&self.connection, tokio::time::Instant::now().into_std(), None);
            debug_assert!(turn.is_ok(), "nothing was read");
        }
        std::future::poll_fn(|cx| {
            if let Some(ended) = self.poll(cx) {
                return ended.map(Some);
            }
            if done(&mut self.connection.inner.borrow_mut()) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// One turn. `None` while the tunnel goes on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Poll<Result<(), String>>> {
        self.connection.inner.borrow_mut().wait(cx);
        if self.ending.is_none() {
            self.go_on(cx);
        }
        self.ending.is_some().then(|| self.poll_end(cx))
    }

    fn go_on(&mut self, cx: &mut Context<'_>) {
        let now = tokio::time::Instant::now().into_std();
        let connection = self.connection.clone();
        let reading = self.read(cx, now);
        let inner = &mut *connection.inner.borrow_mut();
        let due = self.timer.as_mut().poll(cx).is_ready();
        // Where it waits for its turn, what the peer said in time is not read yet.
        if due && reading != Reading::Waits && inner.machine.failure().is_none() {
            // What the peer said in time was read above. Its error is the machine's failure, seen below.
            let _ = inner.machine.on_time(now);
            buffers::trim(now);
        }
        if inner.machine.is_finished() {
            inner.closed = true;
            self.finishing.get_or_insert(now);
        }
        inner.poll_flush(&connection.socket, cx);
        // What the peer said before it went is read first: streams that ended are not cut.
        if reading == Reading::Done
            && let Some(why) = inner.send_failed.take()
        {
            inner.lose(why);
        }
        inner.next_turn();
        let why = match (&self.receive.end, inner.machine.failure(), &inner.lost) {
            (Some(End::Failed { why, .. }), ..) => Some(Err(why.clone())),
            (_, Some(error), _) => Some(Err(error.to_string())),
            (_, _, Some(why)) => Some(Err(why.clone())),
            (Some(End::Closed), ..) if inner.streams.values().all(Stream::is_over) => Some(Ok(())),
            (Some(End::Closed), ..) => Some(Err("the peer closed the tunnel under open streams".to_owned())),
            _ if self.finishing.is_some_and(|since| now >= since + ORDERLY) => {
                Some(Err("the peer does not take our last bytes".to_owned()))
            }
            _ if inner.is_drained() && inner.streams.values().all(|stream| stream.is_over()) => Some(Ok(())),
            _ => None,
        };
        if let Some(why) = why {
            let text = match &why {
                Ok(()) => "the tunnel has ended".to_owned(),
                Err(why) => why.clone(),
            };
            inner.lose(text);
            let alert = match &self.receive.end {
                Some(End::Failed { alert, .. }) => *alert,
                _ => None,
            };
            // A sealer that has failed closes nothing.
            let _ = inner.transmit.close(alert);
            self.ending = Some(why);
            let patience = if self.ending.as_ref().is_some_and(Result::is_ok) { ORDERLY } else { LINGER };
            self.timer.as_mut().reset(tokio::time::Instant::now() + patience);
            return;
        }
        if reading == Reading::More {
            cx.waker().wake_by_ref();
        }
        if reading != Reading::Waits {
            let last = self.finishing.map(|since| since + ORDERLY);
            self.rearm(cx, inner.machine.deadline().or(last));
        }
    }

    /// Reads once and does what the bytes say.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Reading {
        while self.receive.end.is_none() {
            match self.connection.socket.poll_read_ready(cx) {
                Poll::Pending => return Reading::Done,
                Poll::Ready(Err(cause)) => {
                    self.receive.fail(format!("receiving failed: {cause}"), None);
                    return Reading::Done;
                }
                Poll::Ready(Ok(())) => {}
            }
            let Poll::Ready(turn) = self.place.poll_turn(cx) else { return Reading::Waits };
            match self.receive.turn(&self.connection, now) {
                Ok(Some(Took { cost, more })) => {
                    turn.moved(cost, more);
                    if more {
                        return Reading::More;
                    }
                }
                // No more for now: asked once more, the reactor wakes us when there is.
                Ok(None) => {}
                Err(cause) => {
                    self.receive.fail(format!("receiving failed: {cause}"), None);
                    return Reading::Done;
                }
            }
        }
        Reading::Done
    }

    /// Sets the timer to `deadline`, unless it fires before that anyway: most turns only move the deadline further away.
    fn rearm(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) {
        let Some(deadline) = deadline.map(tokio::time::Instant::from_std) else { return };
        if self.timer.is_elapsed() || self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Our last bytes go out, then FIN; then the peer's end is waited for, so that no reset overtakes what it has not read yet.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let result = |ending: &mut Option<Result<(), String>>| ending.take().unwrap_or(Ok(()));
        let connection = self.connection.clone();
        let inner = &mut *connection.inner.borrow_mut();
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(result(&mut self.ending));
        }
        while inner.transmit.is_pending() {
            let sent = match inner.transmit.is_full() {
                true => ready!(inner.poll_full(&connection.socket, cx)),
                false => inner.transmit.send(&connection.socket),
            };
            if sent.is_err() {
                return Poll::Ready(result(&mut self.ending));
            }
        }
        let _ = socket2::SockRef::from(&connection.socket).shutdown(std::net::Shutdown::Write);
        for _ in 0..UNWANTED_READS {
            let mut unread = [0; 4096];
            match connection.socket.try_read(&mut unread) {
                Ok(1..) => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    if ready!(connection.socket.poll_read_ready(cx)).is_err() {
                        return Poll::Ready(result(&mut self.ending));
                    }
                }
                Ok(0) | Err(_) => return Poll::Ready(result(&mut self.ending)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(kept) = self.receive.kept.take() {
            drop(kept.into_parts());
        }
        self.connection.inner.borrow_mut().lose("the tunnel was cut".to_owned());
    }
}

impl Inner {
    /// Remembers the tunnel's task.
    fn wait(&mut self, cx: &Context<'_>) {
        if self.driver.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }

    /// Sends what there is. When the socket is full afterwards, the tunnel's task is woken as soon as it takes more.
    fn poll_flush(&mut self, socket: &tokio::net::TcpStream, cx: &mut Context<'_>) {
        let mut sent = self.try_flush(socket);
        while sent.is_ok() && self.transmit.is_full() && self.send_failed.is_none() {
            sent = match self.poll_full(socket, cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => self.try_flush(socket),
                Poll::Ready(failed) => failed,
            };
        }
        if let Err(cause) = sent {
            self.send_failed = Some(format!("sending failed: {cause}"));
        }
    }

    fn poll_full(&mut self, socket: &tokio::net::TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(socket.poll_write_ready(cx))?;
        Poll::Ready(self.transmit.send(socket))
    }

    /// Delivers what one turn has gathered for one stream.
    fn deliver(&mut self, gather: &mut Gather<'_>) {
        let Gather { stream, count, bytes, end, .. } = *gather;
        let Some(id) = stream else { return };
        let mut slices = &mut gather.slices[..count];
        let (mut taken, mut owed) = (0, 0);
        if let Some(stream) = self.streams.get_mut(&id) {
            let mut failed = None;
            let writes = stream.backlog.is_empty() && bytes > 0 && !stream.gone;
            if let (Some(app), true) = (&stream.app, writes) {
                match app.write(slices, bytes) {
                    Ok(written) => taken = written,
                    Err(cause) => failed = Some(cause.kind()),
                }
            }
            if let Some(kind) = failed
                && !stream.outlives(kind)
            {
                stream.cut(Ended::AppReset(kind));
            } else if taken < bytes && !stream.gone {
                IoSlice::advance_slices(&mut slices, taken);
                owed = self.keep(id, slices, bytes - taken);
            }
        }
        // Every byte has left the buffer: to the application, to the backlog, or to nobody.
        self.machine.left_arena(bytes - owed);
        self.machine.taken(id, taken);
        if let Some(stream) = self.streams.get_mut(&id)
            && end
        {
            stream.got_end = true;
            stream.pass_fin();
            stream.wake();
        }
        *gather = Gather::new();
    }

    /// Returns for how many of the bytes the tunnel's credit is returned later.
    fn keep(&mut self, id: StreamId, slices: &[IoSlice<'_>], bytes: usize) -> usize {
        while !backlog::has_room(bytes) {
            let fullest = self.streams.iter().max_by_key(|(_, stream)| stream.backlog.len());
            // Where other tunnels hold all there is, it is this one's turn.
            let fullest =
                fullest.filter(|(_, stream)| !stream.backlog.is_empty()).map_or(id, |(&fullest, _)| fullest);
            tracing::debug!(stream = %fullest, "reset, because applications take too little");
            self.machine.reset(fullest, Code::ENHANCE_YOUR_CALM);
            if let Some(stream) = self.streams.get_mut(&fullest) {
                stream.truncate(Ended::PeerReset(Code::ENHANCE_YOUR_CALM));
                let paid = stream.pay();
                self.pay(paid);
            }
            if fullest == id {
                return 0;
            }
        }
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let owed = if backlog::is_pressed() { bytes } else { 0 };
        slices.iter().for_each(|slice| stream.keep(slice));
        stream.owe(owed);
        // Whoever carries it waits until the application takes more.
        stream.wake();
        self.owe(owed);
        self.weigh();
        owed
    }

    /// Does what `action` says, unless it is DATA.
    fn act(&mut self, action: Action<'_>) {
        match action {
            Action::Data { .. } => {}
            Action::Ready => self.ready = true,
            Action::MayOpen => self.wake_openers(),
            Action::Request { stream, request, end } => {
                self.insert(stream, Stream::asked(end));
                self.requests.push_back((stream, request));
            }
            Action::Response { stream, response, end } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.got_end = end;
                    stream.response = Some(response.into());
                    stream.wake();
                }
            }
            Action::Reset { stream, cut } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    match cut {
                        Cut::ByPeer(code) => stream.cut(Ended::PeerReset(code)),
                        Cut::Refused => stream.cut(Ended::PeerReset(Code::REFUSED_STREAM)),
                        Cut::Broken(error) => stream.cut(Ended::PeerReset(error.code())),
                        // It has said all, and wants no more of us.
                        Cut::Unwanted => {
                            stream.sent_end = true;
                            stream.wake();
                        }
                    }
                }
            }
            Action::Writable { stream: Some(stream) } => {
                self.shut_no_more(stream);
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.wake();
                }
            }
            Action::Writable { stream: None } => self.window_opened(),
            Action::GoAway { code, debug: said } => {
                tracing::debug!(%code, said = %String::from_utf8_lossy(&said), "the peer ends the tunnel");
                self.closed |= self.machine.can_open() == 0;
                self.wake_openers();
            }
        }
    }
}

impl Receive {
    fn fail(&mut self, why: String, alert: Option<AlertDescription>) {
        self.end.get_or_insert(End::Failed { why, alert });
    }

    /// One read and what it brings. `None` when there was nothing.
    fn turn(&mut self, connection: &Connection, now: Instant) -> io::Result<Option<Took>> {
        self.take_in(connection, now, Some(&connection.socket))
    }

    fn take_in(
        &mut self,
        connection: &Connection,
        now: Instant,
        socket: Option<&tokio::net::TcpStream>,
    ) -> io::Result<Option<Took>> {
        let (mut buffer, mut bytes) = match self.kept.take() {
            Some(kept) => kept.into_parts(),
            None => {
                let mut buffer = Buffer::take(Use::Receive, self.size);
                let length = self.rest.len();
                if buffer.len() < length {
                    buffer = Buffer::take(Use::Receive, Size::Large);
                }
                buffer[..length].copy_from_slice(&self.rest);
                self.rest = Vec::new();
                (buffer, 0..length)
            }
        };
        let mut took = Took { cost: 0, more: false };
        if let Some(socket) = socket {
            // A record never lies across the end of the buffer.
            if bytes.start > 0 {
                buffer.copy_within(bytes.clone(), 0);
                bytes = 0..bytes.len();
            }
            let place = buffer.len() - bytes.end;
            #[cfg(test)]
            super::calls::count();
            match socket.try_read(&mut buffer[bytes.end..]) {
                Ok(0) => {
                    if let Err(error) = self.opener.eof(bytes.len()) {
                        self.fail(error.to_string(), None);
                    } else {
                        self.end.get_or_insert(End::Closed);
                    }
                    return Ok(Some(took));
                }
                Ok(read) => {
                    bytes.end += read;
                    took = Took { cost: read, more: read == place };
                    if !took.more {
                        nothing_more(socket, Interest::READABLE);
                    }
                    self.adapt(buffer.size(), read, took.more);
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.put_aside(buffer, bytes);
                    return Ok(None);
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {
                    self.put_aside(buffer, bytes);
                    return Ok(Some(Took { cost: 0, more: true }));
                }
                Err(cause) => return Err(cause),
            }
        }
        let inner = &mut *connection.inner.borrow_mut();
        let before = bytes.len();
        self.open(inner, &mut buffer, &mut bytes);
        let pieces = self.opened.len() + self.deliver(inner, &buffer, now);
        if took.more && (before - bytes.len()) / pieces.max(1) < PIECE {
            // Many small ones take as long as few large ones of many times the size, and others wait for as long as a turn takes.
            self.size = Size::Small;
            self.full = 0;
        }
        took.cost = took.cost.max(pieces * PIECE);
        if self.end.is_none() {
            self.put_aside(buffer, bytes);
        }
        Ok(Some(took))
    }

    /// A larger buffer after full reads, a smaller one when there is little.
    fn adapt(&mut self, size: Size, read: usize, full: bool) {
        if full {
            self.full += 1;
            if self.full >= 2 {
                self.size = size.larger();
                self.full = 0;
            }
        } else if read < 64 << 10 {
            self.size = Size::Medium;
            self.full = 0;
        }
    }

    /// Opens every whole record, and notes where its data lies.
    fn open(&mut self, inner: &mut Inner, buffer: &mut [u8], bytes: &mut Range<usize>) {
        while self.end.is_none() && bytes.start < bytes.end {
            match self.opener.open(&mut buffer[bytes.clone()]) {
                Ok(Opened::Incomplete { .. }) => return,
                Ok(Opened::Record { taken, content }) => {
                    let at = bytes.start + HEADER;
                    match content {
                        Content::Data(data) => self.opened.push(at..at + data.len()),
                        Content::KeysChanged { answer: true } => inner.transmit.owe_key_update(),
                        Content::KeysChanged { answer: false } | Content::Ignored => {}
                        Content::Closed => self.end = Some(End::Closed),
                    }
                    bytes.start += taken;
                }
                Err(error) => self.fail(error.to_string(), error.alert()),
            }
        }
    }

    /// Runs the frame machine over what was opened. Returns how many frames, or pieces of frames, that were.
    fn deliver(&mut self, inner: &mut Inner, buffer: &[u8], now: Instant) -> usize {
        let mut pieces = 0;
        let mut gather = Gather::new();
        'records: for opened in self.opened.drain(..) {
            let mut input = &buffer[opened];
            loop {
                pieces += 1;
                match inner.machine.read(&mut input, now) {
                    Ok(Some(Action::Data { stream, bytes, end })) => {
                        if !gather.add(stream, bytes, end) {
                            inner.deliver(&mut gather);
                            gather.add(stream, bytes, end);
                        }
                    }
                    Ok(Some(action)) => {
                        // In order: what came before a reset is delivered before it.
                        inner.deliver(&mut gather);
                        inner.act(action);
                    }
                    Ok(None) => break,
                    // Noted as the machine's failure; the driver ends the tunnel.
                    Err(_) => break 'records,
                }
            }
        }
        inner.deliver(&mut gather);
        inner.weigh();
        if !inner.openers.is_empty() && inner.machine.can_open() > 0 {
            inner.wake_openers();
        }
        pieces
    }

    /// Keeps what is not opened for the next turn. A tunnel with nothing to keep holds no memory.
    fn put_aside(&mut self, buffer: Buffer, bytes: Range<usize>) {
        if bytes.start == bytes.end {
            return;
        }
        if KEPT.get() < KEEPERS {
            self.kept = Some(Kept::new(buffer, bytes));
        } else {
            self.rest = buffer[bytes].to_vec();
        }
    }
}
