//! What an eavesdropper on the wire sees: every packet between the nodes, counted and searched for secrets.
//!
//! One AF_PACKET socket in the wire's namespace and one thread that reads it (packet(7)). The bridge shows each
//! frame several times; it is taken once, where it enters from a node. [`Capture::inside`] listens to a pod's
//! loopback instead, where its proxy hands connections to its applications.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::Error;
use super::world::{Pod, World};
use crate::net::Netns;

/// `ETH_P_ALL`, `ETH_P_IP` and `ETH_P_IPV6` of linux/if_ether.h.
const ETH_P_ALL: u16 = 0x0003;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// `PACKET_OUTGOING` of linux/if_packet.h.
const OUTGOING: u8 = 4;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// The tunnel port.
const HBONE: u16 = 15008;
/// Room for packets that arrive while the thread is busy. Without privilege over the host the kernel gives less.
const BACKLOG: usize = 128 << 20;
/// More than the largest frame that offloads make (512 KiB with BIG TCP).
const LARGEST: usize = 1 << 20;
/// How often the thread looks whether it shall stop, and how long silence is waited for before it does.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long packets may keep coming after the wish to stop.
const AT_MOST: Duration = Duration::from_secs(5);

/// A capture in progress.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<io::Result<WireReport>>>,
}

/// What passed the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireReport {
    /// Frames, each counted once.
    pub packets: u64,
    /// Their bytes, with all headers.
    pub bytes: u64,
    /// TCP connections opened to the tunnel port.
    pub tunnels: usize,
    /// TCP connections opened to any port.
    pub connections: usize,
    /// Each secret searched for, in the order given.
    pub findings: Vec<Finding>,
    /// Frames the kernel or this capture lost: when not zero, what was not found proves nothing.
    pub lost: u64,
}

/// How often one secret was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The text searched for.
    pub secret: String,
    /// In how many places it was found in the clear.
    pub times: u64,
}

impl Capture {
    /// Starts listening on the wire of `world`, searching for `secrets`.
    ///
    /// A secret is found within one TCP segment and across segments that follow each other.
    ///
    /// # Errors
    /// The system's answer; the socket needs CAP_NET_RAW.
    pub fn start(world: &World, secrets: &[&str]) -> Result<Self, Error> {
        let bridge = index_of(world.wire(), "br0")?;
        Self::listen(world.wire(), secrets, Interfaces::AllBut(bridge))
    }

    /// Starts listening on the loopback of `pod`: what its proxy hands to its applications, and what the pod says
    /// to itself.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn inside(pod: &Pod, secrets: &[&str]) -> Result<Self, Error> {
        let loopback = index_of(pod.netns(), "lo")?;
        Self::listen(pod.netns(), secrets, Interfaces::Only(loopback))
    }

    fn listen(netns: &Netns, secrets: &[&str], interfaces: Interfaces) -> Result<Self, Error> {
        let what = "capturing packets";
        let socket = netns.run(open).map_err(Error::io(what))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut ear = Ear::new(secrets, interfaces);
        let reader = std::thread::Builder::new()
            .name("lab-capture".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || ear.listen(&socket, &stop)
            })
            .map_err(Error::io(what))?;
        Ok(Self { stop, reader: Some(reader) })
    }

    /// Stops once the wire is silent for a moment, and says what passed.
    ///
    /// # Errors
    /// When reading failed on the way: then nothing can be said.
    pub fn stop(mut self) -> Result<WireReport, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let reader = self.reader.take().expect("only stop and drop take the reader, and stop takes self");
        reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the capturing thread panicked")))
            .map_err(Error::io("capturing packets"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn open() -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    // The privileged option passes the host's limit; where it is refused the other takes what it gets.
    if setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BACKLOG)?;
    }
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The number by which packets name the interface `name` of `netns`.
fn index_of(netns: &Netns, name: &str) -> Result<usize, Error> {
    netns
        .run(|| {
            let index = nix::net::if_::if_nametoindex(name)?;
            usize::try_from(index).map_err(io::Error::other)
        })
        .map_err(Error::io(format!("finding the interface {name}")))
}

/// Where frames count.
#[derive(Clone, Copy, Debug)]
enum Interfaces {
    /// Everywhere else: a bridge shows again what its ports have shown.
    AllBut(usize),
    /// Only there.
    Only(usize),
}

impl Interfaces {
    fn contain(self, index: usize) -> bool {
        match self {
            Self::AllBut(other) => index != other,
            Self::Only(one) => index == one,
        }
    }
}

/// The thread's state: the report so far and what it needs to go on.
struct Ear {
    report: WireReport,
    interfaces: Interfaces,
    opened: HashSet<Flow>,
    secrets: Vec<Vec<u8>>,
    /// The last bytes of each direction of each connection, for secrets cut in two.
    tails: HashMap<Flow, Tail>,
    /// The kernel's counter of lost frames: it wraps, so differences are added.
    overflow: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    from: SocketAddr,
    to: SocketAddr,
}

struct Tail {
    /// The sequence number that continues it.
    next: u32,
    bytes: Vec<u8>,
}

/// One TCP segment inside a frame.
struct Segment<'a> {
    flow: Flow,
    flags: u8,
    sequence: u32,
    payload: &'a [u8],
}

impl Ear {
    fn new(secrets: &[&str], interfaces: Interfaces) -> Self {
        let findings = secrets.iter().map(|it| Finding { secret: (*it).to_owned(), times: 0 }).collect();
        Self {
            report: WireReport { findings, ..WireReport::default() },
            interfaces,
            opened: HashSet::new(),
            secrets: secrets.iter().map(|it| it.as_bytes().to_vec()).collect(),
            tails: HashMap::new(),
            overflow: 0,
        }
    }

    fn listen(&mut self, socket: &Socket, stop: &AtomicBool) -> io::Result<WireReport> {
        let mut buffer = vec![0; LARGEST];
        let mut stopping: Option<Instant> = None;
        loop {
            let wanted = stop.load(Ordering::Relaxed);
            if wanted && stopping.is_none() {
                stopping = Some(Instant::now());
            }
            let heard = self.one(socket.as_raw_fd(), &mut buffer)?;
            if stopping.is_some_and(|since| !heard || since.elapsed() > AT_MOST) {
                return Ok(std::mem::take(&mut self.report));
            }
        }
    }

    /// Takes one frame; false when there was none for a while.
    fn one(&mut self, socket: RawFd, buffer: &mut [u8]) -> io::Result<bool> {
        let mut control = cmsg_space!(u32);
        let capacity = buffer.len();
        let mut parts = [IoSliceMut::new(buffer)];
        let (len, from, lost) =
            match recvmsg::<LinkAddr>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC) {
                Ok(message) => {
                    let lost = message.cmsgs()?.find_map(|it| match it {
                        ControlMessageOwned::RxqOvfl(lost) => Some(lost),
                        _ => None,
                    });
                    (message.bytes, message.address, lost)
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            };
        if let Some(lost) = lost {
            self.report.lost += u64::from(lost.wrapping_sub(self.overflow));
            self.overflow = lost;
        }
        let entering =
            from.is_some_and(|it| it.pkttype() != OUTGOING && self.interfaces.contain(it.ifindex()));
        if entering {
            // With MSG_TRUNC the length is the frame's, also where the buffer was too small for it.
            self.report.packets += 1;
            self.report.bytes += len as u64;
            if len > capacity {
                self.report.lost += 1;
            }
            self.look(&buffer[..len.min(capacity)]);
        }
        Ok(true)
    }

    fn look(&mut self, frame: &[u8]) {
        let Some(segment) = segment(frame) else {
            // Not TCP: still searched, since a secret must not pass in any form.
            for (secret, finding) in self.secrets.iter().zip(&mut self.report.findings) {
                finding.times += occurrences(frame, secret);
            }
            return;
        };
        if segment.flags & (SYN | ACK) == SYN && self.opened.insert(segment.flow) {
            self.report.connections += 1;
            if segment.flow.to.port() == HBONE {
                self.report.tunnels += 1;
            }
        }
        if !segment.payload.is_empty() {
            self.search(&segment);
        }
    }

    fn search(&mut self, segment: &Segment<'_>) {
        let longest = self.secrets.iter().map(Vec::len).max().unwrap_or(0);
        let tail =
            self.tails.entry(segment.flow).or_insert(Tail { next: segment.sequence, bytes: Vec::new() });
        if tail.next != segment.sequence {
            tail.bytes.clear();
        }
        let kept = tail.bytes.len();
        // The border: what is kept of the last segment, and as much of this one.
        let border = segment.payload.len().min(longest.saturating_sub(1));
        tail.bytes.extend_from_slice(&segment.payload[..border]);
        for (secret, finding) in self.secrets.iter().zip(&mut self.report.findings) {
            finding.times += occurrences(segment.payload, secret);
            finding.times += across(&tail.bytes, kept, secret);
        }
        if border < segment.payload.len() {
            tail.bytes.clear();
            let from = segment.payload.len().saturating_sub(longest.saturating_sub(1));
            tail.bytes.extend_from_slice(&segment.payload[from..]);
        } else {
            let surplus = tail.bytes.len().saturating_sub(longest.saturating_sub(1));
            tail.bytes.drain(..surplus);
        }
        // A payload is shorter than 2^32, so the conversion loses nothing; sequence numbers wrap.
        let len = u32::try_from(segment.payload.len()).unwrap_or(u32::MAX);
        tail.next = segment.sequence.wrapping_add(len);
    }
}

/// Occurrences of `secret` in `bytes`.
fn occurrences(bytes: &[u8], secret: &[u8]) -> u64 {
    let Some((first, rest)) = secret.split_first() else { return 0 };
    let mut times = 0;
    let mut at = bytes;
    while let Some(next) = at.iter().position(|byte| byte == first) {
        at = &at[next + 1..];
        if at.starts_with(rest) {
            times += 1;
        }
    }
    times
}

/// Occurrences of `secret` in `bytes` that begin before `border` and end after it.
fn across(bytes: &[u8], border: usize, secret: &[u8]) -> u64 {
    if secret.is_empty() {
        return 0;
    }
    let starts = border.saturating_sub(secret.len() - 1)..border;
    starts.filter(|&start| bytes[start..].starts_with(secret)).count() as u64
}

/// The TCP segment in an Ethernet frame; `None` for anything else, malformed frames included.
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..)?;
    let (from, to, rest): (IpAddr, IpAddr, &[u8]) = match be16(frame, 12)? {
        ETH_P_IP => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            if *packet.get(9)? != TCP {
                return None;
            }
            let end = usize::from(be16(packet, 2)?);
            // Offloads leave the length of frames above 64 KiB zero: then the frame's own end counts.
            let packet = if end == 0 { packet } else { packet.get(..end)? };
            let address = |at: usize| {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::from(Ipv4Addr::from(bytes)))
            };
            (address(12)?, address(16)?, packet.get(header..)?)
        }
        ETH_P_IPV6 => {
            // The lab's kernels add no extension headers to TCP, except hop-by-hop with jumbo frames.
            let mut header = 40;
            let mut next = *packet.get(6)?;
            if next == 0 {
                next = *packet.get(40)?;
                header += (usize::from(*packet.get(41)?) + 1) * 8;
            }
            if next != TCP {
                return None;
            }
            let length = usize::from(be16(packet, 4)?);
            let packet = if length == 0 { packet } else { packet.get(..40 + length)? };
            let address = |at: usize| {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(Ipv6Addr::from(bytes)))
            };
            (address(8)?, address(24)?, packet.get(header..)?)
        }
        _ => return None,
    };
    let flow = Flow { from: SocketAddr::new(from, be16(rest, 0)?), to: SocketAddr::new(to, be16(rest, 2)?) };
    let sequence = u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?);
    let header = usize::from(rest.get(12)? >> 4) * 4;
    Some(Segment { flow, flags: *rest.get(13)?, sequence, payload: rest.get(header..)? })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
