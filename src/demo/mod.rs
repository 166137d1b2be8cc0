//! `adit demo`: builds the lab, runs real traffic through it and prints what happened.
//!
//! Two nodes with one adit process each, five pods, one command: every line of the table is a connection that
//! was made, and what is said of it comes from the application that answered, from the access logs of the two
//! processes, and from a capture on the wire between them. A line that is not as it should be ends the demo with
//! exit code 1 and its name. Runs as root or in a user namespace of its own; leaves nothing behind.

mod exec;
mod judge;
mod place;
mod report;
mod rows;
mod setup;
mod stage;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use report::Report;
use setup::Interrupt;
use stage::Stage;

/// How long bytes are pushed for each throughput figure.
const POUR: Duration = Duration::from_secs(2);

/// What `adit demo` is told on the command line.
#[derive(Debug, clap::Args)]
#[command(
    about = "Build a two-node mesh on this machine and carry real traffic through it",
    long_about = "Builds a two-node mesh on this machine, from network namespaces that nobody else sees, and \
        carries real traffic through it: two adit processes, five pods, mutual TLS, policies. Prints who called \
        whom, how it was carried, who proved to be whom, and what an eavesdropper on the wire saw. Takes about ten \
        seconds, needs `ip` and `iptables`, and leaves nothing behind.\n\n\
        Exit code: 0 when everything was as it should be, 1 when a line was not, 2 when the mesh could not be built, \
        130 when interrupted.",
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// Leave the mesh running until Ctrl-C, to look around in it with `adit demo exec`
    #[arg(long)]
    keep: bool,
    /// Print one JSON object per line instead of a table
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    /// Run a command inside a pod or on a node of the running demo
    #[command(
        long_about = "Runs a command inside a pod or on a node of the demo that runs now (start one with \
            `adit demo --keep`). POD is a name from its table, such as storefront or shop/storefront, or node-one, \
            node-two, wire.\n\n\
            Examples:\n  \
            adit demo exec storefront -- curl -s http://10.77.2.1:8080\n  \
            adit demo exec node-one -- curl -s localhost:15020/metrics"
    )]
    Exec {
        /// A pod's name, node-one, node-two or wire
        pod: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Something this machine lacks; the text says what to do.
    #[error("{0}")]
    Unfit(String),
    /// The lab did not do its part.
    #[error("{}", .0.story())]
    Lab(#[from] crate::lab::Error),
}

/// Runs the demo, or a command in the running one, and says how it went.
///
/// Call it before any other thread is started. Without root it may start the program anew, with the same
/// arguments, to get rid of the allocator's thread.
pub fn run(args: Args) -> ExitCode {
    let outcome = match args.command {
        Some(Sub::Exec { pod, command }) => exec::run(&pod, &command).map(|never| match never {}),
        None => show(args.keep, args.json),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(cause) => {
            eprintln!("adit demo: {cause}");
            ExitCode::from(2)
        }
    }
}

/// Builds, shows, and takes down. True when every line was as it should be.
fn show(keep: bool, json: bool) -> Result<bool, Error> {
    setup::tools()?;
    setup::alone()?;
    let place = place::Place::make()?;
    setup::privilege(place.path())?;
    let interrupt = Interrupt::install(place.path())?;
    let mut report = Report::new(json);
    let stage = Stage::build(&place, &interrupt)?;
    place.describe(&stage)?;
    report.stage(&stage);

    let capture = stage.eavesdrop()?;
    for (number, row) in rows::all().iter().enumerate() {
        report.row(number + 1, &judge::play(&stage, row));
    }
    // The capture ends before the throughput is measured: it would cost a core.
    let wire = capture.stop()?;
    report.wire(&judge::wire(&stage.secret, &stage.aloud, &wire));
    report.throughput(&judge::throughput(&stage, POUR));
    let as_expected = report.verdict();
    if keep {
        report.kept(&stage);
        interrupt.wait();
    }
    interrupt.ending();
    Ok(as_expected)
}
