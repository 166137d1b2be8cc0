//! Data system calls of this thread, for those who test how many there are.

use std::cell::Cell;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn count() {
    CALLS.set(CALLS.get() + 1);
}

/// How many there were since the last time.
pub fn take() -> usize {
    CALLS.take()
}
