//! What the demo needs from this machine: tools, privilege, and an orderly end on Ctrl-C.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};

use super::{Error, place};
use crate::net::Netns;

/// What must be installed, and the packages that have it.
const TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("iptables-save", "iptables"),
    ("iptables-restore", "iptables"),
    ("ip6tables-save", "iptables"),
    ("ip6tables-restore", "iptables"),
];
/// Where distributions keep them, also when the user's PATH lacks the administrators' directories.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];
/// Where jemalloc, which this program is built with, reads settings. With its background thread no process can
/// enter a user namespace.
const ALLOCATOR: &str = "_RJEM_MALLOC_CONF";
/// For how many milliseconds a joined thread may linger.
const LINGERING: u32 = 200;
/// Exit code of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Checks that the tools are there.
///
/// # Errors
/// One sentence that names what is missing and the packages to install.
pub(super) fn tools() -> Result<(), Error> {
    let is_there = |name: &str| DIRECTORIES.iter().any(|directory| Path::new(directory).join(name).exists());
    let missing: Vec<_> = TOOLS.iter().filter(|(name, _)| !is_there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| format!("`{name}`")).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Err(Error::Unfit(format!(
        "{} missing on this machine; install {} (for example `sudo apt install {}`)",
        names.join(", ") + if names.len() == 1 { " is" } else { " are" },
        packages.join(" and "),
        packages.join(" ")
    )))
}

/// Makes this process one of a single thread where it will have to enter a user namespace, which the kernel
/// grants to no other. Starts the program anew when the allocator keeps a thread; nothing may be open yet.
///
/// # Errors
/// The system's answer when the program cannot be started anew.
pub(super) fn alone() -> Result<(), Error> {
    if Netns::create().is_ok() || is_alone() || std::env::var_os(ALLOCATOR).is_some() {
        return Ok(());
    }
    let cause = std::env::current_exe().map_or_else(
        |cause| cause,
        |program| {
            let arguments = std::env::args_os().skip(1);
            Command::new(program).args(arguments).env(ALLOCATOR, "background_thread:false").exec()
        },
    );
    Err(Error::Unfit(format!("starting this program anew with a single thread: {cause}")))
}

/// Whether this is the only thread. One that has just been joined may linger in the kernel for a moment.
fn is_alone() -> bool {
    let threads = || fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    (0..LINGERING).any(|_| {
        let alone = threads() == 1;
        if !alone {
            std::thread::sleep(Duration::from_millis(1));
        }
        alone
    })
}

/// Makes sure that network namespaces can be made: as root, or as root of a user namespace of our own, with a
/// network and a mount namespace that belong to it. `place` must stay visible.
///
/// # Errors
/// One sentence that says what the system refused and offers sudo.
pub(super) fn privilege(place: &Path) -> Result<(), Error> {
    if Netns::create().is_ok() {
        return Ok(());
    }
    let (user, group) = (geteuid(), getegid());
    let enter = || {
        if !is_alone() {
            return Err(io::Error::other("this program could not get rid of its other threads"));
        }
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        // The order the kernel asks for: user_namespaces(7).
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
        // iptables locks a file in /run, which belongs to the machine's root; here it gets a /run of its own.
        if !place.starts_with("/run") {
            let nothing: Option<&str> = None;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing)?;
        }
        Netns::create().map(drop)
    };
    enter().map_err(|cause: io::Error| {
        Error::Unfit(format!(
            "this system does not let user {user} make network namespaces ({cause}); run it as `sudo adit demo`"
        ))
    })
}

/// Ends the demo in order when the user (SIGINT), the system (SIGTERM) or the terminal (SIGHUP) asks.
///
/// While the demo works, the process ends at once: the proxies are killed, the directory is removed, and the
/// namespaces go with us. While it is kept running, the wait returns and everything is taken down as usual.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: PathBuf,
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug)]
enum Phase {
    /// Rows are run; these processes are ours.
    Working(Vec<u32>),
    /// The user looks around.
    Kept,
    /// Everything is being taken down, which takes a few seconds at most.
    Ending,
}

impl Interrupt {
    /// Takes the signals over, for this thread and all that it will start.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) fn install(place: &Path) -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        let shared = Arc::new(Shared {
            place: place.to_owned(),
            phase: Mutex::new(Phase::Working(Vec::new())),
            changed: Condvar::new(),
        });
        let unfit = |cause: io::Error| Error::Unfit(format!("taking over Ctrl-C: {cause}"));
        signals.thread_block().map_err(|errno| unfit(errno.into()))?;
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("demo-signals".to_owned())
            .spawn(move || {
                while signals.wait().is_ok() {
                    of_thread.asked();
                }
            })
            .map_err(unfit)?;
        Ok(Self(shared))
    }

    /// Remembers a process to kill when the end comes early.
    pub(super) fn watch(&self, pid: u32) {
        if let Phase::Working(pids) = &mut *self.0.lock() {
            pids.push(pid);
        }
    }

    /// Blocks until somebody asks for the end.
    pub(super) fn wait(&self) {
        let mut phase = self.0.lock();
        *phase = Phase::Kept;
        while matches!(*phase, Phase::Kept) {
            phase = self.0.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From here on the end is under way and needs no interruption.
    pub(super) fn ending(&self) {
        *self.0.lock() = Phase::Ending;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        // A phase is replaced whole, so a panic leaves a whole one.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) {
        let mut phase = self.lock();
        match &*phase {
            Phase::Working(pids) => {
                eprintln!("adit demo: interrupted; everything is being removed");
                // They write into the directory, so they go first. Their ids are not reused: they are our
                // children, and their end has not been waited for while the demo works.
                for pid in pids.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                place::remove(&self.place);
                std::process::exit(INTERRUPTED);
            }
            Phase::Kept => {
                *phase = Phase::Ending;
                self.changed.notify_all();
            }
            Phase::Ending => {}
        }
    }
}
