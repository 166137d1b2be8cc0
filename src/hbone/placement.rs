//! Which worker carries a connection: what the workers know of each other.
//!
//! The table is written only when a tunnel opens, saturates or closes; beside it each worker has a line of its own that says how many
//! connections it carries and how busy it is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::identity::SpiffeId;

/// Which streams may share a tunnel. Sharing more would falsify source address, identity or policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Identity the tunnel proves.
    pub source: SpiffeId,
    /// Address of the source pod: what the far side sees and shows to the application.
    pub source_ip: IpAddr,
    /// Identities accepted at the far end, in order.
    pub expected: Arc<[SpiffeId]>,
    /// The far proxy's tunnel port.
    pub to: SocketAddr,
    /// UID of the workload it leads to.
    pub workload: Arc<str>,
}

/// Number of a data worker, from 0.
pub type WorkerId = usize;

/// What workers know of each other: who owns a tunnel for a key, and how much each carries. One per process.
#[derive(Debug)]
pub struct Placement {
    tunnels: RwLock<HashMap<TunnelKey, Vec<Owner>>>,
    /// What each worker carries; written by that worker only.
    load: Vec<Load>,
}

#[derive(Debug)]
struct Owner {
    worker: WorkerId,
    saturated: bool,
}

/// On its own cache line, so that workers do not slow each other down by counting.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    carried: AtomicUsize,
    /// In thousandths of its time.
    busy: AtomicU32,
}

/// From so many thousandths on a worker is full: what it carries waits for it, and what is added waits with it.
const FULL: u32 = 850;
/// A worker that is at most so busy takes over for a full one: with less than that the second tunnel would soon be full too.
const RELIEF: u32 = 500;
/// A worker may carry this many connections more than the idlest before new ones go there: moving costs a wake-up.
const LOAD_SLACK: usize = 16;

impl Placement {
    /// A table for `workers` workers.
    pub fn new(workers: usize) -> Self {
        let load = (0..workers.max(1)).map(|_| Load::default()).collect();
        Self { tunnels: RwLock::default(), load }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.load.len()
    }

    /// Where a stream for `key`, accepted on worker `here`, shall live: with a tunnel that has room, else where
    /// least is carried. When every worker that has such a tunnel is full, one that has time makes another.
    pub fn place(&self, key: &TunnelKey, here: WorkerId) -> WorkerId {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        let owners = tunnels.get(key).into_iter().flatten();
        let mut with_room = owners.filter(|owner| !owner.saturated).map(|owner| owner.worker);
        let Some(first) = with_room.clone().next() else {
            drop(tunnels);
            return self.least_loaded(here);
        };
        // Here, or the same for everybody: the others may then run empty and be released.
        let prefer = |one: WorkerId, other: WorkerId| if other == here { other } else { one };
        match with_room.clone().filter(|&worker| !self.is_full(worker)).reduce(prefer) {
            Some(calm) => calm,
            None => self.relief().unwrap_or_else(|| with_room.by_ref().fold(first, prefer)),
        }
    }

    /// The worker that carries least; `here` while it is not clearly busier.
    pub fn least_loaded(&self, here: WorkerId) -> WorkerId {
        let carried = |worker: WorkerId| self.load[worker].carried.load(Ordering::Relaxed);
        let load = |worker: &WorkerId| (self.is_full(*worker), carried(*worker));
        let idlest = (0..self.load.len()).min_by_key(load).unwrap_or(here);
        let is_better = self.is_full(here) && !self.is_full(idlest);
        if !is_better && carried(here) <= carried(idlest) + LOAD_SLACK { here } else { idlest }
    }

    /// A worker that has time for what others have not.
    fn relief(&self) -> Option<WorkerId> {
        let busy = |worker: &WorkerId| self.load[*worker].busy.load(Ordering::Relaxed);
        (0..self.load.len()).min_by_key(busy).filter(|idlest| busy(idlest) <= RELIEF)
    }

    fn is_full(&self, worker: WorkerId) -> bool {
        self.load[worker].busy.load(Ordering::Relaxed) >= FULL
    }

    /// `worker` tells how busy it was of late, in thousandths of its time.
    pub fn tell_busy(&self, worker: WorkerId, thousandths: u32) {
        self.load[worker].busy.store(thousandths, Ordering::Relaxed);
    }

    /// Counts one connection on `worker` until the guard is dropped, there.
    pub fn carry(self: &Arc<Self>, worker: WorkerId) -> Carried {
        self.load[worker].carried.fetch_add(1, Ordering::Relaxed);
        Carried { placement: self.clone(), worker }
    }

    /// Connections on each worker, for operators.
    pub fn loads(&self) -> Vec<usize> {
        self.load.iter().map(|load| load.carried.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn set(&self, key: &TunnelKey, worker: WorkerId, state: Option<bool>) {
        let mut tunnels = self.tunnels.write().unwrap_or_else(PoisonError::into_inner);
        let owners = tunnels.entry(key.clone()).or_default();
        match (state, owners.iter_mut().find(|owner| owner.worker == worker)) {
            (Some(saturated), Some(owner)) => owner.saturated = saturated,
            (Some(saturated), None) => owners.push(Owner { worker, saturated }),
            (None, _) => owners.retain(|owner| owner.worker != worker),
        }
        if owners.is_empty() {
            tunnels.remove(key);
        }
    }
}

/// One connection's weight on a worker.
pub struct Carried {
    placement: Arc<Placement>,
    worker: WorkerId,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.placement.load[self.worker].carried.fetch_sub(1, Ordering::Relaxed);
    }
}
