//! What a peer that has the keys can seal: the input is a row of records, each a type, a length in two bytes and that much content, sealed
//! properly. The opener must not panic, must hand on exactly the data that was sealed, and must go on the same when it moves between two
//! records.
#![no_main]

use std::time::Instant;

use adit::tls::{Content, Opened, Opener, OpenerState, Role, Suite, TrafficSecret};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use libfuzzer_sys::fuzz_target;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label (RFC 8446 §7.1), for a key schedule that is not the room's own.
fn expand(secret: &[u8; 32], label: &str, out: &mut [u8]) {
    let label = format!("tls13 {label}");
    let info = [&[0, out.len() as u8, label.len() as u8][..], label.as_bytes(), &[0]];
    let prk = Prk::new_less_safe(HKDF_SHA256, secret);
    prk.expand(&info, Length(out.len())).expect("a short output").fill(out).expect("of that length");
}

struct Peer {
    secret: [u8; 32],
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Peer {
    fn new(secret: [u8; 32]) -> Self {
        let (mut key, mut iv) = ([0; 16], [0; 12]);
        expand(&secret, "key", &mut key);
        expand(&secret, "iv", &mut iv);
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).expect("16 bytes"));
        Self { secret, key, iv, sequence: 0 }
    }

    fn next_keys(&mut self) {
        let mut next = [0; 32];
        expand(&self.secret, "traffic upd", &mut next);
        *self = Self::new(next);
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut inner = [content, &[kind]].concat();
        let length = u16::try_from(inner.len() + 16).expect("a short record");
        let header = [&[23, 3, 3][..], &length.to_be_bytes()].concat();
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&header[..]), &mut inner).expect("a short record");
        [header, inner].concat()
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, mut rest)) = bytes.split_first() else { return };
    let role = if how & 1 == 0 { Role::Client } else { Role::Server };
    let secret = TrafficSecret::new(Suite::Aes128, &[7; 32]).expect("32 bytes");
    let (mut peer, mut opener) = (Peer::new([7; 32]), Opener::new(role, secret, 0));
    while let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len()).min(16_384);
        let (content, after) = after.split_at(length);
        rest = after;
        let mut record = peer.seal(kind, content);
        // What is inside, without the zeros at its end: the last byte is the type (RFC 8446 §5.2).
        let inner = [content, &[kind]].concat();
        let length = inner.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let sent = inner[..length].split_last();
        let whole = record.len();
        match opener.open(&mut record) {
            Ok(Opened::Record { taken, content: opened }) => {
                assert_eq!(taken, whole);
                match opened {
                    Content::Data(data) => assert_eq!(sent, Some((&23, &data[..]))),
                    Content::KeysChanged { .. } => peer.next_keys(),
                    Content::Ignored => {}
                    Content::Closed => return,
                }
            }
            Ok(Opened::Incomplete { .. }) => panic!("it was whole"),
            Err(error) => {
                assert_eq!(opener.open(&mut [23; 5]).expect_err("it stays failed"), error);
                return;
            }
        }
        let now = Instant::now();
        let state = opener.into_state().expect("it has not failed").encode(now);
        opener = Opener::resume(OpenerState::decode(&state, now).expect("it was just written"));
    }
});
