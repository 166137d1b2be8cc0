//! Every rule of RFC 9113 that a peer can break, and what comes of it.

use super::*;

/// A server with stream 1 connected, stream 3 asked, stream 5 ended on both sides, 7 reset by the peer, 9 reset by us.
fn server() -> Wire {
    let mut wire = Wire::server();
    for stream in [1, 3, 5, 7, 9] {
        wire.get(&connect(stream)).unwrap();
    }
    for stream in [1, 5, 7, 9] {
        wire.machine.respond(StreamId::new(stream), []).unwrap();
    }
    wire.get(&last_data(5, b"")).unwrap();
    wire.machine.finish(StreamId::new(5)).unwrap();
    wire.get(&rst(7, Code::CANCEL)).unwrap();
    wire.machine.reset(StreamId::new(9), Code::CANCEL);
    wire.out();
    assert_eq!(wire.machine.streams(), 2);
    wire
}

#[test]
fn what_breaks_the_tunnel_ends_it_with_the_code_of_the_rfc() {
    let padded = |kind: FrameKind, stream: u32, payload: &[u8]| frame(kind, flag::PADDED, stream, payload);
    let rows: Vec<(&str, Vec<u8>, Code)> = vec![
        // §4.2, §6: sizes.
        (
            "frame above the limit",
            frame(FrameKind::DATA, 0, 1, &vec![0; (1 << 20) + 1]),
            Code::FRAME_SIZE_ERROR,
        ),
        ("PING of 7", frame(FrameKind::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("PING of 9", frame(FrameKind::PING, 0, 0, &[0; 9]), Code::FRAME_SIZE_ERROR),
        ("RST_STREAM of 3", frame(FrameKind::RST_STREAM, 0, 1, &[0; 3]), Code::FRAME_SIZE_ERROR),
        ("RST_STREAM of 5", frame(FrameKind::RST_STREAM, 0, 1, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE of 5", frame(FrameKind::WINDOW_UPDATE, 0, 1, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("PRIORITY of 4", frame(FrameKind::PRIORITY, 0, 1, &[0; 4]), Code::FRAME_SIZE_ERROR),
        ("GOAWAY of 7", frame(FrameKind::GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("SETTINGS of 5", frame(FrameKind::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("SETTINGS ack of 6", frame(FrameKind::SETTINGS, flag::ACK, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
        ("SETTINGS of 65 entries", settings(&[(9, 0); 65]), Code::ENHANCE_YOUR_CALM),
        ("padded DATA of 0", padded(FrameKind::DATA, 1, &[]), Code::FRAME_SIZE_ERROR),
        ("padded HEADERS of 0", padded(FrameKind::HEADERS, 11, &[]), Code::FRAME_SIZE_ERROR),
        (
            "HEADERS cut in its priority",
            frame(FrameKind::HEADERS, flag::PRIORITY, 11, &[0; 4]),
            Code::FRAME_SIZE_ERROR,
        ),
        // Padding, §6.1, §6.2.
        ("all of DATA is padding and more", padded(FrameKind::DATA, 1, &[3, 0, 0]), Code::PROTOCOL_ERROR),
        ("more padding than HEADERS", padded(FrameKind::HEADERS, 11, &[3, 0, 0]), Code::PROTOCOL_ERROR),
        // Which stream, §5.1, §5.1.1, §6.
        ("DATA on stream 0", data(0, b"x"), Code::PROTOCOL_ERROR),
        ("HEADERS on stream 0", connect(0), Code::PROTOCOL_ERROR),
        ("PRIORITY on stream 0", frame(FrameKind::PRIORITY, 0, 0, &[0; 5]), Code::PROTOCOL_ERROR),
        ("RST_STREAM on stream 0", rst(0, Code::CANCEL), Code::PROTOCOL_ERROR),
        ("CONTINUATION on stream 0", frame(FrameKind::CONTINUATION, 4, 0, &[]), Code::PROTOCOL_ERROR),
        ("SETTINGS on a stream", frame(FrameKind::SETTINGS, 0, 1, &[]), Code::PROTOCOL_ERROR),
        ("PING on a stream", frame(FrameKind::PING, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("GOAWAY on a stream", frame(FrameKind::GOAWAY, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("DATA on an idle stream", data(11, b"x"), Code::PROTOCOL_ERROR),
        ("DATA on an even stream", data(2, b"x"), Code::PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", rst(11, Code::CANCEL), Code::PROTOCOL_ERROR),
        ("WINDOW_UPDATE on an idle stream", update(11, 1), Code::PROTOCOL_ERROR),
        ("a request on an even stream", connect(12), Code::PROTOCOL_ERROR),
        ("DATA on an ended stream", data(5, b"x"), Code::STREAM_CLOSED),
        ("a request on an ended stream", connect(5), Code::STREAM_CLOSED),
        // §6.10: header blocks in pieces.
        ("CONTINUATION of nothing", frame(FrameKind::CONTINUATION, 4, 1, &[]), Code::PROTOCOL_ERROR),
        (
            "DATA in a header block",
            [frame(FrameKind::HEADERS, 0, 11, &[]), data(1, b"x")].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of another stream's block",
            [frame(FrameKind::HEADERS, 0, 11, &[]), frame(FrameKind::CONTINUATION, 4, 1, &[])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "an unknown frame in a header block",
            [frame(FrameKind::HEADERS, 0, 11, &[]), frame(FrameKind(0x33), 0, 0, &[])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a header block without end",
            {
                let more = frame(FrameKind::CONTINUATION, 0, 11, &[0x82]);
                [frame(FrameKind::HEADERS, 0, 11, &[]), more.repeat(64)].concat()
            },
            Code::ENHANCE_YOUR_CALM,
        ),
        (
            "a header block above the limit",
            frame(FrameKind::HEADERS, 4, 11, &vec![0x82; 21 << 10]),
            Code::ENHANCE_YOUR_CALM,
        ),
        ("a header block that is none", frame(FrameKind::HEADERS, 4, 11, &[0x80]), Code::COMPRESSION_ERROR),
        (
            "a bad block on a stream we reset",
            frame(FrameKind::HEADERS, 4, 9, &[0x80]),
            Code::COMPRESSION_ERROR,
        ),
        // §6.6, §8.4.
        ("PUSH_PROMISE", frame(FrameKind::PUSH_PROMISE, 4, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        // §6.9.
        ("the tunnel's window raised by 0", update(0, 0), Code::PROTOCOL_ERROR),
        ("the tunnel's window raised too far", update(0, (1 << 31) - 1), Code::FLOW_CONTROL_ERROR),
        (
            "streams' windows raised too far by SETTINGS",
            { [update(1, (1 << 31) - 1 - 65_535), settings(&[(4, 65_536)])].concat() },
            Code::FLOW_CONTROL_ERROR,
        ),
    ];
    for (what, bytes, code) in rows {
        let mut wire = server();
        let error = wire.get(&bytes).expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert_eq!(wire.out().last().unwrap(), &format!("GOAWAY 9 {code}"), "{what}");
        // Nothing goes on after that: nothing is read, opened, answered or sent.
        assert_eq!(wire.get(&connect(21)), Err(error), "{what}");
        let (one, three) = (StreamId::new(1), StreamId::new(3));
        assert_eq!(wire.machine.room(one), 0);
        assert_eq!(wire.machine.send(one, 1, false), Err(SendError::Gone));
        assert_eq!(wire.machine.finish(one), Err(SendError::Gone));
        assert_eq!(wire.machine.respond(three, []), Err(SendError::Gone));
        wire.machine.reset(one, Code::CANCEL);
        wire.machine.shutdown(wire.now);
        wire.machine.abort(Code::CANCEL);
        assert_eq!(wire.machine.deadline(), None);
        assert_eq!(wire.out(), [""; 0]);
    }
}

#[test]
fn what_breaks_a_stream_ends_that_stream_and_no_other() {
    let malformed = |fields: &[Header]| headers(11, 0, &[&CONNECT[..], fields].concat());
    let rows: Vec<(&str, Vec<u8>, u32, Code, bool)> = vec![
        // What, the bytes, which stream, its code, whether the caller knew of the stream.
        ("upper case", malformed(&[("Baggage", "a")]), 11, Code::PROTOCOL_ERROR, false),
        ("a path", malformed(&[(":path", "/")]), 11, Code::PROTOCOL_ERROR, false),
        ("HTTP/1", malformed(&[("connection", "close")]), 11, Code::PROTOCOL_ERROR, false),
        ("no method", headers(11, 0, &[(":authority", "a:1")]), 11, Code::PROTOCOL_ERROR, false),
        (
            "a bad authority",
            headers(11, 0, &[CONNECT[0], (":authority", "a b:1")]),
            11,
            Code::PROTOCOL_ERROR,
            false,
        ),
        ("a head on a connected stream", connect(1), 1, Code::PROTOCOL_ERROR, true),
        ("trailers that do not end", headers(3, 0, &[("a", "b")]), 3, Code::PROTOCOL_ERROR, true),
        (
            "trailers with :status",
            headers(3, flag::END_STREAM, &[(":status", "200")]),
            3,
            Code::PROTOCOL_ERROR,
            true,
        ),
        ("DATA after the end", [last_data(1, b""), data(1, b"x")].concat(), 1, Code::STREAM_CLOSED, true),
        ("a head after the end", [last_data(1, b""), connect(1)].concat(), 1, Code::STREAM_CLOSED, true),
        ("DATA on a stream the peer reset", data(7, b"x"), 7, Code::STREAM_CLOSED, false),
        ("a head on a stream the peer reset", connect(7), 7, Code::STREAM_CLOSED, false),
        ("a window raised by 0", update(1, 0), 1, Code::PROTOCOL_ERROR, true),
        ("a window raised too far", update(1, (1 << 31) - 1), 1, Code::FLOW_CONTROL_ERROR, true),
        ("more than the window", data(1, &[b'x'; 256 << 10]).repeat(2), 1, Code::FLOW_CONTROL_ERROR, true),
    ];
    for (what, bytes, stream, code, known) in rows {
        let mut wire = server();
        let told = wire.get(&bytes).expect(what);
        let resets = told.iter().filter(|line| line.starts_with(&format!("{stream}: Broken"))).count();
        assert_eq!(resets, usize::from(known), "{what}: {told:?}");
        assert!(wire.out().contains(&format!("RST_STREAM {stream} {code}")), "{what}");
        // The tunnel and its other streams go on.
        wire.machine.respond(StreamId::new(3), []).ok();
        assert_eq!(wire.get(&connect(13)).expect(what).len(), 1);
    }
}

#[test]
fn what_is_late_is_ignored_and_given_back() {
    let mut wire = server();
    let late = [
        data(9, &[0; 1_000]),
        rst(9, Code::CANCEL),
        update(9, 5),
        headers(9, 1, &[("a", "b")]),
        rst(5, Code::CANCEL),
    ];
    assert_eq!(wire.get(&late.concat()), Ok(vec![]));
    assert_eq!(wire.out(), [""; 0]);
    // All of the tunnel's window is there again, however often it is filled with bytes that nobody wants.
    for _ in 0..256 {
        assert_eq!(wire.get(&data(9, &vec![0; 256 << 10])), Ok(vec![]));
    }
    assert!(wire.out().iter().all(|line| line.starts_with("WINDOW_UPDATE 0 ")));
}

#[test]
fn what_is_late_on_a_stream_that_is_forgotten_is_ignored_too() {
    let mut wire = Wire::server();
    for n in 0..130 {
        wire.get(&connect(2 * n + 1)).unwrap();
        wire.machine.refuse(StreamId::new(2 * n + 1), http::StatusCode::BAD_REQUEST).unwrap();
    }
    wire.out();
    let late = [headers(1, flag::END_STREAM, &[("a", "b")]), data(1, b"x"), rst(1, Code::CANCEL)];
    assert_eq!(wire.get(&late.concat()), Ok(vec![]));
    assert_eq!(wire.out(), [""; 0]);
}

#[test]
fn what_is_unknown_or_deprecated_is_ignored() {
    let mut wire = Wire::serving();
    let bytes = [
        frame(FrameKind(0x10), 0, 0, b"u=1"),
        frame(FrameKind(0xa), 0xff, 1, &[0; 300]),
        frame(FrameKind::PRIORITY, 0, 1, &[0; 5]),
        frame(FrameKind::PRIORITY, 0, 99, &[0; 5]),
        // Flags that a kind does not have, and the reserved bit of a stream id.
        frame(FrameKind::DATA, 0xf0, 1 | 1 << 31, b"hello"),
    ];
    assert_eq!(wire.get(&bytes.concat()), Ok(vec!["1: data hello".into()]));
    assert_eq!(wire.out(), [""; 0]);
}

#[test]
fn padding_and_priority_are_taken_off() {
    let mut wire = Wire::server();
    let fields = block(&CONNECT);
    let padded = [&[4, 0, 0, 0, 9, 200][..], &fields, &[0; 4]].concat();
    let flags = flag::PADDED | flag::PRIORITY | flag::END_HEADERS;
    let request = wire.get(&frame(FrameKind::HEADERS, flags, 1, &padded)).unwrap();
    assert_eq!(request, ["1: CONNECT 10.0.0.1:80 {}"]);
    wire.machine.respond(StreamId::new(1), []).unwrap();
    let payload = [&[3][..], b"hello", &[0; 3]].concat();
    let told = wire.get(&frame(FrameKind::DATA, flag::PADDED, 1, &payload)).unwrap();
    assert_eq!(told, ["1: data hello"]);
    let told = wire.get(&frame(FrameKind::DATA, flag::PADDED | flag::END_STREAM, 1, &[2, 0, 0])).unwrap();
    assert_eq!(told, ["1: data , end"]);
}

#[test]
fn a_client_holds_its_server_to_the_rules_too() {
    let asked = || {
        let mut wire = Wire::client();
        wire.machine.open("10.0.0.1:80", []).unwrap();
        wire.out();
        wire
    };
    let status = |status: &'static str, flags: u8| headers(1, flags, &[(":status", status)]);
    for (what, bytes, code) in [
        ("DATA before the answer", data(1, b"x"), Code::PROTOCOL_ERROR),
        ("no status", headers(1, 0, &[("a", "b")]), Code::PROTOCOL_ERROR),
        ("a request", connect(1), Code::PROTOCOL_ERROR),
        ("101", status("101", 0), Code::PROTOCOL_ERROR),
        ("an interim answer that ends", status("103", 1), Code::PROTOCOL_ERROR),
        ("a second answer", [ok(1), ok(1)].concat(), Code::PROTOCOL_ERROR),
        ("a head after the end", [headers(1, 1, &[(":status", "200")]), ok(1)].concat(), Code::STREAM_CLOSED),
    ] {
        let mut wire = asked();
        let told = wire.get(&bytes).expect(what);
        assert!(told.last().unwrap().starts_with("1: Broken("), "{what}: {told:?}");
        assert_eq!(wire.out(), [format!("RST_STREAM 1 {code}")], "{what}");
    }
    for (what, bytes) in [
        ("an answer to nothing", ok(3)),
        ("an even stream", ok(2)),
        ("a push", frame(FrameKind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])),
    ] {
        assert_eq!(asked().get(&bytes).expect_err(what).code(), Code::PROTOCOL_ERROR, "{what}");
    }
    let mut wire = asked();
    assert_eq!(wire.get(&[status("100", 0), status("103", 0), ok(1)].concat()).unwrap(), ["1: 200 {}"]);
}

#[test]
fn a_head_that_is_too_long_is_refused_and_the_tables_stay_in_step() {
    let filler: &'static str = "v".repeat(8_000).leak();
    let long = [("a", filler), ("b", filler), ("c", filler)];
    // Three literals that the peer adds to its table, in a block just below the limit on blocks.
    let mut wire = Wire::new(Role::Server, Config { header_list: 23 << 10, ..CONFIG }, &[]);
    let block = block(&[&CONNECT[..], &long].concat());
    let told = wire.get(&frame(FrameKind::HEADERS, flag::END_HEADERS, 1, &block)).unwrap();
    assert_eq!(told, [""; 0]);
    assert_eq!(wire.out(), ["HEADERS 1 :status=431 end", "RST_STREAM 1 NO_ERROR"]);
    assert_eq!(wire.get(&connect(3)).unwrap().len(), 1);
    let mut wire = Wire::new(Role::Client, Config { header_list: 100, ..CONFIG }, &[]);
    wire.machine.open("10.0.0.1:80", []).unwrap();
    let told = wire.get(&headers(1, 0, &[(":status", "200"), ("baggage", "x".repeat(100).leak())])).unwrap();
    assert_eq!(told, ["1: Broken(HeadTooLong(100))"]);
}
