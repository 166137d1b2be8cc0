//! The buffers of one worker: borrowed when there is something to do, given back when it is done.
//!
//! Each direction has spare buffers of its own, because they are used in different ways: bytes to send wait in theirs while a
//! tunnel's socket is full, bytes received leave theirs at once. With one stock for both, small messages kept asking for large
//! buffers that bulk had just taken. What nobody needed for a while goes back to the system.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::tls::SLOT;

/// Beside its records a buffer holds a few small ones: KeyUpdates and an alert.
pub(super) const HEADROOM: usize = 128;

/// While more bytes than this are borrowed in one direction, only small buffers are lent: tunnels that do not get rid of what
/// they hold then cost 16 KiB each instead of up to 1 MiB.
const PLENTY: usize = 32 << 20;

/// How often the spare buffers are looked through at the most.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// How large a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Size {
    /// One record.
    Small,
    /// 256 KiB.
    Medium,
    /// 1 MiB.
    Large,
}

impl Size {
    const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// Full records that fit in.
    pub fn records(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Medium => 16,
            Self::Large => 64,
        }
    }

    /// Bytes of a buffer.
    fn bytes(self) -> usize {
        self.records() * SLOT + HEADROOM
    }

    /// The next larger one, if there is one.
    pub fn larger(self) -> Self {
        match self {
            Self::Small => Self::Medium,
            Self::Medium | Self::Large => Self::Large,
        }
    }

    /// Spare buffers that are kept at the most, per direction and worker: about 1, 2 and 4 MiB.
    fn kept(self) -> usize {
        match self {
            Self::Small => 64,
            Self::Medium => 8,
            Self::Large => 4,
        }
    }
}

/// Which of the two stocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// From applications to the tunnel.
    Send,
    /// From the tunnel to applications.
    Receive,
}

thread_local! {
    static STOCKS: RefCell<[Stock; 2]> = const { RefCell::new([Stock::NEW; 2]) };
}

/// The spare buffers of one direction.
struct Stock {
    spare: [Vec<Box<[u8]>>; 3],
    /// The fewest spare ones since they were last looked through: so many were not needed.
    unused: [usize; 3],
    /// Bytes that are borrowed.
    lent: usize,
    trimmed: Option<Instant>,
}

impl Stock {
    const NEW: Self =
        Self { spare: [Vec::new(), Vec::new(), Vec::new()], unused: [0; 3], lent: 0, trimmed: None };

    fn take(&mut self, size: Size) -> Box<[u8]> {
        let spare = &mut self.spare[size as usize];
        let bytes = spare.pop().unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice());
        self.unused[size as usize] = self.unused[size as usize].min(spare.len());
        self.lent += bytes.len();
        bytes
    }

    fn give_back(&mut self, size: Size, bytes: Box<[u8]>) {
        self.lent -= bytes.len();
        let spare = &mut self.spare[size as usize];
        if spare.len() < size.kept() {
            spare.push(bytes);
        }
    }

    fn trim(&mut self, now: Instant) {
        if self.trimmed.is_some_and(|last| now < last + TRIM_EVERY) {
            return;
        }
        self.trimmed = Some(now);
        for size in Size::ALL {
            let spare = &mut self.spare[size as usize];
            spare.truncate(spare.len() - self.unused[size as usize].min(spare.len()));
            if spare.is_empty() {
                spare.shrink_to_fit();
            }
            self.unused[size as usize] = spare.len();
        }
    }
}

/// One borrowed buffer, which goes back when it is dropped. What is in it at first is left over from others.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
    of: Use,
}

impl Buffer {
    /// Borrows a buffer of `size`; a smaller one while this worker has lent too much.
    pub fn take(of: Use, size: Size) -> Self {
        STOCKS.with_borrow_mut(|stocks| {
            let stock = &mut stocks[of as usize];
            let size = if stock.lent > PLENTY { Size::Small } else { size };
            Self { bytes: stock.take(size), size, of }
        })
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // At the end of the thread there may be no stock left; then the buffer just goes.
        let _ = STOCKS.try_with(|stocks| stocks.borrow_mut()[self.of as usize].give_back(self.size, bytes));
    }
}

/// Gives spare buffers that were not needed of late back to the system. Cheap, and does nothing most of the time.
pub(super) fn trim(now: Instant) {
    STOCKS.with_borrow_mut(|stocks| stocks.iter_mut().for_each(|stock| stock.trim(now)));
}

/// Bytes of this worker that are borrowed, and those that are spare, both directions together.
#[cfg(test)]
pub(super) fn held() -> (usize, usize) {
    STOCKS.with_borrow(|stocks| {
        let spare = |stock: &Stock| stock.spare.iter().flatten().map(|bytes| bytes.len()).sum::<usize>();
        (stocks.iter().map(|stock| stock.lent).sum(), stocks.iter().map(spare).sum())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_to_its_own_direction() {
        let first = Buffer::take(Use::Send, Size::Medium);
        let at = first.as_ptr();
        drop(first);
        assert_ne!(Buffer::take(Use::Receive, Size::Medium).as_ptr(), at);
        assert_eq!(Buffer::take(Use::Send, Size::Medium).as_ptr(), at);
        assert_eq!(held().0, 0);
    }

    #[test]
    fn only_small_buffers_are_lent_while_too_much_is_borrowed() {
        let mut held = Vec::new();
        while held.last().is_none_or(|last: &Buffer| last.size() == Size::Large) {
            held.push(Buffer::take(Use::Receive, Size::Large));
            assert!(held.len() < 40, "large ones are lent for ever");
        }
        assert_eq!(held.last().map(Buffer::size), Some(Size::Small));
        assert_eq!(Buffer::take(Use::Send, Size::Large).size(), Size::Large);
        held.clear();
        assert_eq!(Buffer::take(Use::Receive, Size::Large).size(), Size::Large);
    }

    #[test]
    fn spare_buffers_are_bounded_and_go_when_they_are_not_needed() {
        let start = Instant::now();
        trim(start);
        let many: Vec<_> = (0..100).map(|_| Buffer::take(Use::Send, Size::Medium)).collect();
        drop(many);
        assert_eq!(held(), (0, Size::Medium.kept() * Size::Medium.bytes()));
        // They were needed since the last look, but not since this one.
        trim(start + TRIM_EVERY);
        assert_ne!(held().1, 0);
        trim(start + TRIM_EVERY + Duration::from_secs(1));
        assert_ne!(held().1, 0);
        trim(start + TRIM_EVERY * 2);
        assert_eq!(held(), (0, 0));
    }
}
