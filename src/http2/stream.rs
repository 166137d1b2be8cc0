//! The streams of one tunnel: those that are open, and how the last ones ended.

use std::collections::VecDeque;

use super::flow::{ReceiveWindow, SendWindow};
use super::frame::LAST_ID;
use crate::plain::{PlainError, Reader, Writer};

/// One open stream.
///
/// | from | event | to |
/// |---|---|---|
/// | – | as client: CONNECT sent; as server: request arrived | asked |
/// | asked | as client: 2xx arrived; as server: 200 sent | connected |
/// | asked | any other answer | over |
/// | asked, connected | END_STREAM one way | the same, that way ended |
/// | asked, connected | END_STREAM the other way too | over |
/// | asked, connected | RST_STREAM one way or the other, or above the last id of a GOAWAY | over |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub id: u32,
    /// The request has been answered with 2xx.
    pub connected: bool,
    /// We have sent END_STREAM.
    pub sent_end: bool,
    /// The peer has sent END_STREAM.
    pub got_end: bool,
    pub send: SendWindow,
    pub receive: ReceiveWindow,
    /// Bytes handed to the caller that no application took yet.
    pub untaken: u32,
}

impl Stream {
    pub fn is_over(&self) -> bool {
        self.sent_end && self.got_end
    }

    fn write(&self, to: &mut Writer) {
        to.u32(self.id);
        to.flag(self.connected);
        to.flag(self.sent_end);
        to.flag(self.got_end);
        self.send.write(to);
        self.receive.write(to);
        to.u32(self.untaken);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        Ok(Self {
            id: id(from, "a stream")?,
            connected: from.flag("whether a stream is connected")?,
            sent_end: from.flag("whether a stream's end was sent")?,
            got_end: from.flag("whether a stream's end arrived")?,
            send: SendWindow::read(from)?,
            receive: ReceiveWindow::read(from)?,
            untaken: from.u32("what a stream's application has not taken")?,
        })
    }
}

fn id(from: &mut Reader<'_>, field: &'static str) -> Result<u32, PlainError> {
    let id = from.u32(field)?;
    if id % 2 == 1 && id <= LAST_ID { Ok(id) } else { Err(from.wrong(field, id)) }
}

/// How a stream that is over came to its end, as far as that decides what is made of frames that still arrive on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// Both sides sent END_STREAM: the peer cannot send more.
    Ended,
    /// The peer reset it: the peer cannot send more.
    ResetByPeer,
    /// We reset it: what the peer sent before it knew is on its way.
    ResetByUs,
}

/// How many ended streams are remembered. What arrives on older ones is taken for late and ignored.
const REMEMBERED: usize = 128;
/// More open streams than any state has; our SETTINGS and the pool allow a fraction of it.
const MOST: usize = 1 << 20;

/// All streams of a tunnel. Ids only rise, so new ones go to the end and the list is in order.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Vec<Stream>,
    /// Where the last look-up ended: frames of one stream come in rows.
    last: usize,
    gone: VecDeque<(u32, Gone)>,
}

impl Streams {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn insert(&mut self, stream: Stream) {
        debug_assert!(self.open.last().is_none_or(|last| last.id < stream.id), "ids only rise");
        self.open.push(stream);
    }

    fn find(&mut self, id: u32) -> Option<usize> {
        if self.open.get(self.last).is_none_or(|stream| stream.id != id) {
            self.last = self.open.binary_search_by_key(&id, |stream| stream.id).ok()?;
        }
        Some(self.last)
    }

    pub fn get(&mut self, id: u32) -> Option<&mut Stream> {
        self.find(id).map(|n| &mut self.open[n])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.open.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    /// Takes a stream out and remembers how it ended.
    pub fn remove(&mut self, id: u32, how: Gone) -> Option<Stream> {
        let stream = self.find(id).map(|n| self.open.remove(n))?;
        self.remember(id, how);
        Some(stream)
    }

    /// Takes out all open streams with ids above `id`.
    pub fn take_above(&mut self, id: u32) -> Vec<Stream> {
        let n = self.open.partition_point(|stream| stream.id <= id);
        self.open.split_off(n)
    }

    /// Whether there may be ended streams that are not remembered.
    pub fn has_forgotten(&self) -> bool {
        self.gone.len() == REMEMBERED
    }

    pub fn remember(&mut self, id: u32, how: Gone) {
        if self.gone.len() == REMEMBERED {
            self.gone.pop_front();
        }
        self.gone.push_back((id, how));
    }

    /// How a stream ended, if that is remembered.
    pub fn gone(&self, id: u32) -> Option<Gone> {
        self.gone.iter().rev().find(|(gone, _)| *gone == id).map(|(_, how)| *how)
    }

    pub fn write(&self, to: &mut Writer) {
        to.length(self.open.len());
        for stream in &self.open {
            stream.write(to);
        }
        to.length(self.gone.len());
        for (id, how) in &self.gone {
            to.u32(*id);
            to.u8(match how {
                Gone::Ended => 0,
                Gone::ResetByPeer => 1,
                Gone::ResetByUs => 2,
            });
        }
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let mut streams = Self::default();
        for _ in 0..from.length("the number of streams", MOST)? {
            let stream = Stream::read(from)?;
            if streams.open.last().is_some_and(|last| last.id >= stream.id) || stream.is_over() {
                return Err(from.wrong("a stream", stream.id));
            }
            streams.open.push(stream);
        }
        for _ in 0..from.length("the number of ended streams", REMEMBERED)? {
            let id = id(from, "an ended stream")?;
            let how = match from.u8("how a stream ended")? {
                0 => Gone::Ended,
                1 => Gone::ResetByPeer,
                2 => Gone::ResetByUs,
                other => return Err(from.wrong("how a stream ended", other)),
            };
            streams.gone.push_back((id, how));
        }
        Ok(streams)
    }

    /// The highest id there is or was.
    pub fn highest(&self) -> u32 {
        let open = self.open.last().map_or(0, |stream| stream.id);
        self.gone.iter().map(|(id, _)| *id).max().unwrap_or(0).max(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_is_one_small_entry() {
        assert!(size_of::<Stream>() <= 48, "{} bytes", size_of::<Stream>());
    }
}
