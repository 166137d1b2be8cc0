//! What a process has and uses, as the kernel says in `/proc`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::Running;

/// The kernel counts processor time in hundredths of a second (proc_pid_stat(5), `USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
const PAGE: u64 = 4096;

/// Looks at one process, and all the time at its memory.
pub struct Gauge {
    pid: u32,
    peak: Arc<AtomicU64>,
    running: Running,
}

/// One look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Resident memory in bytes.
    pub memory: u64,
    pub descriptors: usize,
    /// User and system time so far.
    pub cpu: Duration,
}

fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the proxy lives");
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE
}

impl Gauge {
    pub fn new(pid: u32) -> Self {
        let (peak, running) = (Arc::new(AtomicU64::new(0)), Running::new());
        thread::spawn({
            let (peak, running) = (peak.clone(), running.clone());
            move || {
                while running.goes_on() {
                    // It may end before us.
                    if std::fs::exists(format!("/proc/{pid}/statm")).unwrap_or(false) {
                        peak.fetch_max(memory(pid), Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self { pid, peak, running }
    }

    pub fn now(&self) -> Look {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the proxy lives");
        // Behind the name in parentheses: fields 14 and 15 of all.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count();
        Look { memory: memory(self.pid), descriptors, cpu: ticks * TICK }
    }

    /// The most memory since [`forget_peak`](Self::forget_peak).
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub fn forget_peak(&self) {
        self.peak.store(0, Ordering::Relaxed);
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.running.stop();
    }
}
