//! What a sealer and an opener need to go on elsewhere, as plain data.
//!
//! A tunnel moves and is never copied: taking the state ends the sealer or opener, writing it down ends the state, and
//! neither can be cloned. Two that go on from one state would seal two records with one nonce, which gives away the
//! key's authentication.

use std::time::Instant;

use zeroize::Zeroizing;

use super::Role;
use super::error::At;
use super::keys::{Suite, TrafficSecret};
use super::open::{MAX_EMPTY, MAX_KEY_UPDATES, MAX_QUIET};
use super::post::Messages;
use super::seal::KEY_LIMIT;
use crate::plain::{Kind, PlainError, Reader, Writer};

const SEALER: Kind = Kind { name: "state of a record sealer", mark: *b"tlsS", version: 1 };
const OPENER: Kind = Kind { name: "state of a record opener", mark: *b"tlsO", version: 1 };

/// Where a [`Sealer`](super::Sealer) stopped.
#[derive(Debug)]
pub struct SealerState {
    pub(super) secret: TrafficSecret,
    /// The next record's number.
    pub(super) sequence: u64,
    /// The peer waits for a KeyUpdate.
    pub(super) owes: bool,
    pub(super) closed: bool,
}

/// Where an [`Opener`](super::Opener) stopped.
#[derive(Debug)]
pub struct OpenerState {
    pub(super) role: Role,
    pub(super) secret: TrafficSecret,
    /// The next record.
    pub(super) at: At,
    pub(super) messages: Messages,
    pub(super) budget: Budget,
    pub(super) closed: bool,
}

/// What came since the last data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) key_updates: u16,
    pub(super) empty: u16,
    pub(super) quiet: u16,
}

impl SealerState {
    /// Writes it down. The key in it can go on from here once, so whoever has the bytes sends them to one place.
    pub fn encode(self, now: Instant) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::new(SEALER, now);
        write_secret(&mut writer, &self.secret);
        writer.u64(self.sequence);
        writer.flag(self.owes);
        writer.flag(self.closed);
        writer.finish()
    }

    /// Reads it back. The caller wipes `bytes`.
    ///
    /// # Errors
    /// When these bytes were not written by [`encode`](Self::encode) of this version.
    pub fn decode(bytes: &[u8], now: Instant) -> Result<Self, PlainError> {
        let mut reader = Reader::new(SEALER, bytes, now)?;
        let secret = read_secret(&mut reader)?;
        let sequence = reader.u64("the next record's number")?;
        // A record that is no data may be one more than the limit.
        if sequence > KEY_LIMIT + 1 {
            return Err(reader.wrong("the next record's number", sequence));
        }
        let owes = reader.flag("the owed answer")?;
        let closed = reader.flag("the end")?;
        reader.finish()?;
        Ok(Self { secret, sequence, owes, closed })
    }

    /// A KeyUpdate was sealed.
    pub(super) fn ratchet(&mut self) {
        self.secret.ratchet();
        self.sequence = 0;
        self.owes = false;
    }
}

impl OpenerState {
    pub(super) fn new(role: Role, secret: TrafficSecret, sequence: u64) -> Self {
        Self {
            role,
            secret,
            at: At { key: 0, record: sequence },
            messages: Messages::default(),
            budget: Budget::default(),
            closed: false,
        }
    }

    /// Writes it down.
    pub fn encode(self, now: Instant) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::new(OPENER, now);
        writer.flag(self.role == Role::Server);
        write_secret(&mut writer, &self.secret);
        writer.u64(self.at.key);
        writer.u64(self.at.record);
        writer.u32(u32::from_be_bytes(self.messages.header));
        writer.u8(self.messages.have);
        writer.u32(self.messages.left);
        writer.u16(self.budget.key_updates);
        writer.u16(self.budget.empty);
        writer.u16(self.budget.quiet);
        writer.flag(self.closed);
        writer.finish()
    }

    /// Reads it back. The caller wipes `bytes`.
    ///
    /// # Errors
    /// When these bytes were not written by [`encode`](Self::encode) of this version.
    pub fn decode(bytes: &[u8], now: Instant) -> Result<Self, PlainError> {
        let mut reader = Reader::new(OPENER, bytes, now)?;
        let role = if reader.flag("the role")? { Role::Server } else { Role::Client };
        let secret = read_secret(&mut reader)?;
        let at = At { key: reader.u64("the key's number")?, record: reader.u64("the record's number")? };
        let messages = Messages {
            header: reader.u32("the message's header")?.to_be_bytes(),
            have: reader.u8("the length of the message's header")?,
            left: reader.u32("the rest of the message")?,
        };
        if !messages.possible(role) {
            return Err(reader.wrong("the message under way", messages.left));
        }
        let budget = Budget {
            key_updates: at_most(&mut reader, "the number of KeyUpdates", MAX_KEY_UPDATES)?,
            empty: at_most(&mut reader, "the number of empty records", MAX_EMPTY)?,
            quiet: at_most(&mut reader, "the number of quiet records", MAX_QUIET)?,
        };
        let closed = reader.flag("the end")?;
        reader.finish()?;
        Ok(Self { role, secret, at, messages, budget, closed })
    }

    /// The peer's KeyUpdate was opened.
    pub(super) fn ratchet(&mut self) {
        self.secret.ratchet();
        self.at = At { key: self.at.key.saturating_add(1), record: 0 };
    }
}

fn write_secret(writer: &mut Writer, secret: &TrafficSecret) {
    writer.u16(secret.suite().code());
    writer.bytes(secret.expose());
}

fn read_secret(reader: &mut Reader<'_>) -> Result<TrafficSecret, PlainError> {
    let code = reader.u16("the cipher suite")?;
    let suite = Suite::from_code(code).ok_or_else(|| reader.wrong("the cipher suite", code))?;
    let secret = reader.bytes("the traffic secret", suite.secret_length())?;
    TrafficSecret::new(suite, secret).ok_or_else(|| reader.wrong("the traffic secret", secret.len() as u64))
}

fn at_most(reader: &mut Reader<'_>, field: &'static str, limit: u16) -> Result<u16, PlainError> {
    let value = reader.u16(field)?;
    if value > limit { Err(reader.wrong(field, value)) } else { Ok(value) }
}
