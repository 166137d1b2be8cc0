//! A pipe through which bytes go from one socket to another without being copied.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

/// Below this a pipe moves less at a time than a buffer would. It is what a pipe has without being asked for more
/// (pipe(7)); who has too many pipes gets less, and no error.
const SMALLEST: usize = 64 << 10;

/// One pipe, both ends. Knows what is in it.
///
/// The process must ignore SIGPIPE, as Rust's runtime makes it do: a socket that takes nothing any more would raise it.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// Makes a pipe for `size` bytes, or as many as this user may have, 64 KiB at least.
    ///
    /// # Errors
    /// EMFILE, ENFILE; `QuotaExceeded` when this user's pipes hold too much already (`fs.pipe-user-pages-soft`).
    pub fn new(size: usize) -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // EPERM: above `fs.pipe-max-size`, or above this user's share; then it stays as it is.
        let size = fcntl_setpipe_size(&into, size).or_else(|_| fcntl_getpipe_size(&into))?;
        if size < SMALLEST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { out, into, held: 0 })
    }

    /// Bytes that were filled in and not drained.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes from `socket` into the pipe, which must be empty.
    ///
    /// Returns how many; less than the socket has when the pipe is full.
    ///
    /// # Errors
    /// `WouldBlock` means that `socket` has nothing, since an empty pipe has room. So does 0, at its end. But both are
    /// also said of a socket whose next byte is urgent data: only `recv` tells (tcp_read_sock, Linux 6.18).
    pub fn fill(&mut self, socket: &impl AsFd, most: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full pipe would look like an empty socket");
        self.held = splice(socket, None, &self.into, None, most, SpliceFlags::NONBLOCK)?;
        Ok(self.held)
    }

    /// Moves what is in the pipe to `socket`, as far as that takes it. Returns how many bytes it took.
    ///
    /// # Errors
    /// `WouldBlock` when `socket` is full; otherwise its own, and the pipe is of no more use.
    pub fn drain(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let taken = splice(&self.out, None, socket, None, self.held, SpliceFlags::NONBLOCK)?;
        self.held -= taken;
        Ok(taken)
    }
}
