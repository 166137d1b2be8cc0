//! Every rule of the opener: what a peer that breaks it is told, and that what only looks odd is taken.

use rustls::AlertDescription::{
    self, BadRecordMac, DecodeError, IllegalParameter, RecordOverflow, UnexpectedMessage,
};

use super::support::*;
use crate::tls::record::content::{ALERT, DATA, HANDSHAKE};
use crate::tls::*;

const SUITE: Suite = Suite::Aes128;
const PROTECTED: [u8; 3] = [DATA, 3, 3];
/// A ticket with an empty nonce, one byte of ticket and no extensions.
const TICKET: [u8; 18] = [4, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0];
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

fn at(record: u64) -> At {
    At { key: 0, record }
}

fn receive(role: Role, bytes: &[u8]) -> (News, Result<(), OpenError>, Inbox) {
    let mut inbox = Inbox::new(Opener::new(role, secret(SUITE), 0), Vec::new());
    let mut news = News::default();
    let result = inbox.receive(bytes, &mut news);
    (news, result, inbox)
}

fn by_hand() -> ByHand {
    ByHand::new(secret(SUITE))
}

fn changed(mut record: Vec<u8>, index: usize) -> Vec<u8> {
    record[index] ^= 1;
    record
}

#[test]
fn every_broken_rule_has_its_error_and_its_alert() {
    type Row = (&'static str, Vec<u8>, OpenError, Option<AlertDescription>);
    let one = |kind, body: &[u8]| by_hand().record(kind, body);
    let two = |first: (u8, &[u8]), second: (u8, &[u8])| {
        let mut peer = by_hand();
        [peer.record(first.0, first.1), peer.record(second.0, second.1)].concat()
    };
    let raw = |inner: &[u8]| by_hand().raw(PROTECTED, inner);
    let alert = |alert: u8| OpenError::Alert { at: at(0), alert: alert.into() };
    let cut_ticket = &TICKET[..10];
    let rows: Vec<Row> = vec![
        (
            "change_cipher_spec",
            vec![20, 3, 3, 0, 1, 1],
            OpenError::Unprotected { at: at(0), kind: 20 },
            Some(UnexpectedMessage),
        ),
        (
            "alert in the clear",
            vec![21, 3, 3, 0, 2, 2, 0],
            OpenError::Unprotected { at: at(0), kind: 21 },
            Some(UnexpectedMessage),
        ),
        (
            "handshake in the clear",
            vec![22, 3, 3, 0, 4, 0, 0, 0, 0],
            OpenError::Unprotected { at: at(0), kind: 22 },
            Some(UnexpectedMessage),
        ),
        (
            "no TLS at all",
            b"H".to_vec(),
            OpenError::Unprotected { at: at(0), kind: b'H' },
            Some(UnexpectedMessage),
        ),
        (
            "too long, by its header alone",
            vec![23, 3, 3, 0x41, 1],
            OpenError::Long { at: at(0), length: 16_641 },
            Some(RecordOverflow),
        ),
        (
            "as long as TLS allows, but not with this cipher",
            vec![23, 3, 3, 0x41, 0],
            OpenError::InnerLong { at: at(0), length: 16_624 },
            Some(RecordOverflow),
        ),
        (
            "one byte too much inside",
            raw(&[1; MAX_BODY + 2]),
            OpenError::InnerLong { at: at(0), length: MAX_BODY + 2 },
            Some(RecordOverflow),
        ),
        (
            "no room for a tag",
            [&[23, 3, 3, 0, 15][..], &[0; 15]].concat(),
            OpenError::NoTag { at: at(0), length: 15 },
            Some(BadRecordMac),
        ),
        ("nothing", vec![23, 3, 3, 0, 0], OpenError::NoTag { at: at(0), length: 0 }, Some(BadRecordMac)),
        (
            "changed in its body",
            changed(one(DATA, b"abc"), 6),
            OpenError::Forged { at: at(0) },
            Some(BadRecordMac),
        ),
        (
            "changed in its tag",
            changed(one(DATA, b"abc"), 20),
            OpenError::Forged { at: at(0) },
            Some(BadRecordMac),
        ),
        (
            "changed in its version",
            changed(one(DATA, b"abc"), 2),
            OpenError::Forged { at: at(0) },
            Some(BadRecordMac),
        ),
        ("a tag around nothing", raw(&[]), OpenError::AllPadding { at: at(0) }, Some(UnexpectedMessage)),
        ("one byte of padding", raw(&[0]), OpenError::AllPadding { at: at(0) }, Some(UnexpectedMessage)),
        (
            "padding to the brim",
            raw(&[0; MAX_BODY + 1]),
            OpenError::AllPadding { at: at(0) },
            Some(UnexpectedMessage),
        ),
        (
            "change_cipher_spec inside",
            one(20, &[1]),
            OpenError::Kind { at: at(0), kind: 20 },
            Some(UnexpectedMessage),
        ),
        ("heartbeat", one(24, &[1]), OpenError::Kind { at: at(0), kind: 24 }, Some(UnexpectedMessage)),
        (
            "a type nobody knows",
            one(255, &[]),
            OpenError::Kind { at: at(0), kind: 255 },
            Some(UnexpectedMessage),
        ),
        (
            "an empty alert",
            one(ALERT, &[]),
            OpenError::Empty { at: at(0), kind: ALERT },
            Some(UnexpectedMessage),
        ),
        (
            "an empty handshake record",
            one(HANDSHAKE, &[]),
            OpenError::Empty { at: at(0), kind: HANDSHAKE },
            Some(UnexpectedMessage),
        ),
        (
            "half an alert",
            one(ALERT, &[1]),
            OpenError::AlertLength { at: at(0), length: 1 },
            Some(DecodeError),
        ),
        (
            "two alerts",
            one(ALERT, &[1, 0, 1, 0]),
            OpenError::AlertLength { at: at(0), length: 4 },
            Some(DecodeError),
        ),
        ("a fatal alert", one(ALERT, &[2, 40]), alert(40), None),
        ("a fatal alert that says it is a warning", one(ALERT, &[1, 42]), alert(42), None),
        ("an alert of no level", one(ALERT, &[0, 80]), alert(80), None),
        ("an alert nobody knows", one(ALERT, &[1, 200]), alert(200), None),
        (
            "data in a ticket",
            two((HANDSHAKE, cut_ticket), (DATA, b"x")),
            OpenError::Interleaved { at: at(1), kind: DATA },
            Some(UnexpectedMessage),
        ),
        (
            "empty data in a ticket",
            two((HANDSHAKE, cut_ticket), (DATA, b"")),
            OpenError::Interleaved { at: at(1), kind: DATA },
            Some(UnexpectedMessage),
        ),
        (
            "close_notify in a ticket",
            two((HANDSHAKE, cut_ticket), (ALERT, &[1, 0])),
            OpenError::Interleaved { at: at(1), kind: ALERT },
            Some(UnexpectedMessage),
        ),
        (
            "user_canceled in a header",
            two((HANDSHAKE, &[4]), (ALERT, &[1, 90])),
            OpenError::Interleaved { at: at(1), kind: ALERT },
            Some(UnexpectedMessage),
        ),
        (
            "a ClientHello",
            one(HANDSHAKE, &[1]),
            OpenError::Message { at: at(0), kind: 1 },
            Some(UnexpectedMessage),
        ),
        (
            "EndOfEarlyData",
            one(HANDSHAKE, &[5, 0, 0, 0]),
            OpenError::Message { at: at(0), kind: 5 },
            Some(UnexpectedMessage),
        ),
        (
            "a CertificateRequest",
            one(HANDSHAKE, &[13, 0, 0, 1, 0]),
            OpenError::Message { at: at(0), kind: 13 },
            Some(UnexpectedMessage),
        ),
        (
            "Finished again",
            one(HANDSHAKE, &[20]),
            OpenError::Message { at: at(0), kind: 20 },
            Some(UnexpectedMessage),
        ),
        (
            "another message behind a ticket",
            one(HANDSHAKE, &[&TICKET[..], &[11]].concat()),
            OpenError::Message { at: at(0), kind: 11 },
            Some(UnexpectedMessage),
        ),
        (
            "a KeyUpdate of nothing",
            one(HANDSHAKE, &[24, 0, 0, 0]),
            OpenError::KeyUpdateLength { at: at(0), length: 0 },
            Some(DecodeError),
        ),
        (
            "a KeyUpdate of two bytes",
            one(HANDSHAKE, &[24, 0, 0, 2, 0, 0]),
            OpenError::KeyUpdateLength { at: at(0), length: 2 },
            Some(DecodeError),
        ),
        (
            "a KeyUpdate of another value",
            one(HANDSHAKE, &[24, 0, 0, 1, 2]),
            OpenError::KeyUpdateValue { at: at(0), value: 2 },
            Some(IllegalParameter),
        ),
        (
            "two KeyUpdates at once",
            one(HANDSHAKE, &[&KEY_UPDATE[..], &KEY_UPDATE].concat()),
            OpenError::KeyUpdateNotLast { at: at(0), behind: 5 },
            Some(UnexpectedMessage),
        ),
        (
            "a ticket shorter than its fields",
            one(HANDSHAKE, &[4, 0, 0, 13]),
            OpenError::TicketLength { at: at(0), length: 13 },
            Some(DecodeError),
        ),
        (
            "a ticket of 64 KiB",
            one(HANDSHAKE, &[4, 1, 0, 0]),
            OpenError::TicketLength { at: at(0), length: 65_536 },
            Some(DecodeError),
        ),
    ];
    for (what, bytes, error, alert) in rows {
        let (news, result, mut inbox) = receive(Role::Client, &bytes);
        assert_eq!(result, Err(error), "{what}");
        assert_eq!(error.alert(), alert, "{what}");
        assert_eq!(news.data, b"", "{what}");
        // And nothing mends it.
        let mut good = by_hand();
        good.sequence = inbox.opener.sequence();
        inbox.bytes.clear();
        assert_eq!(inbox.receive(&good.record(DATA, b"good"), &mut News::default()), Err(error), "{what}");
        assert_eq!(inbox.opener.eof(0), Err(error), "{what}");
        assert_eq!(inbox.opener.into_state().unwrap_err(), error, "{what}");
    }
}

#[test]
fn a_server_takes_no_tickets() {
    let (_, result, _) = receive(Role::Server, &by_hand().record(HANDSHAKE, &TICKET));
    assert_eq!(result, Err(OpenError::Message { at: at(0), kind: 4 }));
}

#[test]
fn a_record_out_of_its_order_does_not_authenticate() {
    let mut peer = by_hand();
    let records = [peer.record(DATA, b"one"), peer.record(DATA, b"two"), peer.record(DATA, b"three")];
    for order in [[0, 2, 1], [1, 0, 2], [0, 0, 1], [0, 2, 2]] {
        let stream = order.map(|n: usize| records[n].clone()).concat();
        let (news, result, _) = receive(Role::Client, &stream);
        assert!(matches!(result, Err(OpenError::Forged { .. })), "{order:?}");
        assert!(b"one".starts_with(&news.data), "{order:?}");
    }
}

#[test]
fn padding_of_any_length_is_stripped() {
    for body in [0, 1, 15, 16, 17, 1000, MAX_BODY - 1, MAX_BODY] {
        for padding in [0, 1, 2, 15, 16, 17, 31, 32, 33, 4000, MAX_BODY - body] {
            if body + padding > MAX_BODY {
                continue;
            }
            // A body that ends with zeros keeps them.
            let mut data = vec![1; body];
            data.iter_mut().rev().take(20).for_each(|byte| *byte = 0);
            let inner = [&data[..], &[DATA], &vec![0; padding]].concat();
            let (news, result, _) = receive(Role::Client, &by_hand().raw(PROTECTED, &inner));
            assert_eq!(result, Ok(()));
            assert!(news.data == data, "{body} bytes and {padding} of padding");
        }
    }
    let padded_alert = by_hand().raw(PROTECTED, &[&[1, 0, ALERT][..], &[0; 300]].concat());
    assert!(receive(Role::Client, &padded_alert).0.closed);
}

#[test]
fn the_version_of_a_header_means_nothing() {
    let (news, result, _) = receive(Role::Client, &by_hand().raw([DATA, 0x7f, 0xee], &[b'x', DATA]));
    assert_eq!((&news.data[..], result), (&b"x"[..], Ok(())));
}

#[test]
fn how_much_is_missing_is_said_exactly() {
    let mut whole = by_hand().record(DATA, b"twelve bytes");
    let length = whole.len();
    let mut opener = Opener::new(Role::Client, secret(SUITE), 0);
    for have in 0..length {
        let needed = if have < HEADER { HEADER } else { length };
        assert_eq!(opener.open(&mut whole[..have]), Ok(Opened::Incomplete { needed }));
    }
    whole.extend_from_slice(b"next");
    let mut data = *b"twelve bytes";
    let record = Opened::Record { taken: length, content: Content::Data(&mut data) };
    assert_eq!(opener.open(&mut whole), Ok(record));
    assert!(whole.ends_with(b"next"));
}

#[test]
fn messages_may_be_split_and_joined_in_any_way() {
    for role in [Role::Client, Role::Server] {
        let mut peer = by_hand();
        let mut stream = Vec::new();
        for byte in KEY_UPDATE {
            stream.extend(peer.record(HANDSHAKE, &[byte]));
        }
        peer.ratchet();
        stream.extend(peer.record(DATA, b"x"));
        let (news, result, _) = receive(role, &stream);
        assert_eq!(result, Ok(()));
        assert_eq!(news, News { data: b"x".into(), keys_changed: 1, ignored: 4, ..News::default() });
    }
    let messages = [&TICKET[..], &TICKET, &TICKET, &[24, 0, 0, 1, 1]].concat();
    for piece in 1..=messages.len() {
        let mut peer = by_hand();
        let mut stream: Vec<u8> =
            messages.chunks(piece).flat_map(|piece| peer.record(HANDSHAKE, piece)).collect();
        peer.ratchet();
        stream.extend(peer.record(DATA, b"x"));
        let (news, result, _) = receive(Role::Client, &stream);
        assert_eq!(result, Ok(()), "{piece}");
        assert_eq!((&news.data[..], news.keys_changed, news.answers), (&b"x"[..], 1, 1), "{piece}");
    }
}

#[test]
fn the_longest_ticket_is_passed_over() {
    let mut ticket = vec![4, 0, 0xff, 0xff];
    ticket.resize(4 + 0xffff, 24);
    let mut peer = by_hand();
    let mut stream: Vec<u8> =
        ticket.chunks(MAX_BODY).flat_map(|piece| peer.record(HANDSHAKE, piece)).collect();
    stream.extend(peer.record(DATA, b"x"));
    let (news, result, _) = receive(Role::Client, &stream);
    assert_eq!((&news.data[..], result), (&b"x"[..], Ok(())));
}

/// The most of `next` that is taken in a row, and that data between makes it endless.
fn limit_of(mut next: impl FnMut(&mut ByHand) -> Vec<u8>) -> (usize, OpenError) {
    let mut peer = by_hand();
    let mut inbox = Inbox::new(Opener::new(Role::Client, secret(SUITE), 0), Vec::new());
    for _ in 0..700 {
        inbox.receive(&next(&mut peer), &mut News::default()).unwrap();
        inbox.receive(&peer.record(DATA, b"x"), &mut News::default()).unwrap();
    }
    for taken in 0.. {
        if let Err(error) = inbox.receive(&next(&mut peer), &mut News::default()) {
            return (taken, error);
        }
    }
    unreachable!()
}

#[test]
fn runs_without_data_are_bounded_and_data_ends_them() {
    let (taken, error) = limit_of(|peer| peer.record(DATA, b""));
    assert_eq!((taken, error.alert()), (32, Some(UnexpectedMessage)), "{error}");
    assert!(matches!(error, OpenError::Idle { limit: 32, .. }));
    let (taken, error) = limit_of(|peer| {
        let record = peer.record(HANDSHAKE, &KEY_UPDATE);
        peer.ratchet();
        record
    });
    assert_eq!((taken, error.alert()), (32, Some(UnexpectedMessage)), "{error}");
    assert_eq!(error, OpenError::KeyUpdates { at: At { key: 732, record: 0 }, limit: 32 });
    let (taken, error) = limit_of(|peer| peer.record(ALERT, &[1, 90]));
    assert_eq!((taken, error.alert()), (256, Some(UnexpectedMessage)), "{error}");
    let (taken, _) = limit_of(|peer| peer.record(HANDSHAKE, &TICKET));
    assert_eq!(taken, 256);
}

#[test]
fn a_connection_may_live_long_enough_for_many_tickets() {
    let mut peer = by_hand();
    let mut inbox = Inbox::new(Opener::new(Role::Client, secret(SUITE), 0), Vec::new());
    for _ in 0..10_000 {
        let bytes = [peer.record(HANDSHAKE, &TICKET), peer.record(DATA, b"x")].concat();
        inbox.receive(&bytes, &mut News::default()).unwrap();
    }
}

#[test]
fn an_end_is_clean_only_behind_close_notify() {
    let stream = by_hand().record(DATA, b"abc");
    for cut in 0..stream.len() {
        let (_, result, inbox) = receive(Role::Client, &stream[..cut]);
        assert_eq!(result, Ok(()));
        let truncated = OpenError::Truncated { at: at(0), rest: cut };
        assert_eq!(inbox.opener.eof(inbox.bytes.len()), Err(truncated));
        assert_eq!(truncated.alert(), None);
    }
    let (news, result, inbox) = receive(Role::Client, &by_hand().record(ALERT, &[2, 0]));
    assert_eq!((news.closed, result, inbox.opener.eof(0)), (true, Ok(()), Ok(())), "whatever its level");
}

#[test]
fn what_comes_behind_close_notify_is_not_looked_at() {
    let mut peer = by_hand();
    let end = peer.record(ALERT, &[1, 0]);
    for behind in [&b"GET /"[..], &peer.record(DATA, b"late")] {
        let (mut news, result, mut inbox) = receive(Role::Client, &[&end, behind].concat());
        assert_eq!((news.closed, &news.data[..], result), (true, &b""[..], Ok(())));
        assert_eq!(inbox.receive(behind, &mut news), Ok(()));
        assert_eq!((&news.data[..], inbox.opener.eof(7)), (&b""[..], Ok(())));
    }
}
