//! A SEQPACKET connection to the agent: whole packets, with descriptors, without blocking the thread.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, socket_with,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::error::Violation;

/// Longest packet either side reads, in bytes.
pub(super) const PACKET: usize = 1024;

/// Descriptors the kernel passes with one packet at most (`SCM_MAX_FD` of net/scm.h). With room for all of
/// them, too many are told apart from too few free descriptors in this process.
const DESCRIPTORS: usize = 253;

/// One packet and the descriptors that came with it, which close when it is dropped.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What a read brought.
#[derive(Debug)]
pub(super) enum Received {
    Packet(Packet),
    /// The agent closed; an empty packet means the same.
    End,
    /// The packet came in part; its descriptors are closed.
    Damaged(Violation),
}

/// A connection to the agent.
///
/// The runtime's datagram type only lends its registration: SEQPACKET has no type of its own there, and all
/// reads and writes are ours.
#[derive(Debug)]
pub(super) struct Connection(UnixDatagram);

impl Connection {
    /// Connects without waiting.
    ///
    /// # Errors
    /// What connect(2) answers. EAGAIN means the agent's queue is full: for a Unix socket nothing is under
    /// way then, so it is a failure like any other.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::over(socket)
    }

    /// Over a connected, non-blocking SEQPACKET socket. Needs a runtime with I/O.
    pub(super) fn over(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(UnixDatagram::from_std(socket.into())?))
    }

    /// Sends one packet, whole or not at all.
    ///
    /// Cancel: nothing has been sent.
    pub(super) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let sent =
            self.0.async_io(Interest::WRITABLE, || Ok(send(&self.0, packet, SendFlags::NOSIGNAL)?)).await?;
        if sent == packet.len() {
            return Ok(());
        }
        Err(io::Error::other(format!("{sent} of a packet's {} bytes were sent", packet.len())))
    }

    /// Receives one packet.
    ///
    /// Cancel: nothing has been received.
    pub(super) async fn receive(&self) -> io::Result<Received> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Received> {
    let mut bytes = [0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Owned from here on, before anything else is looked at: every way out closes them.
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(owned) = part {
            descriptors.extend(owned);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::Damaged(Violation::ControlTruncated));
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::Damaged(Violation::Truncated));
    }
    if message.bytes == 0 {
        return Ok(Received::End);
    }
    Ok(Received::Packet(Packet { bytes: bytes[..message.bytes].to_vec(), descriptors }))
}
