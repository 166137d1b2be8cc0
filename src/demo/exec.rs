//! `adit demo exec`: becomes a command inside a namespace of the running demo.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::place::{self, State};
use super::{Error, setup};
use crate::net::Netns;

/// Replaces this process by `command` in the namespace called `name`. Returns only when that fails.
///
/// Calls [`setup::alone`] first, because a user namespace may have to be entered.
///
/// # Errors
/// [`Error::Unfit`]: no demo runs, it has no such namespace, or the system does not let us in.
pub(super) fn run(name: &str, command: &[OsString]) -> Result<Infallible, Error> {
    setup::alone()?;
    let state = place::running()?;
    let room = state.namespaces.iter().find(|room| room.names.iter().any(|it| it == name));
    let Some(room) = room else {
        let names: Vec<_> = state.namespaces.iter().filter_map(|room| room.names.first()).cloned().collect();
        return Err(Error::Unfit(format!("the demo has no {name}; it has {}", names.join(", "))));
    };
    enter(&state, room.descriptor).map_err(|cause| {
        Error::Unfit(format!("entering {name} of the demo (process {}): {cause}", state.pid))
    })?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::Unfit("no command was given".to_owned()));
    };
    let cause = Command::new(program).args(arguments).exec();
    Err(Error::Unfit(format!("running {}: {cause}", program.to_string_lossy())))
}

fn enter(state: &State, descriptor: i32) -> io::Result<()> {
    let process = format!("/proc/{}", state.pid);
    // Both are opened before the first is entered: inside the user namespace the other process is out of reach.
    let netns = Netns::open(format!("{process}/fd/{descriptor}"))?;
    let user = File::open(format!("{process}/ns/user"))?;
    let ours = File::open("/proc/self/ns/user")?;
    // Entering the user namespace one is already in is an error (setns(2)).
    if user.metadata()?.ino() != ours.metadata()?.ino() {
        setns(&user, CloneFlags::CLONE_NEWUSER)?;
    }
    Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?)
}
