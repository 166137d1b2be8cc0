//! How much of what costs us and carries nothing a peer may send: one rate for each kind, measured by the clock that
//! the caller brings.
//!
//! Every kind has been an attack on HTTP/2 servers. The rates are far above what any well-behaved peer was seen to send and far
//! below what would be felt; what is worth a stream is refused before the tunnel is ended.

use std::time::Instant;

use crate::plain::{PlainError, Reader, Writer};

/// What a peer may not send without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nuisance {
    /// Requests taken back before they were answered (CVE-2023-44487), beyond one for each that is answered. Over this budget new
    /// streams are refused.
    Reset,
    /// Streams that we refused, because there were too many of them or too many were taken back.
    Refusal,
    /// Streams that we had to reset because the peer broke a rule of theirs (CVE-2025-8671).
    Provoked,
    /// DATA without a byte and without END_STREAM (CVE-2019-9518).
    EmptyData,
    /// CONTINUATION frames (CVE-2024-27316).
    Continuation,
    /// SETTINGS, each of which wants an acknowledgement (CVE-2019-9515).
    Settings,
    /// PING, the same (CVE-2019-9512).
    Ping,
    /// WINDOW_UPDATE, beyond what streams and the DATA we send give reason for.
    WindowUpdate,
    /// PRIORITY (CVE-2019-9513).
    Priority,
    /// Frames of kinds that RFC 9113 does not have.
    Unknown,
    /// Frames on streams that are over, beyond the few that each stream may see after its end.
    Stale,
    /// Responses that announce a response (1xx).
    Interim,
    /// GOAWAY: two are enough.
    GoAway,
}

impl Nuisance {
    const ALL: [Self; 13] = [
        Self::Reset,
        Self::Refusal,
        Self::Provoked,
        Self::EmptyData,
        Self::Continuation,
        Self::Settings,
        Self::Ping,
        Self::WindowUpdate,
        Self::Priority,
        Self::Unknown,
        Self::Stale,
        Self::Interim,
        Self::GoAway,
    ];

    /// How many at once, and how many a second.
    pub const fn allowance(self) -> (u32, u32) {
        match self {
            Self::Reset => (400, 200),
            Self::Refusal => (20_000, 10_000),
            Self::Provoked => (100, 20),
            Self::EmptyData => (1_000, 100),
            Self::Continuation => (200, 50),
            Self::Settings => (50, 10),
            Self::Ping => (1_000, 1_000),
            Self::WindowUpdate => (10_000, 5_000),
            Self::Priority => (1_000, 200),
            Self::Unknown => (1_000, 200),
            Self::Stale => (10_000, 2_000),
            Self::Interim => (50, 10),
            Self::GoAway => (20, 1),
        }
    }

    /// How errors call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "requests taken back before an answer",
            Self::Refusal => "refused streams",
            Self::Provoked => "streams that break the rules",
            Self::EmptyData => "empty DATA frames",
            Self::Continuation => "CONTINUATION frames",
            Self::Settings => "SETTINGS frames",
            Self::Ping => "PING frames",
            Self::WindowUpdate => "WINDOW_UPDATE frames",
            Self::Priority => "PRIORITY frames",
            Self::Unknown => "frames of unknown kinds",
            Self::Stale => "frames on streams that are over",
            Self::Interim => "interim responses",
            Self::GoAway => "GOAWAY frames",
        }
    }
}

/// What is left of each allowance. One per tunnel.
#[derive(Debug)]
pub(super) struct Budgets {
    buckets: [Bucket; Nuisance::ALL.len()],
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    /// When it was full, or filled again, last: the clock is asked only then and when nothing is left.
    filled: Instant,
}

impl Budgets {
    pub fn full(now: Instant) -> Self {
        let bucket = |nuisance: Nuisance| Bucket { left: nuisance.allowance().0, filled: now };
        Self { buckets: Nuisance::ALL.map(bucket) }
    }

    /// Takes one of `nuisance`; false when none is left.
    pub fn spend(&mut self, nuisance: Nuisance, now: Instant) -> bool {
        let has_some = self.has(nuisance, now);
        if has_some {
            let bucket = &mut self.buckets[nuisance as usize];
            if bucket.left == nuisance.allowance().0 {
                bucket.filled = now;
            }
            bucket.left -= 1;
        }
        has_some
    }

    /// Whether one of `nuisance` is left.
    pub fn has(&mut self, nuisance: Nuisance, now: Instant) -> bool {
        let bucket = &mut self.buckets[nuisance as usize];
        if bucket.left == 0 {
            let (most, rate) = nuisance.allowance();
            let elapsed = now.saturating_duration_since(bucket.filled);
            let earned = elapsed.as_millis().saturating_mul(rate.into()) / 1_000;
            if earned > 0 {
                bucket.left = u32::try_from(earned).unwrap_or(u32::MAX).min(most);
                bucket.filled = now;
            }
        }
        bucket.left > 0
    }

    /// Something of ours gives the peer reason for `more` of `nuisance`.
    pub fn earn(&mut self, nuisance: Nuisance, more: u32) {
        let left = &mut self.buckets[nuisance as usize].left;
        *left = left.saturating_add(more).min(nuisance.allowance().0);
    }

    pub fn write(&self, to: &mut Writer) {
        for bucket in &self.buckets {
            to.u32(bucket.left);
            to.instant(bucket.filled);
        }
    }

    pub fn read(from: &mut Reader<'_>, now: Instant) -> Result<Self, PlainError> {
        let mut budgets = Self::full(now);
        for (bucket, nuisance) in budgets.buckets.iter_mut().zip(Nuisance::ALL) {
            bucket.left = from.u32("a budget")?;
            bucket.filled = from.instant("when a budget was filled")?;
            if bucket.left > nuisance.allowance().0 {
                return Err(from.wrong("a budget", bucket.left));
            }
        }
        Ok(budgets)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_nuisance_has_a_burst_and_a_rate() {
        for (n, nuisance) in Nuisance::ALL.into_iter().enumerate() {
            assert_eq!(nuisance as usize, n);
            let start = Instant::now();
            let mut budgets = Budgets::full(start);
            let (most, rate) = nuisance.allowance();
            let spent = (0..most * 2).take_while(|_| budgets.spend(nuisance, start)).count();
            assert_eq!(spent, most as usize, "{nuisance:?}");
            let later = start + Duration::from_secs(1);
            let spent = (0..most * 2).take_while(|_| budgets.spend(nuisance, later)).count();
            assert_eq!(spent, rate.min(most) as usize, "{nuisance:?}");
            // Nothing has come together while it was full.
            let tomorrow = later + Duration::from_secs(24 * 3600);
            let spent = (0..most * 3).take_while(|_| budgets.spend(nuisance, tomorrow)).count();
            assert_eq!(spent, most as usize, "{nuisance:?}");
            let spent = (0..most * 3).take_while(|_| budgets.spend(nuisance, tomorrow)).count();
            assert_eq!(spent, 0, "{nuisance:?}");
            let next_year = start + Duration::from_secs(365 * 24 * 3600);
            let spent = (0..most * 2).take_while(|_| budgets.spend(nuisance, next_year)).count();
            assert_eq!(spent, most as usize, "{nuisance:?}");
        }
    }

    #[test]
    fn a_steady_peer_just_below_its_rate_never_runs_dry() {
        let start = Instant::now();
        let mut budgets = Budgets::full(start);
        let (_, rate) = Nuisance::Settings.allowance();
        for n in 0..10_000u64 {
            let now = start + Duration::from_millis(n * 1_000 / u64::from(rate));
            assert!(budgets.spend(Nuisance::Settings, now), "number {n}");
        }
    }
}
