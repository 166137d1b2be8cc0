//! Header blocks of the peer (RFC 7541 §3.2, §6).

use super::error::DecodeError;
use super::table::{STATIC_ENTRIES, Table, fixed};
use super::{FIELD_OVERHEAD, huffman, integer};
use crate::plain::{PlainError, Reader, Writer};

/// How much decoded Huffman text is worth keeping the memory of; one long field should not stay paid for.
const KEPT: usize = 4096;

/// Decodes the header blocks that one peer sends on one connection, in their order.
///
/// - Memory: none while the peer neither fills the dynamic table nor sends Huffman strings; then as much as it uses, at
///   most twice the table's limit, and 4 KiB for Huffman text. No allocation once the table has been full.
/// - Source: RFC 7541; RFC 9113 §4.3.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// The largest table that the peer may choose.
    limit: u32,
    /// The smallest that `limit` was since the last block. If it is below what the table's maximum is, an update is due.
    lowest: u32,
    scratch: Scratch,
}

impl Decoder {
    /// A decoder for a new connection, whose peer may choose tables of up to `limit` bytes (as RFC 7541 §4.1 counts) and
    /// begins with that: [`DEFAULT_TABLE_SIZE`](super::DEFAULT_TABLE_SIZE) until it has acknowledged other SETTINGS.
    pub fn new(limit: u32) -> Self {
        Self { table: Table::new(limit), limit, lowest: limit, scratch: Scratch::default() }
    }

    /// The peer has acknowledged our SETTINGS: from here on this is the limit, in bytes. If it is below the size that the
    /// peer has chosen, the next block must begin with a size update (§4.2).
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
        self.lowest = self.lowest.min(limit);
    }

    /// The largest table that the peer may choose, in bytes.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How large the dynamic table is, in bytes as §4.1 counts them.
    pub fn size(&self) -> u32 {
        self.table.size()
    }

    /// Decodes one whole header block and hands each field's name and value to `each`, in order. The names and values
    /// are any bytes: nothing here judges them. `most` is what all of them together may come to, in bytes and 32 more for each:
    /// a block of references to long entries costs far more to decode than to send.
    ///
    /// # Errors
    /// [`DecodeError`], possibly after some fields were handed on. The connection must end: what this decoder makes of
    /// further blocks means nothing, though it neither panics nor grows.
    pub fn decode(
        &mut self,
        block: &[u8],
        most: usize,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let mut input = Input { block, at: 0 };
        let mut left = most;
        let mut count = |at, name: &[u8], value: &[u8]| {
            left = left
                .checked_sub(name.len() + value.len() + FIELD_OVERHEAD)
                .ok_or(DecodeError::TooMuch { at, most })?;
            Ok::<_, DecodeError>(())
        };
        self.size_updates(&mut input)?;
        while let Some(&first) = block.get(input.at) {
            let at = input.at;
            match first {
                0x80.. => {
                    let index = input.integer(7)?;
                    let (name, value) = self.entry(at, index)?;
                    count(at, name, value)?;
                    each(name, value);
                }
                0x20..=0x3f => return Err(DecodeError::LateUpdate { at }),
                _ => {
                    let kept = first >= 0x40;
                    let index = input.integer(if kept { 6 } else { 4 })?;
                    self.scratch.used = 0;
                    let name = match index {
                        0 => input.string(&mut self.scratch)?,
                        _ => match (fixed(index), self.table.get(index)) {
                            (Some((name, _)), _) => Text::Lent(name),
                            // Copied, since making room for the field may evict the entry it has its name from (§4.4).
                            (None, Some((name, _))) => self.scratch.copy(name),
                            (None, None) => return Err(self.no_entry(at, index)),
                        },
                    };
                    let value = input.string(&mut self.scratch)?;
                    let (name, value) = (self.scratch.text(name), self.scratch.text(value));
                    count(at, name, value)?;
                    each(name, value);
                    if kept {
                        self.table.insert(name, value);
                    }
                }
            }
        }
        self.scratch.trim();
        Ok(())
    }

    fn size_updates(&mut self, input: &mut Input) -> Result<(), DecodeError> {
        let due = self.lowest < self.table.max();
        let mut updates = 0;
        while let Some(0x20..=0x3f) = input.block.get(input.at) {
            let at = input.at;
            if updates == 2 {
                return Err(DecodeError::SpareUpdate { at });
            }
            let limit = if due && updates == 0 { self.lowest } else { self.limit };
            let size = input.integer(5)?;
            if size > limit {
                return Err(DecodeError::Size { at, size, limit });
            }
            self.table.set_max(size);
            updates += 1;
        }
        if due && updates == 0 {
            return Err(DecodeError::MissingUpdate { limit: self.lowest });
        }
        self.lowest = self.limit;
        Ok(())
    }

    #[inline]
    fn entry(&self, at: usize, index: u32) -> Result<(&[u8], &[u8]), DecodeError> {
        let entry = if index <= STATIC_ENTRIES { fixed(index) } else { self.table.get(index) };
        entry.ok_or_else(|| self.no_entry(at, index))
    }

    fn no_entry(&self, at: usize, index: u32) -> DecodeError {
        DecodeError::Index { at, index, last: self.table.last() }
    }

    /// Writes what the next blocks need to be decoded elsewhere.
    pub fn write(&self, to: &mut Writer) {
        to.u32(self.limit);
        to.u32(self.lowest);
        self.table.write(to);
    }

    /// Reads what [`Decoder::write`] wrote.
    ///
    /// # Errors
    /// A state that no decoder has.
    pub fn read(from: &mut Reader) -> Result<Self, PlainError> {
        let limit = from.u32("the limit of the dynamic table")?;
        let lowest = from.u32("the lowest limit of the dynamic table")?;
        if lowest > limit {
            return Err(from.wrong("the lowest limit of the dynamic table", lowest));
        }
        let table = Table::read(from)?;
        Ok(Self { table, limit, lowest, scratch: Scratch::default() })
    }

    /// The dynamic table's entries, newest first.
    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (STATIC_ENTRIES + 1..).map_while(|index| self.table.get(index))
    }

    /// The memory that this holds beside itself, in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.table.memory() + self.scratch.bytes.capacity()
    }
}

/// A block and how far it is read.
struct Input<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    #[inline]
    fn integer(&mut self, prefix: u32) -> Result<u32, DecodeError> {
        let at = self.at;
        integer::read(self.block, &mut self.at, prefix).map_err(|fault| match fault {
            integer::Fault::Truncated => DecodeError::Truncated { at },
            integer::Fault::TooLong => DecodeError::Integer { at },
        })
    }

    #[inline]
    fn string(&mut self, scratch: &mut Scratch) -> Result<Text<'a>, DecodeError> {
        let begin = self.at;
        let huffman = self.block.get(begin).is_some_and(|first| *first >= 0x80);
        let length = self.integer(7)? as usize;
        let at = self.at;
        let bytes = self.block[at..].get(..length).ok_or(DecodeError::Truncated { at: begin })?;
        self.at += length;
        if !huffman {
            return Ok(Text::Lent(bytes));
        }
        scratch.decode(bytes).map_err(|fault| match fault {
            huffman::Fault::EndOfString => DecodeError::EndOfString { at },
            huffman::Fault::Padding => DecodeError::Padding { at },
        })
    }
}

/// A name or a value: as it stands in the block or the static table, or these bytes of the scratch buffer.
#[derive(Clone, Copy)]
enum Text<'a> {
    Lent(&'a [u8]),
    Scratch(usize, usize),
}

/// Where one field's name and value stand when they do not stand anywhere yet. No state: a field takes it up empty.
#[derive(Debug, Default)]
struct Scratch {
    bytes: Vec<u8>,
    used: usize,
}

impl Scratch {
    fn decode(&mut self, from: &[u8]) -> Result<Text<'static>, huffman::Fault> {
        let begin = self.used;
        let length = huffman::decode(from, self.room(huffman::room(from.len())))?;
        self.used += length;
        Ok(Text::Scratch(begin, self.used))
    }

    fn copy(&mut self, from: &[u8]) -> Text<'static> {
        let begin = self.used;
        self.room(from.len())[..from.len()].copy_from_slice(from);
        self.used += from.len();
        Text::Scratch(begin, self.used)
    }

    /// What is unused, of at least this length.
    fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.used + length;
        if self.bytes.len() < needed {
            self.bytes.resize(needed.next_power_of_two(), 0);
        }
        &mut self.bytes[self.used..]
    }

    #[inline]
    fn text<'a>(&'a self, text: Text<'a>) -> &'a [u8] {
        match text {
            Text::Lent(bytes) => bytes,
            Text::Scratch(begin, end) => &self.bytes[begin..end],
        }
    }

    fn trim(&mut self) {
        if self.bytes.len() > KEPT {
            self.bytes = Vec::new();
        }
    }
}
