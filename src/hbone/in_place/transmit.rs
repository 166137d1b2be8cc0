//! What a tunnel sends: control frames and DATA are put together in a borrowed buffer, sealed where they lie, and sent.
//!
//! ```text
//!  sent     sealed               open                                  end of the buffer
//!   │         │                    │                                       │
//!   ┌─────────┬─[header]───────────┬────────────┬[17]─[header]─────────…───┤
//!   │ records │  frames so far     │ free       │      the next slot       │
//!   └─────────┴────────────────────┴────────────┴──────────────────────────┘
//! ```
//!
//! Bytes up to `sealed` are final. Behind them stands at most one open slot, in which small frames gather until they are
//! sealed as one record. An application's bytes are read straight to where they will be sealed: behind the 9 bytes that
//! the frame's head takes, across as many slots as they fill. While the socket is full nothing is added, so a tunnel
//! never holds more than one buffer.

use std::io::{self, IoSliceMut};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buffers::{Buffer, HEADROOM, Size, Use};
use crate::http2::HEAD;
use crate::net::socket::receive;
use crate::tls::{HEADER, MAX_BODY, OVERHEAD, PeerKeys, SLOT, SealError, Sealer, SmallRecord, TRAILER};

/// Slots that one `readv` fills at the most.
const MOST_SLOTS: usize = 64;

/// The sending half of one tunnel.
pub(super) struct Transmit {
    sealer: Sealer,
    /// The peer has asked for new keys; it gets them in front of the next record.
    owed: bool,
    buffer: Option<Buffer>,
    /// How much of the buffer the socket has taken.
    sent: usize,
    /// How much of it is sealed.
    sealed: usize,
    /// Bytes in the body of the open slot, which begins at `sealed`.
    open: usize,
    /// The socket took less than it was given.
    full: bool,
    /// The last record, while there is no room for it.
    last: Option<SmallRecord>,
}

/// What reading from an application came to.
pub(super) enum Read {
    /// So many bytes, not all of what was asked for: there are no more at the moment.
    Some(usize),
    /// All that was asked for.
    Full(usize),
    /// The application sends nothing any more.
    End,
    /// There was nothing.
    Nothing,
}

impl Transmit {
    pub fn new(sealer: Sealer) -> Self {
        Self { sealer, owed: false, buffer: None, sent: 0, sealed: 0, open: 0, full: false, last: None }
    }

    /// Whether the socket is full: until [`send`](Self::send) has emptied the buffer nothing is added.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether something waits to be sealed or sent.
    pub fn is_pending(&self) -> bool {
        self.open > 0 || self.sent < self.sealed || self.last.is_some()
    }

    /// The peer wants our keys to change.
    pub fn owe_key_update(&mut self) {
        self.owed = true;
    }

    /// Adds control frames, as many bytes as there is room for; returns how many.
    pub fn add(&mut self, mut frames: &[u8]) -> Result<usize, SealError> {
        let all = frames.len();
        while !frames.is_empty() && !self.full {
            self.begin(Size::Small)?;
            let room = self.slot_room();
            if room == 0 {
                if self.open == 0 {
                    break;
                }
                self.seal()?;
                continue;
            }
            let (now, rest) = frames.split_at(room.min(frames.len()));
            let at = self.at();
            let Some(buffer) = &mut self.buffer else { break };
            buffer[at..at + now.len()].copy_from_slice(now);
            self.open += now.len();
            frames = rest;
            if self.open == MAX_BODY {
                self.seal()?;
            }
        }
        Ok(all - frames.len())
    }

    /// How many bytes of one DATA frame can be read now, at most `wanted`, into a buffer for which `size` is asked where there is
    /// none yet. 0 where what is there must be sent first.
    pub fn room(&mut self, size: Size, wanted: usize) -> Result<usize, SealError> {
        self.begin(size)?;
        // A head and nothing behind it would be of no use in the last bytes of a slot.
        if self.open > 0 && self.slot_room() <= HEAD {
            self.seal()?;
            self.begin(size)?;
        }
        let slots = self.slots();
        Ok((slots * MAX_BODY).saturating_sub(self.open + HEAD).min(wanted))
    }

    /// Reads at most `room` bytes of `app` to where they will be sealed, behind a frame's head that is still to be put there by
    /// [`commit`](Self::commit). `room` is what [`room`](Self::room) said, or less.
    pub fn read(&mut self, app: &TcpStream, room: usize) -> io::Result<Read> {
        let (at, open) = (self.at(), self.open);
        let Some(buffer) = &mut self.buffer else { return Ok(Read::Nothing) };
        let first = (MAX_BODY - open - HEAD).min(room);
        let (head, rest) = buffer[at + HEAD..].split_at_mut(first);
        #[cfg(test)]
        super::calls::count();
        let read = if first == room {
            app.try_io(Interest::READABLE, || receive(app, head))
        } else {
            // Behind the first body stand its trailer and the next slots.
            let slots = &mut rest[TRAILER..];
            let mut left = room - first;
            let mut bodies = crate::tls::bodies(slots);
            let mut parts: [IoSliceMut<'_>; MOST_SLOTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            parts[0] = IoSliceMut::new(head);
            let mut count = 1;
            while left > 0
                && count < MOST_SLOTS
                && let Some(body) = bodies.next()
            {
                let length = body.len().min(left);
                parts[count] = IoSliceMut::new(&mut body[..length]);
                left -= length;
                count += 1;
            }
            // That a read was short does not say that there is no more: it also stops in front of urgent data.
            app.try_read_vectored(&mut parts[..count]).map(|read| (read, true))
        };
        match read {
            Ok((0, _)) => Ok(Read::End),
            Ok((read, more)) => {
                if !more {
                    nothing_more(app, Interest::READABLE);
                }
                Ok(if read == room { Read::Full(read) } else { Read::Some(read) })
            }
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(Read::Nothing)
            }
            Err(cause) => Err(cause),
        }
    }

    /// Puts `head` in front of `bytes` bytes that were just read, and seals every slot that they filled.
    pub fn commit(&mut self, head: [u8; HEAD], bytes: usize) -> Result<(), SealError> {
        let at = self.at();
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        buffer[at..at + HEAD].copy_from_slice(&head);
        let body = self.open + HEAD + bytes;
        let (full, open) = (body / MAX_BODY * SLOT, body % MAX_BODY);
        if full > 0 {
            self.sealer.seal_batch(&mut buffer[self.sealed..self.sealed + full])?;
            self.sealed += full;
        }
        self.open = open;
        Ok(())
    }

    /// Seals what has gathered and sends as much as the socket takes. When all is sent, the buffer goes back.
    pub fn send(&mut self, socket: &TcpStream) -> io::Result<()> {
        self.seal().map_err(io::Error::other)?;
        self.send_sealed(socket)?;
        if !self.full
            && let Some(last) = self.last.take()
        {
            self.put(&last);
            self.send_sealed(socket)?;
        }
        Ok(())
    }

    fn send_sealed(&mut self, socket: &TcpStream) -> io::Result<()> {
        let Some(buffer) = &self.buffer else { return Ok(()) };
        while self.sent < self.sealed {
            let rest = &buffer[self.sent..self.sealed];
            #[cfg(test)]
            super::calls::count();
            match socket.try_write(rest) {
                Ok(sent) => {
                    let all = sent == rest.len();
                    self.sent += sent;
                    if !all {
                        self.full = true;
                        nothing_more(socket, Interest::WRITABLE);
                        return Ok(());
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    return Ok(());
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        self.full = false;
        self.sent = 0;
        self.sealed = 0;
        self.buffer = None;
        Ok(())
    }

    /// Seals the last record of ours: close_notify, or the alert that `opened` calls for. Nothing can be added after it.
    pub fn close(&mut self, alert: Option<rustls::AlertDescription>) -> Result<(), SealError> {
        self.seal()?;
        let record = match alert {
            None => self.sealer.seal_close_notify()?,
            Some(alert) => self.sealer.seal_alert(alert)?,
        };
        if !self.put(&record) {
            self.last = Some(record);
        }
        Ok(())
    }

    /// Puts one more small record behind what is there; false where there is no room for one.
    #[cfg(test)]
    pub fn fill_headroom(&mut self) -> bool {
        let has_room =
            self.buffer.as_ref().is_some_and(|buffer| self.sealed + SmallRecord::MAX <= buffer.len());
        has_room && self.sealer.seal_key_update(PeerKeys::Stay).is_ok_and(|record| self.put(&record))
    }

    /// Gives the buffer back if nothing is in it.
    pub fn release(&mut self) {
        if self.sealed == 0 && self.open == 0 {
            self.buffer = None;
        }
    }

    /// Makes sure of a buffer, and that what comes next is sealed under the keys it has to be.
    fn begin(&mut self, size: Size) -> Result<(), SealError> {
        self.answer_before_open()?;
        let buffer = self.buffer.get_or_insert_with(|| Buffer::take(Use::Send, size));
        if self.open > 0 || self.sealer.is_closed() {
            return Ok(());
        }
        // A small record and a full slot; else this waits until what is there has been sent.
        if self.sealed + HEADROOM > buffer.len() {
            return Ok(());
        }
        if std::mem::take(&mut self.owed) {
            self.sealer.owe_key_update();
        }
        while self.sealer.key_update_due() {
            let record = self.sealer.seal_key_update(PeerKeys::Stay)?;
            let placed = self.put(&record);
            debug_assert!(placed, "the headroom is larger");
        }
        Ok(())
    }

    /// The answer to a peer that wants new keys comes before any more data (RFC 8446 §4.6.3): also before what has gathered in the
    /// open slot, which moves behind it. Where there is no room for that it comes before the next slot.
    fn answer_before_open(&mut self) -> Result<(), SealError> {
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        let open = self.sealed..self.sealed + self.open + OVERHEAD;
        if !self.owed || self.open == 0 || open.end + SmallRecord::MAX > buffer.len() {
            return Ok(());
        }
        self.owed = false;
        self.sealer.owe_key_update();
        let record = self.sealer.seal_key_update(PeerKeys::Stay)?;
        buffer.copy_within(open, self.sealed + record.len());
        self.put(&record);
        Ok(())
    }

    /// Puts a sealed record behind the others; false where there is no room for it.
    fn put(&mut self, record: &SmallRecord) -> bool {
        let buffer = self.buffer.get_or_insert_with(|| Buffer::take(Use::Send, Size::Small));
        let end = self.sealed + record.len();
        let Some(place) = buffer.get_mut(self.sealed..end) else { return false };
        place.copy_from_slice(record);
        self.sealed = end;
        true
    }

    fn seal(&mut self) -> Result<(), SealError> {
        if self.open == 0 {
            return Ok(());
        }
        self.answer_before_open()?;
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        let end = self.sealed + self.open + OVERHEAD;
        self.sealer.seal(&mut buffer[self.sealed..end])?;
        self.sealed = end;
        self.open = 0;
        Ok(())
    }

    /// Where the next byte of the open slot's body goes.
    fn at(&self) -> usize {
        self.sealed + HEADER + self.open
    }

    /// Full slots that fit behind what is sealed, the open one included.
    fn slots(&self) -> usize {
        let end = self.buffer.as_ref().map_or(0, |buffer| buffer.len());
        end.saturating_sub(self.sealed) / SLOT
    }

    /// Bytes that still fit into the open slot's body. Where no full slot is left there is none.
    fn slot_room(&self) -> usize {
        if self.slots() == 0 { 0 } else { MAX_BODY - self.open }
    }
}

/// Notes that `socket` gave, or took, less than it could have: it is not ready any more. Without this the reactor would have us find
/// out by a system call that comes to nothing. An end that has been seen is not forgotten by it.
pub(super) fn nothing_more(socket: &TcpStream, interest: Interest) {
    let _ = socket.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
