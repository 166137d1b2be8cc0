//! What does the whole mesh cost an application, and against what?
//!
//! Two nodes in network namespaces, veth between them, capture rules in the pods, one proxy process per node: all of
//! it real, and measured from outside, by the applications' sockets and by `/proc`. Several variants are measured
//! against each other: `bare` (no rules, no proxy), `adit`, `classic` (adit with `TUNNEL=classic`), and whatever
//! `--against NAME=CMD` starts. In each round all of them are up at once and every measurement goes through all of
//! them before the next begins, so that a ratio compares what ran seconds apart; each round starts them anew.
//!
//! - `memory`: KiB per idle connection, of the client's proxy and of the server's.
//! - `ping`: µs for 64 bytes there and back, one after the other and at fixed rates.
//! - `bulk`: Gbit/s with some streams, fairness between them, CPU seconds per GiB of each proxy.
//! - `passthrough`: the same for one stream from a captured pod to one outside the mesh.
//! - `connections`: connect, request, answer, close: how many per second, how long, CPU µs each.
//!
//! Words on the command line, or `--only`, choose measurements by a part of their name; `--help` says what else there is.
//! `docs/performance.md` says how to read the result. Needs root; without it the bench says that it did not run.

mod figures;
mod interrupt;
mod load;
mod machine;
mod plot;
mod stage;
mod table;
mod wanted;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use adit::lab::Side;
use adit::net::Netns;
use clap::Parser as _;
use nix::sys::signal::Signal;

use figures::Samples;
use load::{Job, Measured};
use machine::{Noise, Ticks};
use stage::{Stage, Variant};
use wanted::Wanted;

fn main() -> ExitCode {
    let wanted = Wanted::parse().settled();
    if let Err(cause) = Netns::create() {
        println!("mesh: not run, because making a network namespace failed: {cause}");
        return ExitCode::SUCCESS;
    }
    match run(&wanted) {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(story) => {
            eprintln!("mesh: {story}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything wanted and tells the result. Returns what did not work on the way.
fn run(wanted: &Wanted) -> Result<Vec<String>, String> {
    let place = tempfile::tempdir().map_err(|cause| format!("making a temporary directory: {cause}"))?;
    interrupt::install(place.path()).map_err(|cause| format!("taking over Ctrl-C: {cause}"))?;
    machine::allow_open_files().map_err(|cause| format!("raising the limit of open files: {cause}"))?;
    if wanted.test {
        figures::check();
    }
    let variants = wanted.variants()?;
    let jobs = wanted.jobs();
    wanted.must_mean_something(&jobs)?;
    if jobs.is_empty() {
        println!("mesh: nothing to measure is called that");
        return Ok(Vec::new());
    }
    let unwritten =
        |directory: &Path, cause: io::Error| format!("writing to {}: {cause}", directory.display());
    if let Some(directory) = &wanted.write {
        table::can_write(directory).map_err(|cause| unwritten(directory, cause))?;
    }
    let mut samples = Samples::new(variants.len(), wanted.rounds);
    let mut complaints = Vec::new();
    let congestion = machine::Allowed::lift(&wanted.congestion).map_or("reno", |_| &wanted.congestion);
    let mut conditions = machine::conditions(wanted);
    let mut noises = Vec::new();
    for round in 0..wanted.rounds {
        let order = rotated(variants.len(), round);
        let place = place.path().join(round.to_string());
        let stages = match stages(&variants, &order, &place, congestion) {
            Ok(stages) => stages,
            Err(story) if round == 0 => return Err(story),
            // What the rounds before have measured shall not be lost.
            Err(story) => {
                complaints.push(format!("round {} and later: {story}", round + 1));
                break;
            }
        };
        let in_force = in_force(&stages).map_err(|cause| format!("asking sockets: {cause}"))?;
        if round == 0 {
            conditions.push(format!("TCP_CONGESTION of sockets in every pod and on every node: {in_force}"));
            println!("{}\n", conditions.join("\n"));
        }
        if in_force != congestion {
            complaints.push(format!("round {}: {congestion} was chosen, {in_force} is used", round + 1));
        }
        let proxies = || stages.iter().flat_map(Stage::pids);
        let before = Ticks::now(proxies());
        for job in &jobs {
            let row = measure_quietly(wanted, job, &stages, &order);
            tell(round, wanted.rounds, job, &variants, &row);
            for (variant, measured) in row.measured.into_iter().enumerate() {
                for (figure, value) in measured.values {
                    samples.put(figure, variant, round, value, row.noise.disturbs());
                }
                if let Some(complaint) = measured.complaint {
                    complaints.push(format!(
                        "{}, round {}, {}: {complaint}",
                        variants[variant].name,
                        round + 1,
                        job.name()
                    ));
                }
            }
            if let (Job::Ping(pace), Some(bare)) = (job, variants.iter().position(Variant::is_bare)) {
                samples.add_to(*pace, bare, round, row.noise.disturbs());
            }
        }
        noises.push(told(Ticks::now(proxies()).noise_since(&before)));
        println!("round {}/{}  the whole of it: {}", round + 1, wanted.rounds, noises[round]);
        end(stages);
    }
    conditions.push(format!("the rounds: {}", noises.join("; ")));
    println!("\n{}", table::terminal(&samples, &variants));
    for complaint in &complaints {
        println!("! {complaint}");
    }
    if let Some(directory) = &wanted.write {
        table::write(directory, &samples, &variants, &conditions, &complaints)
            .map_err(|cause| unwritten(directory, cause))?;
        println!("written: {0}/performance.md, {0}/performance.svg", directory.display());
    } else if wanted.test {
        // What only `--write` makes must come out as well.
        let _ =
            (table::markdown(&samples, &variants, &conditions, &complaints), plot::svg(&samples, &variants));
    }
    Ok(complaints)
}

/// Each round begins with another variant, so that none always follows the same one.
fn rotated(count: usize, round: usize) -> Vec<usize> {
    (0..count).map(|nth| (nth + round) % count).collect()
}

/// Every variant's mesh, in the order of the variants.
fn stages(
    variants: &[Variant],
    order: &[usize],
    place: &Path,
    congestion: &str,
) -> Result<Vec<Stage>, String> {
    let _while_namespaces_choose = machine::Allowed::lift(congestion);
    let mut stages: Vec<Option<Stage>> = variants.iter().map(|_| None).collect();
    for &nth in order {
        let variant = &variants[nth];
        let stage = Stage::build(variant, &place.join(nth.to_string()), congestion)
            .map_err(|cause| format!("building the mesh of {}: {}", variant.name, cause.story()))?;
        stages[nth] = Some(stage);
    }
    Ok(stages.into_iter().flatten().collect())
}

/// The congestion control that sockets of all these meshes have; several names where they differ.
fn in_force(stages: &[Stage]) -> io::Result<String> {
    let mut names = Vec::new();
    for stage in stages {
        names.extend(stage.congestion()?);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.join(", "))
}

/// Takes every mesh down; the drains overlap.
fn end(stages: Vec<Stage>) {
    for proxy in stages.iter().flat_map(|stage| Side::BOTH.map(|side| stage.proxy(side))).flatten() {
        let _ = proxy.signal(Signal::SIGTERM);
    }
}

/// One measurement of every variant.
struct Row {
    /// In the order of the variants.
    measured: Vec<Measured>,
    /// What disturbed the most disturbed of them.
    noise: Noise,
}

/// Measures once, and again as often as is wanted while others take too much; keeps the quietest.
fn measure_quietly(wanted: &Wanted, job: &Job, stages: &[Stage], order: &[usize]) -> Row {
    let mut best = measure(wanted, job, stages, order);
    for _ in 0..wanted.repeat {
        if !best.noise.disturbs() || matches!(job, Job::Memory { .. }) {
            break;
        }
        let next = measure(wanted, job, stages, order);
        if next.noise.level() < best.noise.level() {
            best = next;
        }
    }
    best
}

fn measure(wanted: &Wanted, job: &Job, stages: &[Stage], order: &[usize]) -> Row {
    let mut row =
        Row { measured: stages.iter().map(|_| Measured::default()).collect(), noise: Noise::default() };
    let proxies = || stages.iter().flat_map(Stage::pids);
    if let Job::Memory { connections } = job {
        let before = Ticks::now(proxies());
        row.measured = load::idle::measure(stages, *connections, wanted.settle());
        row.noise = Ticks::now(proxies()).noise_since(&before);
        return row;
    }
    for &nth in order {
        let before = Ticks::now(proxies());
        row.measured[nth] = job.measure(&stages[nth], &wanted.window());
        row.noise = row.noise.or(Ticks::now(proxies()).noise_since(&before));
        // What is left of the last one's connections ends by itself.
        std::thread::sleep(Duration::from_millis(50));
    }
    row
}

/// One line per measurement and round, so that a long run shows how it goes.
fn tell(round: usize, rounds: usize, job: &Job, variants: &[Variant], row: &Row) {
    let mut line = format!("round {}/{rounds}  {:<16}", round + 1, job.name());
    for (variant, measured) in variants.iter().zip(&row.measured) {
        let first = measured.values.first();
        let value = first
            .map_or("-".to_owned(), |(figure, value)| format!("{} {}", table::number(*value), figure.unit()));
        line.push_str(&format!("  {} {value:<14}", variant.name));
    }
    println!("{line}  {}", told(row.noise));
}

/// What others took, marked when it is too much.
fn told(noise: Noise) -> String {
    let mark = if noise.disturbs() { " *" } else { "" };
    format!("steal {:.1} %, others {:.1} %{mark}", noise.steal * 100.0, noise.others * 100.0)
}
