//! Dialling a pod's application with the client's address as source, and which source port may be used for that.
//!
//! A plaintext client's own connection passes through the pod's connection tracking as (client address, client port,
//! pod port). A connection that this proxy opens in the client's name towards the same pod port must not have the
//! same port, or one 4-tuple would stand for two connections and one of them hangs. So the ports of the live
//! plaintext downstreams are kept in a table here, and a port that stands in it is not used.
//!
//! `bind` before `connect` picks from the odd half of the range first, `connect` alone from the even half, so
//! clients and this proxy rarely meet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pod::Pod;
use crate::net::socket::{Keepalive, PortChoice, SourceAddress, bind_spoofed, dialer, start_connect};
use crate::net::{ClientAddr, OriginalDst, TargetAddr};

/// Ports tried before a client's address counts as used up.
const TRIES: usize = 32;

/// The live plaintext downstreams of one pod: how many there are by (client address, dialled address). Bounded by the
/// open sockets.
///
/// More than one while a client that was reset comes again from the same port before we have noticed its first end.
#[derive(Debug, Default)]
pub(super) struct Downstreams(Mutex<HashMap<(SocketAddr, SocketAddr), usize>>);

impl Downstreams {
    fn has(&self, client: SocketAddr, target: SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(client, target))
    }

    fn enter(&self, key: (SocketAddr, SocketAddr)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    fn leave(&self, key: (SocketAddr, SocketAddr)) {
        if let Entry::Occupied(mut held) = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key) {
            match held.get_mut() {
                1 => drop(held.remove()),
                more => *more -= 1,
            }
        }
    }
}

/// One live plaintext downstream; its port is free again when this is dropped.
#[derive(Debug)]
pub struct Downstream {
    pod: Arc<Pod>,
    key: (SocketAddr, SocketAddr),
}

impl Downstream {
    /// Notes that `client` has a connection to `dst` in `pod`.
    pub fn enter(pod: &Arc<Pod>, client: ClientAddr, dst: OriginalDst) -> Self {
        let key = (client.addr(), dst.addr());
        pod.downstreams.enter(key);
        Self { pod: pod.clone(), key }
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.pod.downstreams.leave(self.key);
    }
}

/// A connection to an application, under way.
#[derive(Debug)]
pub struct Spoofed {
    /// Non-blocking, connecting: writability tells, then `SO_ERROR`.
    pub socket: std::net::TcpStream,
    /// Whose address the application sees.
    pub source: SourceAddress,
}

/// Waits until a connection that is under way is up.
///
/// # Errors
/// The kernel's answer, or `TimedOut` after `deadline`. `ConnectionReset`: it was up, and was reset before anybody looked; the
/// application has seen it, so it is not to be dialled again. An application that is not there refuses (tcp_reset, Linux 6.18).
pub async fn connected(socket: std::net::TcpStream, deadline: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket)?;
    let late = |_| io::Error::new(ErrorKind::TimedOut, format!("no answer within {}s", deadline.as_secs()));
    timeout(deadline, stream.writable()).await.map_err(late)??;
    match stream.take_error()? {
        // Reset behind a FIN: what was said before is there to be read, and then the end.
        Some(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(cause),
        _ => Ok(stream),
    }
}

/// Why the client's address could not be kept although it must be.
#[derive(Debug, thiserror::Error)]
pub enum SpoofError {
    /// The kernel refused.
    #[error(
        "keeping the client's address {client} towards {to}: {cause}; ENABLE_ORIG_SRC=true forbids going on without it"
    )]
    Refused {
        /// Whose address.
        client: IpAddr,
        /// The application.
        to: TargetAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No usable port.
    #[error("keeping the client's address {client} towards {to}: none of {TRIES} source ports was free")]
    NoPort {
        /// Whose address.
        client: IpAddr,
        /// The application.
        to: TargetAddr,
    },
    /// Dialling failed for another reason than the source address.
    #[error(transparent)]
    Dial(#[from] io::Error),
}

impl Pod {
    /// Starts to dial `to` inside the pod, as `client` where its address is to be kept.
    ///
    /// A client that is the target's own address is dialled for without keeping it: the pod calls itself.
    ///
    /// # Errors
    /// [`SpoofError`]. Where keeping the address is best effort and the kernel refuses it, the connection goes on
    /// from the pod's own address, and [`Spoofed::source`] says so for the caller to count and log.
    pub fn dial_as(&self, client: IpAddr, to: TargetAddr) -> Result<Spoofed, SpoofError> {
        let wanted =
            self.source == SourceAddress::Kept && client != to.ip() && client.is_ipv4() == to.ip().is_ipv4();
        if !wanted {
            let source = if client == to.ip() { SourceAddress::Kept } else { SourceAddress::Replaced };
            return Ok(Spoofed { socket: self.dial_plain(to)?, source });
        }
        match self.dial_spoofed(client, to) {
            Ok(socket) => Ok(Spoofed { socket, source: SourceAddress::Kept }),
            Err(refused @ (SpoofError::Refused { .. } | SpoofError::NoPort { .. })) => {
                if self.config.transparent == crate::net::socket::Transparent::Required {
                    return Err(refused);
                }
                tracing::warn!(%refused, "the application will see the pod's own address");
                Ok(Spoofed { socket: self.dial_plain(to)?, source: SourceAddress::Replaced })
            }
            Err(dial) => Err(dial),
        }
    }

    /// Starts to dial `to` in plaintext from the pod's own address, over the network that is between.
    pub fn dial_out(&self, to: SocketAddr) -> io::Result<std::net::TcpStream> {
        self.dial_far(to, self.config.keepalive)
    }

    /// As [`Pod::dial_out`], for a tunnel, whose PINGs do what `KEEPALIVE_*` does elsewhere.
    pub fn dial_tunnel(&self, to: SocketAddr) -> io::Result<std::net::TcpStream> {
        self.dial_far(to, None)
    }

    fn dial_far(&self, to: SocketAddr, keepalive: Option<Keepalive>) -> io::Result<std::net::TcpStream> {
        self.netns.run(|| {
            let socket = dialer(to, self.config.mark, keepalive)?;
            start_connect(&socket, to)?;
            Ok(socket.into())
        })
    }

    fn dial_plain(&self, to: TargetAddr) -> io::Result<std::net::TcpStream> {
        self.netns.run(|| {
            let socket = self.dialer(to)?;
            start_connect(&socket, to.addr())?;
            Ok(socket.into())
        })
    }

    fn dial_spoofed(&self, client: IpAddr, to: TargetAddr) -> Result<std::net::TcpStream, SpoofError> {
        let refused = |cause| SpoofError::Refused { client, to, cause };
        // Sockets that hold unusable ports, kept open so that the next try gets another one.
        let mut held = Vec::new();
        let mut choice = PortChoice::AtBind;
        for _ in 0..TRIES {
            let socket = self.netns.run(|| self.dialer(to))?;
            let port = match bind_spoofed(&socket, client, choice) {
                Err(cause)
                    if cause.raw_os_error() == Some(nix::libc::EADDRINUSE)
                        && choice == PortChoice::AtBind =>
                {
                    choice = PortChoice::AtConnect;
                    continue;
                }
                bound => bound.map_err(refused)?,
            };
            match port {
                Some(port) if self.downstreams.has(SocketAddr::new(client, port), to.addr()) => {
                    held.push(socket)
                }
                Some(_) => {
                    start_connect(&socket, to.addr())?;
                    return Ok(socket.into());
                }
                None => {
                    start_connect(&socket, to.addr()).map_err(|cause| match cause.raw_os_error() {
                        Some(nix::libc::EADDRNOTAVAIL) => SpoofError::NoPort { client, to },
                        _ => SpoofError::Dial(cause),
                    })?;
                    let port = socket.local_addr()?.as_socket().map_or(0, |addr| addr.port());
                    if !self.downstreams.has(SocketAddr::new(client, port), to.addr()) {
                        return Ok(socket.into());
                    }
                    // Its SYN meets the live connection of that 4-tuple, which answers with a challenge ACK
                    // and goes on (RFC 5961 §4).
                    held.push(socket);
                }
            }
        }
        Err(SpoofError::NoPort { client, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_until_its_last_connection_has_ended() {
        let downstreams = Downstreams::default();
        let key @ (client, target) = ("10.0.0.5:40001".parse().unwrap(), "10.0.0.9:80".parse().unwrap());
        downstreams.enter(key);
        downstreams.enter(key);
        downstreams.leave(key);
        assert!(downstreams.has(client, target));
        downstreams.leave(key);
        assert!(!downstreams.has(client, target));
    }
}
