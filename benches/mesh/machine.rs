//! What the machine says: who it is, what its hypervisor took, what a process cost.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

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

/// Above this share of the machine's time, what others took disturbs a measurement.
pub const NOISE_LIMIT: f64 = 0.06;

/// The machine's time so far, in units of 1/USER_HZ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    steal: u64,
    work: u64,
    ours: u64,
    total: u64,
}

/// Shares of the machine's time that were not ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    /// What the hypervisor gave to other guests.
    pub steal: f64,
    /// What processes took that belong neither to the bench nor to a variant.
    pub others: f64,
}

impl Ticks {
    /// Reads `/proc/stat`, and what this process and `proxies` have used; zero is what cannot be read.
    pub fn now(proxies: impl IntoIterator<Item = u32>) -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        // user nice system idle iowait irq softirq steal; guest time after them is in user time already.
        let fields: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
        let ours = proxies.into_iter().chain([std::process::id()]);
        Self {
            steal: fields.get(7).copied().unwrap_or(0),
            // Without interrupts: some kernels charge them to a process and others to nobody.
            work: fields.iter().take(3).sum(),
            ours: ours.filter_map(|pid| ticks(pid).ok()).sum(),
            total: fields.iter().sum(),
        }
    }

    /// What has been taken since `earlier`.
    pub fn noise_since(&self, earlier: &Self) -> Noise {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let (work, ours) = (self.work.saturating_sub(earlier.work), self.ours.saturating_sub(earlier.ours));
        Noise {
            steal: self.steal.saturating_sub(earlier.steal) as f64 / total,
            others: work.saturating_sub(ours) as f64 / total,
        }
    }
}

impl Noise {
    /// The worse of both, each by itself.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { steal: self.steal.max(other.steal), others: self.others.max(other.others) }
    }

    /// The larger share.
    pub fn level(&self) -> f64 {
        self.steal.max(self.others)
    }

    /// Whether it says something against what was measured meanwhile.
    pub fn disturbs(&self) -> bool {
        self.level() > NOISE_LIMIT
    }
}

/// The CPU time of a process in units of 1/USER_HZ, with that of threads that have ended.
fn ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum())
}

/// Which end of a connection a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// Keeps this thread, and those it starts, on a core that the other end's are not on, as on two nodes. Without it the
/// scheduler has both ends of a bare connection on one core or on two, as it likes, and their latency differs threefold.
pub fn pin(end: End) -> io::Result<()> {
    let mine = sched_getaffinity(Pid::from_raw(0))?;
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| mine.is_set(cpu) == Ok(true));
    let cpu = match end {
        End::Client => allowed.next(),
        End::Server => allowed.next_back(),
    };
    let mut only = CpuSet::new();
    only.set(cpu.expect("this thread runs somewhere"))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
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
    // A kernel without schedstat.
    Ok(Duration::from_millis(ticks(pid)? * 1000 / USER_HZ))
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
pub fn conditions(wanted: &Wanted) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("of unknown model", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let today = time::OffsetDateTime::now_utc().date();
    vec![
        format!("adit {} on {today}, {}", env!("CARGO_PKG_VERSION"), wanted.summary()),
        format!("Linux {}, {cores} cores, {model}", read("/proc/sys/kernel/osrelease")),
    ]
}
