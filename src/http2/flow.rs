//! Flow control (RFC 9113 §5.2, §6.9): what each side may still send.
//!
//! A tunnel's credit returns when bytes have left the caller's arena, be it to an application or to its backlog; a
//! stream's credit when the application took them. So an application that takes nothing stops its own stream and no other.

use super::frame::LARGEST_WINDOW;
use crate::plain::{PlainError, Reader, Writer};

/// What we may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub fn new(size: u32) -> Self {
        Self(size.into())
    }

    /// Bytes that may be sent. A window below zero, which a change of SETTINGS can bring about, has none.
    pub fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub fn spend(&mut self, bytes: usize) {
        // At most `room()`, which is below 2^31.
        self.0 -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// Raises or lowers the window; `None` where it would pass 2^31 - 1, else whether it has opened by this.
    pub fn change(&mut self, by: i64) -> Option<bool> {
        let was_shut = self.0 <= 0;
        let next = self.0 + by;
        if next > i64::from(LARGEST_WINDOW) {
            return None;
        }
        self.0 = next;
        Some(was_shut && next > 0)
    }

    pub fn write(self, to: &mut Writer) {
        to.i64(self.0);
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let size = from.i64("a send window")?;
        if (-i64::from(LARGEST_WINDOW)..=i64::from(LARGEST_WINDOW)).contains(&size) {
            Ok(Self(size))
        } else {
            Err(from.wrong("a send window", size.unsigned_abs()))
        }
    }
}

/// What the peer may still send, and what it has been given back but not told yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceiveWindow {
    /// What the peer may send as far as it knows. Below zero only between a smaller initial window and its use.
    open: i64,
    /// Returned and not announced.
    credit: u32,
    /// How large the window is when everything has been returned.
    size: u32,
}

impl ReceiveWindow {
    pub fn new(size: u32) -> Self {
        Self { open: size.into(), credit: 0, size }
    }

    pub fn open(self) -> i64 {
        self.open
    }

    pub fn size(self) -> u32 {
        self.size
    }

    /// Bytes have arrived; false, and nothing is taken, when the peer was not allowed to send them.
    pub fn charge(&mut self, bytes: u32) -> bool {
        let fits = i64::from(bytes) <= self.open;
        if fits {
            self.open -= i64::from(bytes);
        }
        fits
    }

    /// Bytes that were charged and not given back.
    pub fn owed(self) -> u32 {
        u32::try_from(i64::from(self.size) - self.open - i64::from(self.credit)).unwrap_or(0)
    }

    /// Bytes are done with. Never more than are owed.
    pub fn give_back(&mut self, bytes: u32) {
        self.credit += bytes.min(self.owed());
    }

    /// Makes the window `size` bytes large; what is more than before becomes credit.
    pub fn grow(&mut self, size: u32) {
        let size = size.min(LARGEST_WINDOW);
        self.credit += size.saturating_sub(self.size);
        self.size = self.size.max(size);
    }

    /// The peer now counts from a smaller initial window.
    pub fn shrink(&mut self, by: u32) {
        self.open -= i64::from(by);
        self.size = self.size.saturating_sub(by);
    }

    /// Whether a quarter of the window, less what of it is `held` back, has come together: often enough that a peer which sends
    /// steadily never stops, seldom enough to cost nothing.
    pub fn is_due(self, held: u32) -> bool {
        self.credit > 0 && self.credit >= self.size.saturating_sub(held) / 4
    }

    /// What to tell the peer, once it is due.
    pub fn announce(&mut self, held: u32) -> Option<u32> {
        if !self.is_due(held) {
            return None;
        }
        let credit = std::mem::take(&mut self.credit);
        self.open += i64::from(credit);
        Some(credit)
    }

    pub fn write(self, to: &mut Writer) {
        to.i64(self.open);
        to.u32(self.credit);
        to.u32(self.size);
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let open = from.i64("a receive window")?;
        let credit = from.u32("the credit of a window")?;
        let size = from.u32("the size of a window")?;
        // No peer was ever allowed more than the window has.
        let possible = -i64::from(LARGEST_WINDOW)..=i64::from(size);
        if size > LARGEST_WINDOW || !possible.contains(&open) || open + i64::from(credit) > i64::from(size) {
            return Err(from.wrong("a receive window", open.unsigned_abs()));
        }
        Ok(Self { open, credit, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_told_by_the_quarter_and_never_more_than_was_charged() {
        let mut window = ReceiveWindow::new(1_000);
        assert!(window.charge(600));
        window.give_back(249);
        assert_eq!(window.announce(0), None);
        window.give_back(1);
        assert_eq!(window.announce(0), Some(250));
        window.give_back(10_000);
        assert_eq!(window.announce(0), Some(350));
        assert_eq!(window.open(), 1_000);
        assert_eq!(window.announce(0), None);
    }

    #[test]
    fn nothing_is_taken_of_what_does_not_fit() {
        let mut window = ReceiveWindow::new(100);
        assert!(!window.charge(101));
        assert!(window.charge(100));
        assert!(!window.charge(1));
        assert!(window.charge(0));
    }

    #[test]
    fn a_window_that_grows_announces_the_difference() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.charge(60));
        window.give_back(60);
        window.grow(400);
        assert_eq!(window.announce(0), Some(360));
        assert_eq!((window.open(), window.size()), (400, 400));
    }

    #[test]
    fn a_send_window_may_fall_below_zero_and_not_rise_above_its_limit() {
        let mut window = SendWindow::new(100);
        window.spend(100);
        assert_eq!(window.change(-50), Some(false));
        assert_eq!(window.room(), 0);
        assert_eq!(window.change(50), Some(false));
        assert_eq!(window.change(1), Some(true));
        assert_eq!(window.change(1), Some(false));
        assert_eq!(window.change(i64::from(LARGEST_WINDOW)), None);
        assert_eq!(window.room(), 2);
    }
}
