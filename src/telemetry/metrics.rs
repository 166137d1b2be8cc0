//! The registry: who counts what, and the handles by which rooms count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::labels::Text;
use super::page;
use super::shard::{Shard, ShardCells};

/// Label sets of one family of handles. Their values come from closed lists and the control plane's types;
/// more than this many is a mistake somewhere, and must not become memory.
const FAMILY_BUDGET: usize = 1_000;

/// All numbers of the process. Cloning gives another handle to the same numbers.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) build: String,
    label_sets_per_shard: usize,
    pub(super) shards: Mutex<Vec<Arc<ShardCells>>>,
    pub(super) families: Mutex<Vec<Family>>,
    pub(super) runtimes: Mutex<Vec<Handle>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// Handles of one name.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) labels: Vec<(&'static str, Text)>,
    pub(super) cell: Arc<AtomicU64>,
}

impl Registry {
    /// An empty registry.
    ///
    /// - `build`: the value of `istio_build`'s label `tag`.
    /// - `label_sets_per_shard`: how many traffic label sets one worker keeps apart before it folds new ones; a
    ///   set takes about 300 bytes in each shard and 4 KiB on the page.
    pub fn new(build: impl Into<String>, label_sets_per_shard: usize) -> Self {
        Self(Arc::new(Inner {
            build: build.into(),
            label_sets_per_shard,
            shards: Mutex::default(),
            families: Mutex::default(),
            runtimes: Mutex::default(),
        }))
    }

    /// A shard for the calling thread.
    pub fn shard(&self) -> Shard {
        let cells = Arc::new(ShardCells::default());
        lock(&self.0.shards).push(Arc::clone(&cells));
        Shard::new(cells, self.0.label_sets_per_shard)
    }

    /// Shows a data worker's runtime in the `tokio_*` families. Its number there is the order of these calls.
    pub fn runtime(&self, handle: Handle) {
        lock(&self.0.runtimes).push(handle);
    }

    /// A counter named `name` (with or without `_total`), with fixed labels. The same name and labels give
    /// the same counter; it is printed from now on, also while it is zero. `help` needs no full stop.
    ///
    /// Takes a lock: ask once and keep the handle. A name that ends in `_bytes` or `_seconds` says its unit.
    ///
    /// # Panics
    /// If the name is already a gauge, which is a mistake in the code and not in any input.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        let name = name.strip_suffix("_total").unwrap_or(name);
        Counter(self.0.cell(Kind::Counter, name, help, labels))
    }

    /// A gauge; otherwise as [`Registry::counter`].
    ///
    /// # Panics
    /// If the name is already a counter.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        Gauge(self.0.cell(Kind::Gauge, name, help, labels))
    }

    /// The page of all metrics in OpenMetrics text format, summed over shards.
    ///
    /// Takes time in proportion to the label sets (microseconds for each): not for a thread that must stay
    /// prompt.
    ///
    /// Source: OpenMetrics 1.0.
    pub fn page(&self) -> String {
        page::render(&self.0)
    }
}

impl Inner {
    fn cell(
        &self,
        kind: Kind,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<AtomicU64> {
        let mut families = lock(&self.families);
        let at = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            families.push(Family { kind, name, help, samples: Vec::new() });
            families.len() - 1
        });
        let family = &mut families[at];
        assert!(family.kind == kind, "metric {name} is asked for as a counter and as a gauge");
        let same = |sample: &&Sample, wanted: &[(&'static str, &str)]| {
            sample.labels.iter().map(|(name, value)| (*name, &**value)).eq(wanted.iter().copied())
        };
        if let Some(sample) = family.samples.iter().find(|sample| same(sample, labels)) {
            return Arc::clone(&sample.cell);
        }
        let folded: Vec<_> = labels.iter().map(|(name, _)| (*name, "unknown")).collect();
        let labels = if family.samples.len() < FAMILY_BUDGET { labels } else { &folded };
        if let Some(sample) = family.samples.iter().find(|sample| same(sample, labels)) {
            return Arc::clone(&sample.cell);
        }
        let cell = Arc::<AtomicU64>::default();
        let labels = labels.iter().map(|(name, value)| (*name, Text::from(*value))).collect();
        family.samples.push(Sample { labels, cell: Arc::clone(&cell) });
        cell
    }
}

/// Counts up, from any thread.
#[derive(Clone, Debug)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down, from any thread.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is `value` now.
    pub fn set(&self, value: i64) {
        self.0.store(value.cast_unsigned(), Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        // Two's complement: adding modulo 2^64 is adding with sign.
        self.0.fetch_add(n.cast_unsigned(), Relaxed);
    }

    /// One more, until the guard is dropped.
    pub fn hold(&self) -> Held {
        self.add(1);
        Held(self.clone())
    }
}

/// One that a [`Gauge`] counts until this is dropped.
#[derive(Debug)]
#[must_use = "the gauge goes down when this is dropped"]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Locks, also after a panic of another holder: no list here is ever left half-written.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
