//! Our direction: data, KeyUpdates and alerts become records, in place.

use std::fmt;

use aws_lc_rs::aead::{Aad, TlsProtocolId, TlsRecordSealingKey};
use rustls::AlertDescription;

use super::error::SealError;
use super::keys::{Iv, TrafficSecret};
use super::record::{HEADER, MAX_BODY, OVERHEAD, SLOT, SmallRecord, TAG, content};
use super::state::SealerState;

/// From here on a KeyUpdate is due. AES-GCM stays safe for 2^24.5 full records under one key (RFC 8446 §5.5); we
/// change it at a third of that, with room for a batch that is being filled.
pub const KEY_UPDATE_DUE: u64 = (1 << 23) - 1024;
/// From here on no data is sealed.
pub const KEY_LIMIT: u64 = 1 << 24;

/// Seals the records that we send.
///
/// Sealed bytes are final: they are sent, in the order they were sealed, or the connection ends.
///
/// | from   | event                     | to     | and                                                  |
/// |--------|---------------------------|--------|------------------------------------------------------|
/// | Open   | data                      | Open   | a record; from 2^23 − 1,024 on a KeyUpdate is due    |
/// | Open   | 2^24 records              | Open   | data is refused until a KeyUpdate                    |
/// | Open   | the peer wants an answer  | Owing  | a KeyUpdate is due                                   |
/// | Owing  | data                      | Owing  | refused (RFC 8446 §4.6.3)                            |
/// | Open   | KeyUpdate                 | Open   | a record under the old key; then new keys, from 0    |
/// | Owing  | KeyUpdate                 | Open   | the same, and it asks nothing of the peer            |
/// | both   | close_notify, fatal alert | Closed | a record, the last one                               |
/// | Closed | the peer wants an answer  | Closed | nothing: there is no data to send under new keys     |
/// | Closed | anything else             | Closed | refused                                              |
/// | any    | the cipher refuses        | Failed | nothing more is sealed, and it does not move         |
///
/// So a sender's loop is: while [`key_update_due`](Self::key_update_due), send one; then data.
pub struct Sealer {
    pub(super) state: SealerState,
    key: TlsRecordSealingKey,
    iv: Iv,
    /// The record that the cipher refused.
    failed: Option<u64>,
}

/// Whether our KeyUpdate makes the peer change its keys too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKeys {
    /// It keeps them.
    Stay,
    /// It must answer with a KeyUpdate of its own before it sends more data.
    Change,
}

impl Sealer {
    /// Begins with record number `sequence` under `secret`.
    pub fn new(secret: TrafficSecret, sequence: u64) -> Self {
        Self::resume(SealerState { secret, sequence, owes: false, closed: false })
    }

    /// Goes on where another sealer stopped.
    pub fn resume(state: SealerState) -> Self {
        let (key, iv) = keys(&state.secret, state.sequence);
        Self { state, key, iv, failed: None }
    }

    /// Ends this sealer; its state goes on elsewhere.
    ///
    /// # Errors
    /// [`SealError::Cipher`] if it has failed: such a connection goes nowhere.
    pub fn into_state(self) -> Result<SealerState, SealError> {
        match self.failed {
            Some(sequence) => Err(SealError::Cipher { sequence }),
            None => Ok(self.state),
        }
    }

    /// The number of the next record under its key.
    pub fn sequence(&self) -> u64 {
        self.state.sequence
    }

    /// Whether a KeyUpdate is to be sealed before more data. Never after the end: then there is no more data.
    pub fn key_update_due(&self) -> bool {
        !self.state.closed && (self.state.owes || self.state.sequence >= KEY_UPDATE_DUE)
    }

    /// The peer asked for a KeyUpdate: data is refused until one is sealed.
    ///
    /// Cheap, and one answer does for any number of requests. Seal it when the next data is about to be sealed, and no sooner:
    /// RFC 8446 §4.6.3 wants no more, and answers that queue up for a peer which asks and does not read have no end.
    pub fn owe_key_update(&mut self) {
        self.state.owes = !self.state.closed;
    }

    /// Whether close_notify or a fatal alert was sealed, after which nothing is.
    pub fn is_closed(&self) -> bool {
        self.state.closed
    }

    /// Seals one record of data in place. `slot` is the whole record, header and tag included; only its body is
    /// read.
    ///
    /// # Errors
    /// As [`seal_batch`](Self::seal_batch).
    pub fn seal(&mut self, slot: &mut [u8]) -> Result<(), SealError> {
        if slot.len() > SLOT {
            return Err(SealError::Long { body: slot.len() - OVERHEAD });
        }
        self.seal_batch(slot)
    }

    /// Seals a batch of data in place: slots of [`SLOT`] bytes, the last one as long as its body needs.
    ///
    /// # Errors
    /// Before anything is touched: the last slot has no room, an answer is owed, the key has no room for so many
    /// records, or we are closed. [`SealError::Cipher`] ends the sealer.
    pub fn seal_batch(&mut self, batch: &mut [u8]) -> Result<(), SealError> {
        let last = batch.len() % SLOT;
        if batch.is_empty() || (last != 0 && last < OVERHEAD) {
            return Err(SealError::Short { slot: last });
        }
        if self.state.closed {
            return Err(SealError::Closed);
        }
        if self.state.owes {
            return Err(SealError::AnswerOwed);
        }
        self.not_failed()?;
        let records = batch.len().div_ceil(SLOT) as u64;
        if KEY_LIMIT.saturating_sub(self.state.sequence) < records {
            return Err(SealError::KeySpent { sequence: self.state.sequence, records });
        }
        batch.chunks_mut(SLOT).try_for_each(|slot| self.protect(content::DATA, slot))
    }

    /// Seals a KeyUpdate under the present key, and changes to the next. One that answers the peer's never asks for
    /// another.
    ///
    /// # Errors
    /// [`SealError::Closed`], [`SealError::Cipher`].
    pub fn seal_key_update(&mut self, peer: PeerKeys) -> Result<SmallRecord, SealError> {
        let request = u8::from(peer == PeerKeys::Change && !self.state.owes);
        let record = self.seal_small(content::HANDSHAKE, &[super::post::KEY_UPDATE, 0, 0, 1, request])?;
        self.state.ratchet();
        (self.key, self.iv) = keys(&self.state.secret, 0);
        Ok(record)
    }

    /// Seals close_notify. Nothing is sealed after it; what the peer still sends can be opened.
    ///
    /// # Errors
    /// [`SealError::Closed`], [`SealError::Cipher`].
    pub fn seal_close_notify(&mut self) -> Result<SmallRecord, SealError> {
        self.seal_last(1, AlertDescription::CloseNotify)
    }

    /// Seals a fatal alert, with which the connection ends.
    ///
    /// # Errors
    /// [`SealError::Closed`], [`SealError::Cipher`].
    pub fn seal_alert(&mut self, alert: AlertDescription) -> Result<SmallRecord, SealError> {
        self.seal_last(2, alert)
    }

    fn seal_last(&mut self, level: u8, alert: AlertDescription) -> Result<SmallRecord, SealError> {
        let record = self.seal_small(content::ALERT, &[level, alert.into()])?;
        self.state.closed = true;
        Ok(record)
    }

    /// What carries no data needs no room under the key: a KeyUpdate changes it, an alert ends it, so there is at
    /// most one record beyond the limit.
    fn seal_small(&mut self, kind: u8, body: &[u8]) -> Result<SmallRecord, SealError> {
        self.not_failed()?;
        if self.state.closed {
            return Err(SealError::Closed);
        }
        let mut record = SmallRecord::around(body);
        self.protect(kind, record.slot())?;
        Ok(record)
    }

    fn not_failed(&self) -> Result<(), SealError> {
        self.failed.map_or(Ok(()), |sequence| Err(SealError::Cipher { sequence }))
    }

    /// One record. `slot` has between `OVERHEAD` and `SLOT` bytes.
    #[inline]
    fn protect(&mut self, kind: u8, slot: &mut [u8]) -> Result<(), SealError> {
        debug_assert!((OVERHEAD..=OVERHEAD + MAX_BODY).contains(&slot.len()));
        let [high, low] = u16::try_from(slot.len() - HEADER).expect("a slot is below 64 KiB").to_be_bytes();
        let header = [content::DATA, 3, 3, high, low];
        let nonce = self.iv.nonce(self.state.sequence);
        let tag_at = slot.len() - TAG;
        slot[tag_at - 1] = kind;
        // The number is spent before it is used: whatever fails below, no other record gets it.
        let sequence = self.state.sequence;
        self.state.sequence = sequence.saturating_add(1);
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut slot[HEADER..tag_at]);
        let Ok(tag) = sealed else {
            self.failed = Some(sequence);
            return Err(SealError::Cipher { sequence });
        };
        slot[..HEADER].copy_from_slice(&header);
        slot[tag_at..].copy_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The key for a sealer whose next record is `sequence`.
///
/// aws-lc's record key is a second guard against a nonce used twice: it takes the nonce of its first call for that
/// of sequence number 0 and wants growing ones from there. A key that begins later gets one empty seal as number 0,
/// so that it counts as we do. What that gives is thrown away, so it tells nobody anything, although another process
/// once sealed a record with the same nonce.
fn keys(secret: &TrafficSecret, sequence: u64) -> (TlsRecordSealingKey, Iv) {
    let keys = secret.keys();
    let mut key = TlsRecordSealingKey::new(secret.suite().cipher(), TlsProtocolId::TLS13, keys.key())
        .expect("the key has its cipher's length");
    if sequence > 0 {
        let _thrown_away = key
            .seal_in_place_separate_tag(keys.iv.nonce(0), Aad::empty(), &mut [])
            .expect("a new key takes any first nonce");
    }
    let iv = keys.iv.clone();
    (key, iv)
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("state", &self.state).finish_non_exhaustive()
    }
}
