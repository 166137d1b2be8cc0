//! From bytes to frames: takes bytes as they come, in pieces of any size, and holds no more of a frame than it must.
//!
//! DATA is passed on as it lies in the caller's buffer. Frames of fixed length wait in a few bytes of the state; header
//! blocks, and what GOAWAY says of its reason, are collected in one buffer with a limit; all else is skipped.

use std::time::Instant;

use super::error::Error;
use super::frame::{Code, FrameHead, FrameKind, HEAD, PREFACE};
use super::machine::{Action, Machine};
use super::settings::PeerSettings;
use super::{DEBUG_LIMIT, StreamId};

/// Where in the peer's bytes we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// In a client's preface.
    Preface { have: u8 },
    /// In a frame's head.
    Head { have: u8, bytes: [u8; HEAD] },
    /// In a payload of fixed length, of at most eight bytes. For GOAWAY, in its first eight.
    Fixed { head: FrameHead, have: u8, bytes: [u8; 8] },
    /// In SETTINGS, `have` bytes into an entry; `next` is what the frame says so far.
    Settings { left: u32, have: u8, entry: [u8; 6], next: PeerSettings },
    /// In front of a HEADERS fragment: pad length and priority.
    Prefix { head: FrameHead, have: u8, bytes: [u8; 6] },
    /// In a fragment of a header block.
    Fragment { left: u32, padding: u32 },
    /// In front of DATA with padding.
    PadLength { head: FrameHead },
    /// In the payload of DATA.
    Data { stream: u32, left: u32, padding: u32, end: bool },
    /// In what GOAWAY says of its reason.
    Debug { left: u32, last: u32, code: Code },
    /// In what nobody wants; of DATA it is given back to the tunnel's window.
    Skip { left: u32, give_back: bool },
}

impl Reading {
    /// In front of a frame.
    pub const HEAD: Self = Self::Head { have: 0, bytes: [0; HEAD] };

    /// Behind a payload, in front of `padding`.
    pub fn behind(padding: u32) -> Self {
        if padding == 0 { Self::HEAD } else { Self::Skip { left: padding, give_back: false } }
    }
}

/// What one step of reading came to.
pub(super) enum Step<'a> {
    Action(Action<'a>),
    /// A piece was taken in; go on.
    On,
    /// More bytes are needed.
    Starved,
}

impl Machine {
    /// Takes bytes from the front of `input` up to the next thing that the caller must know; `None` when all are taken.
    ///
    /// Call it until it returns `None`, then again with the next bytes. `now` never goes back.
    ///
    /// # Errors
    /// The tunnel cannot go on. The GOAWAY that tells the peer is in [`output`](Self::output); what `input` still has is
    /// taken and ignored. From then on every call returns the same error.
    pub fn read<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Result<Option<Action<'a>>, Error> {
        if let Some(error) = &self.failed {
            *input = &[];
            return Err(error.clone());
        }
        if !input.is_empty() {
            self.heard = now;
        }
        loop {
            if let Some(action) = self.queue.pop_front() {
                return Ok(Some(action));
            }
            match self.step(input, now) {
                Ok(Step::Action(action)) => return Ok(Some(action)),
                Ok(Step::On) => {}
                Ok(Step::Starved) => return Ok(None),
                Err(error) => {
                    *input = &[];
                    return Err(self.fail(error));
                }
            }
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Result<Step<'a>, Error> {
        match self.reading {
            Reading::Head { have, mut bytes } => {
                let head = match input.split_first_chunk::<HEAD>() {
                    Some((head, rest)) if have == 0 => {
                        *input = rest;
                        FrameHead::parse(head)
                    }
                    _ => {
                        let have = fill(&mut bytes, have, input);
                        if usize::from(have) < HEAD {
                            self.reading = Reading::Head { have, bytes };
                            return Ok(Step::Starved);
                        }
                        FrameHead::parse(&bytes)
                    }
                };
                self.begin(head, now)?;
                Ok(Step::On)
            }
            Reading::Data { stream, left, padding, end } => {
                let (bytes, left) = take(input, left);
                if bytes.is_empty() && left > 0 {
                    return Ok(Step::Starved);
                }
                self.reading = match left {
                    0 => Reading::behind(padding),
                    _ => Reading::Data { stream, left, padding, end },
                };
                Ok(self.payload(stream, bytes, end && left == 0))
            }
            Reading::PadLength { head } => {
                let Some((&padding, rest)) = input.split_first() else { return Ok(Step::Starved) };
                *input = rest;
                if u32::from(padding) >= head.length {
                    return Err(Error::Padding { kind: head.kind });
                }
                self.begin_payload(head, Some(padding), now)?;
                Ok(Step::On)
            }
            Reading::Skip { left, give_back } => {
                let (bytes, left) = take(input, left);
                if bytes.is_empty() && left > 0 {
                    return Ok(Step::Starved);
                }
                if give_back {
                    self.left_arena(bytes.len());
                }
                self.reading = if left == 0 { Reading::HEAD } else { Reading::Skip { left, give_back } };
                Ok(Step::On)
            }
            Reading::Fixed { head, have, mut bytes } => {
                let wanted = head.length.min(8) as usize;
                let have = fill(&mut bytes[..wanted], have, input);
                if usize::from(have) < wanted {
                    self.reading = Reading::Fixed { head, have, bytes };
                    return Ok(Step::Starved);
                }
                self.reading = Reading::HEAD;
                self.fixed(head, bytes, now)
            }
            Reading::Settings { mut left, mut have, mut entry, mut next } => {
                while left > 0 {
                    let before = have;
                    have = fill(&mut entry, have, input);
                    left -= u32::from(have - before);
                    if usize::from(have) < entry.len() {
                        self.reading = Reading::Settings { left, have, entry, next };
                        return Ok(Step::Starved);
                    }
                    let [i0, i1, v0, v1, v2, v3] = entry;
                    next.take(u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3]), self.role)?;
                    have = 0;
                }
                self.reading = Reading::HEAD;
                self.settings(next)?;
                Ok(Step::On)
            }
            Reading::Prefix { head, have, mut bytes } => {
                let wanted = prefix(head);
                let have = fill(&mut bytes[..wanted], have, input);
                if usize::from(have) < wanted {
                    self.reading = Reading::Prefix { head, have, bytes };
                    return Ok(Step::Starved);
                }
                self.begin_fragment(head, bytes[0])?;
                Ok(Step::On)
            }
            Reading::Fragment { left, padding } => {
                let (bytes, left) = take(input, left);
                self.block.extend_from_slice(bytes);
                if left > 0 {
                    self.reading = Reading::Fragment { left, padding };
                    return Ok(Step::Starved);
                }
                self.reading = Reading::behind(padding);
                self.end_fragment(now)
            }
            Reading::Debug { left, last, code } => {
                let (bytes, left) = take(input, left);
                let room = DEBUG_LIMIT.saturating_sub(self.block.len());
                self.block.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if left > 0 {
                    self.reading = Reading::Debug { left, last, code };
                    return Ok(Step::Starved);
                }
                self.reading = Reading::HEAD;
                let debug = std::mem::take(&mut self.block);
                self.goaway(last, code, debug);
                Ok(Step::On)
            }
            Reading::Preface { have } => {
                let wanted = &PREFACE[usize::from(have)..];
                let (bytes, rest) = input.split_at(wanted.len().min(input.len()));
                if !wanted.starts_with(bytes) {
                    return Err(Error::Preface);
                }
                *input = rest;
                if bytes.len() == wanted.len() {
                    self.reading = Reading::HEAD;
                    return Ok(Step::On);
                }
                let read = u8::try_from(bytes.len()).expect("a part of the preface, which has 24 bytes");
                self.reading = Reading::Preface { have: have + read };
                Ok(Step::Starved)
            }
        }
    }

    /// Checks that what we had to answer is being read, before more is taken that must be answered.
    pub(super) fn check_output(&self) -> Result<(), Error> {
        self.output.too_many_answers().map_or(Ok(()), |unread| Err(Error::Unread(unread)))
    }

    /// A piece of DATA's payload.
    fn payload<'a>(&mut self, id: u32, bytes: &'a [u8], end: bool) -> Step<'a> {
        let Some(stream) = self.streams.get(id) else {
            // Reset by us since the frame began.
            self.left_arena(bytes.len());
            return Step::On;
        };
        // At most the stream's window, which is far below what a u32 holds.
        stream.untaken = stream.untaken.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if end {
            stream.got_end = true;
            self.remove_if_over(id);
        }
        Step::Action(Action::Data { stream: StreamId::new(id), bytes, end })
    }
}

/// Bytes between a HEADERS frame's head and its fragment.
pub(super) fn prefix(head: FrameHead) -> usize {
    use super::frame::flag;
    let headers = head.kind == FrameKind::HEADERS;
    let padded = usize::from(headers && head.has(flag::PADDED));
    let priority = if headers && head.has(flag::PRIORITY) { 5 } else { 0 };
    padded + priority
}

/// Moves bytes from `input` to `bytes`, of which `have` are there; returns how many then are.
fn fill(bytes: &mut [u8], have: u8, input: &mut &[u8]) -> u8 {
    let wanted = &mut bytes[usize::from(have)..];
    let (taken, rest) = input.split_at(wanted.len().min(input.len()));
    wanted[..taken.len()].copy_from_slice(taken);
    *input = rest;
    have + u8::try_from(taken.len()).expect("a part of at most nine bytes")
}

/// Takes at most `left` bytes from `input`; returns them and how many are still to come.
fn take<'a>(input: &mut &'a [u8], left: u32) -> (&'a [u8], u32) {
    let (bytes, rest) = input.split_at(input.len().min(left as usize));
    *input = rest;
    (bytes, left - u32::try_from(bytes.len()).expect("at most left, a u32"))
}
