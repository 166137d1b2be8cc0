//! A peer that writes its HTTP/2 frames by hand, on a thread of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use super::PLACE;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
/// Flag of SETTINGS and PING.
pub(super) const ACK: u8 = 1;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;

/// Flags.
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// Error codes, RFC 9113 §7.
pub(super) const NO_ERROR: u32 = 0;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:status: 200`, from the static table (RFC 7541 appendix A).
pub(super) const OK: &[u8] = &[0x88];

trait Bytes: Read + Write + Send {}
impl<T: Read + Write + Send> Bytes for T {}

/// One connection.
pub(super) struct Raw {
    tls: Box<dyn Bytes>,
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The 32-bit number that the payload is.
    pub(super) fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }

    /// The settings it carries, by identifier.
    pub(super) fn settings(&self) -> std::collections::BTreeMap<u16, u32> {
        assert_eq!((self.kind, self.flags), (SETTINGS, 0));
        let pair = |six: &[u8]| {
            let id = u16::from_be_bytes(six[..2].try_into().unwrap());
            (id, u32::from_be_bytes(six[2..].try_into().unwrap()))
        };
        self.payload.chunks_exact(6).map(pair).collect()
    }
}

/// One frame's bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn rst(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(super) fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A CONNECT's header block, all literal.
pub(super) fn connect_head(authority: &str) -> Vec<u8> {
    let mut block = b"\x02\x07CONNECT\x01".to_vec();
    block.push(u8::try_from(authority.len()).unwrap());
    block.extend(authority.as_bytes());
    block
}

/// Patience with a peer that is told to do something.
fn patient(tcp: &TcpStream) {
    tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    tcp.set_nodelay(true).unwrap();
}

impl Raw {
    /// Accepts one connection as server; the TLS handshake happens with the first byte.
    pub(super) fn accept(listener: &TcpListener) -> Self {
        let (tcp, _) = listener.accept().unwrap();
        patient(&tcp);
        let tls = ServerConnection::new(PLACE.server.clone()).unwrap();
        Self { tls: Box::new(StreamOwned::new(tls, tcp)) }
    }

    /// As [`Raw::accept`], past both sides' SETTINGS.
    pub(super) fn serve(listener: &TcpListener) -> Self {
        let mut peer = Self::accept(listener);
        assert_eq!(peer.read(PREFACE.len()), PREFACE);
        peer.write(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat());
        peer
    }

    /// Connects as client.
    pub(super) fn connect(to: SocketAddr) -> Self {
        let tcp = PLACE.pod.netns.run(|| TcpStream::connect(to)).unwrap();
        patient(&tcp);
        let name = ServerName::IpAddress(to.ip().into());
        let tls = ClientConnection::new(PLACE.client.clone(), name).unwrap();
        Self { tls: Box::new(StreamOwned::new(tls, tcp)) }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).unwrap();
        self.tls.flush().unwrap();
    }

    pub(super) fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.tls.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The next frame.
    pub(super) fn next(&mut self) -> Frame {
        let head = self.read(9);
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        let payload = self.read(usize::try_from(number(&head[..3])).unwrap());
        Frame { kind: head[3], flags: head[4], stream: number(&head[5..9]), payload }
    }

    /// The next frame of `kind`; others are read over.
    pub(super) fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next();
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Whether the peer ends the connection, however, before it sends another frame of `kind`.
    pub(super) fn ends_without(mut self, kind: u8) -> bool {
        let mut head = [0; 9];
        while self.tls.read_exact(&mut head).is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            self.read(usize::try_from(length).unwrap());
            if head[3] == kind {
                return false;
            }
        }
        true
    }
}
