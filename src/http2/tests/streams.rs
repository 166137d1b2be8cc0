//! One connection as a stream, between two machines: open, answer, bytes, ends.

use super::*;

/// A client and a server machine with a wire between them.
struct Pair {
    client: Machine,
    server: Machine,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut pair = Self {
            client: Machine::new(Role::Client, CONFIG, now),
            server: Machine::new(Role::Server, CONFIG, now),
            now,
        };
        assert_eq!(pair.exchange(), (vec!["ready".to_owned()], vec!["ready".to_owned()]));
        pair
    }

    /// Carries bytes until neither side has more to say; what client and server are told.
    fn exchange(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        while !self.client.output().is_empty() || !self.server.output().is_empty() {
            carry(&mut self.client, &mut self.server, self.now, &mut to_server);
            carry(&mut self.server, &mut self.client, self.now, &mut to_client);
        }
        (to_client, to_server)
    }

    /// DATA from one side to the other: what is told.
    fn data(from: &mut Machine, to: &mut Machine, stream: StreamId, bytes: &[u8], end: bool) -> Vec<String> {
        let head = from.send(stream, bytes.len(), end).unwrap();
        let wire = [&head, bytes].concat();
        let mut told = Vec::new();
        read(to, &wire, Instant::now(), &mut told);
        told
    }
}

fn carry(from: &mut Machine, to: &mut Machine, now: Instant, told: &mut Vec<String>) {
    let bytes = from.output().to_vec();
    from.sent(bytes.len());
    read(to, &bytes, now, told);
}

fn read(to: &mut Machine, mut bytes: &[u8], now: Instant, told: &mut Vec<String>) {
    while let Some(action) = to.read(&mut bytes, now).unwrap() {
        told.push(line(&action));
    }
}

const FORWARDED: (&[u8], &[u8]) = (b"forwarded", b"for=\"10.0.0.9:40000\"");
const BAGGAGE: (&[u8], &[u8]) = (b"baggage", b"k8s.namespace.name=shop");

#[test]
fn a_connection_is_opened_carried_and_half_closed_each_way() {
    let mut pair = Pair::new();
    let stream = pair.client.open("10.0.0.1:80", [BAGGAGE, FORWARDED]).unwrap();
    assert_eq!(pair.client.room(stream), 0, "nothing is sent before the answer");
    assert_eq!(pair.client.send(stream, 1, false), Err(SendError::Turn));
    let head = r#"1: CONNECT 10.0.0.1:80 {"baggage": "k8s.namespace.name=shop", "forwarded": "for=\"10.0.0.9:40000\""}"#;
    assert_eq!(pair.exchange(), (vec![], vec![head.into()]));
    assert_eq!(pair.server.send(stream, 1, false), Err(SendError::Turn));
    pair.server.respond(stream, [BAGGAGE]).unwrap();
    assert_eq!(pair.server.respond(stream, [BAGGAGE]), Err(SendError::Turn));
    let answer = r#"1: 200 {"baggage": "k8s.namespace.name=shop"}"#;
    assert_eq!(pair.exchange(), (vec![answer.into()], vec![]));

    let Pair { client, server, .. } = &mut pair;
    assert_eq!(Pair::data(client, server, stream, b"hello", false), ["1: data hello"]);
    assert_eq!(Pair::data(server, client, stream, b"welcome", false), ["1: data welcome"]);
    assert_eq!(Pair::data(client, server, stream, b"bye", true), ["1: data bye, end"]);
    assert_eq!(client.send(stream, 1, false), Err(SendError::Gone));
    assert_eq!(Pair::data(server, client, stream, b"still here", false), ["1: data still here"]);
    assert_eq!((client.streams(), server.streams()), (1, 1));
    server.finish(stream).unwrap();
    assert_eq!(pair.exchange(), (vec!["1: data , end".into()], vec![]));
    assert_eq!((pair.client.streams(), pair.server.streams()), (0, 0));
    assert_eq!(pair.client.open("10.0.0.1:80", []).unwrap().number(), 3);
}

#[test]
fn a_refusal_reaches_the_client_as_its_status() {
    let mut pair = Pair::new();
    let stream = pair.client.open("10.0.0.1:80", []).unwrap();
    pair.exchange();
    pair.server.refuse(stream, http::StatusCode::UNAUTHORIZED).unwrap();
    assert_eq!(pair.server.refuse(stream, http::StatusCode::UNAUTHORIZED), Err(SendError::Gone));
    assert_eq!(pair.exchange(), (vec!["1: 401 {}, end".into()], vec![]));
    assert_eq!((pair.client.streams(), pair.server.streams()), (0, 0));
}

#[test]
fn a_request_that_ends_at_once_is_still_answered() {
    let mut wire = Wire::server();
    assert_eq!(
        wire.get(&headers(1, flag::END_STREAM, &CONNECT)).unwrap(),
        ["1: CONNECT 10.0.0.1:80 {}, end"]
    );
    wire.machine.refuse(StreamId::new(1), http::StatusCode::SERVICE_UNAVAILABLE).unwrap();
    assert_eq!(wire.out(), ["HEADERS 1 :status=503 end"]);
    wire.get(&headers(3, flag::END_STREAM, &CONNECT)).unwrap();
    wire.machine.respond(StreamId::new(3), []).unwrap();
    let last = wire.machine.send(StreamId::new(3), 5, true).unwrap();
    assert_eq!(said(FrameHead::parse(&last), &[0; 5]), "DATA 3 5 end");
    assert_eq!(wire.machine.streams(), 0);
}

/// What an application must see (promise P1): only END_STREAM is an end.
#[test]
fn a_reset_means_what_came_before_it() {
    let reset = |bytes: &[u8]| Wire::carrying().get(bytes).unwrap().pop().unwrap();
    for code in [Code::NO_ERROR, Code::CANCEL, Code::STREAM_CLOSED, Code::REFUSED_STREAM, Code(0x1234)] {
        assert_eq!(reset(&rst(1, code)), format!("1: ByPeer({code})"), "without END_STREAM it is cut");
    }
    let after_end = |code| reset(&[last_data(1, b"all"), rst(1, code)].concat());
    assert_eq!(after_end(Code::NO_ERROR), "1: Unwanted");
    assert_eq!(after_end(Code::CANCEL), "1: ByPeer(CANCEL)");

    let asked = |bytes: &[u8]| {
        let mut wire = Wire::client();
        wire.machine.open("10.0.0.1:80", []).unwrap();
        wire.get(bytes).unwrap().pop().unwrap()
    };
    assert_eq!(asked(&rst(1, Code::REFUSED_STREAM)), "1: Refused");
    assert_eq!(asked(&rst(1, Code::CANCEL)), "1: ByPeer(CANCEL)");
}

#[test]
fn a_client_that_takes_its_request_back_is_seen_and_not_answered() {
    let mut wire = Wire::server();
    wire.get(&connect(1)).unwrap();
    assert_eq!(wire.get(&rst(1, Code::CANCEL)).unwrap(), ["1: ByPeer(CANCEL)"]);
    assert_eq!(wire.machine.respond(StreamId::new(1), []), Err(SendError::Gone));
    assert_eq!(wire.machine.refuse(StreamId::new(1), http::StatusCode::BAD_REQUEST), Err(SendError::Gone));
    wire.machine.reset(StreamId::new(1), Code::CANCEL);
    assert_eq!(wire.out(), [""; 0]);
}

#[test]
fn data_that_comes_before_the_answer_is_passed_on() {
    let mut wire = Wire::server();
    let told = wire.get(&[connect(1), data(1, b"early")].concat()).unwrap();
    assert_eq!(told, ["1: CONNECT 10.0.0.1:80 {}", "1: data early"]);
}

#[test]
fn other_methods_and_a_missing_authority_reach_the_caller_to_be_answered() {
    let mut wire = Wire::server();
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "shop")];
    assert_eq!(wire.get(&headers(1, 1, &get)).unwrap(), ["1: GET shop {}, end"]);
    assert_eq!(wire.get(&headers(3, 0, &CONNECT[..1])).unwrap(), ["3: CONNECT - {}"]);
}

#[test]
fn a_stream_beyond_the_limit_is_refused_and_one_that_ends_makes_room() {
    let mut wire = Wire::new(Role::Server, Config { streams: 2, ..CONFIG }, &[]);
    wire.get(&[connect(1), connect(3)].concat()).unwrap();
    assert_eq!(wire.get(&connect(5)), Ok(vec![]));
    assert_eq!(wire.out(), ["RST_STREAM 5 REFUSED_STREAM"]);
    wire.machine.reset(StreamId::new(1), Code::CANCEL);
    assert_eq!(wire.get(&connect(7)).unwrap().len(), 1);
}

#[test]
fn a_head_larger_than_the_peer_takes_is_not_sent() {
    let mut wire = Wire::new(Role::Client, CONFIG, &[(6, 150)]);
    let long = [(&b"baggage"[..], &[b'x'; 100][..])];
    assert_eq!(wire.machine.open("10.0.0.1:80", long), Err(OpenError::HeadTooLong { size: 238, limit: 150 }));
    assert_eq!(wire.out(), [""; 0]);
    assert_eq!(wire.machine.open("10.0.0.1:80", []).unwrap().number(), 1);
    let mut wire = Wire::new(Role::Server, CONFIG, &[(6, 100)]);
    wire.get(&connect(1)).unwrap();
    wire.machine.respond(StreamId::new(1), long).unwrap();
    assert_eq!(wire.out(), ["HEADERS 1 :status=200"]);
}

#[test]
fn a_head_larger_than_a_frame_goes_on_in_continuations() {
    let mut pair = Pair::new();
    // The smallest limit on frames is 16 KiB: a value that Huffman coding makes no smaller.
    pair.server = {
        let mut server = Wire::new(Role::Server, Config { header_list: 64 << 10, ..CONFIG }, &[]).machine;
        server.sent(server.output().len());
        server
    };
    let mut client = Wire::client().machine;
    let value: Vec<u8> = (0..40_000).map(|n| b"\\<>{}"[n % 5]).collect();
    client.open("10.0.0.1:80", [(&b"baggage"[..], &value[..])]).unwrap();
    let heads: Vec<_> =
        frames(client.output()).iter().map(|(head, _)| (head.kind, head.length, head.flags)).collect();
    assert_eq!(heads[0], (FrameKind::HEADERS, 16_384, 0));
    assert_eq!(heads[1], (FrameKind::CONTINUATION, 16_384, 0));
    assert_eq!((heads[2].0, heads[2].2, heads.len()), (FrameKind::CONTINUATION, flag::END_HEADERS, 3));
    let mut told = Vec::new();
    carry(&mut client, &mut pair.server, pair.now, &mut told);
    let [request] = &told[..] else { panic!("{} lines", told.len()) };
    assert!(request.len() > value.len());
}

#[test]
fn stream_ids_are_used_up_in_the_end() {
    let mut wire = Wire::client();
    wire.machine.last_id = frame::LAST_ID - 2;
    assert_eq!(wire.machine.can_open(), 200);
    assert_eq!(wire.machine.open("10.0.0.1:80", []).unwrap().number(), (1 << 31) - 1);
    assert_eq!(wire.machine.open("10.0.0.1:80", []), Err(OpenError::IdsUsedUp));
    assert_eq!(wire.machine.can_open(), 0);
}

#[test]
fn a_smaller_table_of_the_peer_is_acknowledged_in_the_next_block() {
    let mut wire = Wire::new(Role::Client, CONFIG, &[(1, 0)]);
    wire.machine.open("10.0.0.1:80", []).unwrap();
    let output = wire.machine.output().to_vec();
    let (_, payload) = frames(&output)[0];
    assert_eq!(payload[0], 0x20, "a size update to 0 comes first (RFC 7541 §4.2)");
}

#[test]
fn our_smaller_table_is_in_force_once_it_is_acknowledged() {
    // An insertion, in its own block before the acknowledgement: `x: y` with incremental indexing.
    let insert = [&block(&CONNECT)[..], &[0x40, 1, b'x', 1, b'y']].concat();
    let reuse = [&block(&CONNECT)[..], &[0xbe]].concat();
    let whole = |stream, block: &[u8]| frame(FrameKind::HEADERS, flag::END_HEADERS, stream, block);
    // Acknowledged, the peer's next block must begin with an update, and no larger one than we allow (RFC 7541 §4.2).
    for (next, fits) in [
        (block(&CONNECT), false),
        ([&[0x3f, 0xe1, 0x1f][..], &block(&CONNECT)].concat(), false),
        ([&[0x20][..], &reuse].concat(), false),
        ([&[0x20][..], &block(&CONNECT)].concat(), true),
    ] {
        let now = Instant::now();
        let machine = Machine::new(Role::Server, Config { header_table: 0, ..CONFIG }, now);
        let mut server = Wire { machine, now };
        server.get(&[PREFACE, &settings(&[])[..]].concat()).unwrap();
        assert_eq!(server.get(&whole(1, &insert)).unwrap(), [r#"1: CONNECT 10.0.0.1:80 {"x": "y"}"#]);
        assert_eq!(server.get(&whole(3, &reuse)).unwrap(), [r#"3: CONNECT 10.0.0.1:80 {"x": "y"}"#]);
        server.get(&settings_ack()).unwrap();
        let told = server.get(&whole(5, &next));
        match told {
            Ok(told) => assert!(fits && told == ["5: CONNECT 10.0.0.1:80 {}"], "{next:x?}"),
            Err(error) => assert!(!fits && error.code() == Code::COMPRESSION_ERROR, "{next:x?}: {error}"),
        }
    }
}
