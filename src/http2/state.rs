//! A machine as plain data: written down where it stops, and gone on with elsewhere.
//!
//! Everything is in it that decides what the machine does next: settings, windows, streams, header tables, budgets, what
//! of a frame has been read and what of the output has not been sent. It holds no keys, but may hold what a head says.

use std::collections::VecDeque;
use std::time::Instant;

use zeroize::Zeroizing;

use super::budget::Budgets;
use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{Code, FrameHead, FrameKind, HEAD, LAST_ID, PREFACE};
use super::hpack::{Decoder, Encoder};
use super::machine::{Block, Closing, Machine};
use super::output::Output;
use super::read::{Reading, prefix};
use super::receive::BLOCK_FRAMES;
use super::settings::{Config, PeerSettings, Role};
use super::stream::Streams;
use crate::plain::{Kind, PlainError, Reader, Writer};

const KIND: Kind = Kind { name: "state of an HTTP/2 tunnel", mark: *b"adh2", version: 1 };

impl Machine {
    /// Writes the machine down and ends it here: a tunnel moves, it is never copied.
    ///
    /// # Errors
    /// The machine itself, where it cannot move: it has failed, or [`read`](Self::read) has more to tell.
    pub fn into_state(self, now: Instant) -> Result<Zeroizing<Vec<u8>>, Box<Self>> {
        if self.failed.is_some() || !self.queue.is_empty() {
            return Err(Box::new(self));
        }
        let mut to = Writer::new(KIND, now);
        to.flag(self.role == Role::Server);
        self.config.write(&mut to);
        self.peer.write(&mut to);
        self.decoder.write(&mut to);
        self.encoder.write(&mut to);
        self.budgets.write(&mut to);
        self.streams.write(&mut to);
        self.send.write(&mut to);
        self.receive.write(&mut to);
        to.u32(self.last_id);
        write_reading(&self.reading, &mut to);
        to.bytes(&self.block);
        to.option(self.block_of, |to, block| {
            to.u32(block.stream);
            to.flag(block.end_stream);
            to.flag(block.end_headers);
            to.u32(block.frames);
        });
        self.output.write(&mut to);
        to.flag(self.growing);
        match self.closing {
            Closing::No => to.u8(0),
            Closing::Announced(since) => {
                to.u8(1);
                to.instant(since);
            }
            Closing::Final(last) => {
                to.u8(2);
                to.u32(last);
            }
        }
        to.flag(self.peer_leaves);
        to.flag(self.greeted);
        to.flag(self.acked);
        to.instant(self.started);
        to.instant(self.heard);
        to.option(self.pinged, Writer::instant);
        Ok(to.finish())
    }

    /// Takes up a machine that was written down; `now` is the moment at which time goes on for it.
    ///
    /// # Errors
    /// Bytes that are no such state, or of another version.
    pub fn from_state(bytes: &[u8], now: Instant) -> Result<Self, PlainError> {
        let mut from = Reader::new(KIND, bytes, now)?;
        let role = if from.flag("the role")? { Role::Server } else { Role::Client };
        let config = Config::read(&mut from)?;
        let block_limit = config.block_limit();
        // Read in the order in which it was written.
        let machine = Self {
            role,
            config,
            peer: PeerSettings::read(&mut from)?,
            decoder: Decoder::read(&mut from)?,
            encoder: Encoder::read(&mut from)?,
            budgets: Budgets::read(&mut from, now)?,
            streams: Streams::read(&mut from)?,
            send: SendWindow::read(&mut from)?,
            receive: ReceiveWindow::read(&mut from)?,
            last_id: stream_id(&mut from)?,
            reading: read_reading(&mut from)?,
            block: from.bytes("a header block", block_limit)?.to_vec(),
            block_of: from.option("a header block's stream", |from| {
                Ok(Block {
                    stream: stream_id(from)?,
                    end_stream: from.flag("whether a head ends its stream")?,
                    end_headers: from.flag("whether a frame ends its head")?,
                    frames: from.u32("the frames of a head")?,
                })
            })?,
            output: Output::read(&mut from)?,
            growing: from.flag("whether windows may grow")?,
            held_back: 0,
            closing: match from.u8("how far the end is")? {
                0 => Closing::No,
                1 => Closing::Announced(from.instant("when the end was announced")?),
                2 => Closing::Final(stream_id(&mut from)?),
                other => return Err(from.wrong("how far the end is", other)),
            },
            peer_leaves: from.flag("whether the peer leaves")?,
            greeted: from.flag("whether the peer's SETTINGS arrived")?,
            acked: from.flag("whether our SETTINGS are acknowledged")?,
            started: from.instant("the beginning")?,
            heard: from.instant("the last sign of life")?,
            pinged: from.option("a PING", |from| from.instant("a PING"))?,
            queue: VecDeque::new(),
            failed: None,
        };
        machine.check(&from)?;
        from.finish()?;
        Ok(machine)
    }

    /// What must agree between the parts.
    fn check(&self, from: &Reader<'_>) -> Result<(), PlainError> {
        // Ids go up by two from 1; 0 stands for none.
        if self.streams.highest() > self.last_id || (self.last_id != 0 && self.last_id.is_multiple_of(2)) {
            return Err(from.wrong("the last stream", self.last_id));
        }
        if self.decoder.limit() != self.config.table_limit(self.acked) {
            return Err(from.wrong("the limit of the header table", self.decoder.limit()));
        }
        if let Some(block) = self.block_of
            && block.frames > BLOCK_FRAMES
        {
            return Err(from.wrong("the frames of a head", block.frames));
        }
        // The payload that is under way has been taken from the window whole.
        if let Reading::Data { left, .. } | Reading::Skip { left, give_back: true } = self.reading
            && left > self.receive.owed()
        {
            return Err(from.wrong("a payload", left));
        }
        let in_block = match self.reading {
            Reading::Fragment { left, .. } => {
                let whole = self.block.len() + left as usize;
                if whole > self.config.block_limit() {
                    return Err(from.wrong("a header block", whole as u64));
                }
                true
            }
            Reading::Prefix { .. } => true,
            _ => false,
        };
        let collects = self.block_of.is_some() || matches!(self.reading, Reading::Debug { .. });
        if !collects && !self.block.is_empty() {
            return Err(from.wrong("a header block", self.block.len() as u64));
        }
        if in_block && self.block_of.is_none() {
            return Err(from.wrong("a header block's stream", 0u32));
        }
        Ok(())
    }
}

fn stream_id(from: &mut Reader<'_>) -> Result<u32, PlainError> {
    let id = from.u32("a stream id")?;
    if id <= LAST_ID { Ok(id) } else { Err(from.wrong("a stream id", id)) }
}

fn write_head(head: FrameHead, to: &mut Writer) {
    for byte in head.encode() {
        to.u8(byte);
    }
}

fn read_head(from: &mut Reader<'_>) -> Result<FrameHead, PlainError> {
    let mut bytes = [0; HEAD];
    read_array(from, &mut bytes)?;
    Ok(FrameHead::parse(&bytes))
}

fn write_array(bytes: &[u8], to: &mut Writer) {
    for byte in bytes {
        to.u8(*byte);
    }
}

fn read_array(from: &mut Reader<'_>, bytes: &mut [u8]) -> Result<(), PlainError> {
    for byte in bytes {
        *byte = from.u8("a part of a frame")?;
    }
    Ok(())
}

fn write_reading(reading: &Reading, to: &mut Writer) {
    match *reading {
        Reading::Preface { have } => {
            to.u8(0);
            to.u8(have);
        }
        Reading::Head { have, bytes } => {
            to.u8(1);
            to.u8(have);
            write_array(&bytes, to);
        }
        Reading::Fixed { head, have, bytes } => {
            to.u8(2);
            write_head(head, to);
            to.u8(have);
            write_array(&bytes, to);
        }
        Reading::Settings { left, have, entry, next } => {
            to.u8(3);
            to.u32(left);
            to.u8(have);
            write_array(&entry, to);
            next.write(to);
        }
        Reading::Prefix { head, have, bytes } => {
            to.u8(4);
            write_head(head, to);
            to.u8(have);
            write_array(&bytes, to);
        }
        Reading::Fragment { left, padding } => {
            to.u8(5);
            to.u32(left);
            to.u32(padding);
        }
        Reading::PadLength { head } => {
            to.u8(6);
            write_head(head, to);
        }
        Reading::Data { stream, left, padding, end } => {
            to.u8(7);
            to.u32(stream);
            to.u32(left);
            to.u32(padding);
            to.flag(end);
        }
        Reading::Debug { left, last, code } => {
            to.u8(8);
            to.u32(left);
            to.u32(last);
            to.u32(code.0);
        }
        Reading::Skip { left, give_back } => {
            to.u8(9);
            to.u32(left);
            to.flag(give_back);
        }
    }
}

fn read_reading(from: &mut Reader<'_>) -> Result<Reading, PlainError> {
    let part = "a part of a frame";
    // How much of something is there: less than all of it, or it would not be waited for.
    let have = |from: &mut Reader<'_>, whole: usize| {
        let have = from.u8(part)?;
        if usize::from(have) < whole { Ok(have) } else { Err(from.wrong(part, have)) }
    };
    let padding = |from: &mut Reader<'_>| {
        let padding = from.u32(part)?;
        if padding <= 255 { Ok(padding) } else { Err(from.wrong(part, padding)) }
    };
    Ok(match from.u8(part)? {
        0 => Reading::Preface { have: have(from, PREFACE.len())? },
        1 => {
            let (have, mut bytes) = (have(from, HEAD)?, [0; HEAD]);
            read_array(from, &mut bytes)?;
            Reading::Head { have, bytes }
        }
        2 => {
            let head = read_head(from)?;
            // Only GOAWAY goes on behind its first eight bytes.
            if (head.kind == FrameKind::GOAWAY) != (head.length > 8) && head.length != 8 {
                return Err(from.wrong(part, head.length));
            }
            let (have, mut bytes) = (have(from, head.length.min(8) as usize)?, [0; 8]);
            read_array(from, &mut bytes)?;
            Reading::Fixed { head, have, bytes }
        }
        3 => {
            let left = from.u32(part)?;
            let (have, mut entry) = (have(from, 6)?, [0; 6]);
            read_array(from, &mut entry)?;
            if !(u64::from(left) + u64::from(have)).is_multiple_of(6) {
                return Err(from.wrong(part, left));
            }
            Reading::Settings { left, have, entry, next: PeerSettings::read(from)? }
        }
        4 => {
            let head = read_head(from)?;
            let (have, mut bytes) = (have(from, prefix(head))?, [0; 6]);
            read_array(from, &mut bytes)?;
            if prefix(head) > head.length as usize {
                return Err(from.wrong(part, head.length));
            }
            Reading::Prefix { head, have, bytes }
        }
        5 => Reading::Fragment { left: from.u32(part)?, padding: padding(from)? },
        6 => Reading::PadLength { head: read_head(from)? },
        7 => Reading::Data {
            stream: stream_id(from)?,
            left: from.u32(part)?,
            padding: padding(from)?,
            end: from.flag(part)?,
        },
        8 => Reading::Debug { left: from.u32(part)?, last: stream_id(from)?, code: Code(from.u32(part)?) },
        9 => Reading::Skip { left: from.u32(part)?, give_back: from.flag(part)? },
        other => return Err(from.wrong(part, other)),
    })
}
