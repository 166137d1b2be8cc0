//! The applications: lean, blocking, and the same for every variant.
//!
//! All of them are threads of this process. A socket belongs for good to the namespace it was made in, so that most of
//! them need not go there.

mod bulk;
mod connections;
pub mod idle;
mod ping;

use std::thread;
use std::time::{Duration, Instant};

use adit::lab::Side;

use crate::figures::Figure;
use crate::machine;
use crate::stage::Stage;

/// The direction of bulk data on a connection that the client has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

impl Way {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// One bulk load through the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Load {
    /// Connections at once.
    pub streams: usize,
    /// Which way the bytes go.
    pub way: Way,
}

/// When the next message of a ping measurement is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pace {
    /// When the answer to the last one is there.
    Closed,
    /// So many per second, whatever the answers do. Latency counts from when a message was due.
    Rate(u32),
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Memory per idle connection.
    Memory {
        /// How many there are.
        connections: usize,
    },
    /// Latency of small messages.
    Ping(Pace),
    /// Throughput through the mesh.
    Bulk(Load),
    /// Throughput of one stream to a pod outside the mesh.
    Passthrough,
    /// New connections, one after the other, eight at a time.
    Connections,
}

impl Job {
    /// As the command line spells it.
    pub fn name(&self) -> String {
        match self {
            Self::Memory { .. } => "memory".to_owned(),
            Self::Ping(Pace::Closed) => "ping/closed".to_owned(),
            Self::Ping(Pace::Rate(rate)) => format!("ping/{rate}"),
            Self::Bulk(Load { streams, way: Way::Up }) => format!("bulk/{streams}/up"),
            Self::Bulk(Load { streams, way: Way::Down }) => format!("bulk/{streams}/down"),
            Self::Passthrough => "passthrough".to_owned(),
            Self::Connections => "connections".to_owned(),
        }
    }

    /// Measures one variant. Memory is measured of all variants at once, by [`idle::measure`], and not here.
    pub fn measure(&self, stage: &Stage, window: &Window) -> Measured {
        let result = match self {
            Self::Memory { .. } => Ok(Measured::default()),
            Self::Ping(Pace::Closed) => ping::closed(stage, window),
            Self::Ping(Pace::Rate(rate)) => ping::open(stage, window, *rate),
            Self::Bulk(load) => bulk::through_the_mesh(stage, window, *load),
            Self::Passthrough => bulk::passthrough(stage, window),
            Self::Connections => connections::measure(stage, window),
        };
        result.unwrap_or_else(|cause| Measured::failed(stage, &cause))
    }
}

/// What one measurement of one variant says.
#[derive(Debug, Default)]
pub struct Measured {
    /// Its figures, the most telling one first.
    pub values: Vec<(Figure, f64)>,
    /// What did not work.
    pub complaint: Option<String>,
}

impl Measured {
    fn of(values: Vec<(Figure, f64)>) -> Self {
        Self { values, complaint: None }
    }

    fn failed(stage: &Stage, cause: &std::io::Error) -> Self {
        Self {
            values: Vec::new(),
            complaint: Some(format!("{cause}\n{}", stage.last_words()).trim().to_owned()),
        }
    }
}

/// When measuring begins and how long it takes. The load runs on a little longer at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Time for windows and buffers to grow.
    pub ramp: Duration,
    /// What is measured.
    pub length: Duration,
}

impl Window {
    /// Waits for the window to begin and to end; says when that was and what `stage`'s proxies have used between.
    /// `at` is called at both moments.
    fn watch<T>(&self, stage: &Stage, at: impl Fn() -> T) -> std::io::Result<Watched<T>> {
        thread::sleep(self.ramp);
        let (begin, cpu_before, before) = (Instant::now(), Cpu::of(stage)?, at());
        thread::sleep(self.length);
        let (end, cpu_after, after) = (Instant::now(), Cpu::of(stage)?, at());
        Ok(Watched { begin, end, cpu: cpu_after.since(&cpu_before), before, after })
    }
}

/// What a window has shown.
struct Watched<T> {
    begin: Instant,
    end: Instant,
    cpu: Cpu,
    before: T,
    after: T,
}

impl<T> Watched<T> {
    fn seconds(&self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }
}

/// CPU time of the proxies: the client's and the server's. Bare pods have none.
#[derive(Clone, Copy, Debug)]
struct Cpu(Option<[Duration; 2]>);

impl Cpu {
    fn of(stage: &Stage) -> std::io::Result<Self> {
        let one = |side| stage.proxy(side).map(|proxy| machine::cpu(proxy.pid())).transpose();
        let [client, server] = Side::BOTH.map(one);
        Ok(Self(client?.zip(server?).map(<[Duration; 2]>::from)))
    }

    fn since(&self, earlier: &Self) -> Self {
        let pair = self.0.zip(earlier.0);
        Self(pair.map(|(now, then)| [0, 1].map(|nth| now[nth].saturating_sub(then[nth]))))
    }

    /// Seconds of the client's proxy and of the server's.
    fn seconds(&self) -> Option<[f64; 2]> {
        self.0.map(|pair| pair.map(|time| time.as_secs_f64()))
    }
}
