//! What a proxy process writes: every line kept, its access log parsed, both searchable with a deadline.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::error::Error;

/// All lines of one process so far, stdout and stderr in the order they came. Clones share them.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    who: String,
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    all: Vec<String>,
    ended: bool,
}

/// A place in a log: everything written before it was taken lies before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(usize);

impl Position {
    /// Before the first line.
    pub const START: Self = Self(0);
}

impl Log {
    pub(super) fn new(who: String) -> Self {
        Self(Arc::new(Shared { who, lines: Mutex::default(), more: Condvar::new() }))
    }

    pub(super) fn push(&self, line: String) {
        self.lock().all.push(line);
        self.0.more.notify_all();
    }

    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.0.more.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // A panicking reader leaves the lines whole: they are only appended to.
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the log as it is now.
    pub fn position(&self) -> Position {
        Position(self.lock().all.len())
    }

    /// The lines since `from`.
    pub fn since(&self, from: Position) -> Vec<String> {
        self.lock().all.get(from.0..).unwrap_or_default().to_vec()
    }

    /// The last `count` lines, one per line.
    pub fn last(&self, count: usize) -> String {
        let lines = self.lock();
        lines.all[lines.all.len().saturating_sub(count)..].join("\n")
    }

    /// Waits until `pick` makes something of a line at or after `from`, and returns the first such.
    ///
    /// # Errors
    /// [`Error::TooLate`] with `what` after `within`, or as soon as the process has ended without such a line.
    pub fn find<T>(
        &self,
        from: Position,
        what: &str,
        within: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + within;
        let mut next = from.0;
        let mut lines = self.lock();
        loop {
            while let Some(line) = lines.all.get(next) {
                if let Some(found) = pick(line) {
                    return Ok(found);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                return Err(Error::TooLate { what: format!("{what} in the log of {}", self.0.who), within });
            }
            (lines, _) = self.0.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One line of the access log (`LOG_FORMAT=json`, scope `access`). Absent fields are those the proxy left out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AccessLine {
    /// `info`, `warn` or `error`.
    pub level: String,
    /// `connection complete`, `connection opened` or `connection failed`.
    pub message: String,
    /// Address the connection came from.
    #[serde(rename = "src.addr")]
    pub src_addr: Option<String>,
    /// Pod it came from.
    #[serde(rename = "src.workload")]
    pub src_workload: Option<String>,
    /// That pod's namespace.
    #[serde(rename = "src.namespace")]
    pub src_namespace: Option<String>,
    /// Proven identity of the caller.
    #[serde(rename = "src.identity")]
    pub src_identity: Option<String>,
    /// Address dialled by the proxy, or the one it was dialled at.
    #[serde(rename = "dst.addr")]
    pub dst_addr: Option<String>,
    /// CONNECT authority; present only when the connection went through a tunnel.
    #[serde(rename = "dst.hbone_addr")]
    pub dst_hbone_addr: Option<String>,
    /// Host name of the service.
    #[serde(rename = "dst.service")]
    pub dst_service: Option<String>,
    /// Pod it went to.
    #[serde(rename = "dst.workload")]
    pub dst_workload: Option<String>,
    /// That pod's namespace.
    #[serde(rename = "dst.namespace")]
    pub dst_namespace: Option<String>,
    /// Proven identity of the called.
    #[serde(rename = "dst.identity")]
    pub dst_identity: Option<String>,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Bytes the local workload's peer got from it.
    pub bytes_sent: Option<u64>,
    /// Bytes it got.
    pub bytes_recv: Option<u64>,
    /// Time since accept, with its unit.
    pub duration: Option<String>,
    /// Why the connection failed.
    pub error: Option<String>,
    /// The policy that decided.
    pub policy: Option<String>,
}

impl AccessLine {
    /// Reads a log line; `None` for what is not an access log line.
    pub fn parse(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Scoped {
            scope: String,
            #[serde(flatten)]
            line: AccessLine,
        }
        serde_json::from_str::<Scoped>(line).ok().filter(|it| it.scope == "access").map(|it| it.line)
    }

    /// Whether a connection's end is told, rather than its beginning.
    pub fn is_end(&self) -> bool {
        self.message != "connection opened"
    }
}

/// The access log of one process: a view of its [`Log`].
#[derive(Clone, Debug)]
pub struct AccessLog(pub(super) Log);

impl AccessLog {
    /// Waits for the end of a connection that satisfies `wanted`, anywhere in the log.
    ///
    /// # Errors
    /// As [`Log::find`].
    pub fn wait_for(
        &self,
        wanted: impl FnMut(&AccessLine) -> bool,
        within: Duration,
    ) -> Result<AccessLine, Error> {
        self.wait_for_since(Position::START, wanted, within)
    }

    /// As [`AccessLog::wait_for`], looking only at what was written after `from`.
    pub fn wait_for_since(
        &self,
        from: Position,
        mut wanted: impl FnMut(&AccessLine) -> bool,
        within: Duration,
    ) -> Result<AccessLine, Error> {
        self.0.find(from, "the expected connection's end", within, |line| {
            AccessLine::parse(line).filter(AccessLine::is_end).filter(|line| wanted(line))
        })
    }

    /// Waits until `count` ends that satisfy `wanted` were told after `from`, and returns those it saw: fewer,
    /// when they did not come within `within`.
    pub fn wait_for_count(
        &self,
        from: Position,
        count: usize,
        wanted: impl Fn(&AccessLine) -> bool,
        within: Duration,
    ) -> Vec<AccessLine> {
        let mut ends = Vec::new();
        // Too few is an answer here, which the caller sees in the result.
        let _ = self.0.find(from, "the expected connections' ends", within, |line| {
            let end = AccessLine::parse(line).filter(AccessLine::is_end).filter(|line| wanted(line));
            ends.extend(end);
            (ends.len() >= count).then_some(())
        });
        ends
    }

    /// The ends of connections told since `from`.
    pub fn since(&self, from: Position) -> Vec<AccessLine> {
        let lines = self.0.since(from);
        lines.iter().filter_map(|line| AccessLine::parse(line)).filter(AccessLine::is_end).collect()
    }
}
