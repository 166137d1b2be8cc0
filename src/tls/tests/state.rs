//! Sealers and openers that are written down, read back, and go on; and what a look at them tells.

use std::fmt::Debug;
use std::time::Instant;

use super::support::*;
use crate::plain::PlainError;
use crate::tls::record::content::{DATA, HANDSHAKE};
use crate::tls::*;

/// Through bytes and back, as to another process.
fn moved_sealer(sealer: Sealer) -> Sealer {
    let bytes = sealer.into_state().unwrap().encode(Instant::now());
    Sealer::resume(SealerState::decode(&bytes, Instant::now()).unwrap())
}

fn moved_opener(opener: Opener) -> Opener {
    let bytes = opener.into_state().unwrap().encode(Instant::now());
    Opener::resume(OpenerState::decode(&bytes, Instant::now()).unwrap())
}

/// Sends `records` records of one byte each way.
fn tick(sealer: &mut Sealer, inbox: &mut Inbox, peer: &mut Peer, records: usize) {
    let mut news = News::default();
    let mut left = records;
    while left > 0 {
        let now = left.min(2000);
        left -= now;
        let mut bytes = Vec::with_capacity(now * (OVERHEAD + 1));
        for _ in 0..now {
            let mut slot = [b'>'; OVERHEAD + 1];
            sealer.seal(&mut slot).unwrap();
            bytes.extend_from_slice(&slot);
            peer.write(b"<");
        }
        peer.receive(&bytes).unwrap();
        assert_eq!(peer.read().len(), now);
        inbox.receive(&peer.sends(), &mut news).unwrap();
        assert_eq!(std::mem::take(&mut news.data).len(), now);
    }
}

/// After `records` records both directions move, and rustls at the other end notices nothing, through KeyUpdates.
fn moves_after(records: usize, role: Role, suite: Suite) {
    let (ours, mut peer) = established(role, suite);
    let mut sealer = ours.sealer;
    let mut inbox = Inbox::new(ours.opener, ours.received);
    tick(&mut sealer, &mut inbox, &mut peer, records);
    assert_eq!(sealer.sequence(), records as u64);
    for turn in 0..3 {
        sealer = moved_sealer(sealer);
        inbox.opener = moved_opener(inbox.opener);
        tick(&mut sealer, &mut inbox, &mut peer, 3);
        if turn == 1 {
            peer.receive(&sealer.seal_key_update(PeerKeys::Change).unwrap()).unwrap();
            let mut news = News::default();
            inbox.receive(&peer.sends(), &mut news).unwrap();
            // rustls answers before its next data.
            peer.write(b"<");
            inbox.receive(&peer.sends(), &mut news).unwrap();
            assert_eq!((news.keys_changed, &news.data[..]), (1, &b"<"[..]));
        }
    }
    peer.receive(&sealer.seal_close_notify().unwrap()).unwrap();
    assert!(peer.0.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn a_connection_goes_on_elsewhere_from_any_record() {
    for records in [1, 2, 1000] {
        for role in [Role::Client, Role::Server] {
            for suite in Suite::ALL {
                moves_after(records, role, suite);
            }
        }
    }
}

#[test]
fn a_connection_goes_on_elsewhere_after_2_to_the_23_records_each_way() {
    // One after the other would be the longest test of all.
    let other = std::thread::spawn(|| moves_after(1 << 23, Role::Server, Suite::Aes256));
    moves_after(1 << 23, Role::Client, Suite::Aes128);
    other.join().unwrap();
}

#[test]
fn a_state_with_another_number_is_of_no_use() {
    for wrong in [0, 1, 3, 4] {
        let (mut ours, mut peer) = established(Role::Server, Suite::Aes256);
        peer.receive(&seal(&mut ours.sealer, b"1", 1)).unwrap();
        peer.receive(&seal(&mut ours.sealer, b"2", 1)).unwrap();
        let mut state = ours.sealer.into_state().unwrap();
        assert_eq!(state.sequence, 2);
        state.sequence = wrong;
        let sent = seal(&mut Sealer::resume(state), b"3", 1);
        assert_eq!(peer.receive(&sent), Err(rustls::Error::DecryptError), "{wrong}");

        for number in [2, wrong] {
            let (ours, mut peer) = established(Role::Server, Suite::Aes256);
            let mut inbox = Inbox::new(ours.opener, ours.received);
            for data in [b"1", b"2"] {
                peer.write(data);
                inbox.receive(&peer.sends(), &mut News::default()).unwrap();
            }
            let mut state = inbox.opener.into_state().unwrap();
            assert_eq!(state.at.record, 2);
            state.at.record = number;
            let mut inbox = Inbox::new(Opener::resume(state), Vec::new());
            peer.write(b"3");
            let opened = inbox.receive(&peer.sends(), &mut News::default());
            assert_eq!(opened.is_ok(), number == 2, "{number}: {opened:?}");
        }
    }
}

#[test]
fn an_opener_moves_in_the_middle_of_a_message() {
    let messages = [4, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 24, 0, 0, 1, 1];
    let mut peer = ByHand::new(secret(Suite::Aes256));
    let mut inbox = Inbox::new(Opener::new(Role::Client, secret(Suite::Aes256), 0), Vec::new());
    let mut news = News::default();
    for byte in messages {
        inbox.receive(&peer.record(HANDSHAKE, &[byte]), &mut news).unwrap();
        inbox.opener = moved_opener(inbox.opener);
    }
    peer.ratchet();
    inbox.receive(&peer.record(DATA, b"x"), &mut news).unwrap();
    assert_eq!((&news.data[..], news.keys_changed, news.answers), (&b"x"[..], 1, 1));
}

#[test]
fn budgets_debts_and_ends_move_along() {
    let mut peer = ByHand::new(secret(Suite::Aes128));
    let mut inbox = Inbox::new(Opener::new(Role::Client, secret(Suite::Aes128), 0), Vec::new());
    for _ in 0..32 {
        inbox.receive(&peer.record(DATA, b""), &mut News::default()).unwrap();
        inbox.opener = moved_opener(inbox.opener);
    }
    let error = inbox.receive(&peer.record(DATA, b""), &mut News::default()).unwrap_err();
    assert!(matches!(error, OpenError::Idle { limit: 32, .. }));
    assert_eq!(inbox.opener.into_state().unwrap_err(), error, "and what failed does not move");

    let mut sealer = Sealer::new(secret(Suite::Aes128), 0);
    sealer.owe_key_update();
    let mut sealer = moved_sealer(sealer);
    assert!(sealer.key_update_due());
    assert_eq!(sealer.seal(&mut [0; OVERHEAD]), Err(SealError::AnswerOwed));
    let _ = sealer.seal_close_notify().unwrap();
    assert_eq!(moved_sealer(sealer).seal(&mut [0; OVERHEAD]), Err(SealError::Closed));

    let mut peer = ByHand::new(secret(Suite::Aes128));
    let mut inbox = Inbox::new(Opener::new(Role::Client, secret(Suite::Aes128), 0), Vec::new());
    inbox.receive(&peer.record(21, &[1, 0]), &mut News::default()).unwrap();
    assert_eq!(moved_opener(inbox.opener).eof(3), Ok(()));
}

#[test]
fn what_no_sealer_or_opener_wrote_is_refused_by_name() {
    let now = Instant::now();
    let sealer = Sealer::new(secret(Suite::Aes128), 7).into_state().unwrap().encode(now).to_vec();
    let opener =
        Opener::new(Role::Server, secret(Suite::Aes128), 7).into_state().unwrap().encode(now).to_vec();
    assert!(matches!(OpenerState::decode(&sealer, now), Err(PlainError::Kind { .. })));
    assert!(matches!(SealerState::decode(&opener, now), Err(PlainError::Kind { .. })));
    for end in 0..sealer.len() {
        assert!(SealerState::decode(&sealer[..end], now).is_err());
    }
    for end in 0..opener.len() {
        assert!(OpenerState::decode(&opener[..end], now).is_err());
    }
    let mut suite = sealer.clone();
    suite[6..8].copy_from_slice(&[0x13, 3]);
    let error = SealerState::decode(&suite, now).unwrap_err();
    assert!(matches!(error, PlainError::Value { field: "the cipher suite", value: 0x1303, .. }), "{error}");
    let mut length = sealer.clone();
    length[7] = 2;
    assert!(SealerState::decode(&length, now).is_err(), "32 bytes are no secret of the other suite");
    let mut sequence = sealer;
    let at = 4 + 2 + 2 + 8 + 32;
    sequence[at..at + 8].copy_from_slice(&(KEY_LIMIT + 2).to_be_bytes());
    let error = SealerState::decode(&sequence, now).unwrap_err();
    assert!(matches!(error, PlainError::Value { field: "the next record's number", .. }), "{error}");
}

/// Whether `text` shows any four bytes of `secret` in a row, in hexadecimal or decimal.
fn shows(text: &str, secret: &[u8]) -> bool {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
    secret.windows(4).any(|four| {
        let hex: String = four.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = four.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        let hex_list = four.iter().map(|byte| format!("{byte:x}")).collect::<Vec<_>>().join(",");
        [hex, list, hex_list].iter().any(|shown| text.contains(shown))
    })
}

#[test]
fn nothing_that_holds_a_secret_prints_it() {
    assert!(shows("[1, 2, 3, 4]", &[0, 1, 2, 3, 4]) && shows("01020304", &[1, 2, 3, 4]), "the test can fail");
    let bytes = pattern(48);
    let secret = || TrafficSecret::new(Suite::Aes256, &bytes).unwrap();
    let keys = secret().keys();
    let sealer = Sealer::new(secret(), 1);
    let opener = Opener::new(Role::Client, secret(), 1);
    let (client, server) =
        (Sealer::new(secret(), 1).into_state().unwrap(), Opener::new(Role::Server, secret(), 1).into_state());
    let whole = secret();
    let established = Established {
        sealer: Sealer::new(secret(), 1),
        opener: Opener::new(Role::Client, secret(), 1),
        suite: Suite::Aes256,
        peer_certificates: Vec::new(),
        alpn: None,
        received: Vec::new(),
    };
    let all: [&dyn Debug; 8] = [&whole, &keys, &keys.iv, &sealer, &opener, &client, &server, &established];
    for value in all {
        for text in [format!("{value:?}"), format!("{value:#?}")] {
            for hidden in [&bytes[..], keys.key(), &keys.iv.0] {
                assert!(!shows(&text, hidden), "{text}");
            }
        }
    }
    // A handshake that holds both traffic secrets, which nobody here knows: its text has no bytes at all.
    let (mut ours, mut peer) = ends(Role::Client, Suite::Aes256);
    shake(&mut ours, &mut peer, usize::MAX).unwrap();
    let text = format!("{ours:?}");
    assert!(text.starts_with("Handshake { received: ") && text.ends_with("done: true, .. }"), "{text}");
}
