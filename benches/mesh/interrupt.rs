//! An orderly end on Ctrl-C: proxies killed, the host's setting restored, the directory removed. The namespaces go with
//! this process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Exit code of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// What is due when the end comes early.
#[derive(Debug)]
pub struct Due {
    /// A file of the host and what to write back to it.
    pub restore: Option<(&'static str, String)>,
    /// Our children that nobody has waited for, so that their ids are still theirs.
    pub proxies: Vec<u32>,
    place: Option<PathBuf>,
}

static DUE: Mutex<Due> = Mutex::new(Due { restore: None, proxies: Vec::new(), place: None });

/// What is due, to change it.
pub fn due() -> MutexGuard<'static, Due> {
    // Every change is one assignment or one push, so a panic leaves it whole.
    DUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes SIGINT, SIGTERM and SIGHUP over, for this thread and all that it will start.
pub fn install(place: &Path) -> io::Result<()> {
    due().place = Some(place.to_owned());
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while signals.wait().is_err() {}
        // Held to the end, so that nothing new becomes due.
        let mut due = due();
        eprintln!("mesh: interrupted; everything is being removed");
        for pid in due.proxies.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some((file, content)) = due.restore.take() {
            let _ = std::fs::write(file, content);
        }
        if let Some(place) = &due.place {
            let _ = std::fs::remove_dir_all(place);
        }
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}
