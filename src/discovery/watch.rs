//! When is the file read again?
//!
//! When something happens in its directory (an editor's rename and a ConfigMap's symlink swap are seen there, not
//! at the file), and every few seconds in case nobody told. What is read counts once it was the same twice, a
//! moment apart, so that a file that is still being written is not taken for a short one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{info, warn};

use super::error::{Complaint, Error};
use super::{Config, Source, file};
use crate::mesh::{Handle, Publisher};

/// How long nothing may happen before a change is read.
const QUIET: Duration = Duration::from_millis(100);
/// How often the file is read although nobody said that it changed.
const REREAD: Duration = Duration::from_secs(5);
/// Readings of a file that never stops changing before the next turn, so that a stop is heard and logged.
const PATIENCE: usize = 50;
/// What inline text is called in complaints.
const INLINE: &str = "LOCAL_XDS";

/// Keeps the published mesh equal to its source. [`Discovery::run`] belongs on a thread of its own.
#[derive(Debug)]
pub struct Discovery {
    config: Config,
    publisher: Publisher,
    wakes: Receiver<Wake>,
    waker: Sender<Wake>,
    last: Reading,
    /// The text of the published snapshot.
    published: Arc<[u8]>,
}

/// Ends [`Discovery::run`].
#[derive(Clone, Debug)]
pub struct Stop(Sender<Wake>);

impl Stop {
    /// Asks for the end; the thread is done within a reading of the file.
    pub fn stop(&self) {
        // Without a receiver it is at its end already.
        let _ = self.0.send(Wake::Stop);
    }
}

#[derive(Debug)]
enum Wake {
    Touched,
    Stop,
}

/// What was found in the file's place. Two failures of one kind are the same, and told once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reading {
    Text(Arc<[u8]>),
    Failed(io::ErrorKind),
}

/// Asked to stop in between.
struct Stopped;

/// Reads the source for the first time and publishes it.
///
/// # Errors
/// The source cannot be read, or everything that is wrong with it; without a first state there is nothing to run
/// on.
pub fn start(config: Config) -> Result<(Discovery, Handle), Error> {
    let text: Arc<[u8]> = match &config.source {
        Source::Inline(text) => text.as_bytes().into(),
        Source::File(path) => fs::read(path).map(Into::into).map_err(|cause| {
            let what = format!(
                "it cannot be read: {cause}; LOCAL_XDS_PATH must name a file that this process may read"
            );
            Error::one(Complaint { file: path.display().to_string(), at: None, what })
        })?,
    };
    let first = file::load(&name(&config.source), &text, config.node.clone(), config.unknown_policy)?;
    let (publisher, handle) = Publisher::new(first);
    let (waker, wakes) = channel();
    let last = Reading::Text(Arc::clone(&text));
    Ok((Discovery { config, publisher, wakes, waker, last, published: text }, handle))
}

fn name(source: &Source) -> String {
    match source {
        Source::File(path) => path.display().to_string(),
        Source::Inline(_) => INLINE.to_owned(),
    }
}

impl Discovery {
    /// What ends [`Discovery::run`].
    pub fn stopper(&self) -> Stop {
        Stop(self.waker.clone())
    }

    /// Follows the source until told to stop. Blocks; what goes wrong is logged, and the last good snapshot stays.
    pub fn run(mut self) {
        let Source::File(path) = self.config.source.clone() else {
            // Text in a setting never changes.
            while !matches!(self.wakes.recv(), Ok(Wake::Stop) | Err(_)) {}
            return;
        };
        let mut directory = Directory::of(&path, self.waker.clone());
        loop {
            directory.watch();
            if matches!(self.wakes.recv_timeout(REREAD), Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected))
            {
                return;
            }
            match self.settled(&path) {
                Err(Stopped) => return,
                Ok(reading) => self.take(&path, reading),
            }
        }
    }

    /// What is in the file, once it is the same twice with a quiet moment between.
    fn settled(&self, path: &Path) -> Result<Reading, Stopped> {
        let mut before = read(path);
        for _ in 0..PATIENCE {
            if before == self.last {
                break;
            }
            loop {
                match self.wakes.recv_timeout(QUIET) {
                    Ok(Wake::Touched) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
                }
            }
            let now = read(path);
            if now == before {
                break;
            }
            before = now;
        }
        Ok(before)
    }

    /// Publishes a reading that differs from the last one, or says why not.
    fn take(&mut self, path: &Path, reading: Reading) {
        if reading == self.last {
            return;
        }
        let shown = path.display();
        match &reading {
            Reading::Failed(cause) => {
                warn!(file = %shown, why = %cause, "the mesh file cannot be read; keeping the last good state");
            }
            Reading::Text(text) if *text == self.published => {
                info!(file = %shown, "the mesh file is again what it was; nothing changes");
            }
            Reading::Text(text) => self.publish(path, text),
        }
        self.last = reading;
    }

    fn publish(&mut self, path: &Path, text: &Arc<[u8]>) {
        let shown = path.display();
        let Config { node, unknown_policy, .. } = &self.config;
        match file::load(&shown.to_string(), text, node.clone(), *unknown_policy) {
            Ok(snapshot) => {
                let (workloads, services) =
                    (snapshot.all_workloads().count(), snapshot.all_services().count());
                let version = self.publisher.publish(snapshot);
                self.published = Arc::clone(text);
                info!(file = %shown, version, workloads, services, "the mesh file changed; its state is in force");
            }
            Err(wrong) => {
                let line = wrong.place().map(|place| place.line);
                warn!(file = %shown, line, why = %wrong, "the mesh file is refused; keeping the last good state");
            }
        }
    }
}

fn read(path: &Path) -> Reading {
    fs::read(path).map_or_else(|cause| Reading::Failed(cause.kind()), |text| Reading::Text(text.into()))
}

/// The directory a file is in, watched as long as it is the same one.
struct Directory {
    path: PathBuf,
    waker: Sender<Wake>,
    /// Device and inode of what is watched.
    watched: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
    complained: bool,
}

impl Directory {
    fn of(file: &Path, waker: Sender<Wake>) -> Self {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let path = parent.unwrap_or(Path::new(".")).to_owned();
        Self { path, waker, watched: None, watcher: None, complained: false }
    }

    /// Watches whatever directory is at the path now. A failure is told once: without a watch changes are seen a
    /// few seconds late, and nothing else is lost.
    fn watch(&mut self) {
        let here = fs::metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if here.is_none() || here == self.watched {
            return;
        }
        let waker = self.waker.clone();
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading opens the file too; an end of writing is news, other access is not.
            let news = match event.map(|event| event.kind) {
                Ok(EventKind::Access(access)) => access == AccessKind::Close(AccessMode::Write),
                Ok(_) | Err(_) => true,
            };
            if news {
                let _ = waker.send(Wake::Touched);
            }
        })
        .and_then(|mut watcher| watcher.watch(&self.path, RecursiveMode::NonRecursive).map(|()| watcher));
        match made {
            Ok(watcher) => (self.watcher, self.watched, self.complained) = (Some(watcher), here, false),
            Err(cause) if !self.complained => {
                warn!(
                    directory = %self.path.display(), why = %cause,
                    "changes of the mesh file are noticed late; is fs.inotify.max_user_watches too low?"
                );
                self.complained = true;
            }
            Err(_) => {}
        }
    }
}
