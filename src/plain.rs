//! Plain data: how a state is written down that another process may take up.
//!
//! Big-endian numbers of fixed width, byte strings behind their length, and in front of each state what kind it is and
//! in which version it is written. A reader takes exactly what was written: another kind or version, a value out of its
//! range, too few bytes and too many are errors, because a state that is taken up half would go on wrongly. What is
//! written may hold keys, so every buffer here is wiped when it is dropped. Rooms that own a state write and read it
//! with this; how it travels is not decided here.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// Why bytes are not the state that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlainError {
    /// Another kind of state, or none at all.
    #[error("this is no {wanted}: it begins with {found:02x?}")]
    Kind {
        /// The kind that was asked for.
        wanted: &'static str,
        /// The first bytes that are there.
        found: Vec<u8>,
    },
    /// A version that this build does not know.
    #[error("a {kind} of version {found}, and this build reads version {known}")]
    Version {
        /// The kind.
        kind: &'static str,
        /// The version that is written there.
        found: u16,
        /// The version this build writes and reads.
        known: u16,
    },
    /// The bytes end before the state does.
    #[error("{field} is cut off at byte {at}")]
    Short {
        /// What should stand there.
        field: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// A value that no state has.
    #[error("{field}, which ends at byte {at}, is {value}, which no state has")]
    Value {
        /// What stands there.
        field: &'static str,
        /// Where it ends.
        at: usize,
        /// The value; of byte strings the length.
        value: u64,
    },
    /// The state ends before the bytes do.
    #[error("{left} bytes behind the end of the state, at byte {at}")]
    Long {
        /// Where the state ends.
        at: usize,
        /// How much stands behind it.
        left: usize,
    },
}

/// What kind of state some bytes are, and in which version they are written.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// How errors call it.
    pub name: &'static str,
    /// The first bytes.
    pub mark: [u8; 4],
    /// Raised with every change of what is written.
    pub version: u16,
}

/// Writes one state.
pub struct Writer {
    bytes: Zeroizing<Vec<u8>>,
    now: Instant,
}

impl Writer {
    /// Begins a state of `kind`. Times are written as distances from `now`, since no two processes share a clock's zero.
    pub fn new(kind: Kind, now: Instant) -> Self {
        let mut writer = Self { bytes: Zeroizing::new(Vec::with_capacity(512)), now };
        writer.put(&kind.mark);
        writer.u16(kind.version);
        writer
    }

    /// The finished state.
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            // A vector that grows by itself would leave its old memory unwiped.
            let mut larger =
                Zeroizing::new(Vec::with_capacity((self.bytes.len() + bytes.len()).next_power_of_two()));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// A yes or no.
    pub fn flag(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    /// A length of what follows.
    pub fn length(&mut self, value: usize) {
        self.u64(value as u64);
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) {
        self.length(value.len());
        self.put(value);
    }

    /// A point in time.
    pub fn instant(&mut self, value: Instant) {
        let nanos = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
        match value.checked_duration_since(self.now) {
            Some(ahead) => self.i64(nanos(ahead)),
            None => self.i64(-nanos(self.now - value)),
        }
    }

    /// A value or its absence.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads one state back.
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
    now: Instant,
}

impl<'a> Reader<'a> {
    /// Begins to read a state of `kind`. Times come out as the same distances from `now` that they were written with.
    ///
    /// # Errors
    /// Another kind, or another version of it.
    pub fn new(kind: Kind, bytes: &'a [u8], now: Instant) -> Result<Self, PlainError> {
        let mut reader = Self { all: bytes, at: 0, now };
        let found = &bytes[..bytes.len().min(kind.mark.len())];
        if found != kind.mark {
            return Err(PlainError::Kind { wanted: kind.name, found: found.to_vec() });
        }
        reader.at = kind.mark.len();
        let version = reader.u16("the version")?;
        if version == kind.version {
            Ok(reader)
        } else {
            Err(PlainError::Version { kind: kind.name, found: version, known: kind.version })
        }
    }

    /// The end: nothing may be left.
    pub fn finish(self) -> Result<(), PlainError> {
        match self.all.len() - self.at {
            0 => Ok(()),
            left => Err(PlainError::Long { at: self.at, left }),
        }
    }

    /// The error that the field which ends here has a value that cannot be.
    pub fn wrong(&self, field: &'static str, value: impl Into<u64>) -> PlainError {
        PlainError::Value { field, at: self.at, value: value.into() }
    }

    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], PlainError> {
        let short = PlainError::Short { field, at: self.at };
        let taken = self.all[self.at..].get(..length).ok_or(short)?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], PlainError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, PlainError> {
        self.array(field).map(u8::from_be_bytes)
    }

    /// A yes or no.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, PlainError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.wrong(field, other)),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, PlainError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, PlainError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, PlainError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, PlainError> {
        self.array(field).map(i64::from_be_bytes)
    }

    /// A length, at most `limit`.
    pub fn length(&mut self, field: &'static str, limit: usize) -> Result<usize, PlainError> {
        let value = self.u64(field)?;
        match usize::try_from(value) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(self.wrong(field, value)),
        }
    }

    /// A byte string of at most `limit` bytes.
    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], PlainError> {
        let length = self.length(field, limit)?;
        self.take(field, length)
    }

    /// A point in time. One further away than a century is no time that a state has.
    pub fn instant(&mut self, field: &'static str) -> Result<Instant, PlainError> {
        const CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
        let nanos = self.i64(field)?;
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        let time = if nanos < 0 { self.now.checked_sub(distance) } else { self.now.checked_add(distance) };
        time.filter(|_| distance < CENTURY).ok_or_else(|| self.wrong(field, nanos.unsigned_abs()))
    }

    /// A value or its absence.
    pub fn option<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, PlainError>,
    ) -> Result<Option<T>, PlainError> {
        if self.flag(field)? { read(self).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CART: Kind = Kind { name: "shopping cart", mark: *b"cart", version: 3 };

    fn cart(now: Instant) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::new(CART, now);
        writer.u8(7);
        writer.flag(true);
        writer.u16(0x0102);
        writer.u32(0x0102_0304);
        writer.u64(u64::MAX);
        writer.i64(-5);
        writer.bytes(b"apples");
        writer.instant(now + Duration::from_millis(1500));
        writer.option(None, Writer::u8);
        writer.option(Some(9), Writer::u8);
        writer.finish()
    }

    fn read(bytes: &[u8], now: Instant) -> Result<Instant, PlainError> {
        let mut reader = Reader::new(CART, bytes, now)?;
        assert_eq!(reader.u8("count")?, 7);
        assert!(reader.flag("paid")?);
        assert_eq!(reader.u16("shelf")?, 0x0102);
        assert_eq!(reader.u32("aisle")?, 0x0102_0304);
        assert_eq!(reader.u64("price")?, u64::MAX);
        assert_eq!(reader.i64("rebate")?, -5);
        assert_eq!(reader.bytes("goods", 6)?, b"apples");
        let due = reader.instant("due")?;
        assert_eq!(reader.option("gift", |reader| reader.u8("gift"))?, None);
        assert_eq!(reader.option("note", |reader| reader.u8("note"))?, Some(9));
        reader.finish()?;
        Ok(due)
    }

    #[test]
    fn what_was_written_is_read_back_and_times_keep_their_distance() {
        let then = Instant::now();
        let later = then + Duration::from_secs(3600);
        assert_eq!(read(&cart(then), later).unwrap(), later + Duration::from_millis(1500));
        let mut writer = Writer::new(CART, later);
        writer.instant(then);
        let bytes = writer.finish();
        assert_eq!(Reader::new(CART, &bytes, later).unwrap().instant("past").unwrap(), then);
    }

    #[test]
    fn a_cut_is_an_error_wherever_it_is_and_so_is_a_rest() {
        let now = Instant::now();
        let whole = cart(now);
        for end in 0..whole.len() {
            assert!(read(&whole[..end], now).is_err(), "{end} bytes");
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(read(&longer, now), Err(PlainError::Long { at: whole.len(), left: 1 }));
    }

    #[test]
    fn another_kind_or_version_is_named_as_such() {
        let now = Instant::now();
        let mut bytes = cart(now).to_vec();
        bytes[5] = 4;
        let error = read(&bytes, now).unwrap_err();
        assert_eq!(error.to_string(), "a shopping cart of version 4, and this build reads version 3");
        bytes[0] = b'b';
        let error = read(&bytes, now).unwrap_err();
        assert_eq!(error.to_string(), "this is no shopping cart: it begins with [62, 61, 72, 74]");
    }

    #[test]
    fn values_out_of_range_are_errors() {
        let now = Instant::now();
        let mut writer = Writer::new(CART, now);
        writer.u8(2);
        let bytes = writer.finish();
        assert!(matches!(
            Reader::new(CART, &bytes, now).unwrap().flag("paid"),
            Err(PlainError::Value { field: "paid", value: 2, .. })
        ));
        let mut writer = Writer::new(CART, now);
        writer.bytes(b"apples");
        let bytes = writer.finish();
        assert!(matches!(
            Reader::new(CART, &bytes, now).unwrap().bytes("goods", 5),
            Err(PlainError::Value { field: "goods", value: 6, .. })
        ));
        let mut writer = Writer::new(CART, now);
        writer.i64(i64::MIN);
        let bytes = writer.finish();
        assert!(Reader::new(CART, &bytes, now).unwrap().instant("due").is_err());
    }
}
