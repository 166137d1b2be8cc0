//! What the machine says: who it is, what its hypervisor took, what a process cost.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::interrupt;
use crate::wanted::Wanted;

/// What a namespace may choose as its congestion control. Only the host's first namespace can change it.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// Descriptors for the ends of all idle connections of several variants.
const OPEN_FILES: u64 = 65_536;
/// Units of time per second in `/proc/PID/stat` (USER_HZ).
const USER_HZ: u64 = 100;

/// While it lives, namespaces may choose the congestion control it was made for. A namespace that has chosen keeps it.
#[derive(Debug)]
pub struct Allowed;

impl Allowed {
    /// Adds `name` to the host's list, if it is missing. `None` where the host does not have it or does not let us.
    pub fn lift(name: &str) -> Option<Self> {
        let has = |list: &str| list.split_whitespace().any(|it| it == name);
        let allowed = fs::read_to_string(ALLOWED).ok()?;
        if !has(&allowed) {
            if !has(&fs::read_to_string(AVAILABLE).ok()?) {
                return None;
            }
            let mut due = interrupt::due();
            due.restore = Some((ALLOWED, allowed.trim().to_owned()));
            if fs::write(ALLOWED, format!("{} {name}", allowed.trim())).is_err() {
                due.restore = None;
                return None;
            }
        }
        Some(Self)
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some((file, content)) = interrupt::due().restore.take()
            && let Err(cause) = fs::write(file, &content)
        {
            eprintln!("mesh: could not write {content:?} back to {file}: {cause}");
        }
    }
}

/// Raises this process's limit of open files, which the proxies inherit: as far as wanted, or as far as it may.
pub fn allow_open_files() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < OPEN_FILES && setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, hard.max(OPEN_FILES)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// The machine's time so far, in units that do not matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    steal: u64,
    total: u64,
}

impl Ticks {
    /// Reads the first line of `/proc/stat`; all zero where it cannot be read.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        // user nice system idle iowait irq softirq steal; guest time after them is in user time already.
        let fields: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
        Self { steal: fields.get(7).copied().unwrap_or(0), total: fields.iter().sum() }
    }

    /// The share of all time since `earlier` that the hypervisor gave to others.
    pub fn steal_since(&self, earlier: &Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total);
        if total == 0 { 0.0 } else { self.steal.saturating_sub(earlier.steal) as f64 / total as f64 }
    }
}

/// The CPU time a process has used, with that of the threads it has now.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        if let Some(spent) = text.split_whitespace().next().and_then(|it| it.parse::<u64>().ok()) {
            nanoseconds += spent;
            threads += 1;
        }
    }
    if threads > 0 {
        return Ok(Duration::from_nanos(nanoseconds));
    }
    // A kernel without schedstat. The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / USER_HZ))
}

/// What a process has of the machine's memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Everything mapped and present.
    pub resident: f64,
    /// What it alone has and has written to.
    pub private_dirty: f64,
}

impl Memory {
    /// Reads it from `/proc/PID/smaps_rollup`.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("smaps_rollup of {pid} has no {name}"))
            })
        };
        Ok(Self { resident: field("Rss")?, private_dirty: field("Private_Dirty")? })
    }
}

/// What somebody must know to judge the figures, one line each.
pub fn conditions(congestion: &str, wanted: &Wanted) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("of unknown model", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let today = time::OffsetDateTime::now_utc().date();
    vec![
        format!("adit {} on {today}, {}", env!("CARGO_PKG_VERSION"), wanted.summary()),
        format!("congestion control {congestion} in every namespace"),
        format!("Linux {}, {cores} cores, {model}", read("/proc/sys/kernel/osrelease")),
    ]
}
