//! The tables that an index refers to: the static one (RFC 7541 Appendix A) and, behind it, the dynamic one (§2.3.2).

use std::collections::VecDeque;

use crate::plain::{PlainError, Reader, Writer};

/// How many entries the static table has. Its first index is 1, the dynamic table's first is behind its last.
pub(super) const STATIC_ENTRIES: u32 = 61;

/// The static table. Entries of one name stand together.
#[rustfmt::skip]
static STATIC: [(&[u8], &[u8]); STATIC_ENTRIES as usize] = [
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""),
    (b"cache-control", b""), (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""),
    (b"referer", b""), (b"refresh", b""), (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""),
    (b"via", b""), (b"www-authenticate", b""),
];

/// The static entry of this index.
#[inline]
pub(super) fn fixed(index: u32) -> Option<(&'static [u8], &'static [u8])> {
    STATIC.get((index as usize).checked_sub(1)?).copied()
}

/// Where in the static table a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This entry has its name and its value.
    Field(usize),
    /// This is the first entry that has its name.
    Name(usize),
    /// None has its name.
    Nothing,
}

/// Looks a field up in the static table.
#[inline]
pub(super) fn find(name: &[u8], value: &[u8]) -> Found {
    let first = usize::from(NAMES[place(name)]);
    let same = STATIC.get(first.wrapping_sub(1)..).unwrap_or_default();
    if same.first().is_none_or(|entry| entry.0 != name) {
        return Found::Nothing;
    }
    match same.iter().take_while(|entry| entry.0 == name).position(|entry| entry.1 == value) {
        Some(at) => Found::Field(first + at),
        None => Found::Name(first),
    }
}

/// A perfect hash of the static table's names: the index of a name's first entry at the name's place, or 0.
static NAMES: [u8; 256] = names();

/// A number that gives each name a place of its own; [`names`] proves it.
const FACTOR: u64 = 0x4904_b8a8_7928_f175;

#[inline]
const fn place(name: &[u8]) -> usize {
    if name.is_empty() {
        return 0;
    }
    // Length, first, middle and last tell the names apart.
    let key = (name.len() as u64) << 24
        | (name[0] as u64) << 16
        | (name[name.len() / 2] as u64) << 8
        | name[name.len() - 1] as u64;
    key.wrapping_mul(FACTOR).to_be_bytes()[0] as usize
}

const fn names() -> [u8; 256] {
    let mut names = [0; 256];
    let mut next = 0_u8;
    while (next as usize) < STATIC.len() {
        let name = STATIC[next as usize].0;
        let place = place(name);
        if names[place] == 0 {
            names[place] = next + 1;
        } else {
            assert!(equal(STATIC[names[place] as usize - 1].0, name), "two names have one place");
        }
        next += 1;
    }
    names
}

const fn equal(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What an entry counts beside its name and value (§4.1).
const OVERHEAD: u32 = 32;

/// One entry: where its name begins, with its value right behind.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Counted from the first byte ever, wrapping.
    at: u32,
    name: u32,
    value: u32,
}

impl Entry {
    fn length(self) -> u32 {
        self.name + self.value
    }
}

/// The dynamic table of one direction of a connection.
///
/// All names and values stand in one buffer, oldest first, so that each can be lent as it is. New ones are appended;
/// evicted ones leave a gap at the front, and when the buffer is full the rest moves down over it. The sizes of §4.1
/// count 32 bytes more for each entry than it has here, so a buffer of the table's size always leaves a gap of 32 bytes
/// an entry: moves stay rare, and nothing is allocated once the buffer has grown to what the peer uses.
///
/// - Memory: none before the first entry; at most the table's maximum for the buffer and less than that for the entries.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// The `at` of the buffer's first byte.
    origin: u32,
    /// The bytes of evicted entries at the front of the buffer.
    gap: usize,
    /// As §4.1 counts: never more than `max`.
    size: u32,
    max: u32,
}

impl Table {
    pub(super) fn new(max: u32) -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), origin: 0, gap: 0, size: 0, max }
    }

    /// The size that the peer chose: what the entries may count together.
    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// What the entries count together.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// The oldest entry's index.
    pub(super) fn last(&self) -> u32 {
        STATIC_ENTRIES + u32::try_from(self.entries.len()).unwrap_or(u32::MAX - STATIC_ENTRIES)
    }

    /// The name and value of this index of the dynamic table.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<(&[u8], &[u8])> {
        let newer = index.checked_sub(STATIC_ENTRIES + 1)? as usize;
        let place = self.entries.len().checked_sub(newer + 1)?;
        self.entries.get(place).map(|entry| self.field(*entry))
    }

    fn field(&self, entry: Entry) -> (&[u8], &[u8]) {
        let at = entry.at.wrapping_sub(self.origin) as usize;
        self.bytes[at..at + entry.length() as usize].split_at(entry.name as usize)
    }

    /// Adds the newest entry and evicts the oldest as far as it needs their room. One that is larger than the whole
    /// table leaves it empty, which is no error (§4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let lengths = (u32::try_from(name.len()), u32::try_from(value.len()));
        let (Ok(name_length), Ok(value_length)) = lengths else { return self.clear() };
        let size = name_length.checked_add(value_length).and_then(|length| length.checked_add(OVERHEAD));
        let Some(size) = size.filter(|size| *size <= self.max) else { return self.clear() };
        self.evict_to(self.max - size);
        self.reserve((size - OVERHEAD) as usize);
        let at = self.origin.wrapping_add(offset(self.bytes.len()));
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_back(Entry { at, name: name_length, value: value_length });
        self.size += size;
    }

    /// Sets what the entries may count together, evicts what is too much, and gives the memory back that is too much.
    pub(super) fn set_max(&mut self, max: u32) {
        let lowered = max < self.max;
        self.max = max;
        self.evict_to(max);
        if lowered {
            self.close_gap();
            self.bytes.shrink_to(max as usize);
            self.entries.shrink_to((max / OVERHEAD) as usize);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        (self.gap, self.size) = (0, 0);
    }

    fn evict_to(&mut self, size: u32) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_front() else { return self.clear() };
            self.size -= oldest.length() + OVERHEAD;
            self.gap += oldest.length() as usize;
        }
        if self.entries.is_empty() {
            self.clear();
        }
    }

    /// Makes room for this many bytes at the end of the buffer, which with those that live are no more than `max`.
    fn reserve(&mut self, length: usize) {
        let capacity = self.bytes.capacity();
        if capacity - self.bytes.len() >= length {
            return;
        }
        let needed = self.bytes.len() - self.gap + length;
        self.close_gap();
        // A buffer that is nearly all alive would move at every insertion; it may grow until it cannot be all alive.
        if needed > capacity - capacity / 4 && capacity < self.max as usize {
            let larger = needed.max(2 * capacity).max(256).min(self.max as usize);
            self.bytes.reserve_exact(larger - self.bytes.len());
        }
    }

    fn close_gap(&mut self) {
        self.bytes.copy_within(self.gap.., 0);
        self.bytes.truncate(self.bytes.len() - self.gap);
        self.origin = self.origin.wrapping_add(offset(self.gap));
        self.gap = 0;
    }

    /// The memory that this holds beside itself, in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Writes the table so that [`Table::read`] makes one of the same entries.
    pub(super) fn write(&self, to: &mut Writer) {
        to.u32(self.max);
        to.length(self.entries.len());
        for entry in &self.entries {
            let (name, value) = self.field(*entry);
            to.bytes(name);
            to.bytes(value);
        }
    }

    /// Reads what [`Table::write`] wrote.
    ///
    /// # Errors
    /// More entries than the table has room for, and whatever is no table at all.
    pub(super) fn read(from: &mut Reader) -> Result<Self, PlainError> {
        let max = from.u32("the size of the dynamic table")?;
        let mut table = Self::new(max);
        let entries = from.length("the number of dynamic entries", (max / OVERHEAD) as usize)?;
        for _ in 0..entries {
            let room = (max - table.size).checked_sub(OVERHEAD);
            let room =
                room.ok_or_else(|| from.wrong("the number of dynamic entries", entries as u64))? as usize;
            let name = from.bytes("the name of a dynamic entry", room)?;
            let value = from.bytes("the value of a dynamic entry", room - name.len())?;
            table.insert(name, value);
        }
        Ok(table)
    }
}

/// An offset in the buffer, which is no longer than a table's maximum.
#[expect(
    clippy::cast_possible_truncation,
    reason = "positions are compared modulo 2^32, and the buffer is shorter"
)]
fn offset(length: usize) -> u32 {
    length as u32
}
