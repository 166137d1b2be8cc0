//! The peer's direction: its records become data, or news about its keys and its end, in place.

use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey, UnboundKey};
use rustls::AlertDescription;

use super::Role;
use super::error::{At, OpenError};
use super::keys::{Iv, TrafficSecret};
use super::post::Messaged;
use super::record::{HEADER, MAX_CIPHERTEXT, MAX_INNER, TAG, content};
use super::state::{Budget, OpenerState};

/// KeyUpdates that may come without data between them. Each costs us a derivation, and an answer if it asks for one.
pub(super) const MAX_KEY_UPDATES: u16 = 32;
/// Empty records of data in a row. OpenSSL and BoringSSL draw the line at the same place.
pub(super) const MAX_EMPTY: u16 = 32;
/// Other records that bring no data, in a row: tickets and pieces of them. A ticket of 16 KiB fits in pieces of 64 bytes.
pub(super) const MAX_QUIET: u16 = 256;

/// Opens the records that the peer sends.
///
/// | from   | record                              | to     | and                                              |
/// |--------|-------------------------------------|--------|--------------------------------------------------|
/// | Open   | data                                | Open   | [`Content::Data`], and the budgets are whole     |
/// | Open   | KeyUpdate                           | Open   | [`Content::KeysChanged`]; new keys, from 0       |
/// | Open   | ticket or a piece, user_canceled    | Open   | [`Content::Ignored`], as long as the budget lasts |
/// | Open   | close_notify                        | Closed | [`Content::Closed`]                              |
/// | Open   | anything else                       | Failed | the error                                        |
/// | Closed | anything                            | Closed | [`Content::Closed`], unread                      |
/// | Failed | anything                            | Failed | the same error                                   |
pub struct Opener {
    state: OpenerState,
    key: LessSafeKey,
    iv: Iv,
    failed: Option<OpenError>,
}

/// What the bytes at hand amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// No whole record yet.
    Incomplete {
        /// How many bytes there must be, those at hand included. At most [`SLOT`](super::SLOT).
        needed: usize,
    },
    /// One record.
    Record {
        /// Its length. What lies behind it is untouched.
        taken: usize,
        /// What it was.
        content: Content<'a>,
    },
}

/// What one record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Data, where it lay in the buffer, [`HEADER`] bytes behind the record's beginning. May be empty. It borrows the buffer; who
    /// gathers several records before passing them on keeps their places instead.
    Data(&'a mut [u8]),
    /// The peer changed its keys, which has been taken care of.
    KeysChanged {
        /// It wants ours to change too, before our next data: tell [`Sealer::owe_key_update`](super::Sealer::owe_key_update).
        answer: bool,
    },
    /// Nothing that matters.
    Ignored,
    /// The peer sends nothing any more. What is behind this record is not looked at: stop reading here, as every further call
    /// says the same and none asks for more bytes.
    Closed,
}

/// What is inside a record, before the sender's state is consulted.
struct Inner {
    kind: u8,
    length: usize,
}

impl Opener {
    /// Begins with record number `sequence` under `secret`. `role` is ours.
    pub fn new(role: Role, secret: TrafficSecret, sequence: u64) -> Self {
        Self::resume(OpenerState::new(role, secret, sequence))
    }

    /// Goes on where another opener stopped.
    pub fn resume(state: OpenerState) -> Self {
        let (key, iv) = keys(&state.secret);
        Self { state, key, iv, failed: None }
    }

    /// Ends this opener; its state goes on elsewhere.
    ///
    /// # Errors
    /// That of the record at which it failed: such a connection goes nowhere.
    pub fn into_state(self) -> Result<OpenerState, OpenError> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.state),
        }
    }

    /// The number of the next record under the peer's key.
    pub fn sequence(&self) -> u64 {
        self.state.at.record
    }

    /// Whether close_notify came.
    pub fn is_closed(&self) -> bool {
        self.state.closed
    }

    /// Opens the record that `buffer` begins with, in place; at most one.
    ///
    /// A record that is refused leaves bytes in the buffer that mean nothing.
    ///
    /// # Errors
    /// Whatever the peer did wrong; it stays the answer from then on. [`OpenError::alert`] says what to tell it.
    pub fn open<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.state.closed {
            return Ok(Opened::Record { taken: buffer.len(), content: Content::Closed });
        }
        let opened = self.open_one(buffer);
        if let Err(error) = opened {
            self.failed = Some(error);
        }
        opened
    }

    /// The connection ended, with `rest` bytes behind the last record that was opened.
    ///
    /// # Errors
    /// [`OpenError::Truncated`] unless close_notify came before; the error of a record that was refused.
    pub fn eof(&self, rest: usize) -> Result<(), OpenError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.state.closed => Ok(()),
            None => Err(OpenError::Truncated { at: self.state.at, rest }),
        }
    }

    fn open_one<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let at = self.state.at;
        let Some(header) = buffer.first_chunk::<HEADER>().copied() else {
            // The type is judged as soon as it is there: waiting for the rest of what is no record could last.
            return match buffer.first() {
                Some(&kind) if kind != content::DATA => Err(OpenError::Unprotected { at, kind }),
                _ => Ok(Opened::Incomplete { needed: HEADER }),
            };
        };
        let taken = HEADER + announced(header, at)?;
        if buffer.len() < taken {
            return Ok(Opened::Incomplete { needed: taken });
        }
        let protected = &mut buffer[HEADER..taken];
        let Inner { kind, length } = self.unprotect(header, protected)?;
        let content = self.read(at, kind, &mut protected[..length])?;
        Ok(Opened::Record { taken, content })
    }

    /// Decrypts one record: the type and length of what is at its beginning.
    #[inline]
    fn unprotect(&mut self, header: [u8; HEADER], protected: &mut [u8]) -> Result<Inner, OpenError> {
        let at = self.state.at;
        let next = at.record.checked_add(1).ok_or(OpenError::Uncountable { at })?;
        let (body, tag) = protected.split_at_mut(protected.len() - TAG);
        let nonce = self.iv.nonce(at.record);
        self.key
            .open_in_place_separate_tag(nonce, Aad::from(header), tag, body)
            .map_err(|_| OpenError::Forged { at })?;
        self.state.at.record = next;
        let length = without_padding(body);
        let kind = *body[..length].last().ok_or(OpenError::AllPadding { at })?;
        Ok(Inner { kind, length: length - 1 })
    }

    fn read<'a>(&mut self, at: At, kind: u8, inner: &'a mut [u8]) -> Result<Content<'a>, OpenError> {
        match kind {
            content::DATA => {
                self.not_within_message(at, kind)?;
                if inner.is_empty() {
                    spend(&mut self.state.budget.empty, MAX_EMPTY)
                        .map_err(|limit| OpenError::Idle { at, limit })?;
                } else {
                    self.state.budget = Budget::default();
                }
                Ok(Content::Data(inner))
            }
            content::HANDSHAKE | content::ALERT if inner.is_empty() => Err(OpenError::Empty { at, kind }),
            content::HANDSHAKE => match self.state.messages.take(self.state.role, inner, at)? {
                Messaged::Nothing => self.ignored(at),
                Messaged::KeyUpdate { answer } => {
                    spend(&mut self.state.budget.key_updates, MAX_KEY_UPDATES)
                        .map_err(|limit| OpenError::KeyUpdates { at, limit })?;
                    self.state.ratchet();
                    (self.key, self.iv) = keys(&self.state.secret);
                    Ok(Content::KeysChanged { answer })
                }
            },
            content::ALERT => self.alert(at, inner),
            _ => Err(OpenError::Kind { at, kind }),
        }
    }

    /// Levels mean nothing in TLS 1.3: what an alert says decides (RFC 8446 §6).
    fn alert<'a>(&mut self, at: At, inner: &[u8]) -> Result<Content<'a>, OpenError> {
        let &[_, description] = inner else {
            return Err(OpenError::AlertLength { at, length: inner.len() });
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => {
                self.not_within_message(at, content::ALERT)?;
                self.state.closed = true;
                Ok(Content::Closed)
            }
            AlertDescription::UserCanceled => {
                self.not_within_message(at, content::ALERT)?;
                self.ignored(at)
            }
            alert => Err(OpenError::Alert { at, alert }),
        }
    }

    fn ignored<'a>(&mut self, at: At) -> Result<Content<'a>, OpenError> {
        spend(&mut self.state.budget.quiet, MAX_QUIET).map_err(|limit| OpenError::Idle { at, limit })?;
        Ok(Content::Ignored)
    }

    fn not_within_message(&self, at: At, kind: u8) -> Result<(), OpenError> {
        if self.state.messages.is_split() { Err(OpenError::Interleaved { at, kind }) } else { Ok(()) }
    }
}

/// What the header of a protected record says of its length. Its version is not looked at (RFC 8446 §5.1), but
/// protected as it came.
fn announced(header: [u8; HEADER], at: At) -> Result<usize, OpenError> {
    let [kind, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind != content::DATA {
        return Err(OpenError::Unprotected { at, kind });
    }
    if length > MAX_CIPHERTEXT {
        return Err(OpenError::Long { at, length });
    }
    if length > MAX_INNER + TAG {
        return Err(OpenError::InnerLong { at, length: length - TAG });
    }
    if length < TAG { Err(OpenError::NoTag { at, length }) } else { Ok(length) }
}

/// How much is left of `body` without the zeros at its end. A record may be almost all padding, so they are passed
/// sixteen at a time.
fn without_padding(body: &[u8]) -> usize {
    let mut length = body.len();
    while let Some(sixteen) = body[..length].last_chunk::<16>() {
        if u128::from_ne_bytes(*sixteen) != 0 {
            break;
        }
        length -= 16;
    }
    body[..length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Counts one more, up to `limit`, which is returned when it is reached.
fn spend(spent: &mut u16, limit: u16) -> Result<(), u16> {
    if *spent >= limit {
        return Err(limit);
    }
    *spent += 1;
    Ok(())
}

/// The plain key, not aws-lc's record key: that one guards nothing in this direction, and only takes body and tag as one,
/// which costs a move of the body onto itself (1 % of a full record, measured).
fn keys(secret: &TrafficSecret) -> (LessSafeKey, Iv) {
    let keys = secret.keys();
    let key = UnboundKey::new(secret.suite().cipher(), keys.key()).expect("the key has its cipher's length");
    (LessSafeKey::new(key), keys.iv.clone())
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("state", &self.state)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
