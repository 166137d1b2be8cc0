//! Frames for the peer, other than DATA with payload, until the caller has sent them.

use super::frame::{Code, FrameHead, FrameKind, HEAD, flag};
use crate::plain::{PlainError, Reader, Writer};

/// What is kept of the buffer when everything in it is sent.
const KEPT: usize = 4 << 10;
/// What is kept of it while the tunnel is idle.
const KEPT_IDLE: usize = 256;
/// More answers than this unsent, in bytes, and a peer that goes on making us answer is ended.
const ANSWERS_LIMIT: usize = 256 << 10;
/// What GOAWAY says at most about its reason, in bytes.
const REASON_LIMIT: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// How many of the unsent bytes at the most are answers that the peer made us give.
    answers: usize,
}

impl Output {
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub fn advance(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.sent = 0;
        } else if self.sent > KEPT && self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.answers = self.answers.min(self.unsent().len());
    }

    /// Writes what the peer made us say. What we say by ourselves is bounded by what we do.
    pub fn answer(&mut self, write: impl FnOnce(&mut Self)) {
        let before = self.unsent().len();
        write(self);
        self.answered(before);
    }

    /// All that was written since there were `before` bytes unsent was an answer.
    pub fn answered(&mut self, before: usize) {
        self.answers += self.unsent().len() - before;
    }

    /// How many bytes of answers wait, if they are too many.
    pub fn too_many_answers(&self) -> Option<usize> {
        Some(self.answers).filter(|answers| *answers > ANSWERS_LIMIT)
    }

    pub fn write(&self, to: &mut Writer) {
        to.bytes(self.unsent());
        to.length(self.answers);
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let bytes = from.bytes("the output", usize::MAX)?.to_vec();
        let answers = from.length("the answers in the output", bytes.len())?;
        Ok(Self { bytes, sent: 0, answers })
    }

    /// Lets go of memory that nothing is in, but for what PINGs and their answers need.
    pub fn release(&mut self) {
        self.bytes.shrink_to(KEPT_IDLE);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn frame(&mut self, kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("payloads made here are short");
        self.raw(&FrameHead { length, kind, flags, stream }.encode());
        self.raw(payload);
    }

    pub fn settings(&mut self, entries: impl Iterator<Item = (u16, u32)>) {
        let at = self.bytes.len();
        self.frame(FrameKind::SETTINGS, 0, 0, &[]);
        for (id, value) in entries {
            self.raw(&id.to_be_bytes());
            self.raw(&value.to_be_bytes());
        }
        self.close_frame(at, FrameKind::SETTINGS, 0, 0);
    }

    pub fn settings_ack(&mut self) {
        self.frame(FrameKind::SETTINGS, flag::ACK, 0, &[]);
    }

    pub fn ping(&mut self, opaque: [u8; 8], ack: bool) {
        self.frame(FrameKind::PING, if ack { flag::ACK } else { 0 }, 0, &opaque);
    }

    pub fn window_update(&mut self, stream: u32, increment: u32) {
        self.frame(FrameKind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    }

    pub fn reset(&mut self, stream: u32, code: Code) {
        self.frame(FrameKind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
    }

    pub fn goaway(&mut self, last: u32, code: Code, reason: &[u8]) {
        let at = self.bytes.len();
        self.frame(FrameKind::GOAWAY, 0, 0, &last.to_be_bytes());
        self.raw(&code.0.to_be_bytes());
        self.raw(&reason[..reason.len().min(REASON_LIMIT)]);
        self.close_frame(at, FrameKind::GOAWAY, 0, 0);
    }

    /// An empty DATA frame that ends `stream`.
    pub fn end(&mut self, stream: u32) {
        self.frame(FrameKind::DATA, flag::END_STREAM, stream, &[]);
    }

    /// A head: `block` appends its header block. What is larger than `frame_size` goes on in CONTINUATION frames.
    pub fn headers(&mut self, stream: u32, end: bool, frame_size: u32, block: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.frame(FrameKind::HEADERS, 0, stream, &[]);
        block(&mut self.bytes);
        let flags = if end { flag::END_STREAM } else { 0 };
        let frame_size = frame_size as usize;
        if self.bytes.len() - at - HEAD <= frame_size {
            self.close_frame(at, FrameKind::HEADERS, flags | flag::END_HEADERS, stream);
            return;
        }
        let rest = self.bytes.split_off(at + HEAD + frame_size);
        self.close_frame(at, FrameKind::HEADERS, flags, stream);
        let mut pieces = rest.chunks(frame_size).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
            self.frame(FrameKind::CONTINUATION, flags, stream, piece);
        }
    }

    /// Writes the head of the frame that begins at `at` and ends here.
    fn close_frame(&mut self, at: usize, kind: FrameKind, flags: u8, stream: u32) {
        let length = self.bytes.len() - at - HEAD;
        let length = u32::try_from(length).expect("heads and reasons are shorter than the largest frame");
        let head = FrameHead { length, kind, flags, stream }.encode();
        self.bytes[at..at + HEAD].copy_from_slice(&head);
    }
}
