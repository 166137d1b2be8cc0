//! Runs iptables and ip inside a pod's network namespace.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, Family};
use crate::net::Netns;

/// Most of a failed command's complaint that is kept, in bytes.
const COMPLAINT: usize = 2000;

/// Where iptables and ip are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    directories: Vec<PathBuf>,
}

impl Tools {
    /// Looks in `directories`, in this order, and nowhere else.
    pub fn looking_in(directories: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { directories: directories.into_iter().map(Into::into).collect() }
    }

    /// Whether `program` is there.
    pub(super) fn have(&self, program: &'static str) -> bool {
        self.find(program).is_ok()
    }

    fn find(&self, program: &'static str) -> Result<PathBuf, Error> {
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        self.directories
            .iter()
            .map(|directory| directory.join(program))
            .find(executable)
            .ok_or(Error::Missing { program, package: if program == "ip" { "iproute2" } else { "iptables" } })
    }
}

/// The program that prints the rules of `family`.
pub(super) fn save_program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    }
}

/// Applies `text`, each table in one transaction.
pub(super) fn restore(family: Family, netns: &Netns, tools: &Tools, text: &str) -> Result<(), Error> {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    // A process of the pod may hold the lock of its own namespace: wait for it, but not for ever.
    run(netns, tools, program, &["--noflush", "--wait=10"], text).map(drop)
}

/// Runs `program` inside `netns` with `input`, and returns what it printed.
pub(super) fn run(
    netns: &Netns,
    tools: &Tools,
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, Error> {
    let path = tools.find(program)?;
    let command = || [&[program], arguments].concat().join(" ");
    let ran = || -> io::Result<Output> {
        let input = in_memory(input)?;
        // The child inherits the namespace of the thread that starts it.
        let child = netns.run(|| {
            Command::new(&path)
                .args(arguments)
                .env("LC_ALL", "C")
                // The legacy backend locks a file. This one exists, needs no writable directory, belongs to
                // exactly the namespace whose tables change, and is private to whoever may enter it.
                .env("XTABLES_LOCKFILE", "/proc/self/ns/net")
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })?;
        child.wait_with_output()
    };
    let output = ran().map_err(|cause| Error::Run { command: command(), cause })?;
    if !output.status.success() {
        let complaint = &output.stderr[..output.stderr.len().min(COMPLAINT)];
        return Err(Error::Failed {
            command: command(),
            status: output.status,
            stderr: String::from_utf8_lossy(complaint).trim().replace('\n', "; "),
        });
    }
    String::from_utf8(output.stdout)
        .map_err(|problem| Error::Unreadable { command: command(), problem: problem.to_string() })
}

/// `text` as a file to read from: unlike a pipe it never fills up while the reader complains.
fn in_memory(text: &str) -> io::Result<Stdio> {
    let memory: OwnedFd = memfd_create("adit-input", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}
