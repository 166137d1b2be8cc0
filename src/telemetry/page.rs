//! The metrics page: every number of the process in OpenMetrics text.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::resource::{Resource, getrlimit};

use super::labels::{Fault, Refusal, Reporter, TrafficLabels, spell};
use super::metrics::{Inner, Kind, lock};
use super::shard::{Cells, Own, ShardCells};

pub(super) fn render(registry: &Inner) -> String {
    let mut page = Page::default();
    let shards = lock(&registry.shards).clone();
    traffic(&mut page, &shards);
    closed_sets(&mut page, &shards);
    build(&mut page, &registry.build);
    handles(&mut page, registry);
    process(&mut page);
    runtimes(&mut page, registry);
    page.finish()
}

/// One label set, summed over shards.
#[derive(Default)]
struct Totals {
    labels: String,
    opened: u64,
    closed: u64,
    failed: u64,
    received: u64,
    sent: u64,
}

fn traffic(page: &mut Page, shards: &[Arc<ShardCells>]) {
    let copies: Vec<Vec<Arc<Cells>>> = shards.iter().map(|shard| lock(&shard.series).clone()).collect();
    let mut index: HashMap<&TrafficLabels, usize> = HashMap::new();
    let mut sets: Vec<Totals> = Vec::new();
    for cells in copies.iter().flatten() {
        let at = match index.entry(&cells.labels) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let mut labels = String::with_capacity(1024);
                cells.labels.spell(&mut labels);
                sets.push(Totals { labels, ..Totals::default() });
                *new.insert(sets.len() - 1)
            }
        };
        let set = &mut sets[at];
        // An end is read before its beginning, so that a page never shows more ends than beginnings.
        set.failed += cells.failed.read();
        set.closed += cells.closed.read();
        set.opened += cells.opened.read();
        set.received += cells.received.read();
        set.sent += cells.sent.read();
    }
    let mut counter = |name, help, value: fn(&Totals) -> Option<u64>| {
        let mut family = page.family(Kind::Counter, name, help, Stop::Added);
        for set in &sets {
            if let Some(value) = value(set) {
                family.sample(&set.labels, value);
            }
        }
    };
    fn some(value: u64) -> Option<u64> {
        (value > 0).then_some(value)
    }
    // Bytes are counted from the opening on, so a set that opened has them even while they are zero.
    counter("istio_tcp_connections_opened", "The total number of TCP connections opened", |set| {
        some(set.opened)
    });
    counter("istio_tcp_connections_closed", "The total number of TCP connections closed", |set| {
        some(set.closed)
    });
    counter(
        "istio_tcp_received_bytes",
        "The size of total bytes received during request in case of a TCP connection",
        |set| (set.opened > 0).then_some(set.received),
    );
    counter(
        "istio_tcp_sent_bytes",
        "The size of total bytes sent during response in case of a TCP connection",
        |set| (set.opened > 0).then_some(set.sent),
    );
    counter(
        "istio_tcp_connections_failed",
        "The total number of TCP connections that ended with a response flag (unstable)",
        |set| some(set.failed),
    );
}

/// Families whose one label has a closed list of values.
fn closed_sets(page: &mut Page, shards: &[Arc<ShardCells>]) {
    let sum = |of: &dyn Fn(&ShardCells) -> &Own| shards.iter().map(|shard| of(shard).read()).sum::<u64>();

    let help = "The number of accepted TCP sockets of the data path that are open (unstable)";
    let mut family = page.family(Kind::Gauge, "istio_tcp_sockets_open", help, Stop::Added);
    for reporter in Reporter::ALL {
        let ended = sum(&|shard| &shard.sockets_ended[reporter as usize]);
        let accepted = sum(&|shard| &shard.sockets_accepted[reporter as usize]);
        if accepted > 0 {
            family.sample(&labels("reporter", reporter.as_str()), accepted.saturating_sub(ended));
        }
    }

    let help = "The total number of connections refused before they had a record (unstable)";
    let mut family = page.family(Kind::Counter, "adit_connections_refused", help, Stop::Added);
    for why in Refusal::ALL {
        let count = sum(&|shard| &shard.refused[why as usize]);
        if count > 0 {
            family.sample(&labels("reason", why.as_str()), count);
        }
    }

    let help = "The total number of connections that failed, by whose move it is (unstable)";
    let mut family = page.family(Kind::Counter, "adit_connection_faults", help, Stop::Added);
    for whose in Fault::ALL {
        let count = sum(&|shard| &shard.faults[whose as usize]);
        if count > 0 {
            family.sample(&labels("fault", whose.as_str()), count);
        }
    }

    let help =
        "The total number of connections counted under unknown labels, as there are too many sets (unstable)";
    page.family(Kind::Counter, "adit_label_sets_folded", help, Stop::Added)
        .sample("", sum(&|shard| &shard.folded));
}

fn build(page: &mut Page, tag: &str) {
    // Istio's dashboards ask for this component by name.
    let mut set = labels("component", "ztunnel");
    spell(&mut set, "tag", tag);
    page.family(Kind::Gauge, "istio_build", "Istio component build info", Stop::Added).sample(&set, 1);
}

fn handles(page: &mut Page, registry: &Inner) {
    let families = lock(&registry.families).clone();
    for known in &families {
        let mut family = page.family(known.kind, known.name, known.help, Stop::Added);
        family.unit = [("_bytes", "bytes"), ("_seconds", "seconds")]
            .into_iter()
            .find(|(end, _)| known.name.ends_with(end))
            .map(|(_, unit)| unit);
        for sample in &known.samples {
            let mut set = String::new();
            for (name, value) in &sample.labels {
                spell(&mut set, name, value);
            }
            let value = sample.cell.load(Relaxed);
            match known.kind {
                Kind::Counter => family.sample(&set, value),
                Kind::Gauge => family.sample(&set, value.cast_signed()),
            }
        }
    }
}

fn process(page: &mut Page) {
    // Each is left out when the kernel does not say: a zero would be a statement.
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // The listing itself holds one descriptor.
        let open = entries.count().saturating_sub(1);
        page.family(Kind::Gauge, "process_open_fds", "Number of open file descriptors", Stop::Bare)
            .sample("", open);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.family(Kind::Gauge, "process_max_fds", "Maximum number of open file descriptors", Stop::Bare)
            .sample("", soft);
    }
}

/// The data workers: one single-threaded runtime each, shown as the workers of one.
fn runtimes(page: &mut Page, registry: &Inner) {
    let metrics: Vec<_> = lock(&registry.runtimes).iter().map(|handle| handle.metrics()).collect();
    let mut gauge =
        |name, help, value: usize| page.family(Kind::Gauge, name, help, Stop::Bare).sample("", value);
    gauge(
        "tokio_num_workers",
        "Number of worker threads of the data path",
        metrics.iter().map(|m| m.num_workers()).sum(),
    );
    gauge(
        "tokio_global_queue_depth",
        "Number of tasks scheduled from outside their runtime and not yet taken",
        metrics.iter().map(|m| m.global_queue_depth()).sum(),
    );
    gauge(
        "tokio_num_alive_tasks",
        "Number of tasks alive",
        metrics.iter().map(|m| m.num_alive_tasks()).sum(),
    );

    // A runtime of one thread has the one worker 0.
    let each = || metrics.iter().enumerate().map(|(n, m)| (labels("worker", &n.to_string()), m));
    let name = "tokio_worker_total_busy_duration_seconds";
    let mut family = page.family(Kind::Counter, name, "Time the worker was busy", Stop::Bare);
    family.unit = Some("seconds");
    for (set, worker) in each() {
        family.sample(&set, worker.worker_total_busy_duration(0).as_secs_f64());
    }
    let help = "Number of times the worker went to sleep";
    let mut family = page.family(Kind::Counter, "tokio_worker_park_count", help, Stop::Bare);
    for (set, worker) in each() {
        family.sample(&set, worker.worker_park_count(0));
    }
    let help = "Number of times the worker went to sleep or woke up";
    let mut family = page.family(Kind::Counter, "tokio_worker_park_unpark_count", help, Stop::Bare);
    for (set, worker) in each() {
        family.sample(&set, worker.worker_park_unpark_count(0));
    }
}

fn labels(name: &str, value: &str) -> String {
    let mut set = String::new();
    spell(&mut set, name, value);
    set
}

/// Whether HELP ends in a full stop: with the reference it does for registered families, not for collected
/// ones.
#[derive(Clone, Copy)]
enum Stop {
    Added,
    Bare,
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, kind: Kind, name: &'static str, help: &'static str, stop: Stop) -> FamilyText<'_> {
        FamilyText { page: &mut self.0, kind, name, help, stop, unit: None, begun: false }
    }

    fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// One family on the page. Nothing of it is printed before its first sample.
struct FamilyText<'a> {
    page: &'a mut String,
    kind: Kind,
    name: &'static str,
    help: &'static str,
    stop: Stop,
    unit: Option<&'static str>,
    begun: bool,
}

impl FamilyText<'_> {
    fn sample(&mut self, labels: &str, value: impl Display) {
        self.write(labels, value).expect("writing to a String cannot fail");
    }

    fn write(&mut self, labels: &str, value: impl Display) -> std::fmt::Result {
        let Self { page, kind, name, help, stop, unit, begun } = self;
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        if !*begun {
            let stop = match stop {
                Stop::Added => ".",
                Stop::Bare => "",
            };
            writeln!(page, "# HELP {name} {help}{stop}\n# TYPE {name} {kind}")?;
            if let Some(unit) = unit {
                writeln!(page, "# UNIT {name} {unit}")?;
            }
            *begun = true;
        }
        match labels {
            "" => writeln!(page, "{name}{suffix} {value}"),
            labels => writeln!(page, "{name}{suffix}{{{labels}}} {value}"),
        }
    }
}
