//! The h2 crate as the peer, in both roles, over its own wire.
//!
//! Where it differs from us, and why:
//!
//! - It calls a block that it cannot decode a `PROTOCOL_ERROR`, where RFC 9113 §4.3 has `COMPRESSION_ERROR`.
//! - It parses fields into types while it decodes, so names and values that HTTP does not allow (an empty name, a capital
//!   letter, a control character, an unknown pseudo-header) end the connection. To us they are bytes; the frame machine
//!   refuses them, and the stream with them.
//! - It takes numbers of at most four continuation bytes, that is of 28 bits; we take 32 bits, as many as the settings
//!   have that such numbers are compared with.
//! - It takes any number of size updates at the start of a block. Two say all that there is to say (RFC 7541 §4.2), and
//!   we refuse a third.
//! - It does not miss the update that is due after a lowered limit. RFC 9113 §4.3.1 makes that an error, and we do too.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::{huffman, integer};
use super::*;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Our end of the wire: frames and nothing else.
struct Wire(DuplexStream);

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Wire {
    /// The next frame, or `None` when the peer has closed.
    async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Some(Frame { kind, flags, payload })
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        self.0.write_all(&[a, b, c, kind, flags, d, e, f, g]).await.unwrap();
        self.0.write_all(payload).await.unwrap();
    }

    async fn settings(&mut self, table: Option<u32>) {
        let setting = table.map(|size| [&[0, 1][..], &size.to_be_bytes()].concat());
        self.send(SETTINGS, 0, 0, &setting.unwrap_or_default()).await;
    }

    /// A header block as HEADERS and as many CONTINUATIONs as it needs.
    async fn block(&mut self, stream: u32, block: &[u8]) {
        let mut parts = block.chunks(16_384).peekable();
        let mut kind = HEADERS;
        loop {
            let part = parts.next().unwrap_or_default();
            let end = if parts.peek().is_none() { END_HEADERS } else { 0 };
            let flags = if kind == HEADERS { end | END_STREAM } else { end };
            self.send(kind, flags, stream, part).await;
            kind = CONTINUATION;
            if end != 0 {
                return;
            }
        }
    }
}

/// What SETTINGS say about the table, if they do.
fn table_size(settings: &[u8]) -> Option<u32> {
    let size = settings.chunks(6).find(|setting| setting[..2] == [0, 1])?;
    Some(u32::from_be_bytes(size[2..].try_into().unwrap()))
}

fn story(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), story).await.expect("the story hangs");
    });
}

/// Header names and values that HTTP allows, some often and some once.
fn random_headers(rng: &mut Rng) -> HeaderMap {
    const NAMES: [&str; 12] = [
        "accept",
        "accept-encoding",
        "age",
        "baggage",
        "cookie",
        "forwarded",
        "traceparent",
        "user-agent",
        "via",
        "www-authenticate",
        "x-a",
        "x-request-id",
    ];
    let mut headers = HeaderMap::new();
    for _ in 0..rng.usize(..8) {
        let name = match rng.u8(..4) {
            0 => (0..rng.usize(1..30)).map(|_| char::from(*rng.choice(b"abcxyz019-_.!~").unwrap())).collect(),
            _ => format!("{}{}", rng.choice(NAMES).unwrap(), ["", "", "-2"][rng.usize(..3)]),
        };
        let length = match rng.u8(..20) {
            0 => rng.usize(3000..9000),
            1 => 0,
            _ => rng.usize(1..120),
        };
        let any = rng.u8(..4) == 0;
        let byte = |rng: &mut Rng| match any {
            true => *rng.choice(b"\t \xff\x80\xc3\x7e\"\\^`|#").unwrap(),
            false => rng.u8(b' '..=b'z'),
        };
        let value: Vec<u8> = match rng.u8(..3) {
            0 => b"a value that comes again".to_vec(),
            _ => (0..length).map(|_| byte(rng)).collect(),
        };
        let mut value = HeaderValue::from_bytes(&value).unwrap();
        value.set_sensitive(rng.u8(..8) == 0);
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    headers
}

fn random_request(rng: &mut Rng) -> Request<()> {
    let authority = format!("10.{}.{}.{}:8080", rng.u8(..), rng.u8(..3), rng.u8(..3));
    let request = match rng.bool() {
        true => Request::connect(authority),
        false => Request::get(format!("http://{authority}/{}", ["", "index.html", "a/b"][rng.usize(..3)])),
    };
    let mut request = request.body(()).unwrap();
    *request.headers_mut() = random_headers(rng);
    request
}

/// The fields that a request consists of, its pseudo-headers in alphabetical order.
fn fields_of(request: &Request<()>) -> Fields {
    let uri = request.uri();
    let mut all =
        fields([(":authority", uri.authority().unwrap().as_str()), (":method", request.method().as_str())]);
    if request.method() != Method::CONNECT {
        all.extend(fields([(":path", uri.path()), (":scheme", uri.scheme_str().unwrap())]));
    }
    all.extend(request.headers().iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())));
    all
}

/// Our end of a connection that an h2 client opened, which speaks HPACK with our code.
struct Served {
    wire: Wire,
    decoder: Decoder,
    encoder: Encoder,
    /// The limits that we announced and the client has not acknowledged.
    announced: Vec<Option<u32>>,
    updates: usize,
}

impl Served {
    async fn announce(&mut self, table: Option<u32>) {
        self.wire.settings(table).await;
        self.announced.insert(0, table);
    }

    /// The fields of the next request.
    async fn request(&mut self) -> Fields {
        let mut block = Vec::new();
        loop {
            let frame = self.wire.frame().await.expect("the client goes on");
            match frame.kind {
                SETTINGS if frame.flags & ACK != 0 => {
                    if let Some(limit) = self.announced.pop().expect("as many as were announced") {
                        self.decoder.set_limit(limit);
                    }
                }
                SETTINGS => {
                    if let Some(limit) = table_size(&frame.payload) {
                        self.encoder.set_peer_limit(limit);
                    }
                    self.wire.send(SETTINGS, ACK, 0, &[]).await;
                }
                HEADERS | CONTINUATION => {
                    block.extend_from_slice(&frame.payload);
                    if frame.flags & END_HEADERS != 0 {
                        self.updates += usize::from(block[0] & 0xe0 == 0x20);
                        return decode(&mut self.decoder, &block).expect("h2 encodes as the RFC says");
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn an_h2_client_s_requests_are_decoded_and_our_answers_are_understood() {
    story(async {
        let (mut updates, mut kept) = (0, 0);
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let (near, far) = duplex(1 << 20);
            let size = *rng.choice([None, Some(0), Some(4096)]).as_ref().unwrap();
            let mut builder = h2::client::Builder::new();
            if let Some(size) = size {
                builder.header_table_size(size);
            }
            let (mut client, connection) = builder.handshake::<_, Bytes>(far).await.unwrap();
            tokio::spawn(connection);
            let mut served = Served {
                wire: Wire(near),
                decoder: Decoder::new(DEFAULT_TABLE_SIZE),
                encoder: Encoder::new(),
                announced: Vec::new(),
                updates: 0,
            };
            let mut preface = [0; 24];
            served.wire.0.read_exact(&mut preface).await.unwrap();
            assert_eq!(preface, PREFACE);
            served.announce(None).await;
            for number in 0..20 {
                if rng.u8(..6) == 0 {
                    let sizes = [0, 60, 200, 1000, 4096, 65_536];
                    served.announce(Some(sizes[rng.usize(..sizes.len())])).await;
                    // So that the client sees it before the request more often than not.
                    tokio::task::yield_now().await;
                }
                if rng.u8(..6) == 0 {
                    served.decoder = moved(&served.decoder);
                }
                let request = random_request(&mut rng);
                let expected = fields_of(&request);
                client = client.ready().await.unwrap();
                let (response, _) = client.send_request(request, true).unwrap();
                let mut seen = served.request().await;
                let pseudo = seen.iter().take_while(|(name, _)| name[0] == b':').count();
                seen[..pseudo].sort();
                assert_eq!(seen, expected, "request {number} of seed {seed}");
                let answer = random_headers(&mut rng);
                let mut list = fields([(":status", "200")]);
                list.extend(
                    answer.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())),
                );
                let block = encode(&mut served.encoder, &list);
                served.wire.block(2 * number + 1, &block).await;
                let response = response.await.unwrap();
                assert_eq!((response.status(), response.headers()), (StatusCode::OK, &answer));
            }
            updates += served.updates;
            kept += served.decoder.entries().count();
        }
        // Otherwise this has not tried what it is for.
        assert!(updates > 50 && kept > 500, "{updates} size updates, {kept} entries in the end");
    });
}

/// An h2 server and the wire to it.
struct Server {
    wire: Wire,
    requests: UnboundedReceiver<Request<()>>,
}

/// What the server made of what was sent.
#[derive(Debug)]
enum Verdict {
    Accepted(Box<Request<()>>),
    /// The request and nothing more.
    Reset,
    /// The connection, for this reason.
    Ended(u32),
}

impl Server {
    async fn start(table: Option<u32>) -> Self {
        let (near, far) = duplex(1 << 20);
        let (arrived, requests) = unbounded_channel();
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            if let Some(size) = table {
                builder.header_table_size(size);
            }
            let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
            // A handle that is dropped would reset its stream.
            let mut open = Vec::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                arrived.send(request.map(drop)).unwrap();
                open.push(respond);
            }
        });
        let mut wire = Wire(near);
        wire.0.write_all(PREFACE).await.unwrap();
        wire.settings(None).await;
        Self { wire, requests }
    }

    /// What it makes of this block: it has read all there is when it answers the ping behind it.
    async fn judge(&mut self, stream: u32, block: &[u8]) -> Verdict {
        self.wire.block(stream, block).await;
        self.wire.send(PING, 0, 0, &[7; 8]).await;
        let mut reset = false;
        while let Some(frame) = self.wire.frame().await {
            match frame.kind {
                RESET => reset = true,
                GOAWAY => return Verdict::Ended(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap())),
                PING if frame.flags & ACK != 0 => break,
                _ => {}
            }
        }
        // The acknowledgement may leave before the task that accepts has had its turn.
        tokio::task::yield_now().await;
        match self.requests.try_recv() {
            Ok(request) if !reset => Verdict::Accepted(Box::new(request)),
            _ => Verdict::Reset,
        }
    }
}

#[test]
fn an_h2_server_sees_exactly_the_fields_that_we_encode() {
    story(async {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let table = [None, Some(0), Some(100), Some(65_536)][rng.usize(..4)];
            let mut server = Server::start(table).await;
            let mut encoder = Encoder::new();
            loop {
                let frame = server.wire.frame().await.unwrap();
                if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                    assert_eq!(table_size(&frame.payload), table);
                    encoder.set_peer_limit(table.unwrap_or(DEFAULT_TABLE_SIZE));
                    server.wire.send(SETTINGS, ACK, 0, &[]).await;
                    break;
                }
            }
            for number in 0..20 {
                let request = random_request(&mut rng);
                let block = encode(&mut encoder, &fields_of(&request));
                let Verdict::Accepted(seen) = server.judge(2 * number + 1, &block).await else {
                    panic!("request {number} of seed {seed} is not accepted")
                };
                assert_eq!(seen.method(), request.method());
                assert_eq!(seen.uri(), request.uri());
                assert_eq!(seen.headers(), request.headers(), "request {number} of seed {seed}");
            }
        }
    });
}

/// A block of an encoder that knows neither its table nor, at times, the RFC.
fn random_block(rng: &mut Rng) -> Vec<u8> {
    let mut block = Vec::new();
    let updates = if rng.u8(..12) == 0 { rng.usize(1..4) } else { 0 };
    for _ in 0..updates {
        integer::write(0x20, 5, [0, 40, 100, 4096, 4097][rng.usize(..5)], &mut block);
    }
    let string = |rng: &mut Rng, text: &[u8], block: &mut Vec<u8>| match rng.bool() {
        true => {
            integer::write(0x80, 7, huffman::encoded_length(text), block);
            huffman::encode(text, block);
        }
        false => {
            integer::write(0x00, 7, text.len(), block);
            block.extend_from_slice(text);
        }
    };
    block.push(0x02);
    string(rng, b"CONNECT", &mut block);
    block.push(0x41);
    let authority = format!("10.0.0.{}:80", rng.u8(..));
    string(rng, authority.as_bytes(), &mut block);
    for _ in 0..rng.usize(..6) {
        let (pattern, prefix) = [(0x40, 6), (0x40, 6), (0x00, 4), (0x10, 4)][rng.usize(..4)];
        match rng.u8(..20) {
            // A length with zeros behind it, as nobody would write it and the RFC does not forbid.
            0 => {
                let zeros = rng.usize(2..5);
                block.extend_from_slice(&[0x00, 0x01, b'z', 0x7f]);
                block.extend_from_slice(&[0x80, 0x80, 0x80, 0x80][..zeros]);
                block.push(0x00);
                block.extend_from_slice(&[b'z'; 127]);
            }
            1..5 => integer::write(0x80, 7, rng.usize(62..66), &mut block),
            5..10 => {
                integer::write(pattern, prefix, rng.usize(15..64), &mut block);
                string(rng, b"some value", &mut block);
            }
            _ => {
                block.push(pattern);
                let name: String = (0..rng.usize(1..9)).map(|_| rng.char('a'..='e')).collect();
                string(rng, name.as_bytes(), &mut block);
                let value: Vec<u8> = (0..rng.usize(..60)).map(|_| rng.u8(b' '..=b'~')).collect();
                string(rng, &value, &mut block);
            }
        }
    }
    for _ in 0..[0, 0, 1, 1, 2][rng.usize(..5)] {
        let at = rng.usize(..block.len());
        match rng.u8(..5) {
            0 => block[at] = rng.u8(..),
            1 => block[at] ^= 1 << rng.u8(..8),
            2 => drop(block.remove(at)),
            3 => block.insert(at, rng.u8(..)),
            _ => block.truncate(at.max(1)),
        }
    }
    block
}

/// The most continuation bytes that a number in this block has.
fn longest_number(block: &[u8]) -> usize {
    let (mut at, mut longest) = (0, 0);
    let mut number = |at: &mut usize, prefix| {
        let begin = *at;
        let value = integer::read(block, at, prefix).ok()?;
        longest = longest.max(*at - begin - 1);
        Some(value)
    };
    let mut next = |at: &mut usize| {
        let first = *block.get(*at)?;
        let prefix = if first >= 0x80 {
            7
        } else if first >= 0x40 {
            6
        } else if first >= 0x20 {
            5
        } else {
            4
        };
        let index = number(at, prefix)?;
        let strings = if first >= 0x80 || prefix == 5 { 0 } else { 1 + usize::from(index == 0) };
        for _ in 0..strings {
            *at += number(at, 7)? as usize;
        }
        Some(())
    };
    while next(&mut at).is_some() {}
    longest
}

/// Whether the types that h2 parses fields into refuse this one.
fn h2_refuses(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":method" => Method::from_bytes(value).is_err(),
        b":status" => StatusCode::from_bytes(value).is_err(),
        b":authority" | b":scheme" | b":path" | b":protocol" => std::str::from_utf8(value).is_err(),
        _ => HeaderName::from_lowercase(name).is_err() || HeaderValue::from_bytes(value).is_err(),
    }
}

#[test]
fn an_h2_server_and_we_agree_on_blocks_that_are_wrong_in_places() {
    story(async {
        let (mut accepted, mut reset, mut refused, mut types, mut numbers, mut spare) = (0, 0, 0, 0, 0, 0);
        for seed in 0..20_000 {
            let mut rng = Rng::with_seed(seed);
            let mut server = Server::start(None).await;
            let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE);
            for number in 0..4 {
                let block = random_block(&mut rng);
                let verdict = server.judge(2 * number + 1, &block).await;
                let mut seen = Fields::new();
                let ours =
                    decoder.decode(&block, usize::MAX, |name, value| seen.push((name.into(), value.into())));
                match (&verdict, ours) {
                    (Verdict::Accepted(request), Ok(())) => {
                        let plain = seen.iter().filter(|(name, _)| name[0] != b':');
                        let headers: HeaderMap = plain
                            .map(|(name, value)| {
                                let value = HeaderValue::from_bytes(value).unwrap();
                                (HeaderName::from_lowercase(name).unwrap(), value)
                            })
                            .fold(HeaderMap::new(), |mut map, (name, value)| {
                                map.append(name, value);
                                map
                            });
                        assert_eq!(
                            request.headers(),
                            &headers,
                            "block {number} of seed {seed}: {block:02x?}"
                        );
                        accepted += 1;
                    }
                    // It has decoded the block and does not like what it says.
                    (Verdict::Reset, Ok(())) => reset += 1,
                    (Verdict::Ended(1), Err(_)) => {
                        refused += 1;
                        break;
                    }
                    (Verdict::Ended(1), Ok(()))
                        if seen.iter().any(|(name, value)| h2_refuses(name, value)) =>
                    {
                        types += 1;
                        break;
                    }
                    (Verdict::Ended(1), Ok(())) if longest_number(&block) == 5 => {
                        numbers += 1;
                        break;
                    }
                    (Verdict::Accepted(_) | Verdict::Reset, Err(DecodeError::SpareUpdate { .. })) => {
                        spare += 1;
                        break;
                    }
                    (verdict, ours) => {
                        panic!(
                            "block {number} of seed {seed}: h2 says {verdict:?}, we {ours:?}: {block:02x?}"
                        )
                    }
                }
            }
        }
        // Otherwise this has not tried what it is for.
        let tried = [accepted, reset, refused, types, numbers, spare];
        assert!(accepted > 2000 && reset > 1000 && refused > 2000, "{tried:?}");
        assert!(types > 100 && numbers > 20 && spare > 20, "{tried:?}");
    });
}
