//! Data, KeyUpdates and ends between us and rustls.

use rustls::Error;

use super::support::*;
use crate::tls::*;

const BOTH: [Role; 2] = [Role::Client, Role::Server];

fn every_way(story: impl Fn(Role, Suite)) {
    for role in BOTH {
        for suite in Suite::ALL {
            story(role, suite);
        }
    }
}

#[test]
fn data_of_any_size_arrives_both_ways() {
    every_way(|role, suite| {
        let (mut ours, mut peer) = established(role, suite);
        let mut inbox = Inbox::new(ours.opener, ours.received);
        let mut news = News::default();
        for size in [1, 2, 15, 16, 17, 1000, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 5 * MAX_BODY, 300_001] {
            let data = pattern(size);
            peer.receive(&seal(&mut ours.sealer, &data, 16)).unwrap();
            assert_eq!(peer.read(), data, "{size} towards the peer");
            peer.write(&data);
            for piece in peer.sends().chunks(size % 1009 + 1) {
                inbox.receive(piece, &mut news).unwrap();
            }
            assert_eq!(std::mem::take(&mut news.data), data, "{size} from the peer");
        }
    });
}

#[test]
fn a_clients_opener_passes_over_the_tickets_that_a_server_sends() {
    let (ours, mut peer) = established(Role::Client, Suite::Aes256);
    let mut inbox = Inbox::new(ours.opener, ours.received);
    let mut news = News::default();
    peer.write(b"data");
    inbox.receive(&peer.sends(), &mut news).unwrap();
    assert_eq!(news.data, b"data");
    assert_eq!(news.ignored, 1, "rustls sends two in one record");
}

#[test]
fn our_key_update_moves_the_peers_key_and_its_own_when_asked() {
    every_way(|role, suite| {
        let (mut ours, mut peer) = established(role, suite);
        let mut inbox = Inbox::new(ours.opener, ours.received);
        let mut news = News::default();
        for turn in 0..100_usize {
            let wants = if turn % 2 == 0 { PeerKeys::Stay } else { PeerKeys::Change };
            peer.receive(&ours.sealer.seal_key_update(wants).unwrap()).unwrap();
            assert_eq!(ours.sealer.sequence(), 0);
            peer.receive(&seal(&mut ours.sealer, b"under new keys", 1)).unwrap();
            assert_eq!(peer.read(), b"under new keys");
            peer.write(b"and back");
            inbox.receive(&peer.sends(), &mut news).unwrap();
            assert_eq!(std::mem::take(&mut news.data), b"and back");
            assert_eq!((news.keys_changed, news.answers), (turn.div_ceil(2), 0));
        }
    });
}

#[test]
fn the_peers_key_update_is_followed_and_answered_before_more_data() {
    every_way(|role, suite| {
        let (mut ours, mut peer) = established(role, suite);
        let mut inbox = Inbox::new(ours.opener, ours.received);
        let mut news = News::default();
        for turn in 1..=100 {
            // rustls asks for ours whenever it changes its own.
            peer.0.refresh_traffic_keys().unwrap();
            peer.write(b"under new keys");
            inbox.receive(&peer.sends(), &mut news).unwrap();
            assert_eq!(std::mem::take(&mut news.data), b"under new keys");
            assert_eq!((news.keys_changed, news.answers), (turn, turn));
            ours.sealer.owe_key_update();
            let mut slot = [0; OVERHEAD + 1];
            assert_eq!(ours.sealer.seal(&mut slot), Err(SealError::AnswerOwed));
            assert!(ours.sealer.key_update_due());
            peer.receive(&seal(&mut ours.sealer, b"answered", 1)).unwrap();
            assert!(!ours.sealer.key_update_due());
            assert_eq!(peer.read(), b"answered");
            assert!(peer.sends().is_empty(), "the answer asks for nothing");
        }
    });
}

#[test]
fn the_answer_to_a_request_asks_for_nothing_even_when_told_to() {
    let (mut ours, mut peer) = established(Role::Client, Suite::Aes128);
    ours.sealer.owe_key_update();
    peer.receive(&ours.sealer.seal_key_update(PeerKeys::Change).unwrap()).unwrap();
    assert!(peer.sends().is_empty(), "the peer is asked for nothing");
}

#[test]
fn close_notify_is_a_clean_end_for_both_and_each_direction_ends_alone() {
    every_way(|role, suite| {
        let (mut ours, mut peer) = established(role, suite);
        peer.receive(&ours.sealer.seal_close_notify().unwrap()).unwrap();
        let state = peer.0.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        assert_eq!(ours.sealer.seal(&mut [0; OVERHEAD]), Err(SealError::Closed));
        let mut inbox = Inbox::new(ours.opener, ours.received);
        let mut news = News::default();
        peer.write(b"last words");
        peer.0.send_close_notify();
        inbox.receive(&peer.sends(), &mut news).unwrap();
        assert_eq!((&news.data[..], news.closed), (&b"last words"[..], true));
        inbox.receive(b"and nobody reads this", &mut news).unwrap();
        assert_eq!(inbox.opener.eof(21), Ok(()));
    });
}

#[test]
fn a_peer_that_asks_for_new_keys_after_our_end_is_still_heard() {
    let (mut ours, mut peer) = established(Role::Server, Suite::Aes128);
    let mut inbox = Inbox::new(ours.opener, ours.received);
    peer.receive(&ours.sealer.seal_close_notify().unwrap()).unwrap();
    peer.0.refresh_traffic_keys().unwrap();
    peer.write(b"more");
    let mut news = News::default();
    inbox.receive(&peer.sends(), &mut news).unwrap();
    assert_eq!((&news.data[..], news.answers), (&b"more"[..], 1));
    ours.sealer.owe_key_update();
    assert!(!ours.sealer.key_update_due(), "a sender would try to seal one, and fail");
}

#[test]
fn our_alert_is_the_peers_error() {
    every_way(|role, suite| {
        let (mut ours, mut peer) = established(role, suite);
        let alert = ours.sealer.seal_alert(rustls::AlertDescription::RecordOverflow).unwrap();
        let told = peer.receive(&alert).unwrap_err();
        assert_eq!(told, Error::AlertReceived(rustls::AlertDescription::RecordOverflow));
        assert_eq!(ours.sealer.seal_close_notify().unwrap_err(), SealError::Closed);
    });
}

#[test]
fn the_peers_end_without_close_notify_is_a_truncation() {
    let (ours, mut peer) = established(Role::Server, Suite::Aes128);
    let mut inbox = Inbox::new(ours.opener, ours.received);
    let mut news = News::default();
    peer.write(b"whole");
    inbox.receive(&peer.sends(), &mut news).unwrap();
    let at = At { key: 0, record: 1 };
    assert_eq!(inbox.opener.eof(0), Err(OpenError::Truncated { at, rest: 0 }));
    peer.write(b"cut");
    inbox.receive(&peer.sends()[..10], &mut news).unwrap();
    let cut = inbox.opener.eof(inbox.bytes.len()).unwrap_err();
    assert_eq!(cut, OpenError::Truncated { at, rest: 10 });
    assert_eq!(
        cut.to_string(),
        "the connection ended 10 bytes into record 1 under key 0, without close_notify"
    );
}
