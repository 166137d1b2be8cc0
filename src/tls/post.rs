//! What may come in handshake records once the handshake is over: KeyUpdates, and to a client tickets.

use super::Role;
use super::error::{At, OpenError};

/// The type of a NewSessionTicket.
const TICKET: u8 = 4;
/// The type of a KeyUpdate.
pub(super) const KEY_UPDATE: u8 = 24;
/// Bytes in front of every message: its type, and its length in three.
const HEADER: usize = 4;
/// The longest ticket that is skipped, which is also rustls's limit for any message.
const MAX_TICKET: u32 = 0xffff;

/// Where in the stream of handshake messages we are: between two, or so far into one. Messages are not kept: of a
/// KeyUpdate one byte counts, and tickets are of no use to us, since every handshake proves both ends anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Messages {
    /// As much of the next message's header as came so far.
    pub(super) header: [u8; HEADER],
    /// How many bytes of it.
    pub(super) have: u8,
    /// How much of the message under way is still to come, once its header is whole.
    pub(super) left: u32,
}

/// What the messages of one record amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Messaged {
    /// Tickets, or pieces of something.
    Nothing,
    /// The peer's next record is under new keys.
    KeyUpdate {
        /// It wants ours to change too.
        answer: bool,
    },
}

impl Messages {
    /// Whether a message has begun and not ended.
    pub(super) fn is_split(&self) -> bool {
        self.have > 0
    }

    /// Takes the content of one record.
    pub(super) fn take(&mut self, role: Role, mut content: &[u8], at: At) -> Result<Messaged, OpenError> {
        while let Some(&first) = content.first() {
            if usize::from(self.have) < HEADER {
                self.header[usize::from(self.have)] = first;
                self.have += 1;
                content = &content[1..];
                match usize::from(self.have) {
                    1 => expected(role, first, at)?,
                    HEADER => self.begin(at)?,
                    _ => {}
                }
                continue;
            }
            if self.header[0] == KEY_UPDATE {
                *self = Self::default();
                if content.len() > 1 {
                    return Err(OpenError::KeyUpdateNotLast { at, behind: content.len() - 1 });
                }
                return match first {
                    0 => Ok(Messaged::KeyUpdate { answer: false }),
                    1 => Ok(Messaged::KeyUpdate { answer: true }),
                    value => Err(OpenError::KeyUpdateValue { at, value }),
                };
            }
            let skipped = (self.left as usize).min(content.len());
            content = &content[skipped..];
            self.left -= u32::try_from(skipped).expect("not more than was left");
            if self.left == 0 {
                *self = Self::default();
            }
        }
        Ok(Messaged::Nothing)
    }

    /// The header is whole: what follows?
    fn begin(&mut self, at: At) -> Result<(), OpenError> {
        let [kind, high, middle, low] = self.header;
        self.left = u32::from_be_bytes([0, high, middle, low]);
        match kind {
            KEY_UPDATE if self.left == 1 => Ok(()),
            KEY_UPDATE => Err(OpenError::KeyUpdateLength { at, length: self.left }),
            // Shorter than its fixed fields is no ticket, and a message of no bytes would never end above.
            _ if !(MIN_TICKET..=MAX_TICKET).contains(&self.left) => {
                Err(OpenError::TicketLength { at, length: self.left })
            }
            _ => Ok(()),
        }
    }

    /// Whether these values can have come from [`take`](Self::take).
    pub(super) fn possible(&self, role: Role) -> bool {
        let Self { header: [kind, high, middle, low], have, left } = *self;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let known = kind == KEY_UPDATE || (kind == TICKET && role == Role::Client);
        let message = match (have, kind) {
            (0, _) => left == 0,
            (1..=3, _) => known && left == 0,
            (4, KEY_UPDATE) => length == 1 && left == 1,
            (4, _) => known && (MIN_TICKET..=MAX_TICKET).contains(&length) && left <= length && left > 0,
            _ => false,
        };
        let unread = self.header.iter().skip(have.into()).all(|byte| *byte == 0);
        message && unread
    }
}

/// Lifetime, age, an empty nonce, a ticket of one byte, no extensions (RFC 8446 §4.6.1).
const MIN_TICKET: u32 = 4 + 4 + 1 + 3 + 2;

fn expected(role: Role, kind: u8, at: At) -> Result<(), OpenError> {
    match (kind, role) {
        (KEY_UPDATE, _) | (TICKET, Role::Client) => Ok(()),
        _ => Err(OpenError::Message { at, kind }),
    }
}
