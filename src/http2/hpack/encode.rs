//! Header blocks of ours (RFC 7541 §6).

use super::integer;
use super::table::{Found, find};
use crate::plain::{PlainError, Reader, Writer};

/// Encodes the header blocks that we send on one connection, in their order.
///
/// It refers to the static table only, so all it remembers is whether the peer's decoder still keeps room for entries
/// that will not come.
#[derive(Debug, Default)]
pub struct Encoder {
    peer: PeerTable,
}

/// The dynamic table that the peer's decoder keeps for us, always empty.
///
/// | from     | event                                   | to       | and                            |
/// |----------|-----------------------------------------|----------|--------------------------------|
/// | Default  | its limit falls below the default       | Due      |                                |
/// | Due      | a block begins                          | Disabled | it begins with an update to 0  |
///
/// The update says 0 rather than the new limit: no later limit can be below that, so it is the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PeerTable {
    /// Of the size that connections begin with.
    #[default]
    Default,
    /// The next block must begin with a size update.
    Due,
    /// Of size 0.
    Disabled,
}

impl Encoder {
    /// An encoder for a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The peer's SETTINGS say that its decoder's table may have `limit` bytes. If that is less than it has, the next
    /// block acknowledges it (§4.2).
    pub fn set_peer_limit(&mut self, limit: u32) {
        if self.peer == PeerTable::Default && limit < super::DEFAULT_TABLE_SIZE {
            self.peer = PeerTable::Due;
        }
    }

    /// Begins a block: appends the size update that is due. What this wrote must be sent.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if self.peer == PeerTable::Due {
            out.push(0x20);
            self.peer = PeerTable::Disabled;
        }
    }

    /// Appends one field.
    ///
    /// - Memory: `out` grows by at most the name, the value and 13 bytes.
    #[inline]
    pub fn field(&self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        match find(name, value) {
            Found::Field(index) => return integer::write(0x80, 7, index, out),
            Found::Name(index) => integer::write(0x00, 4, index, out),
            Found::Nothing => {
                out.push(0x00);
                string(name, out);
            }
        }
        string(value, out);
    }

    /// Writes what the next blocks need to be encoded elsewhere.
    pub fn write(&self, to: &mut Writer) {
        to.u8(match self.peer {
            PeerTable::Default => 0,
            PeerTable::Due => 1,
            PeerTable::Disabled => 2,
        });
    }

    /// Reads what [`Encoder::write`] wrote.
    ///
    /// # Errors
    /// A state that no encoder has.
    pub fn read(from: &mut Reader) -> Result<Self, PlainError> {
        let peer = match from.u8("the peer's dynamic table")? {
            0 => PeerTable::Default,
            1 => PeerTable::Due,
            2 => PeerTable::Disabled,
            other => return Err(from.wrong("the peer's dynamic table", other)),
        };
        Ok(Self { peer })
    }
}

/// Plain, never Huffman: `benches/hpack.rs` has a CONNECT's block in a seventh of the time of Huffman-coding its values, and
/// its decoding in a tenth; what that saves is 70 bytes of 300, once per connection, in a record that is sent anyway.
#[inline]
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    integer::write(0x00, 7, bytes.len(), out);
    out.extend_from_slice(bytes);
}
