//! Accepts connections as raw descriptors and survives running out of descriptors.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::net::ClientAddr;

/// Pause after an accept error that is not the connection's own.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener on the worker that serves it.
pub struct Acceptor {
    listener: AsyncFd<TcpListener>,
    /// Given up to accept and close one connection when no descriptor is left, so that the client learns of it.
    reserve: Option<File>,
}

/// A connection nobody has read from, in no reactor.
#[derive(Debug)]
pub struct Accepted {
    /// The socket: non-blocking, not registered anywhere.
    pub socket: TcpStream,
    /// The far end.
    pub client: ClientAddr,
    /// When it was accepted.
    pub at: Instant,
}

impl Acceptor {
    /// Registers `listener` with the calling thread's reactor.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { listener: AsyncFd::with_interest(listener, Interest::READABLE)?, reserve: reserve() })
    }

    /// The next connection. Errors that concern one connection are skipped; when descriptors run out, the oldest
    /// waiting connection is closed and the rest wait.
    ///
    /// Cancel: nothing is lost.
    pub async fn next(&mut self) -> Accepted {
        loop {
            let accepted = self.listener.async_io(Interest::READABLE, TcpListener::accept).await;
            match accepted.and_then(|(socket, addr)| socket.set_nonblocking(true).map(|()| (socket, addr))) {
                Ok((socket, addr)) => {
                    return Accepted { socket, client: ClientAddr::new(addr), at: Instant::now() };
                }
                Err(cause) if is_about_one_connection(&cause) => {}
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept; raise the limit of open files if this goes on");
                    if matches!(cause.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) {
                        self.reserve = None;
                        drop(self.listener.get_ref().accept());
                        self.reserve = reserve();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// accept(2): errors already pending on the new connection are reported here and mean nothing for the listener.
fn is_about_one_connection(cause: &io::Error) -> bool {
    use nix::libc::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, EINVAL, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO,
    };
    matches!(
        cause.raw_os_error(),
        Some(
            ECONNABORTED
                | EHOSTDOWN
                | EHOSTUNREACH
                | EINTR
                | EINVAL
                | ENETDOWN
                | ENETUNREACH
                | ENONET
                | ENOPROTOOPT
                | EPROTO
        )
    )
}
