//! One connection from its first byte to the end of its record, in as little memory as that takes.
//!
//! Most connections of a node are idle most of the time, so what one of them keeps then is what a node's memory consists of. An
//! `async fn` keeps everything twice that it moves from its arguments to a place of its own; this is written out so that it does not.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::{Outcome, Record};

/// A connection that is carried: polls `way` until that has an outcome, ends both of the connection's sides by dropping `way`, and
/// closes the record with it.
///
/// Dropped before that, it leaves the record as [`Outcome::Drained`].
#[must_use = "bytes move while this is polled"]
pub struct Carrying<W> {
    way: Option<W>,
    record: Option<Record>,
}

impl<W: FnMut(&mut Context<'_>) -> Poll<Outcome> + Unpin> Carrying<W> {
    /// `way` has both sides of the connection, and drops them when it is dropped.
    pub fn new(record: Record, way: W) -> Self {
        Self { way: Some(way), record: Some(record) }
    }
}

impl<W: FnMut(&mut Context<'_>) -> Poll<Outcome> + Unpin> Future for Carrying<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(way) = &mut self.way else { return Poll::Ready(()) };
        let outcome = ready!(way(cx));
        // Ended before it is logged: whoever waits for the line finds that the connection is.
        self.way = None;
        if let Some(record) = self.record.take() {
            record.close(&outcome);
        }
        Poll::Ready(())
    }
}
