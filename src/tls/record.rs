//! How a protected record lies in memory, and its numbers (RFC 8446 §5).
//!
//! ```text
//! one slot:   [5 header][body ≤ 16,384][1 type][16 tag]
//! a batch:    full slots back to back, the last one may be shorter: one contiguous piece for one send
//! ```

/// Bytes of a record's header.
pub const HEADER: usize = 5;
/// The most bytes that one record carries.
pub const MAX_BODY: usize = 1 << 14;
/// What stands behind the body: its type, and the tag.
pub const TRAILER: usize = 1 + TAG;
/// What a record adds to its body.
pub const OVERHEAD: usize = HEADER + TRAILER;
/// A full record. No peer may send us a longer one either: with these suites the tag is all that encryption adds.
pub const SLOT: usize = MAX_BODY + OVERHEAD;

/// Bytes of the tag, for both suites.
pub(super) const TAG: usize = 16;
/// The most that a header may announce, whatever the cipher (RFC 8446 §5.2).
pub(super) const MAX_CIPHERTEXT: usize = MAX_BODY + 256;
/// The most that stands between header and tag: body, type and padding (RFC 8446 §5.4).
pub(super) const MAX_INNER: usize = MAX_BODY + 1;

/// The types of content (RFC 8446 §5.1). Every protected record is `DATA` on the outside.
pub(super) mod content {
    pub(in crate::tls) const ALERT: u8 = 21;
    pub(in crate::tls) const HANDSHAKE: u8 = 22;
    pub(in crate::tls) const DATA: u8 = 23;
}

/// The bodies of a batch's slots in order, for a `readv` that fills them. An end too short for a body has none.
///
/// What is sealed is what lies there: after a short `readv` cut the batch to [`batch_length`] of the bytes that were read.
pub fn bodies(batch: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    batch.chunks_mut(SLOT).filter(|slot| slot.len() > OVERHEAD).map(|slot| {
        let end = slot.len() - TRAILER;
        &mut slot[HEADER..end]
    })
}

/// How many bytes of a batch `bytes` bytes of body fill, when they fill its slots in order.
pub fn batch_length(bytes: usize) -> usize {
    let rest = bytes % MAX_BODY;
    bytes / MAX_BODY * SLOT + if rest == 0 { 0 } else { rest + OVERHEAD }
}

/// A sealed record that carries no data: an alert or a KeyUpdate. Read it as a slice.
#[derive(Clone, Debug)]
#[must_use = "the peer must get it, in its place among the other records"]
pub struct SmallRecord {
    bytes: [u8; Self::MAX],
    length: usize,
}

impl SmallRecord {
    /// The longest, in bytes: a KeyUpdate, with a handshake header of 4 bytes and 1 byte of content.
    pub const MAX: usize = OVERHEAD + 5;

    /// A record with room for `body`, which stands in its place unsealed.
    pub(super) fn around(body: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[HEADER..HEADER + body.len()].copy_from_slice(body);
        Self { bytes, length: body.len() + OVERHEAD }
    }

    pub(super) fn slot(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl std::ops::Deref for SmallRecord {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
