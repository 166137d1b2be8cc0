//! A TCP socket that can leave one thread's reactor and join another's.
//!
//! TLS handshakes run on the handshake pool and data on a worker. tokio binds a socket to the reactor it was
//! made on, so the socket is taken out of it for the move and registered once more where it stays.

use std::io;
use std::net::TcpStream as StdStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The transport under TLS: either in some reactor, or on its way.
#[derive(Debug)]
pub(super) enum Transport {
    /// Registered with the reactor of the thread it was attached on.
    Attached(TcpStream),
    /// Between two reactors.
    Detached(StdStream),
    /// A move failed half way; every use answers with an error.
    Lost,
}

impl Transport {
    pub(super) fn detach(&mut self) -> io::Result<()> {
        if let Self::Attached(stream) = std::mem::replace(self, Self::Lost) {
            *self = Self::Detached(stream.into_std()?);
        }
        Ok(())
    }

    pub(super) fn attach(&mut self) -> io::Result<()> {
        if let Self::Detached(stream) = std::mem::replace(self, Self::Lost) {
            *self = Self::Attached(TcpStream::from_std(stream)?);
        }
        Ok(())
    }

    fn attached(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match self.get_mut() {
            Self::Attached(stream) => Ok(Pin::new(stream)),
            _ => Err(io::Error::new(io::ErrorKind::NotConnected, "the socket belongs to no thread")),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.attached()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.attached()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.attached()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
