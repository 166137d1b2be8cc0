//! The machine against a peer that writes its frames by hand, against itself, and against the h2 crate.

mod arbitrary;
mod floods;
mod flow;
mod goaway;
mod greeting;
mod moved;
mod peer;
mod rules;
mod streams;
mod time;

use std::time::{Duration, Instant};

use super::frame::{FrameHead, PREFACE, flag};
use super::hpack::Encoder;
use super::*;

const CONFIG: Config = Config {
    stream_window: 4 << 20,
    connection_window: 16 << 20,
    frame_size: 1 << 20,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 200,
};

type Header = (&'static str, &'static str);

const CONNECT: [Header; 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

/// A frame, as a peer that is bound by nothing would write it.
fn frame(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&FrameHead { length, kind, flags, stream }.encode(), payload].concat()
}

fn block(fields: &[Header]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut encoder = Encoder::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
    }
    block
}

fn headers(stream: u32, flags: u8, fields: &[Header]) -> Vec<u8> {
    frame(FrameKind::HEADERS, flags | flag::END_HEADERS, stream, &block(fields))
}

fn connect(stream: u32) -> Vec<u8> {
    headers(stream, 0, &CONNECT)
}

fn ok(stream: u32) -> Vec<u8> {
    headers(stream, 0, &[(":status", "200")])
}

fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(FrameKind::DATA, 0, stream, payload)
}

fn last_data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(FrameKind::DATA, flag::END_STREAM, stream, payload)
}

fn rst(stream: u32, code: Code) -> Vec<u8> {
    frame(FrameKind::RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

fn update(stream: u32, increment: u32) -> Vec<u8> {
    frame(FrameKind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(FrameKind::SETTINGS, 0, 0, &entries.iter().flat_map(entry).collect::<Vec<_>>())
}

fn goaway(last: u32, code: Code, debug: &str) -> Vec<u8> {
    let payload = [&last.to_be_bytes(), &code.0.to_be_bytes(), debug.as_bytes()].concat();
    frame(FrameKind::GOAWAY, 0, 0, &payload)
}

fn settings_ack() -> Vec<u8> {
    frame(FrameKind::SETTINGS, flag::ACK, 0, &[])
}

/// One line for what the caller is told. Payload is written out, so that a test sees every byte of it.
fn line(action: &Action<'_>) -> String {
    let with_end = |text: String, end: bool| if end { text + ", end" } else { text };
    match action {
        Action::Ready => "ready".into(),
        Action::MayOpen => "may open".into(),
        Action::Request { stream, request, end } => {
            let authority = request.authority.as_ref().map_or("-", |authority| authority.as_str());
            with_end(format!("{stream}: {} {authority} {:?}", request.method, request.fields), *end)
        }
        Action::Response { stream, response, end } => {
            with_end(format!("{stream}: {} {:?}", response.status.as_str(), response.fields), *end)
        }
        Action::Data { stream, bytes, end } => {
            with_end(format!("{stream}: data {}", String::from_utf8_lossy(bytes)), *end)
        }
        Action::Reset { stream, cut } => format!("{stream}: {cut:?}"),
        Action::Writable { stream: Some(stream) } => format!("{stream}: writable"),
        Action::Writable { stream: None } => "writable".into(),
        Action::GoAway { code, debug } => format!("goaway {code} {}", String::from_utf8_lossy(debug)),
    }
}

/// A machine that is up, and its peer's end of the wire.
struct Wire {
    machine: Machine,
    now: Instant,
}

impl Wire {
    /// A machine whose greeting is done.
    fn new(role: Role, config: Config, peer_settings: &[(u16, u32)]) -> Self {
        let now = Instant::now();
        let mut wire = Self { machine: Machine::new(role, config, now), now };
        if role == Role::Server {
            assert_eq!(wire.get(PREFACE), Ok(vec![]));
        }
        assert_eq!(wire.get(&settings(peer_settings)), Ok(vec!["ready".into()]));
        assert_eq!(wire.get(&settings_ack()), Ok(vec![]));
        wire.out();
        wire
    }

    fn server() -> Self {
        Self::new(Role::Server, CONFIG, &[])
    }

    fn client() -> Self {
        Self::new(Role::Client, CONFIG, &[])
    }

    /// A server with one connected stream, 1.
    fn serving() -> Self {
        let mut wire = Self::server();
        assert_eq!(wire.get(&connect(1)).unwrap().len(), 1);
        wire.machine.respond(StreamId::new(1), []).unwrap();
        wire.out();
        wire
    }

    /// A client with one connected stream, 1.
    fn carrying() -> Self {
        let mut wire = Self::client();
        wire.machine.open("10.0.0.1:80", []).unwrap();
        assert_eq!(wire.get(&ok(1)).unwrap(), ["1: 200 {}"]);
        wire.out();
        wire
    }

    /// The peer sends `bytes`: what the caller is told. Everything is taken from the arena at once, and nothing by applications.
    fn get(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        while let Some(action) = self.machine.read(&mut bytes, self.now)? {
            lines.push(line(&action));
            if let Action::Data { bytes, .. } = action {
                self.machine.left_arena(bytes.len());
            }
        }
        assert!(bytes.is_empty(), "read ends when all is taken");
        Ok(lines)
    }

    /// What the peer gets, a line for each frame.
    fn out(&mut self) -> Vec<String> {
        let lines =
            frames(self.machine.output()).iter().map(|(head, payload)| said(*head, payload)).collect();
        self.machine.sent(self.machine.output().len());
        lines
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }
}

/// Splits whole frames.
fn frames(mut bytes: &[u8]) -> Vec<(FrameHead, &[u8])> {
    bytes = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let head = FrameHead::parse(head);
        let (payload, rest) = rest.split_at(head.length as usize);
        frames.push((head, payload));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "frames are written whole");
    frames
}

fn said(head: FrameHead, payload: &[u8]) -> String {
    let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    let FrameHead { kind, stream, flags, .. } = head;
    match kind {
        FrameKind::RST_STREAM => format!("RST_STREAM {stream} {}", Code(number(0))),
        FrameKind::WINDOW_UPDATE => format!("WINDOW_UPDATE {stream} {}", number(0)),
        FrameKind::GOAWAY => format!("GOAWAY {} {}", number(0), Code(number(4))),
        FrameKind::PING | FrameKind::SETTINGS if flags & flag::ACK != 0 => format!("{kind} ack"),
        FrameKind::HEADERS => {
            let mut fields = Vec::new();
            let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let mut decoder = hpack::Decoder::new(4_096);
            decoder
                .decode(payload, usize::MAX, |name, value| fields.push(show(name) + "=" + &show(value)))
                .unwrap();
            let end = if flags & flag::END_STREAM != 0 { " end" } else { "" };
            format!("HEADERS {stream} {}{end}", fields.join(" "))
        }
        FrameKind::DATA => {
            let end = if flags & flag::END_STREAM != 0 { " end" } else { "" };
            format!("DATA {stream} {}{end}", payload.len())
        }
        _ => format!("{kind} {stream} {}", payload.len()),
    }
}
