//! Which cipher suite, and from a traffic secret the key and the iv of records.

use std::fmt;

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, NONCE_LEN, Nonce};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::{CipherSuite, SupportedCipherSuite};
use zeroize::{Zeroize, Zeroizing};

/// The longest secret: an output of SHA-384.
const MAX_SECRET: usize = 48;
/// The longest key: AES-256.
const MAX_KEY: usize = 32;

/// A cipher suite whose records this room protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`.
    Aes128,
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256,
}

impl Suite {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Aes128, Self::Aes256];

    /// The suite of this number, if it is one of ours.
    pub fn of(suite: CipherSuite) -> Option<Self> {
        match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Aes128),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Aes256),
            _ => None,
        }
    }

    /// The same, of what a rustls provider offers.
    pub(super) fn offered(suite: &SupportedCipherSuite) -> Option<Self> {
        Self::of(suite.suite())
    }

    /// Its number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Aes128 => 0x1301,
            Self::Aes256 => 0x1302,
        }
    }

    /// The suite of a number on the wire.
    pub(super) fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// Bytes of a traffic secret.
    pub fn secret_length(self) -> usize {
        match self {
            Self::Aes128 => 32,
            Self::Aes256 => MAX_SECRET,
        }
    }

    /// The cipher of the records.
    pub(super) fn cipher(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128 => &AES_128_GCM,
            Self::Aes256 => &AES_256_GCM,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128 => HKDF_SHA256,
            Self::Aes256 => HKDF_SHA384,
        }
    }
}

/// The traffic secret of one direction: who has it reads that direction from here on. Wiped when dropped, never printed.
pub struct TrafficSecret {
    suite: Suite,
    /// Boxed, so that moving the owner about leaves no copies on stacks.
    bytes: Box<Zeroizing<[u8; MAX_SECRET]>>,
}

impl TrafficSecret {
    /// Takes a copy of `secret`; the caller wipes its own. `None` when the length is not the suite's.
    pub fn new(suite: Suite, secret: &[u8]) -> Option<Self> {
        if secret.len() != suite.secret_length() {
            return None;
        }
        let mut bytes = Box::new(Zeroizing::new([0; MAX_SECRET]));
        bytes[..secret.len()].copy_from_slice(secret);
        Some(Self { suite, bytes })
    }

    /// The suite it belongs to.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The secret itself, for whoever writes it down.
    pub(super) fn expose(&self) -> &[u8] {
        &self.bytes[..self.suite.secret_length()]
    }

    /// Becomes the secret after a KeyUpdate. The old one is wiped: nobody can go back (RFC 8446 §7.2).
    pub(super) fn ratchet(&mut self) {
        let mut next = Zeroizing::new([0; MAX_SECRET]);
        self.expand("traffic upd", &mut next[..self.suite.secret_length()]);
        self.bytes.copy_from_slice(&*next);
    }

    /// Key and iv of the records under this secret (RFC 8446 §7.3).
    pub(super) fn keys(&self) -> RecordKeys {
        let mut keys =
            RecordKeys { suite: self.suite, key: Zeroizing::new([0; MAX_KEY]), iv: Iv([0; NONCE_LEN]) };
        self.expand("key", &mut keys.key[..self.suite.cipher().key_len()]);
        self.expand("iv", &mut keys.iv.0);
        keys
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
    fn expand(&self, label: &str, out: &mut [u8]) {
        const PREFIX: &[u8] = b"tls13 ";
        let length = u8::try_from(out.len()).expect("no secret, key or iv has 256 bytes");
        let label_length = u8::try_from(PREFIX.len() + label.len()).expect("the labels above are short");
        let info = [&[0, length, label_length], PREFIX, label.as_bytes(), &[0]];
        Prk::new_less_safe(self.suite.hash(), self.expose())
            .expand(&info, Length(out.len()))
            .and_then(|okm| okm.fill(out))
            .expect("fewer than 255 blocks are asked for, into a buffer of just that length");
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrafficSecret({:?}, ..)", self.suite)
    }
}

/// How many bytes HKDF is asked for.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// What protects the records of one direction until its next KeyUpdate. Wiped when dropped, never printed.
pub(super) struct RecordKeys {
    suite: Suite,
    key: Zeroizing<[u8; MAX_KEY]>,
    pub(super) iv: Iv,
}

impl RecordKeys {
    /// The key.
    pub(super) fn key(&self) -> &[u8] {
        &self.key[..self.suite.cipher().key_len()]
    }
}

impl fmt::Debug for RecordKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKeys({:?}, ..)", self.suite)
    }
}

/// What a sequence number is mixed with to make a nonce. Wiped when dropped, never printed.
#[derive(Clone)]
pub(super) struct Iv(pub(super) [u8; NONCE_LEN]);

impl Iv {
    /// The nonce of the record `sequence` (RFC 8446 §5.3).
    pub(super) fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = self.0;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for Iv {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Iv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iv(..)")
    }
}
