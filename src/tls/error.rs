//! What can go wrong, and which alert tells the peer.

use std::fmt;

use rustls::{AlertDescription, CipherSuite, ProtocolVersion};

/// Which of the peer's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// How often it changed its keys before.
    pub key: u64,
    /// The record's number under that key.
    pub record: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} under key {}", self.record, self.key)
    }
}

/// Why a handshake failed. The alert that tells the peer, if there is one, is among the bytes to send.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The configuration offers a suite whose records this room does not protect.
    #[error(
        "{suite:?} is offered, and only AES-GCM of TLS 1.3 is carried here; such peers are for the classic carrier"
    )]
    Offers {
        /// The suite.
        suite: CipherSuite,
    },
    /// The two ends agreed on something else all the same.
    #[error("agreed on {suite:?} of {version:?}, and only AES-GCM of TLS 1.3 is carried here")]
    Agreed {
        /// The suite.
        suite: Option<CipherSuite>,
        /// The version.
        version: Option<ProtocolVersion>,
    },
    /// rustls refused what the peer sent, or the configuration.
    #[error("the TLS handshake failed")]
    Tls(#[from] rustls::Error),
    /// The peer's part of the handshake is longer than any honest one.
    #[error("the peer's handshake has more than {limit} bytes")]
    Long {
        /// The most it may have.
        limit: usize,
    },
    /// The connection ended before the handshake did.
    #[error("the connection ended in the handshake, {received} bytes into the peer's part")]
    Eof {
        /// How many bytes had come.
        received: usize,
    },
    /// It was asked for its result before it was over.
    #[error("the handshake is not over yet")]
    Unfinished,
    /// It failed before.
    #[error("the handshake has failed")]
    Over,
    /// rustls holds bytes that belong behind the handshake.
    #[error("{left} bytes of the peer's last flight are neither handshake nor data")]
    Left {
        /// How many.
        left: usize,
    },
    /// rustls did not hand out a traffic secret of the agreed suite.
    #[error("no {direction} traffic secret of {length} bytes was handed out")]
    NoSecret {
        /// Whose records it protects.
        direction: &'static str,
        /// How long it should be.
        length: usize,
    },
    /// Our keys and those of rustls differ, so one of us derives them wrongly.
    #[error("the keys derived from the {direction} traffic secret are not those that rustls uses")]
    Keys {
        /// Whose records they protect.
        direction: &'static str,
    },
}

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// close_notify or a fatal alert was sealed before.
    #[error("our direction is closed")]
    Closed,
    /// The peer asked for a KeyUpdate, which goes first.
    #[error("the peer is owed a KeyUpdate, which comes before more data")]
    AnswerOwed,
    /// The key has no room for so many records.
    #[error("{records} more records after {sequence} are too many for one key; a KeyUpdate is overdue")]
    KeySpent {
        /// How many it has protected.
        sequence: u64,
        /// How many it should protect now.
        records: u64,
    },
    /// More than a record carries.
    #[error("{body} bytes are more than one record carries")]
    Long {
        /// Bytes of body.
        body: usize,
    },
    /// No room for header, type and tag.
    #[error("a slot of {slot} bytes has no room for a record")]
    Short {
        /// Its length.
        slot: usize,
    },
    /// The cipher refused: the nonce would have been used before, which is an error of ours.
    #[error("the cipher refused record {sequence}")]
    Cipher {
        /// The record's number under its key.
        sequence: u64,
    },
}

/// What is wrong with a record of the peer, or with where its records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An outer type other than application data: nothing is unprotected after the handshake.
    #[error("{at} is of type {kind} and not protected")]
    Unprotected {
        /// Which record.
        at: At,
        /// Its outer type.
        kind: u8,
    },
    /// Longer than any record of TLS 1.3.
    #[error("{at} announces {length} bytes, more than TLS allows")]
    Long {
        /// Which record.
        at: At,
        /// What its header says.
        length: usize,
    },
    /// Longer than a full body, its type and its tag.
    #[error("{at} holds {length} bytes of content and padding, more than TLS allows")]
    InnerLong {
        /// Which record.
        at: At,
        /// Bytes of body, type and padding.
        length: usize,
    },
    /// Not long enough for a tag.
    #[error("{at} has {length} bytes, too few for a tag")]
    NoTag {
        /// Which record.
        at: At,
        /// What its header says.
        length: usize,
    },
    /// Somebody changed it, or its keys are not ours.
    #[error("{at} does not authenticate")]
    Forged {
        /// Which record.
        at: At,
    },
    /// The number of the record would begin again.
    #[error("{at} is one more than can be counted")]
    Uncountable {
        /// Which record.
        at: At,
    },
    /// Nothing but padding.
    #[error("{at} is padding alone")]
    AllPadding {
        /// Which record.
        at: At,
    },
    /// A protected type that is neither data nor alert nor handshake.
    #[error("{at} holds content of type {kind}")]
    Kind {
        /// Which record.
        at: At,
        /// The inner type.
        kind: u8,
    },
    /// An alert or a handshake record without content.
    #[error("{at} is of type {kind} and empty")]
    Empty {
        /// Which record.
        at: At,
        /// The inner type.
        kind: u8,
    },
    /// An alert that is not of two bytes.
    #[error("{at} is an alert of {length} bytes")]
    AlertLength {
        /// Which record.
        at: At,
        /// Its length.
        length: usize,
    },
    /// The peer ends the connection.
    #[error("the peer ended the connection with alert {alert:?} ({at})")]
    Alert {
        /// Which record.
        at: At,
        /// What it says.
        alert: AlertDescription,
    },
    /// A record of another type while a handshake message is split over records.
    #[error("{at} is of type {kind} and stands within a handshake message")]
    Interleaved {
        /// Which record.
        at: At,
        /// The inner type.
        kind: u8,
    },
    /// A handshake message that nobody may send here.
    #[error("{at} holds a handshake message of type {kind}, which has no place after the handshake")]
    Message {
        /// Which record.
        at: At,
        /// The message's type.
        kind: u8,
    },
    /// A KeyUpdate that is not of one byte.
    #[error("{at} holds a KeyUpdate of {length} bytes")]
    KeyUpdateLength {
        /// Which record.
        at: At,
        /// What its header says.
        length: u32,
    },
    /// A KeyUpdate that neither asks nor does not ask.
    #[error("{at} holds a KeyUpdate with value {value}")]
    KeyUpdateValue {
        /// Which record.
        at: At,
        /// The value.
        value: u8,
    },
    /// Bytes under the old key behind a KeyUpdate.
    #[error("{at} has {behind} bytes behind a KeyUpdate")]
    KeyUpdateNotLast {
        /// Which record.
        at: At,
        /// How many.
        behind: usize,
    },
    /// A ticket of a length that none has, or that we do not care to skip.
    #[error("{at} holds a ticket of {length} bytes")]
    TicketLength {
        /// Which record.
        at: At,
        /// What its header says.
        length: u32,
    },
    /// One KeyUpdate after the other.
    #[error("{at} is one more KeyUpdate after {limit} without data")]
    KeyUpdates {
        /// Which record.
        at: At,
        /// The most that may come without data between.
        limit: u16,
    },
    /// One record without data after the other.
    #[error("{at} is one more record without data after {limit}")]
    Idle {
        /// Which record.
        at: At,
        /// The most that may come without data between.
        limit: u16,
    },
    /// The connection ended without close_notify: what is missing, nobody knows.
    #[error("the connection ended {rest} bytes into {at}, without close_notify")]
    Truncated {
        /// The record that did not come, or not whole.
        at: At,
        /// How many bytes of it came.
        rest: usize,
    },
}

impl OpenError {
    /// What the peer is told. `None`: it already ended the connection, and nothing is to be said.
    pub fn alert(&self) -> Option<AlertDescription> {
        Some(match self {
            Self::Unprotected { .. }
            | Self::AllPadding { .. }
            | Self::Kind { .. }
            | Self::Empty { .. }
            | Self::Interleaved { .. }
            | Self::Message { .. }
            | Self::KeyUpdateNotLast { .. }
            | Self::KeyUpdates { .. }
            | Self::Idle { .. } => AlertDescription::UnexpectedMessage,
            Self::Long { .. } | Self::InnerLong { .. } => AlertDescription::RecordOverflow,
            Self::NoTag { .. } | Self::Forged { .. } => AlertDescription::BadRecordMac,
            Self::AlertLength { .. } | Self::KeyUpdateLength { .. } | Self::TicketLength { .. } => {
                AlertDescription::DecodeError
            }
            Self::KeyUpdateValue { .. } => AlertDescription::IllegalParameter,
            Self::Uncountable { .. } => AlertDescription::InternalError,
            Self::Alert { .. } | Self::Truncated { .. } => return None,
        })
    }
}
