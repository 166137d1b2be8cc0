//! What one worker counts: cells that only it writes, found without a lock, read by whoever scrapes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::labels::{Fault, Refusal, Reporter, TrafficLabels};
use super::metrics::lock;

/// A counter with one writer. Adding is a load and a store: no bus lock, no line that another core writes.
#[derive(Debug, Default)]
pub(super) struct Own(AtomicU64);

impl Own {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The cells of one label set in one shard.
///
/// Its writer is the worker whose [`Shard`] made it; [`Series`] is therefore handed out behind an `Rc`, which
/// keeps it there.
#[derive(Debug)]
pub(super) struct Cells {
    pub(super) labels: TrafficLabels,
    pub(super) opened: Own,
    pub(super) closed: Own,
    pub(super) failed: Own,
    pub(super) received: Own,
    pub(super) sent: Own,
}

/// What a shard shares with the scraper.
#[derive(Debug, Default)]
pub(super) struct ShardCells {
    /// Locked to add a label set, and by the scraper to copy the pointers: never while something is spelled.
    pub(super) series: Mutex<Vec<Arc<Cells>>>,
    pub(super) sockets_accepted: [Own; Reporter::ALL.len()],
    pub(super) sockets_ended: [Own; Reporter::ALL.len()],
    pub(super) refused: [Own; Refusal::ALL.len()],
    pub(super) faults: [Own; Fault::ALL.len()],
    pub(super) folded: Own,
}

/// One worker's numbers. Cloning gives another handle to the same cells.
///
/// Made on the thread that uses it and bound to it (not `Send`): that every cell has one writer is what makes
/// plain stores right. The numbers outlive the shard, since counters never go back.
#[derive(Clone, Debug)]
pub struct Shard(Rc<Local>);

#[derive(Debug)]
struct Local {
    known: RefCell<HashMap<TrafficLabels, Arc<Cells>>>,
    cells: Arc<ShardCells>,
    budget: usize,
}

impl Shard {
    pub(super) fn new(cells: Arc<ShardCells>, budget: usize) -> Self {
        Self(Rc::new(Local { known: RefCell::default(), cells, budget }))
    }

    /// The cells of `labels`. A set seen before takes no lock and allocates nothing; a new one takes the lock
    /// that it shares with the scraper. Beyond the budget of label sets a new one is counted under `unknown`,
    /// and
    /// `adit_label_sets_folded_total` says so.
    pub fn series(&self, labels: &TrafficLabels) -> Series {
        let mut known = self.0.known.borrow_mut();
        if let Some(cells) = known.get(labels) {
            return Series::new(cells);
        }
        if known.len() < self.0.budget {
            return Series::new(self.0.add(&mut known, labels.clone()));
        }
        self.0.cells.folded.add(1);
        let folded = labels.folded();
        match known.get(&folded) {
            Some(cells) => Series::new(cells),
            None => Series::new(self.0.add(&mut known, folded)),
        }
    }

    /// Counts an accepted socket of the data path until the guard is dropped.
    pub fn socket(&self, reporter: Reporter) -> OpenSocket {
        self.0.cells.sockets_accepted[reporter as usize].add(1);
        OpenSocket { cells: Arc::clone(&self.0.cells), reporter, here: PhantomData }
    }

    /// Counts a connection that was refused before it had a record.
    pub fn refused(&self, why: Refusal) {
        self.0.cells.refused[why as usize].add(1);
    }

    /// Counts a connection that ended by somebody's fault.
    pub fn fault(&self, whose: Fault) {
        self.0.cells.faults[whose as usize].add(1);
    }
}

impl Local {
    fn add<'a>(
        &self,
        known: &'a mut HashMap<TrafficLabels, Arc<Cells>>,
        labels: TrafficLabels,
    ) -> &'a Arc<Cells> {
        let cells = Arc::new(Cells {
            labels: labels.clone(),
            opened: Own::default(),
            closed: Own::default(),
            failed: Own::default(),
            received: Own::default(),
            sent: Own::default(),
        });
        lock(&self.cells.series).push(Arc::clone(&cells));
        known.entry(labels).or_insert(cells)
    }
}

/// The counters of one label set, on the worker that owns them.
#[derive(Clone, Debug)]
pub struct Series {
    cells: Arc<Cells>,
    /// Keeps the only writer on its thread.
    here: PhantomData<*const ()>,
}

impl Series {
    fn new(cells: &Arc<Cells>) -> Self {
        Self { cells: Arc::clone(cells), here: PhantomData }
    }

    /// Counts a connection that opened.
    pub fn opened(&self) {
        self.cells.opened.add(1);
    }

    /// Counts a connection that ended.
    pub fn closed(&self) {
        self.cells.closed.add(1);
    }

    /// Counts a connection that failed.
    pub fn failed(&self) {
        self.cells.failed.add(1);
    }

    /// Counts bytes from downstream to upstream.
    pub fn received(&self, bytes: u64) {
        self.cells.received.add(bytes);
    }

    /// Counts bytes from upstream to downstream.
    pub fn sent(&self, bytes: u64) {
        self.cells.sent.add(bytes);
    }
}

/// One socket counted in `istio_tcp_sockets_open`, until it is dropped.
#[derive(Debug)]
#[must_use = "the socket counts as closed when this is dropped"]
pub struct OpenSocket {
    cells: Arc<ShardCells>,
    reporter: Reporter,
    here: PhantomData<*const ()>,
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.cells.sockets_ended[self.reporter as usize].add(1);
    }
}
