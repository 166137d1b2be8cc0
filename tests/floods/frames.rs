//! HTTP/2 frames made by hand (RFC 9113 §6).

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The number of a client's stream number `n`.
pub fn fresh(n: u32) -> u32 {
    2 * n + 1
}

/// The header block of a CONNECT to `port` of the pod, all literal, so that no block depends on another.
pub fn head(port: u16) -> Vec<u8> {
    let authority = format!("{}:{port}", super::stage::SERVER);
    let mut block = b"\x02\x07CONNECT\x01".to_vec();
    block.push(u8::try_from(authority.len()).unwrap());
    block.extend(authority.as_bytes());
    block
}

pub fn connect(stream: u32, port: u16) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(port))
}

/// RST_STREAM(CANCEL).
pub fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}
