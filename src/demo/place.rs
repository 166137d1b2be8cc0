//! Where a running demo keeps its sockets and its description, and how `adit demo exec` finds it.
//!
//! `$TMPDIR/adit-demo-<uid>/run-<pid>/`, readable by its user alone. A lock, held as long as the demo lives, tells
//! the running from the dead; the dead are swept away by the next demo.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::stage::Stage;
use crate::lab::Side;

/// Name of the lock in a demo's directory.
pub(super) const LOCK: &str = "lock";
/// Name of the description.
const STATE: &str = "state.json";
/// A directory without a lock may be one that another demo is just making; after this time it is not.
const BEING_MADE: Duration = Duration::from_secs(60);

/// A demo's own directory. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    _lock: File,
}

/// What a running demo tells about itself.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct State {
    /// Its process.
    pub(super) pid: u32,
    /// Its namespaces: names they answer to and their descriptors in that process.
    pub(super) namespaces: Vec<Room>,
}

/// One namespace of a running demo.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Room {
    /// Short name first.
    pub(super) names: Vec<String>,
    /// Its descriptor.
    pub(super) descriptor: i32,
}

impl Place {
    /// Makes this demo's directory, and sweeps those of demos that have ended.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the user's directory is not private, or the system's answer.
    pub(super) fn make() -> Result<Self, Error> {
        let home = home();
        let step = || {
            private(&home)?;
            sweep(&home);
            let path = home.join(format!("run-{}", std::process::id()));
            DirBuilder::new().mode(0o700).create(&path)?;
            let lock = File::create_new(path.join(LOCK))?;
            lock.try_lock()?;
            Ok(Self { path, _lock: lock })
        };
        step().map_err(|cause: io::Error| Error::Unfit(format!("preparing {}: {cause}", home.display())))
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down where the namespaces of `stage` are, for `adit demo exec`.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) fn describe(&self, stage: &Stage) -> Result<(), Error> {
        let mut namespaces = vec![room(vec!["wire".to_owned()], stage.world().wire())];
        for side in Side::BOTH {
            namespaces.push(room(vec![side.name().to_owned()], stage.world().node(side).netns()));
        }
        for pod in stage.pods() {
            namespaces.push(room(vec![pod.name().to_owned(), pod.full_name()], pod.netns()));
        }
        let state = State { pid: std::process::id(), namespaces };
        let path = self.path.join(STATE);
        serde_json::to_vec(&state)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&path, text))
            .map_err(|cause| Error::Unfit(format!("writing {}: {cause}", path.display())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes a demo's directory, and the user's when it was the last one.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    if let Some(home) = path.parent() {
        // Fails while another demo lives there, and then it must stay.
        let _ = fs::remove_dir(home);
    }
}

/// Finds the demo of this user that runs now; the one started last, when there are several.
///
/// # Errors
/// [`Error::Unfit`] when there is none, or its description cannot be read.
pub(super) fn running() -> Result<State, Error> {
    let home = home();
    let mut found: Vec<_> = runs(&home)
        .into_iter()
        .filter(|path| is_held(path) == Some(true) && path.join(STATE).exists())
        .filter_map(|path| Some((fs::metadata(path.join(STATE)).ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    let Some((_, path)) = found.pop() else {
        return Err(Error::Unfit(format!(
            "no demo of this user is running (looked in {}); start one with `adit demo --keep`, and when that \
             was started with sudo, use sudo here too",
            home.display()
        )));
    };
    let path = path.join(STATE);
    check_private(&home)
        .and_then(|()| fs::read(&path))
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map_err(|cause| Error::Unfit(format!("reading {}: {cause}", path.display())))
}

fn home() -> PathBuf {
    std::env::temp_dir().join(format!("adit-demo-{}", nix::unistd::geteuid()))
}

/// Makes `home` where it is missing, and insists that it is ours alone: /tmp belongs to everybody.
pub(super) fn private(home: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(home) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => Err(cause),
        _ => check_private(home),
    }
}

fn check_private(home: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(home)?;
    if found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::other("it exists and is not a directory that only this user can enter; remove it"))
    }
}

fn runs(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    entries.filter(|it| it.file_name().to_string_lossy().starts_with("run-")).map(|it| it.path()).collect()
}

/// Whether a living demo holds the lock of `path`; `None` when there is no lock to ask.
fn is_held(path: &Path) -> Option<bool> {
    let lock = File::open(path.join(LOCK)).ok()?;
    Some(lock.try_lock().is_err())
}

/// Removes the directories in `home` whose demos have ended.
pub(super) fn sweep(home: &Path) {
    for path in runs(home) {
        let dead = is_held(&path).map_or_else(
            || {
                fs::metadata(&path)
                    .and_then(|it| it.modified())
                    .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > BEING_MADE))
            },
            |held| !held,
        );
        if dead {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn room(names: Vec<String>, netns: &crate::net::Netns) -> Room {
    Room { names, descriptor: netns.as_fd().as_raw_fd() }
}
