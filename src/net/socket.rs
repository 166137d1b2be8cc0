//! Sockets with the options this proxy needs, made in whatever namespace the calling thread is in.
//!
//! Every socket carries the packet mark from its first moment, because the capture rules recognise the proxy's
//! own packets by it. What else is set on which, and what it is worth: `docs/decisions/0016-sockets-on-a-node.md`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use super::addr::{OriginalDst, canonical};
use super::sys;

/// Connections that may wait in one listener for `accept`. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// `SO_MARK`, which the capture rules exempt; `None` leaves packets unmarked.
pub type Mark = Option<u32>;

/// Probes on an idle connection (tcp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes before the connection is reset.
    pub probes: u32,
}

impl Keepalive {
    /// Turns the probes on for `socket`.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        SockRef::from(socket).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(self.idle).with_interval(self.interval).with_retries(self.probes),
        )
    }
}

/// How a listener is made.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Address to bind. The unspecified IPv6 address serves IPv4 too.
    pub addr: SocketAddr,
    /// Mark of the listener; accepted sockets and SYN-ACKs inherit it.
    pub mark: Mark,
    /// Whether another process may listen on the same port, for the overlap of an upgrade.
    pub reuse_port: bool,
    /// Congestion control that accepted sockets inherit; `None` keeps the system's.
    pub congestion: Option<&'static str>,
    /// Probes that accepted sockets inherit; `None` for none.
    pub keepalive: Option<Keepalive>,
}

/// Whether a client's address is kept towards the application (`ENABLE_ORIG_SRC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transparent {
    /// Keep it, or fail.
    Required,
    /// Keep it where the kernel allows that.
    BestEffort,
    /// Never.
    Off,
}

/// Whether sockets may use `IP_TRANSPARENT`, the right to keep clients' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAddress {
    /// The application sees the client's address.
    Kept,
    /// The application sees the pod's own address.
    Replaced,
}

/// Binds and listens, non-blocking. The options are set before `listen`, so that no connection misses them.
///
/// # Errors
/// The system's answer with the address and the option in its text.
pub fn listen(how: &Listen) -> io::Result<TcpListener> {
    let what = |step: &'static str| {
        move |cause: io::Error| io::Error::new(cause.kind(), format!("{step} for {}: {cause}", how.addr))
    };
    let socket = Socket::new(Domain::for_address(how.addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(what("making a listener"))?;
    if how.addr.is_ipv6() {
        // A wildcard listener serves both families; a listener on one address serves that address only.
        socket.set_only_v6(!how.addr.ip().is_unspecified()).map_err(what("setting IPV6_V6ONLY"))?;
    }
    if how.reuse_port {
        socket.set_reuse_port(true).map_err(what("setting SO_REUSEPORT"))?;
    } else {
        socket.set_reuse_address(true).map_err(what("setting SO_REUSEADDR"))?;
    }
    if let Some(mark) = how.mark {
        socket.set_mark(mark).map_err(what("setting SO_MARK (CAP_NET_ADMIN is needed)"))?;
    }
    socket.set_tcp_nodelay(true).map_err(what("setting TCP_NODELAY"))?;
    if let Some(name) = how.congestion {
        prefer_congestion(&socket, name);
    }
    if let Some(keepalive) = how.keepalive {
        keepalive.apply(&socket).map_err(what("setting SO_KEEPALIVE"))?;
    }
    socket.bind(&how.addr.into()).map_err(what("binding"))?;
    socket.listen(BACKLOG).map_err(what("listening"))?;
    Ok(socket.into())
}

/// Whether sockets made by the calling thread may use clients' addresses, found out on one that is thrown away.
///
/// Listeners do without: what they accept would be transparent too, and for a transparent socket the kernel does
/// not take back an early demultiplexing that a REDIRECT rule has made wrong (`nf_nat_ipv4_local_in`). Of two
/// connections from one client port to two ports of a pod, one would then hang.
///
/// # Errors
/// Only where it is [`Transparent::Required`]: the kernel's refusal.
pub fn source_address(wanted: Transparent) -> io::Result<SourceAddress> {
    if wanted == Transparent::Off {
        return Ok(SourceAddress::Replaced);
    }
    let scratch = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    match sys::set_ip_transparent(scratch.as_fd()) {
        Ok(()) => Ok(SourceAddress::Kept),
        Err(_) if wanted == Transparent::BestEffort => Ok(SourceAddress::Replaced),
        Err(cause) => Err(io::Error::new(
            cause.kind(),
            format!(
                "setting IP_TRANSPARENT, which ENABLE_ORIG_SRC=true demands (CAP_NET_ADMIN or CAP_NET_RAW is needed): {cause}"
            ),
        )),
    }
}

/// The wildcard address to listen on: dual-stack where it is wanted and the kernel has IPv6, else IPv4 only.
pub fn wildcard(port: u16, ipv6: bool) -> SocketAddr {
    let ip = if ipv6 && Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok() {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(ip, port)
}

/// Takes `name` where the kernel has it and this namespace allows it; keeps the present algorithm otherwise,
/// because a connection with another congestion control still works.
pub fn prefer_congestion(socket: &impl AsFd, name: &str) {
    let _ = SockRef::from(socket).set_tcp_congestion(name.as_bytes());
}

/// The congestion control new sockets of this thread's namespace start with, for example `cubic`.
pub fn default_congestion() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?.trim().to_owned())
}

/// A socket that will dial `to`: non-blocking, marked, without Nagle's delay.
pub fn dialer(to: SocketAddr, mark: Mark, keepalive: Option<Keepalive>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        keepalive.apply(&socket)?;
    }
    Ok(socket)
}

/// When a spoofed socket's source port is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// Now, by `bind`: free of every other bound socket of that address.
    AtBind,
    /// By `connect`, when all ports are bound but not towards this destination.
    AtConnect,
}

/// Binds `socket` to a client's address that this host does not own, so that the application sees the client.
///
/// Returns the port when it is chosen now.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN or CAP_NET_RAW; EADDRINUSE when every port of `client` is bound.
pub fn bind_spoofed(socket: &Socket, client: IpAddr, choice: PortChoice) -> io::Result<Option<u16>> {
    if client.is_ipv4() {
        sys::set_ip_transparent(socket.as_fd())?;
        socket.set_freebind_v4(true)?;
    } else {
        sys::set_ipv6_transparent(socket.as_fd())?;
        sys::set_ipv6_freebind(socket.as_fd())?;
    }
    if choice == PortChoice::AtConnect {
        sys::set_bind_address_no_port(socket.as_fd())?;
    }
    socket.bind(&SocketAddr::new(client, 0).into())?;
    Ok(match choice {
        PortChoice::AtBind => socket.local_addr()?.as_socket().map(|addr| addr.port()),
        PortChoice::AtConnect => None,
    })
}

/// Starts a non-blocking connect. `Ok` when it is under way or done: writability tells, then `SO_ERROR`.
pub fn start_connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&to.into()) {
        Err(cause) if cause.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// Where an accepted connection was going before a REDIRECT rule rewrote it.
///
/// `SO_ORIGINAL_DST` at IPv4 level, then at IPv6 level, then the local address (a connection nobody redirected).
pub fn original_dst(socket: &impl AsFd) -> io::Result<OriginalDst> {
    let fd = socket.as_fd();
    let local = SockRef::from(socket).local_addr()?.as_socket().map(canonical).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the captured connection is not an IP connection")
    })?;
    // Each lookup answers only for its own family; the other fails with ENOENT or ENOPROTOOPT.
    let looked_up = if local.is_ipv4() { sys::original_dst_v4(fd) } else { sys::original_dst_v6(fd) };
    Ok(OriginalDst::new(looked_up.unwrap_or(local)))
}

/// Probes of a connection of which one direction is over. Connection tracking forgets such a connection after 60 s
/// without a packet (`nf_conntrack_tcp_timeout_close_wait`), and by then a peer that is gone has missed all three.
const HALF_CLOSED: Keepalive =
    Keepalive { idle: Duration::from_secs(15), interval: Duration::from_secs(15), probes: 3 };

/// Has the far end of `socket` probed often enough for a connection of which one direction is over: it stays known to
/// connection tracking while the far end lives, and is reset within 60 s once that is gone.
///
/// Bytes that are not acknowledged, or wait for a closed window, are probes themselves; from Linux 6.15 on they too come
/// at least every 15 s. Why this is enough: `docs/decisions/0014-ends.md`.
pub fn watch_half_closed(socket: &impl AsFd) {
    // Failure means that the socket is already dead, which shows when it is used.
    let _ = HALF_CLOSED.apply(socket);
    let _ = sys::set_longest_rto(socket.as_fd(), 15_000);
}

/// What was given to `socket` and the far end has not acknowledged, in bytes; a FIN counts as one.
pub fn unacknowledged(socket: &impl AsFd) -> usize {
    // Failure means that it is no TCP socket, and then there is nothing to wait for.
    sys::unacknowledged(socket.as_fd()).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Has [`receive`] tell what it leaves. Without it, one call more finds out.
pub fn tell_what_is_left(socket: &impl AsFd) {
    // Kernels before 4.18 cannot.
    let _ = sys::set_inq(socket.as_fd());
}

/// Reads what has arrived. Returns how many bytes, 0 at the end; and whether there may be more to read, the end
/// included. A short read alone does not say that there is nothing: it also stops before urgent data.
///
/// # Errors
/// `WouldBlock`, or the connection's own.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let (read, left) = sys::recv(socket.as_fd(), buffer)?;
    Ok((read, left != Some(0)))
}

/// Makes the next close of `socket` send RST instead of FIN, so that the far end sees an abnormal end. The kernel's
/// close at the death of the process is one too.
pub fn reset_on_close(socket: &impl AsFd) {
    // Failure means the socket is already dead, and then there is nobody left to tell.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Takes [`reset_on_close`] back: what is still to be sent is sent, then FIN.
pub fn close_in_order(socket: &impl AsFd) {
    // As above.
    let _ = SockRef::from(socket).set_linger(None);
}

/// Makes a listener hear no new SYN, while handshakes that are under way finish.
///
/// Whoever sends a SYN again, a second later, meets the listener that is there by then. Closing at once would
/// instead reset what is in the middle of its handshake.
///
/// # Errors
/// The kernel's answer; then the listener is as it was.
pub fn hear_no_more(listener: &impl AsFd) -> io::Result<()> {
    // Classic BPF on the TCP header: drop what has SYN (0x02) and no ACK (0x10) among its flags (byte 13).
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x54, 0, 0, 0x12),
        SockFilter::new(0x15, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ])
}
