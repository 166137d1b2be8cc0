//! What may not grow: descriptors, tasks, sockets, memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::SOON;
use crate::carriers::Carrier;

/// What one thread with its runtime and its namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    tasks: usize,
    /// Connections that the carrier knows of.
    carried: usize,
    /// By the kernel's number of their state, without those that only wait for their time to pass.
    sockets: BTreeMap<String, usize>,
}

impl Held {
    /// A thread that carries nothing has one task, which ends the rounds of its pods.
    pub fn of_a_worker() -> Self {
        Self { tasks: 1, ..Self::default() }
    }

    pub fn now(carrier: Option<&impl Carrier>) -> Self {
        Self {
            tasks: Handle::current().metrics().num_alive_tasks(),
            carried: carrier.map_or(0, Carrier::holds),
            sockets: sockets(),
        }
    }

    /// Waits until no more is held than at the time of `self`.
    pub async fn again(&self, what: &str, carrier: Option<&impl Carrier>) {
        let deadline = Instant::now() + SOON;
        loop {
            let now = Self::now(carrier);
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {now:?} is held after {SOON:?}, not {self:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The sockets in the namespace of the calling thread (proc_net(5)).
fn sockets() -> BTreeMap<String, usize> {
    const TIME_WAIT: &str = "06";
    let mut sockets = BTreeMap::new();
    for table in ["tcp", "tcp6"] {
        // A kernel without IPv6 has no table for it.
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for state in table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3)) {
            if state != TIME_WAIT {
                *sockets.entry(state.to_owned()).or_default() += 1;
            }
        }
    }
    sockets
}

/// What the process has open, less the descriptor that lists it.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Resident memory of the process, in KiB.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
