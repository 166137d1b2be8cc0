//! What the sealer refuses and when its key is due, and that what it seals is what an opener opens.

use super::support::*;
use crate::tls::*;

fn pair(suite: Suite) -> (Sealer, Inbox) {
    (Sealer::new(secret(suite), 0), Inbox::new(Opener::new(Role::Server, secret(suite), 0), Vec::new()))
}

#[test]
fn a_batch_is_the_same_bytes_as_its_records_one_by_one() {
    for suite in Suite::ALL {
        let data = pattern(3 * MAX_BODY + 77);
        let batch = seal(&mut Sealer::new(secret(suite), 0), &data, 4);
        let single = seal(&mut Sealer::new(secret(suite), 0), &data, 1);
        assert_eq!(batch.len(), 3 * SLOT + 77 + OVERHEAD);
        assert!(batch == single);
        let (_, mut inbox) = pair(suite);
        let mut news = News::default();
        inbox.receive(&batch, &mut news).unwrap();
        assert!(news.data == data);
    }
}

#[test]
fn the_bodies_of_a_batch_are_all_of_its_room_and_nothing_else() {
    for (length, expected) in [
        (0, vec![]),
        (OVERHEAD, vec![]),
        (OVERHEAD + 1, vec![1]),
        (SLOT, vec![MAX_BODY]),
        (SLOT + OVERHEAD, vec![MAX_BODY]),
        (2 * SLOT + 100, vec![MAX_BODY, MAX_BODY, 100 - OVERHEAD]),
    ] {
        let mut batch = vec![0; length];
        let found: Vec<usize> = bodies(&mut batch).map(|body| body.len()).collect();
        assert_eq!(found, expected, "{length}");
        bodies(&mut batch).for_each(|body| body.fill(1));
        let filled = batch.iter().filter(|byte| **byte == 1).count();
        if expected.iter().sum::<usize>() > 0 && length != SLOT + OVERHEAD {
            assert_eq!(batch_length(filled), length);
        }
    }
    assert_eq!(batch_length(0), 0);
}

#[test]
fn what_is_no_record_is_refused_untouched() {
    let (mut sealer, _) = pair(Suite::Aes128);
    for (length, error) in [
        (0, SealError::Short { slot: 0 }),
        (OVERHEAD - 1, SealError::Short { slot: OVERHEAD - 1 }),
        (SLOT + 1, SealError::Long { body: MAX_BODY + 1 }),
    ] {
        let mut slot = vec![7; length];
        assert_eq!(sealer.seal(&mut slot), Err(error));
        assert_eq!(slot, vec![7; length]);
    }
    let mut batch = vec![7; SLOT + OVERHEAD - 1];
    assert_eq!(sealer.seal_batch(&mut batch), Err(SealError::Short { slot: OVERHEAD - 1 }));
    assert!(batch.iter().all(|byte| *byte == 7));
    assert_eq!(sealer.sequence(), 0);
}

#[test]
fn a_key_update_is_due_before_2_to_the_23_and_data_ends_at_2_to_the_24() {
    let mut sealer = Sealer::new(secret(Suite::Aes256), KEY_UPDATE_DUE - 1);
    assert!(!sealer.key_update_due());
    sealer.seal(&mut [0; OVERHEAD]).unwrap();
    assert!(sealer.key_update_due());
    // A batch under way is still sealed.
    sealer.seal_batch(&mut vec![0; 64 * SLOT]).unwrap();
    assert!(sealer.sequence() < 1 << 23);
    let _ = sealer.seal_key_update(PeerKeys::Stay).unwrap();
    assert!(!sealer.key_update_due());
    assert_eq!(sealer.sequence(), 0);

    let mut sealer = Sealer::new(secret(Suite::Aes256), KEY_LIMIT - 2);
    let mut batch = vec![7; 3 * SLOT];
    let spent = SealError::KeySpent { sequence: KEY_LIMIT - 2, records: 3 };
    assert_eq!(sealer.seal_batch(&mut batch), Err(spent));
    assert!(batch.iter().all(|byte| *byte == 7), "no record of it was sealed");
    sealer.seal_batch(&mut batch[..2 * SLOT]).unwrap();
    assert!(matches!(sealer.seal(&mut [0; OVERHEAD]), Err(SealError::KeySpent { .. })));
    let _ = sealer.seal_key_update(PeerKeys::Stay).unwrap();
    sealer.seal(&mut [0; OVERHEAD]).unwrap();
}

#[test]
fn nothing_is_sealed_after_the_end() {
    for alert in [None, Some(rustls::AlertDescription::InternalError)] {
        let (mut sealer, _) = pair(Suite::Aes128);
        let _ = match alert {
            None => sealer.seal_close_notify().unwrap(),
            Some(alert) => sealer.seal_alert(alert).unwrap(),
        };
        assert!(sealer.is_closed());
        assert_eq!(sealer.seal(&mut [0; OVERHEAD]), Err(SealError::Closed));
        assert_eq!(sealer.seal_key_update(PeerKeys::Stay).unwrap_err(), SealError::Closed);
        assert_eq!(sealer.seal_close_notify().unwrap_err(), SealError::Closed);
        assert_eq!(sealer.seal_alert(rustls::AlertDescription::DecodeError).unwrap_err(), SealError::Closed);
    }
}

#[test]
fn an_end_is_sealed_although_an_answer_is_owed() {
    let (mut sealer, mut inbox) = pair(Suite::Aes128);
    sealer.owe_key_update();
    let mut news = News::default();
    inbox.receive(&sealer.seal_close_notify().unwrap(), &mut news).unwrap();
    assert!(news.closed);
}

#[test]
fn a_sealer_that_begins_in_the_middle_goes_on_past_every_border_of_its_count() {
    for first in [1, 2, 3, 7, 255, 1000, (1 << 16) - 5, (1 << 23) - 5, 1 << 23] {
        for suite in Suite::ALL {
            let mut sealer = Sealer::new(secret(suite), first);
            let mut inbox = Inbox::new(Opener::new(Role::Client, secret(suite), first), Vec::new());
            let mut news = News::default();
            for _ in 0..300 {
                let mut slot = [b'x'; OVERHEAD + 1];
                sealer.seal(&mut slot).unwrap();
                inbox.receive(&slot, &mut news).unwrap();
            }
            assert_eq!((news.data.len(), inbox.opener.sequence()), (300, first + 300));
        }
    }
}

#[test]
fn after_the_end_nothing_is_due_whatever_the_peer_asks() {
    let mut sealer = Sealer::new(secret(Suite::Aes128), KEY_UPDATE_DUE);
    assert!(sealer.key_update_due());
    let _ = sealer.seal_close_notify().unwrap();
    assert!(!sealer.key_update_due());
    sealer.owe_key_update();
    assert!(!sealer.key_update_due());
}

#[test]
fn a_number_that_was_used_is_refused_by_the_cipher_too_and_ends_the_sealer_without_a_close() {
    for first in [0, 1, 1000, 1 << 23] {
        number_used_twice(first);
    }
}

fn number_used_twice(first: u64) {
    let mut sealer = Sealer::new(secret(Suite::Aes128), first);
    sealer.seal(&mut [0; OVERHEAD]).unwrap();
    sealer.state.sequence = first;
    let refused = SealError::Cipher { sequence: first };
    assert_eq!(sealer.seal(&mut [0; OVERHEAD]), Err(refused));
    assert!(!sealer.is_closed(), "no close_notify was sealed");
    assert_eq!(sealer.seal(&mut [0; OVERHEAD]), Err(refused));
    assert_eq!(sealer.seal_close_notify().map(drop), Err(refused));
    assert_eq!(sealer.into_state().map(drop), Err(refused));
}

#[test]
fn no_count_is_too_high_to_be_refused() {
    for sequence in [KEY_LIMIT, u64::MAX - 1, u64::MAX] {
        let mut sealer = Sealer::new(secret(Suite::Aes128), sequence);
        let refused = SealError::KeySpent { sequence, records: 1 };
        assert_eq!(sealer.seal(&mut [0; OVERHEAD]), Err(refused));
    }
}
