//! How the ends of a connection show on a socket, for whoever carries bytes between two of them.
//!
//! A socket that nobody reads from does not say that its far end reset it; somebody must look. And a reset that comes behind FIN
//! takes nothing back: what was said before is in the socket and is carried on, as the kernel would hand it to an application.

use std::cell::Cell;
use std::io;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::net::socket::unacknowledged;

/// How long a reset waits until the application has what was said before it.
pub const DELIVERY: Duration = Duration::from_secs(10);

/// Whether one end has sent FIN. From then on nobody reads from it, so its reset must be looked for.
#[derive(Default)]
pub struct Fin {
    seen: Cell<bool>,
    broken: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Fin {
    /// Notes the FIN and wakes whoever waits in [`reset_after_fin`].
    pub fn set(&self) {
        self.seen.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether it was noted.
    pub fn is_set(&self) -> bool {
        self.seen.get()
    }

    /// Notes that the connection broke behind its FIN, which may not have been read yet.
    pub fn broke(&self) {
        self.broken.set(true);
    }

    /// Whether that was noted.
    pub fn has_broken(&self) -> bool {
        self.broken.get()
    }

    /// Ready when the FIN was noted.
    pub async fn seen(&self) {
        std::future::poll_fn(|cx| {
            if self.seen.get() {
                return Poll::Ready(());
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Ready when the far end of `socket` reset the connection after it had sent `fin`.
pub async fn reset_after_fin(socket: &TcpStream, fin: &Fin) -> io::ErrorKind {
    fin.seen().await;
    if fin.has_broken() { io::ErrorKind::BrokenPipe } else { broken(socket).await }
}

/// Ready when the connection of `socket` broke, for those who do not read from it.
///
/// It is told once: whoever goes on all the same must remember it.
pub async fn broken(socket: &TcpStream) -> io::ErrorKind {
    if let Err(cause) = socket.ready(Interest::ERROR).await {
        return cause.kind();
    }
    match socket.take_error() {
        Ok(Some(cause)) | Err(cause) => cause.kind(),
        // Both directions are shut, which also wakes; the other half of the work sees the end itself.
        Ok(None) => std::future::pending().await,
    }
}

/// Whether FIN came before the connection broke like this: then all that was said before waits in the socket, and its end.
pub fn has_spoken(kind: io::ErrorKind) -> bool {
    // tcp_reset() in Linux: EPIPE in the state that FIN leads to. A write to a socket with any other error says that one.
    kind == io::ErrorKind::BrokenPipe
}

/// Ready when the far end of `socket`, to which FIN was sent, has acknowledged everything; or when that has taken too long,
/// or will not be. To be waited for before a reset is passed on that came behind that FIN: it would throw the rest away.
pub async fn delivered(socket: &TcpStream) {
    let acknowledged = async {
        loop {
            forget(socket, Interest::WRITABLE);
            // What acknowledges our FIN wakes whoever waits.
            if unacknowledged(socket) == 0 || socket.writable().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = acknowledged => {}
        _ = broken(socket) => {}
        () = tokio::time::sleep(DELIVERY) => {}
    }
}

/// Takes back that `socket` is ready for `interest`, without the system call that would find it out.
pub fn forget(socket: &TcpStream, interest: Interest) {
    let _ = socket.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
