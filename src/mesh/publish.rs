//! How a new snapshot reaches everybody: one pointer swap, then word of it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::snapshot::Snapshot;

/// The one writer.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

/// A reader. Cloning copies pointers.
#[derive(Clone, Debug)]
pub struct Handle {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

impl Publisher {
    /// Starts with `first` as version 1.
    pub fn new(first: Snapshot) -> (Self, Handle) {
        let current = Arc::new(ArcSwap::from_pointee(first));
        let (sender, receiver) = watch::channel(1);
        (Self { current: Arc::clone(&current), version: sender }, Handle { current, version: receiver })
    }

    /// Puts `next` in the place of the current snapshot, tells every [`Handle::changes`], and returns the new
    /// version. Whoever hears of a version finds that snapshot or a later one.
    pub fn publish(&self, next: Snapshot) -> u64 {
        self.current.store(Arc::new(next));
        let mut now = 0;
        self.version.send_modify(|version| {
            *version += 1;
            now = *version;
        });
        now
    }
}

impl Handle {
    /// The current snapshot for the length of one decision: no lock, no reference count.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot to keep: across an await, or longer.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What `find` finds in the current snapshot or, within `patience`, in a later one.
    pub async fn wait_for<T>(&self, patience: Duration, find: impl Fn(&Snapshot) -> Option<T>) -> Option<T> {
        if let Some(found) = find(&self.load()) {
            return Some(found);
        }
        let search = async {
            let mut changes = self.version.clone();
            loop {
                // Marked before the look, so that a change right after it is not missed.
                changes.mark_unchanged();
                if let Some(found) = find(&self.load()) {
                    return found;
                }
                if changes.changed().await.is_err() {
                    // Nobody publishes any more: there is nothing to wait for but the deadline.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }

    /// Tells of every later change. Changes that come faster than they are looked at are told once; the channel
    /// closes when the publisher is gone, and the last snapshot stays.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.version.clone();
        changes.mark_unchanged();
        changes
    }
}
