//! How much the applications of one worker have not taken yet, all streams of all tunnels together.
//!
//! Bytes for an application whose socket is full are copied to its stream's backlog, so that the others go on. A stream's
//! window bounds its backlog, but the sum over all streams needs a bound of its own. It has four:
//!
//! - Windows grow for streams that drain, but by no more than [`GROWTH`] for all streams of a worker together.
//! - None grows while backlogs hold more than [`PLENTY`].
//! - Above [`PRESSURE`] the credit that a tunnel has for all its streams returns only when the application took the bytes. Then no tunnel
//!   brings more than its window, 1 MiB unless it has carried much before, and nobody is cut: streams beside those that take
//!   nothing may have to wait for them.
//! - At [`LIMIT`] the stream with the largest backlog of the tunnel that brings more is reset.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// By how many bytes the windows of one worker's streams may have grown beyond those they begin with.
const GROWTH: usize = 32 << 20;
/// What the backlogs of one worker hold while windows grow, in bytes.
const PLENTY: usize = 8 << 20;
/// What they hold before tunnels get credit back later. 64 streams of a tunnel that take nothing hold 16 MiB, and what streams have
/// grown by beyond that; what is above this is less than a grown tunnel's window, so that its others go on.
const PRESSURE: usize = 36 << 20;
/// The most that they hold.
pub(super) const LIMIT: usize = 64 << 20;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static GROWN: Cell<usize> = const { Cell::new(0) };
}

/// Emptied backlogs that are kept for the next stream that needs one, and how large they may be, in bytes.
const SPARE: usize = 4;
const SPARE_SIZE: usize = 4 << 20;

thread_local! {
    static SPARES: RefCell<Vec<VecDeque<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Room for a backlog: that of another one which was emptied, if there is one.
pub(super) fn take() -> VecDeque<u8> {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// A backlog is empty, and its stream holds no memory for it any more.
pub(super) fn give_back(mut emptied: VecDeque<u8>) {
    emptied.clear();
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARE && emptied.capacity() <= SPARE_SIZE {
            spares.push(emptied);
        }
    });
}

/// Lets go of what is kept for the next.
pub(super) fn release_spare() {
    SPARES.take();
}

/// How much the windows of one tunnel have grown, as part of its worker's sum.
#[derive(Default)]
pub(super) struct Grown(usize);

impl Grown {
    pub fn set(&mut self, now: usize) {
        if now != self.0 {
            // At the end of the thread there is nobody left to count for.
            let _ = GROWN.try_with(|all| all.set(all.get() - self.0 + now));
            self.0 = now;
        }
    }
}

impl Drop for Grown {
    fn drop(&mut self) {
        self.set(0);
    }
}

pub(super) fn add(bytes: usize) {
    BYTES.set(BYTES.get() + bytes);
}

pub(super) fn remove(bytes: usize) {
    if bytes > 0 {
        // At the end of the thread there is nobody left to count for.
        let _ = BYTES.try_with(|held| held.set(held.get() - bytes));
    }
}

/// Whether windows may grow.
pub(super) fn is_low() -> bool {
    BYTES.get() < PLENTY && GROWN.get() < GROWTH
}

/// Whether a tunnel's credit for what is kept returns only when the application took it.
pub(super) fn is_pressed() -> bool {
    BYTES.get() > PRESSURE
}

/// Whether `bytes` more fit.
pub(super) fn has_room(bytes: usize) -> bool {
    BYTES.get() + bytes <= LIMIT
}

/// Bytes in all backlogs of this worker, for those who test.
#[cfg(test)]
pub(super) fn held() -> usize {
    BYTES.get()
}
