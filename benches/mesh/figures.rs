//! What is measured, and what many rounds of it say.

use std::collections::BTreeMap;

use crate::load::{Load, Pace, Way};

/// One line of the table; they are ordered as they stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Figure {
    /// Gbit/s of all streams.
    Throughput(Load),
    /// Bytes of the slowest stream per byte of the fastest.
    Fairness(Load),
    /// Seconds per GiB.
    Cpu(Whose, Load),
    /// Gbit/s.
    Passthrough,
    /// Seconds of the client's proxy per GiB.
    PassthroughCpu,
    /// µs for a message and its answer.
    Latency(Pace, Mark),
    /// Per second.
    Connections,
    /// µs from connect to the end of the answer.
    Connection(Mark),
    /// µs of CPU per connection.
    ConnectionCpu(Whose),
    /// KiB per connection.
    Memory(Kind, Whose),
}

/// Whose cost it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whose {
    /// Of both proxies together.
    Both,
    /// Of the proxy on the client's node.
    Client,
    /// Of the proxy on the server's node.
    Server,
}

/// A point of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// The median.
    P50,
    /// The median, less that of the bare pods in the same round.
    AddedP50,
    /// One in a hundred took longer.
    P99,
    /// One in a thousand took longer.
    P999,
}

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Mapped and present (RSS).
    Resident,
    /// Written to, and nobody else's.
    PrivateDirty,
}

/// Which values of a figure are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Large ones.
    More,
    /// Small ones.
    Less,
}

impl Figure {
    /// The heading it stands under.
    pub fn section(&self) -> &'static str {
        match self {
            Self::Throughput(_) => "Bulk throughput",
            Self::Fairness(_) => "Fairness: the slowest stream by the fastest",
            Self::Cpu(Whose::Both, _) => "CPU of both proxies for bulk data",
            Self::Cpu(Whose::Client, _) => "CPU of the client's proxy for bulk data",
            Self::Cpu(Whose::Server, _) => "CPU of the server's proxy for bulk data",
            Self::Passthrough | Self::PassthroughCpu => "Passthrough, one stream",
            Self::Latency(..) => "64 bytes there and back",
            Self::Connections | Self::Connection(_) | Self::ConnectionCpu(_) => {
                "New connections, 8 at a time"
            }
            Self::Memory(Kind::Resident, _) => "Memory per idle connection (RSS)",
            Self::Memory(Kind::PrivateDirty, _) => "Memory per idle connection (private, dirty)",
        }
    }

    /// Its name under that heading.
    pub fn title(&self) -> String {
        match self {
            Self::Throughput(load) | Self::Fairness(load) | Self::Cpu(_, load) => title_of(*load),
            Self::Passthrough => "to a pod outside the mesh".to_owned(),
            Self::PassthroughCpu => "CPU of the client's proxy".to_owned(),
            Self::Latency(pace, mark) => format!("{}, {}", title_of_pace(*pace), mark.title()),
            Self::Connections => "connect, ask, answer, close".to_owned(),
            Self::Connection(mark) => format!("one of them, {}", mark.title()),
            Self::ConnectionCpu(Whose::Both) => "CPU of both proxies, each".to_owned(),
            Self::ConnectionCpu(Whose::Client) => "CPU of the client's proxy, each".to_owned(),
            Self::ConnectionCpu(Whose::Server) => "CPU of the server's proxy, each".to_owned(),
            Self::Memory(_, Whose::Both) => "both proxies".to_owned(),
            Self::Memory(_, Whose::Client) => "the client's proxy".to_owned(),
            Self::Memory(_, Whose::Server) => "the server's proxy".to_owned(),
        }
    }

    /// Heading and name in one, for a plot.
    pub fn caption(&self) -> String {
        match self {
            Self::Throughput(load) => format!("Throughput, {}", title_of(*load)),
            Self::Fairness(load) => format!("Fairness, {}", title_of(*load)),
            Self::Cpu(_, load) => format!("CPU, {}", title_of(*load)),
            Self::Passthrough => "Passthrough, 1 stream".to_owned(),
            Self::PassthroughCpu => "CPU, passthrough, 1 stream".to_owned(),
            Self::Latency(pace, mark) => format!("64 B ping, {}, {}", title_of_pace(*pace), mark.title()),
            Self::Connections => "New connections".to_owned(),
            Self::Connection(mark) => format!("New connection, {}", mark.title()),
            Self::ConnectionCpu(_) => "CPU per new connection".to_owned(),
            Self::Memory(..) => format!("Idle connection, {}", self.title()),
        }
    }

    /// Its unit.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Throughput(_) | Self::Passthrough => "Gbit/s",
            Self::Fairness(_) => "",
            Self::Cpu(..) | Self::PassthroughCpu => "s/GiB",
            Self::Latency(..) | Self::Connection(_) | Self::ConnectionCpu(_) => "µs",
            Self::Connections => "/s",
            Self::Memory(..) => "KiB",
        }
    }

    /// Which way it should go.
    pub fn better(&self) -> Better {
        match self {
            Self::Throughput(_) | Self::Passthrough | Self::Fairness(_) | Self::Connections => Better::More,
            _ => Better::Less,
        }
    }

    /// Whether it only explains another one.
    pub fn is_detail(&self) -> bool {
        match self {
            Self::Cpu(whose, _) | Self::ConnectionCpu(whose) => *whose != Whose::Both,
            Self::Memory(kind, _) => *kind == Kind::PrivateDirty,
            _ => false,
        }
    }

    /// Whether it is worth a plot.
    pub fn is_plotted(&self) -> bool {
        !self.is_detail()
            && match self {
                Self::Fairness(_) | Self::Connection(Mark::P50) => false,
                Self::Cpu(_, load) => load.way == Way::Up,
                Self::Latency(_, mark) => matches!(mark, Mark::P50 | Mark::P99),
                _ => true,
            }
    }
}

impl Mark {
    fn title(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::AddedP50 => "p50 added to bare",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }
}

fn title_of(load: Load) -> String {
    let streams = if load.streams == 1 { "1 stream".to_owned() } else { format!("{} streams", load.streams) };
    let way = match load.way {
        Way::Up => "up",
        Way::Down => "down",
    };
    format!("{streams} {way}")
}

fn title_of_pace(pace: Pace) -> String {
    match pace {
        Pace::Closed => "one by one".to_owned(),
        Pace::Rate(rate) => format!("{rate}/s"),
    }
}

/// What the rounds say about one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// Every value of every round.
#[derive(Debug)]
pub struct Samples {
    variants: usize,
    rounds: usize,
    rows: BTreeMap<Figure, Row>,
}

#[derive(Debug)]
struct Row {
    /// By variant, then by round.
    values: Vec<Vec<Option<f64>>>,
    /// By round: whether something disturbed it.
    disturbed: Vec<bool>,
}

impl Samples {
    /// None yet.
    pub fn new(variants: usize, rounds: usize) -> Self {
        Self { variants, rounds, rows: BTreeMap::new() }
    }

    /// Keeps one value, and whether something disturbed its measurement.
    pub fn put(&mut self, figure: Figure, variant: usize, round: usize, value: f64, disturbed: bool) {
        let (variants, rounds) = (self.variants, self.rounds);
        let row = self.rows.entry(figure).or_insert_with(|| Row {
            values: vec![vec![None; rounds]; variants],
            disturbed: vec![false; rounds],
        });
        row.values[variant][round] = Some(value);
        row.disturbed[round] = disturbed;
    }

    /// Adds what the median of this pace is above that of variant `bare`, for all others.
    pub fn add_to(&mut self, pace: Pace, bare: usize, round: usize, disturbed: bool) {
        let value = |samples: &Self, variant: usize| {
            samples.rows.get(&Figure::Latency(pace, Mark::P50)).and_then(|row| row.values[variant][round])
        };
        let Some(base) = value(self, bare) else { return };
        for variant in (0..self.variants).filter(|&variant| variant != bare) {
            if let Some(median) = value(self, variant) {
                self.put(Figure::Latency(pace, Mark::AddedP50), variant, round, median - base, disturbed);
            }
        }
    }

    /// The figures that somebody has a value of, in order.
    pub fn figures(&self) -> impl Iterator<Item = Figure> {
        self.rows.keys().copied()
    }

    /// What the rounds say of one variant.
    pub fn spread(&self, figure: Figure, variant: usize) -> Option<Spread> {
        Spread::of(self.rows.get(&figure)?.values[variant].iter().flatten().copied().collect())
    }

    /// What the rounds say of one variant by another: each round has its own ratio.
    pub fn ratio(&self, figure: Figure, variant: usize, by: usize) -> Option<Spread> {
        let row = self.rows.get(&figure)?;
        let pairs = row.values[variant].iter().zip(&row.values[by]);
        let ratios = pairs.filter_map(|pair| match pair {
            (Some(value), Some(base)) if *base > 0.0 => Some(value / base),
            _ => None,
        });
        Spread::of(ratios.collect())
    }

    /// How many rounds were disturbed.
    pub fn marked(&self, figure: Figure) -> usize {
        self.rows.get(&figure).map_or(0, |row| row.disturbed.iter().filter(|&&it| it).count())
    }
}

/// The value that so many of a thousand do not exceed, of sorted values.
pub fn quantile<T: Copy>(sorted: &[T], per_mille: usize) -> Option<T> {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied()
}

/// What must hold of the arithmetic above.
pub fn check() {
    let hundred: Vec<u32> = (1..=100).collect();
    assert_eq!([500, 990, 999].map(|it| quantile(&hundred, it)), [Some(50), Some(99), Some(100)]);
    assert_eq!(quantile::<u32>(&[], 500), None);
    let mut samples = Samples::new(2, 3);
    for (round, (one, other)) in [(2.0, 1.0), (9.0, 3.0), (4.0, 4.0)].into_iter().enumerate() {
        samples.put(Figure::Connections, 0, round, one, false);
        samples.put(Figure::Connections, 1, round, other, round == 1);
    }
    // 2, 3 and 1: the median of the ratios, not the ratio of the medians.
    let expected = Spread { median: 2.0, min: 1.0, max: 3.0 };
    assert_eq!(samples.ratio(Figure::Connections, 0, 1), Some(expected));
    assert_eq!(samples.marked(Figure::Connections), 1);
}
