//! Bytes nobody meant: no panic, and no data but what was sent.

use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;

use super::support::*;
use crate::tls::record::content::{ALERT, DATA, HANDSHAKE};
use crate::tls::*;

const TICKET: [u8; 18] = [4, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0];

/// What a peer may do.
#[derive(Clone, Debug)]
enum Act {
    Data(Vec<u8>, usize),
    Tickets(usize, usize),
    KeyUpdate(bool),
    Cancel,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (vec(any::<u8>(), 0..300), 0..100_usize).prop_map(|(data, padding)| Act::Data(data, padding)),
        // So few pieces that an honest stream stays within the opener's budget.
        1 => (1..3_usize, 4..30_usize).prop_map(|(tickets, piece)| Act::Tickets(tickets, piece)),
        1 => any::<bool>().prop_map(Act::KeyUpdate),
        1 => Just(Act::Cancel),
    ]
}

/// Records of `acts` and a close_notify, and the data in them.
fn stream(acts: &[Act]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut peer = ByHand::new(secret(Suite::Aes128));
    let (mut records, mut sent) = (Vec::new(), Vec::new());
    for act in acts {
        match act {
            Act::Data(data, padding) => {
                let inner = [&data[..], &[DATA], &vec![0; *padding]].concat();
                records.push(peer.raw([DATA, 3, 3], &inner));
                sent.extend_from_slice(data);
            }
            Act::Tickets(tickets, piece) => {
                for piece in TICKET.repeat(*tickets).chunks(*piece) {
                    records.push(peer.record(HANDSHAKE, piece));
                }
            }
            Act::KeyUpdate(answer) => {
                records.push(peer.record(HANDSHAKE, &[24, 0, 0, 1, (*answer).into()]));
                peer.ratchet();
            }
            Act::Cancel => records.push(peer.record(ALERT, &[1, 90])),
        }
    }
    records.push(peer.record(ALERT, &[1, 0]));
    (records, sent)
}

fn inbox() -> Inbox {
    Inbox::new(Opener::new(Role::Client, secret(Suite::Aes128), 0), Vec::new())
}

/// One thing that somebody on the way may do to the records.
#[derive(Clone, Debug)]
enum Harm {
    Flip(usize, u8),
    Drop(usize),
    Double(usize),
    Swap(usize, usize),
    Insert(usize, Vec<u8>),
    Cut(usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (any::<usize>(), 0..8_u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        any::<usize>().prop_map(Harm::Drop),
        any::<usize>().prop_map(Harm::Double),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Harm::Swap(a, b)),
        (any::<usize>(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
        any::<usize>().prop_map(Harm::Cut),
    ]
}

fn harmed(mut records: Vec<Vec<u8>>, harm: Harm) -> Vec<u8> {
    let count = records.len();
    let bytes = |records: &[Vec<u8>]| records.concat();
    match harm {
        Harm::Drop(n) => drop(records.remove(n % count)),
        Harm::Double(n) => records.insert(n % count, records[n % count].clone()),
        Harm::Swap(a, b) => records.swap(a % count, b % count),
        Harm::Flip(at, bit) => {
            let mut all = bytes(&records);
            let at = at % all.len();
            all[at] ^= 1 << bit;
            return all;
        }
        Harm::Insert(at, what) => {
            let mut all = bytes(&records);
            let at = at % (all.len() + 1);
            all.splice(at..at, what);
            return all;
        }
        Harm::Cut(at) => {
            let mut all = bytes(&records);
            all.truncate(at % all.len());
            return all;
        }
    }
    bytes(&records)
}

/// Bytes that mean something at the end of a record or the beginning of a message, more often than others.
fn telling_byte() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), Just(1), Just(4), Just(21), Just(22), Just(23), Just(24), any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_refused_or_awaited(
        bytes in vec(any::<u8>(), 0..2000),
        first in prop_oneof![Just(23_u8), any::<u8>()],
    ) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        let mut news = News::default();
        let _ = inbox().receive(&bytes, &mut news);
        prop_assert_eq!(news, News::default());
    }

    #[test]
    fn any_pieces_give_the_same_bytes(acts in vec(act(), 0..12), pieces in vec(1..400_usize, 1..20)) {
        let (records, sent) = stream(&acts);
        let bytes = records.concat();
        let mut inbox = inbox();
        let mut news = News::default();
        let (mut rest, mut pieces) = (&bytes[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let piece = rest.split_off(..(*pieces.next().unwrap()).min(rest.len())).unwrap();
            inbox.receive(piece, &mut news).unwrap();
        }
        prop_assert_eq!(news.data, sent);
        prop_assert!(news.closed);
        prop_assert_eq!(inbox.opener.eof(0), Ok(()));
    }

    #[test]
    fn of_a_harmed_stream_only_a_beginning_of_the_truth_comes_out(acts in vec(act(), 1..12), harm in harm()) {
        let (records, sent) = stream(&acts);
        let whole = records.concat();
        let harmed = harmed(records, harm);
        let mut inbox = inbox();
        let mut news = News::default();
        let result = inbox.receive(&harmed, &mut news);
        prop_assert!(sent.starts_with(&news.data));
        // A clean end means that nothing is missing.
        if result.is_ok() && inbox.opener.eof(inbox.bytes.len()).is_ok() {
            prop_assert_eq!(news.data, sent);
        } else {
            prop_assert_ne!(harmed, whole);
        }
    }

    #[test]
    fn any_records_of_a_peer_that_has_the_keys_are_survived(
        inners in vec(vec(telling_byte(), 0..60), 0..30),
        server in any::<bool>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut opener = Opener::new(role, secret(Suite::Aes128), 0);
        let mut peer = ByHand::new(secret(Suite::Aes128));
        for inner in inners {
            match opener.open(&mut peer.raw([DATA, 3, 3], &inner)) {
                Err(_) => break,
                Ok(Opened::Record { content: Content::KeysChanged { .. }, .. }) => peer.ratchet(),
                Ok(Opened::Record { content: Content::Data(data), .. }) => prop_assert!(inner.starts_with(data)),
                Ok(_) => {}
            }
            // Whatever it is in the middle of, it can be written down and taken up.
            let state = opener.into_state().unwrap().encode(Instant::now());
            opener = Opener::resume(OpenerState::decode(&state, Instant::now()).unwrap());
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(bytes in vec(any::<u8>(), 0..200), kind in 0..3_u8) {
        let mut bytes = bytes;
        let sealer = b"tlsS\0\x01\x13\x01\0\0\0\0\0\0\0\x20";
        let opener = b"tlsO\0\x01\0\x13\x02\0\0\0\0\0\0\0\x30";
        let mark = [&b""[..], sealer, opener][usize::from(kind)];
        bytes.splice(..0, mark.iter().copied());
        states_are_exact(&bytes);
    }

    #[test]
    fn a_harmed_state_is_another_state_or_an_error(at in any::<usize>(), value in any::<u8>(), more in any::<bool>()) {
        let now = Instant::now();
        let mut peer = ByHand::new(secret(Suite::Aes128));
        let mut inbox = inbox();
        inbox.receive(&peer.record(HANDSHAKE, &TICKET[..9]), &mut News::default()).unwrap();
        for written in [
            Sealer::new(secret(Suite::Aes128), 5).into_state().unwrap().encode(now),
            inbox.opener.into_state().unwrap().encode(now),
        ] {
            let mut bytes = written.to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            if more {
                bytes.push(value);
            }
            states_are_exact(&bytes);
        }
    }

    #[test]
    fn any_bytes_in_a_handshake_are_refused_or_awaited(
        bytes in vec(any::<u8>(), 0..300),
        pieces in 1..50_usize,
        harm_at in any::<usize>(),
        server in any::<bool>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let (mut ours, mut peer) = ends(role, Suite::Aes128);
        let mut send = Vec::new();
        ours.start(&mut send).unwrap();
        peer.receive(&send).unwrap();
        let mut flight = peer.sends();
        let at = harm_at % flight.len();
        flight.splice(at..(at + bytes.len()).min(flight.len()), bytes);
        for piece in flight.chunks(pieces) {
            if ours.receive(piece, &mut send).is_err() {
                break;
            }
        }
    }
}

/// What decodes is written as the same bytes again, and can be gone on with.
fn states_are_exact(bytes: &[u8]) {
    let now = Instant::now();
    if let Ok(state) = SealerState::decode(bytes, now) {
        assert_eq!(state.encode(now)[..], *bytes);
        let mut sealer = Sealer::resume(SealerState::decode(bytes, now).unwrap());
        let _ = sealer.seal(&mut [0; OVERHEAD]);
        let _ = sealer.seal_key_update(PeerKeys::Stay);
    }
    if let Ok(state) = OpenerState::decode(bytes, now) {
        assert_eq!(state.encode(now)[..], *bytes);
        let state = OpenerState::decode(bytes, now).unwrap();
        let mut peer = ByHand::new(TrafficSecret::new(state.secret.suite(), state.secret.expose()).unwrap());
        peer.sequence = state.at.record;
        let mut opener = Opener::resume(state);
        for message in [&TICKET[..], &[24, 0, 0, 1, 0]] {
            if opener.open(&mut peer.record(HANDSHAKE, message)).is_err() {
                break;
            }
        }
    }
}
