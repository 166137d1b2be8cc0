//! Network namespaces: who they are, and how a thread visits one and surely comes home.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use super::sys;

/// Which namespace a descriptor names: device and inode of its nsfs entry. Two descriptors of one namespace
/// have equal ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// Device of the nsfs mount.
    pub device: u64,
    /// Inode of the namespace.
    pub inode: u64,
}

/// A network namespace, pinned by an open descriptor for as long as this value lives.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// Takes a descriptor somebody else opened.
    ///
    /// # Errors
    /// `InvalidInput` when it does not name a network namespace (`NS_GET_NSTYPE`, ioctl_ns(2)).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = sys::namespace_type(fd.as_fd()).map_err(|cause| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("the descriptor names no namespace: {cause}"))
        })?;
        if kind != nix::libc::CLONE_NEWNET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the descriptor names a namespace of type {kind:#x}, not a network namespace"),
            ));
        }
        let stat = nix::sys::stat::fstat(&fd)?;
        Ok(Self { fd, id: NetnsId { device: stat.st_dev, inode: stat.st_ino } })
    }

    /// Opens the namespace at `path`, for example `/proc/1234/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// The calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Makes a new, empty namespace that lives as long as somebody holds a descriptor of it or runs inside.
    ///
    /// A helper thread makes it and ends, so the caller never leaves its own. Needs CAP_SYS_ADMIN.
    pub fn create() -> io::Result<Self> {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the helper thread that makes a namespace panicked")))
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Moves the calling thread into this namespace for good. For a thread's own namespace this changes nothing and
    /// tells whether the process may enter namespaces at all.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` with the calling thread inside this namespace and brings the thread home again, also when
    /// `work` panics. Sockets made and processes started by `work` belong to this namespace for good.
    ///
    /// `work` is not async, so no await can lie between leaving and coming home.
    ///
    /// # Errors
    /// What `setns(2)` answers on the way in (CAP_SYS_ADMIN is needed), or what `work` returns.
    ///
    /// # Aborts
    /// When the way home fails: a thread that stays in a pod would put other pods' sockets there.
    pub fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = Self::current()?;
        if home.id == self.id {
            return work();
        }
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let _way_home = WayHome(home);
        work()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Brings the thread back to the namespace it holds when dropped, during unwinding too.
struct WayHome(Netns);

impl Drop for WayHome {
    fn drop(&mut self) {
        if let Err(cause) = setns(&self.0.fd, CloneFlags::CLONE_NEWNET) {
            // Written directly: the logger belongs to threads this process can no longer trust.
            eprintln!("a thread cannot leave a pod's network namespace ({cause}); ending the process");
            std::process::abort();
        }
    }
}
