//! How much the applications of one worker have not taken yet, all streams of all tunnels together.
//!
//! Bytes for an application whose socket is full are copied to its stream's backlog, so that the others go on. A stream's
//! window bounds its backlog, but the sum over all streams needs a bound of its own: from half of it on no window grows any
//! more; at the bound the stream with the largest backlog of the tunnel that brought more is reset.

use std::cell::Cell;

/// The most that the backlogs of one worker hold together, in bytes: 128 streams that take nothing at all, with the window
/// that each begins with.
pub(super) const LIMIT: usize = 32 << 20;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
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
    BYTES.get() < LIMIT / 2
}

/// Whether `bytes` more fit.
pub(super) fn has_room(bytes: usize) -> bool {
    BYTES.get() + bytes <= LIMIT
}

/// Bytes in all backlogs of this worker.
#[cfg(test)]
pub(super) fn held() -> usize {
    BYTES.get()
}
