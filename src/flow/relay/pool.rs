//! What a worker lends to connections while their bytes move: buffers and pipes. One pool per worker thread.
//!
//! Borrowed for one chunk, so that an idle connection has none. What goes back is empty; a pipe that still holds bytes
//! of a connection that broke is closed.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::net::Pipe;

/// One buffer's size: large enough that system calls do not dominate, small enough to stay in cache.
pub(super) const BUFFER: usize = 64 << 10;
/// A pipe's size. It counts in pages, and a small packet takes a whole one.
const PIPE: usize = 256 << 10;
/// Bytes that go into a pipe at a time. A pipe waits with its connection while the target is full, and what is in it
/// counts in no memory limit of the kernel's.
pub(super) const FILL: usize = 256 << 10;
/// Buffers, and pipes, that a worker keeps for the next connection that has something to say.
const SPARE: usize = 32;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// What the calling worker keeps ready: 32 of each at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Buffers of 64 KiB.
    pub buffers: usize,
    /// Pipes, two descriptors each.
    pub pipes: usize,
}

/// What the calling worker keeps ready.
pub fn spare() -> Spare {
    Spare { buffers: BUFFERS.with_borrow(Vec::len), pipes: PIPES.with_borrow(Vec::len) }
}

/// One of this worker's buffers; goes back when dropped.
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(super) fn borrow() -> Self {
        let spare = BUFFERS.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        BUFFERS.with_borrow_mut(|spare| {
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        });
    }
}

/// One of this worker's pipes; goes back when dropped, if it is empty.
pub(super) struct Lent(Option<Pipe>);

impl Lent {
    /// `None` when this process may have no more pipes: then a buffer does it.
    pub(super) fn borrow() -> Option<Self> {
        let spare = PIPES.with_borrow_mut(Vec::pop);
        spare.or_else(|| Pipe::new(PIPE).ok()).map(|pipe| Self(Some(pipe)))
    }
}

impl Deref for Lent {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Pipe {
        self.0.as_mut().expect("only drop takes it")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(pipe) = self.0.take_if(|pipe| pipe.held() == 0) {
            PIPES.with_borrow_mut(|spare| {
                if spare.len() < SPARE {
                    spare.push(pipe);
                }
            });
        }
    }
}
