//! An orderly end on Ctrl-C: the host's setting restored, the directory removed. Proxies die with the threads that
//! started them, so with this process, and the namespaces with the last of both. No process is ended by its id here:
//! an id that nobody waits for any more may be somebody else's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal};

/// Exit code of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// What is due when the end comes early.
#[derive(Debug)]
pub struct Due {
    /// A file of the host and what to write back to it.
    pub restore: Option<(&'static str, String)>,
    place: Option<PathBuf>,
}

static DUE: Mutex<Due> = Mutex::new(Due { restore: None, place: None });

/// What is due, to change it.
pub fn due() -> MutexGuard<'static, Due> {
    // Every change is one assignment, so a panic leaves it whole.
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
