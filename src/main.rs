//! The `adit` binary: reads the command line, loads the settings, starts the node proxy or the demo, and turns an
//! error into an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use adit::config::source::{Environment, Layered};
use adit::{app, config, demo, version};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's own settings: memory that is no longer used goes back to the system after five seconds.
#[expect(unsafe_code, reason = "jemalloc looks for its settings under this symbol")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"background_thread:true,dirty_decay_ms:5000,muzzy_decay_ms:5000\0";

/// A node-level L4 transparent proxy for Kubernetes ambient mesh.
///
/// Without a command it runs the node proxy, as `adit proxy ztunnel` does.
#[derive(Parser)]
#[command(name = "adit", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node proxy with the settings in the environment, as Istio's ztunnel chart starts it.
    Proxy {
        /// Ignored; the chart passes `ztunnel`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<String>,
    },
    /// Run the node proxy with the settings in the environment and, under them, in a file.
    Run {
        /// YAML file of settings: the environment's names in lower camel case, without ADIT_.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Build a two-node mesh on this machine and carry real traffic through it.
    Demo(demo::Args),
    /// Print what this build is.
    Version,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        None | Some(Command::Proxy { .. }) => proxy(None),
        Some(Command::Run { config }) => proxy(config),
        Some(Command::Demo(args)) => demo::run(args),
        Some(Command::Version) => {
            println!("{}", version::line());
            ExitCode::SUCCESS
        }
    }
}

fn proxy(file: Option<PathBuf>) -> ExitCode {
    let config = match file {
        None => config::load(&Environment),
        Some(path) => match Layered::read(Environment, &path, config::KNOWN) {
            Ok(source) => config::load(&source),
            Err(complaint) => Err(config::read::Complaints(vec![complaint])),
        },
    };
    let config = match config {
        Ok(config) => config,
        Err(complaints) => {
            eprintln!("adit cannot start:\n{complaints}");
            return ExitCode::FAILURE;
        }
    };
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("adit cannot start: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                eprint!(": {inner}");
                cause = inner.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}
