//! What the command line asks for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::load::{Job, Load, Pace, Way, Window};
use crate::stage::{Program, Variant};

/// The whole two-node mesh, several variants against each other in the same rounds.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "mesh")]
pub struct Wanted {
    /// Measure only what has one of these in its name: memory, ping/closed, ping/1000, bulk/8/up, passthrough …
    names: Vec<String>,
    /// The same, separated by commas: --only ping,bulk/8.
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// How long one measurement takes, once it is under way.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Streams of the bulk measurements.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    streams: Vec<usize>,
    /// Messages per second of the ping measurements at a fixed rate.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    rates: Vec<u32>,
    /// Idle connections whose memory is measured.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Seconds for allocators to give back what they do not need, before memory is read.
    #[arg(long, default_value_t = 6.0)]
    settle: f64,
    /// Which of bare, adit and classic are measured.
    #[arg(long, value_delimiter = ',', default_value = "bare,adit,classic")]
    variants: Vec<String>,
    /// One more variant: a name and a command for `sh -c "exec CMD"`, started once per node with adit's environment.
    /// What is executed in the end must be the proxy itself, for CPU and memory are read from that process.
    #[arg(long, value_name = "NAME=CMD")]
    against: Vec<String>,
    /// One more environment variable of every proxy.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Congestion control of every namespace; reno where the machine does not have this one.
    #[arg(long, default_value = "cubic")]
    pub congestion: String,
    /// How often a measurement is repeated while steal or foreign processes take more than 6 % of the machine. The quietest counts.
    #[arg(long, default_value_t = 0)]
    pub repeat: u32,
    /// Write performance.md (only between its markers, if it is there) and performance.svg into this directory.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
    /// Each measurement once and briefly, to see that it works.
    #[arg(long)]
    pub test: bool,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Wanted {
    /// With `--test`, everything small.
    pub fn settled(mut self) -> Self {
        if self.test {
            (self.rounds, self.seconds, self.settle, self.idle, self.repeat) = (1, 0.1, 0.0, 50, 0);
        }
        self.rounds = self.rounds.max(1);
        self
    }

    /// When a measurement begins and how long it takes.
    pub fn window(&self) -> Window {
        let length = Duration::from_secs_f64(self.seconds.clamp(0.01, 3600.0));
        Window { ramp: (length / 4).min(Duration::from_millis(500)), length }
    }

    /// How long memory may take to come to rest.
    pub fn settle(&self) -> Duration {
        Duration::from_secs_f64(self.settle.clamp(0.0, 600.0))
    }

    /// What is measured, in this order: memory while the processes are young, connections last because they leave
    /// many addresses in TIME_WAIT.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs = vec![Job::Memory { connections: self.idle }, Job::Ping(Pace::Closed)];
        jobs.extend(self.rates.iter().map(|&rate| Job::Ping(Pace::Rate(rate.max(1)))));
        let load = |streams: usize, way| Job::Bulk(Load { streams: streams.max(1), way });
        jobs.extend(self.streams.iter().flat_map(|&streams| Way::BOTH.map(|way| load(streams, way))));
        jobs.extend([Job::Passthrough, Job::Connections]);
        let names = || self.names.iter().chain(&self.only);
        jobs.retain(|job| names().count() == 0 || names().any(|name| job.name().contains(name.as_str())));
        jobs
    }

    /// Complains of a name after `--only` that none of `jobs` has. Words without it may be meant for another bench.
    pub fn must_mean_something(&self, jobs: &[Job]) -> Result<(), String> {
        match self.only.iter().find(|name| !jobs.iter().any(|job| job.name().contains(name.as_str()))) {
            Some(name) => Err(format!("nothing to measure has {name:?} in its name")),
            None => Ok(()),
        }
    }

    /// Who is measured, in the order of the table.
    pub fn variants(&self) -> Result<Vec<Variant>, String> {
        let pair = |text: &str| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{text:?} is not of the form NAME=…")),
        };
        let extra = self.env.iter().map(|text| pair(text)).collect::<Result<Vec<_>, _>>()?;
        let adit = |tunnel: &str| {
            let program = Program::Adit(Path::new(env!("CARGO_BIN_EXE_adit")).to_owned());
            let mut environment = vec![("TUNNEL".to_owned(), tunnel.to_owned())];
            environment.extend(extra.clone());
            (Some(program), environment)
        };
        let mut variants = Vec::new();
        for name in &self.variants {
            let (program, environment) = match name.as_str() {
                "bare" => (None, Vec::new()),
                "adit" => adit("in-place"),
                "classic" => adit("classic"),
                _ => return Err(format!("{name:?} is none of bare, adit and classic")),
            };
            variants.push(Variant { name: name.clone(), program, environment });
        }
        for text in &self.against {
            let (name, command) = pair(text)?;
            variants.push(Variant {
                name,
                program: Some(Program::Command(command)),
                environment: extra.clone(),
            });
        }
        for (nth, variant) in variants.iter().enumerate() {
            if variants[..nth].iter().any(|earlier| earlier.name == variant.name) {
                return Err(format!("two variants are called {:?}", variant.name));
            }
        }
        if variants.is_empty() { Err("there is no variant to measure".to_owned()) } else { Ok(variants) }
    }

    /// The lengths of things, for the list of conditions.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} round{} of {} s per measurement",
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
            self.seconds
        );
        if self.repeat > 0 {
            text.push_str(&format!(", repeated up to {} times when disturbed", self.repeat));
        }
        for pair in &self.env {
            text.push_str(&format!(", {pair}"));
        }
        text
    }
}
