//! System calls that no crate wraps safely: one call per function, borrowed descriptors in, owned ones out.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc::{self, c_int, socklen_t};
use nix::sys::signal::{SigSet, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NS_GET_NSTYPE` of ioctl_ns(2): `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const SO_ORIGINAL_DST: c_int = 80;

/// `TCP_INQ`, also the type of its control message (linux/tcp.h).
const TCP_INQ: c_int = 36;

/// `TCP_RTO_MAX_MS` (linux/tcp.h).
const TCP_RTO_MAX_MS: c_int = 44;

fn check(rc: c_int) -> io::Result<c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// The length of `T` as the kernel takes it.
const fn len<T>() -> socklen_t {
    assert!(size_of::<T>() <= 128, "socket options and addresses are small");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let len = size_of::<T>() as socklen_t;
    len
}

fn set_flag(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<()> {
    set_number(socket, level, name, 1)
}

fn set_number(socket: BorrowedFd<'_>, level: c_int, name: c_int, number: c_int) -> io::Result<()> {
    // SAFETY: the borrow keeps the descriptor open for the call; the kernel only reads `number`, which outlives
    // the call, and the length is its exact size.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const number).cast(), len::<c_int>())
    })
    .map(drop)
}

/// The longest time between two transmissions of what stays unacknowledged, and between two probes of a window that
/// stays closed. Fails with ENOPROTOOPT before Linux 6.15, with EINVAL outside 1,000 to 120,000 ms.
pub(super) fn set_longest_rto(socket: BorrowedFd<'_>, milliseconds: c_int) -> io::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, milliseconds)
}

/// The `CLONE_NEW*` constant of the namespace `fd` names. Fails with ENOTTY when it names none.
pub(super) fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: the borrow keeps the descriptor open; this request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) })
}

/// `SIOCOUTQ` of tcp(7): what was written and is not acknowledged, a FIN included.
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut bytes: c_int = 0;
    // SAFETY: the borrow keeps the descriptor open; the kernel writes one int, and `bytes` outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }).map(|_| bytes)
}

/// Lets `socket` use IPv4 addresses this host does not own. Fails without CAP_NET_ADMIN or CAP_NET_RAW.
pub(super) fn set_ip_transparent(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT)
}

/// Lets `socket` use IPv6 addresses this host does not own. Fails without CAP_NET_ADMIN or CAP_NET_RAW.
pub(super) fn set_ipv6_transparent(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
}

/// Lets `socket` bind an IPv6 address that is not configured (ipv6(7)).
pub(super) fn set_ipv6_freebind(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)
}

/// Defers the choice of a source port from `bind` to `connect`, where the whole 4-tuple is known (ip(7)).
pub(super) fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

/// Has [`recv`] learn how much it leaves. Fails with ENOPROTOOPT before Linux 4.18.
pub(super) fn set_inq(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_TCP, TCP_INQ)
}

/// A control message of `TCP_INQ`: its head, and how many bytes wait. Padded as `CMSG_SPACE` says, by its alignment.
#[repr(C)]
struct Inq {
    head: libc::cmsghdr,
    waiting: c_int,
}

/// Reads into `buffer`. Returns how much, and how much is left to read, if the kernel says so (see [`set_inq`]): at the
/// end of the stream, which is still to be read, it says 1.
pub(super) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<c_int>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid value of these plain structs.
    let (mut control, mut message): (Inq, libc::msghdr) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Inq>();
    // SAFETY: the borrow keeps the descriptor open; `message` names one part of `buffer`'s length and control space of
    // its exact size, all exclusively ours until the call returns.
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let told = message.msg_controllen != 0
        && (control.head.cmsg_level, control.head.cmsg_type) == (libc::IPPROTO_TCP, TCP_INQ);
    Ok((read, told.then_some(control.waiting)))
}

/// Where an IPv4 connection was going before a REDIRECT rule. ENOENT when conntrack knows no such entry.
pub(super) fn original_dst_v4(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: an all-zero sockaddr_in is a valid value of that plain struct.
    let mut out: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut len = len::<libc::sockaddr_in>();
    // SAFETY: the borrow keeps the descriptor open; the kernel writes at most `len` bytes into `out`, which is
    // that long and outlives the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            SO_ORIGINAL_DST,
            (&raw mut out).cast(),
            &raw mut len,
        )
    })?;
    let ip = Ipv4Addr::from(u32::from_be(out.sin_addr.s_addr));
    Ok(SocketAddrV4::new(ip, u16::from_be(out.sin_port)).into())
}

/// Where an IPv6 connection was going before a REDIRECT rule. ENOENT when conntrack knows no such entry.
pub(super) fn original_dst_v6(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: an all-zero sockaddr_in6 is a valid value of that plain struct.
    let mut out: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut len = len::<libc::sockaddr_in6>();
    // SAFETY: the borrow keeps the descriptor open; the kernel writes at most `len` bytes into `out`, which is
    // that long and outlives the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            SO_ORIGINAL_DST,
            (&raw mut out).cast(),
            &raw mut len,
        )
    })?;
    let ip = Ipv6Addr::from(out.sin6_addr.s6_addr);
    Ok(SocketAddrV6::new(ip, u16::from_be(out.sin6_port), 0, 0).into())
}

/// Registers a descriptor with the calling thread's reactor, which must have one.
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and names the same description for as long as it lives, here inside the AsyncFd,
    // and `as_raw_fd` always returns that one number.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Lets other threads of this process go first. A refusal changes nothing but latency.
pub fn lower_thread_priority() {
    const NICER: c_int = 5;
    // SAFETY: no memory is passed; who = 0 names the calling thread (setpriority(2), "C library/kernel differences").
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICER) };
}

/// Makes the process that `command` starts receive SIGKILL when the thread that starts it ends, so that no end
/// of this process, kill -9 included, leaves it behind; and lets it begin with no signal blocked, since children
/// inherit what this thread blocks and would be deaf to SIGTERM. Source: PR_SET_PDEATHSIG of prctl(2).
pub fn die_with_this_thread(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    let in_the_child = move || {
        SigSet::empty().thread_set_mask()?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // A parent that died before the line above sends no signal any more.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes three system calls, all async-signal-safe, and allocates
    // nothing: its errors are plain error numbers.
    unsafe { command.pre_exec(in_the_child) }
}
