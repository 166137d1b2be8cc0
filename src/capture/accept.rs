//! Accepts connections as raw descriptors and survives running out of descriptors.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::net::socket::{hear_no_more, reset_on_close};
use crate::net::{ClientAddr, watched};

/// Pause after an accept error that is not the connection's own.
const PAUSE: Duration = Duration::from_millis(50);
/// How long handshakes that are under way may take when the listener closes: their last packet is one round trip
/// away.
const LAST_HANDSHAKES: Duration = Duration::from_millis(50);

/// A listener on the worker that serves it.
pub struct Acceptor {
    listener: AsyncFd<OwnedFd>,
    /// Given up to accept and close one connection when no descriptor is left, so that the client learns of it.
    reserve: Option<File>,
    /// Becomes true when the listener shall close.
    closing: watch::Receiver<bool>,
    /// When it closes; set once it was told to.
    until: Option<tokio::time::Instant>,
}

/// A connection nobody has read from, in no reactor.
#[derive(Debug)]
pub struct Accepted {
    /// The socket: non-blocking, not registered anywhere.
    pub socket: Unanswered,
    /// The far end.
    pub client: ClientAddr,
    /// When it was accepted.
    pub at: Instant,
}

/// A client's socket on its way to whoever will carry it. Dropped on that way, whatever the reason, it is reset:
/// a client that nobody answered shall not see an end in order.
#[derive(Debug)]
pub struct Unanswered(Option<TcpStream>);

impl Unanswered {
    /// The socket, for who carries it; how it ends is theirs from here on.
    pub fn answer(mut self) -> TcpStream {
        self.0.take().expect("only answer() takes the socket, and it takes self too")
    }
}

impl Deref for Unanswered {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        self.0.as_ref().expect("only answer() takes the socket, and it takes self too")
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            reset_on_close(socket);
        }
    }
}

impl Acceptor {
    /// Registers `listener` with the calling thread's reactor. It closes in order once `closing` is true.
    pub fn new(listener: TcpListener, closing: watch::Receiver<bool>) -> io::Result<Self> {
        let listener = watched(listener.into(), Interest::READABLE)?;
        Ok(Self { listener, reserve: reserve(), closing, until: None })
    }

    /// The next connection; none once the listener shall close and nobody waits any more: whoever has connected
    /// is still served. Errors that concern one connection are skipped; when descriptors run out, the oldest
    /// waiting connection is closed and the rest wait.
    ///
    /// Cancel: nothing is lost.
    pub async fn next(&mut self) -> Option<Accepted> {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.async_io(Interest::READABLE, accept) => accepted,
                () = told(&mut self.closing), if self.until.is_none() => {
                    if let Err(cause) = hear_no_more(self.listener.get_ref()) {
                        tracing::warn!(%cause, "a listener closes while clients may still be connecting");
                    }
                    self.until = Some(tokio::time::Instant::now() + LAST_HANDSHAKES);
                    continue;
                }
                () = tokio::time::sleep_until(self.until.unwrap_or_else(tokio::time::Instant::now)), if self.until.is_some() => {
                    match accept(self.listener.get_ref()) {
                        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return None,
                        accepted => accepted,
                    }
                }
            };
            match accepted {
                Ok((socket, addr)) => {
                    let socket = Unanswered(Some(socket));
                    return Some(Accepted { socket, client: ClientAddr::new(addr), at: Instant::now() });
                }
                Err(cause) if is_about_one_connection(&cause) => {}
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept; raise the limit of open files if this goes on");
                    if matches!(cause.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) {
                        self.reserve = None;
                        // Its client shall not take this for an end in order.
                        drop(accept(self.listener.get_ref()).map(|(socket, _)| Unanswered(Some(socket))));
                        self.reserve = reserve();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Ready when the listener shall close; never when nobody is left to say so.
async fn told(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        std::future::pending().await
    }
}

/// One call for the descriptor, its flags and its address.
fn accept(listener: &OwnedFd) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, addr) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let addr = addr.and_then(|addr| SocketAddr::try_from(addr).ok());
    // A connection that ended before it was accepted may have no address; accept(2) calls that ECONNABORTED.
    let addr = addr.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ECONNABORTED))?;
    Ok((socket.into(), addr))
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// accept(2): errors already pending on the new connection are reported here and mean nothing for the listener.
fn is_about_one_connection(cause: &io::Error) -> bool {
    use nix::libc::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, EINVAL, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT,
        EPROTO,
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::net::socket;

    fn acceptor(closing: watch::Receiver<bool>) -> (Acceptor, SocketAddr) {
        let listener = socket::listen(&socket::Listen {
            addr: "127.0.0.1:0".parse().unwrap(),
            mark: None,
            reuse_port: false,
            congestion: None,
            keepalive: None,
        });
        let listener = listener.unwrap();
        let addr = listener.local_addr().unwrap();
        (Acceptor::new(listener, closing).unwrap(), addr)
    }

    #[tokio::test]
    async fn a_client_that_nobody_answers_is_reset() {
        let (_close, closing) = watch::channel(false);
        let (mut acceptor, addr) = acceptor(closing);
        let mut dropped = TcpStream::connect(addr).unwrap();
        drop(acceptor.next().await.unwrap());
        assert_eq!(dropped.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut answered = TcpStream::connect(addr).unwrap();
        drop(acceptor.next().await.unwrap().socket.answer());
        assert_eq!(answered.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn who_waits_in_the_queue_is_accepted_before_the_listener_closes() {
        let (close, closing) = watch::channel(false);
        let (mut acceptor, addr) = acceptor(closing);
        let waiting = [(); 3].map(|()| TcpStream::connect(addr).unwrap());
        close.send_replace(true);
        for _ in &waiting {
            assert!(acceptor.next().await.is_some());
        }
        assert!(acceptor.next().await.is_none());
    }
}
