//! What the node still waits for before it may be given pods.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::labels::Text;
use super::metrics::lock;

/// The named things that must be done before the process is ready. Cloning gives another handle to the same
/// list.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    /// Sorted by name; the number tells two tasks of one name apart.
    waiting: BTreeSet<(Text, u64)>,
}

impl Readiness {
    /// A new thing to wait for, not done yet. Of two with one name, both must be done.
    pub fn task(&self, name: &str) -> Task {
        let mut list = lock(&self.0);
        let key = (Text::from(name), list.next);
        list.next += 1;
        list.waiting.insert(key.clone());
        Task { key, readiness: self.clone() }
    }

    /// The names of what is not done, sorted, each once; none when the process is ready.
    pub fn pending(&self) -> Vec<Text> {
        let mut names: Vec<Text> = lock(&self.0).waiting.iter().map(|(name, _)| name.clone()).collect();
        names.dedup();
        names
    }
}

/// One thing the process waits for. Dropping it leaves it as it was: what died before it was done never is.
#[derive(Debug)]
pub struct Task {
    key: (Text, u64),
    readiness: Readiness,
}

impl Task {
    /// It is done, until [`Task::pending`] says otherwise.
    pub fn done(&self) {
        lock(&self.readiness.0).waiting.remove(&self.key);
    }

    /// It is to be waited for, again.
    pub fn pending(&self) {
        lock(&self.readiness.0).waiting.insert(self.key.clone());
    }
}
