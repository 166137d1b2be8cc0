//! The rules that bring a pod's traffic to the proxy: REDIRECT inside the pod's own network namespace.
//!
//! In a cluster the CNI's node agent installs them; where none runs, as in the lab, this does. One [`Rules`] value describes one pod. `plan.rs` says what should
//! be there, as a pure function; `state.rs` reads what is there; the difference is a list of [`Deviation`]s,
//! and [`Rules::install`] mends exactly that difference, each table in one transaction, so that mending
//! never opens a gap through which a packet leaves uncaptured.
//!
//! Everything here blocks while commands run (tens of milliseconds); keep it off threads that serve.

mod commands;
mod compare;
mod plan;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::process::ExitStatus;

pub use commands::Tools;
pub use compare::Deviation;
pub use plan::{Chain, Family, Plan, RestoreText, Rule, Table};
use state::Found;

use crate::net::Netns;

/// Which capture rules a pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether IPv6 is captured like IPv4 (`AMBIENT_IPV6`). Without it, IPv6 rules of ours are leftovers.
    pub ipv6: bool,
    /// Whether the pod's DNS queries come to the proxy (`ambient.istio.io/dns-capture`).
    pub dns: DnsCapture,
    /// Whether plaintext connections to the pod do (`ambient.istio.io/bypass-inbound-capture`).
    pub inbound: InboundCapture,
    /// Interfaces behind which something inside the pod hides, such as a virtual machine: what arrives there
    /// is outbound (`istio.io/reroute-virtual-interfaces`). In the order of the annotation.
    pub virtual_interfaces: Vec<InterfaceName>,
}

/// What becomes of the pod's DNS queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsCapture {
    /// They come to port 15053.
    Captured,
    /// They go where they went.
    Left,
}

/// What becomes of plaintext connections to the pod. Tunnels to port 15008 are never redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundCapture {
    /// They come to port 15006.
    Captured,
    /// They reach the application (ingress mode).
    Bypassed,
}

/// The name of a network interface, safe to write into rules. A trailing `+` stands for any ending.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Takes 1 to 15 ASCII letters, digits, and `-_.@+`; not starting with `-`, and neither `.` nor `..`.
    ///
    /// # Errors
    /// [`BadInterface`] for any other text. The kernel allows stranger names; iptables would misread them.
    pub fn parse(name: &str) -> Result<Self, BadInterface> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@+".contains(&byte);
        let fits = (1..=15).contains(&name.len()) && name.bytes().all(plain);
        if fits && !name.starts_with('-') && name != "." && name != ".." {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadInterface(name.to_owned()))
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that names no interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no network interface: use 1 to 15 letters, digits and -_.@+, as `ip link` shows them")]
pub struct BadInterface(String);

/// Why rules could not be read, installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not where [`Tools`] looks.
    #[error("{program} is not installed; install the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program could not be run inside the namespace at all.
    #[error("cannot run `{command}` inside the pod's network namespace (CAP_SYS_ADMIN is needed)")]
    Run {
        /// What was to be run.
        command: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it complained of, at most 2000 bytes.
        stderr: String,
    },
    /// A program's output is not what it should print.
    #[error("cannot read what `{command}` printed: {problem}; is its version supported?")]
    Unreadable {
        /// What was run.
        command: String,
        /// What is wrong with its output.
        problem: String,
    },
    /// Every command succeeded and yet the rules are not as planned.
    #[error("the rules were installed and still deviate: {}", list(.0))]
    Deviating(Vec<Deviation>),
    /// An installation failed, and what it had made could not be removed either.
    #[error("{cause}; and what was installed could not be removed: {left}")]
    HalfInstalled {
        /// Why the installation failed.
        cause: Box<Error>,
        /// Why the removal failed.
        left: Box<Error>,
    },
}

fn list(deviations: &[Deviation]) -> String {
    deviations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Rules {
    /// Brings the namespace to the plan: adds what is missing, replaces what differs, removes what is left
    /// of other plans of ours. Does nothing when all is as planned. Rules of others are left alone.
    ///
    /// Complete or not at all: when a change fails, everything of ours is removed, also what was there
    /// before. When the present state cannot be read, nothing is changed. `lo` must be up in the namespace.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::HalfInstalled`] alone leaves something of this installation behind.
    pub fn install(&self, netns: &Netns, tools: &Tools) -> Result<(), Error> {
        let before = self.read(netns, tools)?;
        self.mend(netns, tools, &before).map_err(|cause| match self.remove(netns, tools) {
            Ok(()) => cause,
            Err(left) => Error::HalfInstalled { cause: Box::new(cause), left: Box::new(left) },
        })
    }

    fn mend(&self, netns: &Netns, tools: &Tools, before: &[(Family, Found)]) -> Result<(), Error> {
        let plan = self.plan();
        for (family, found) in before {
            let (family, wanted, rules) = (*family, self.wants(*family), plan.rules(*family));
            // The way for marked packets first: rules that mark them without it would send them astray.
            if wanted {
                state::add_routing(family, netns, tools, found)?;
            }
            let text = compare::mend(family, rules, found);
            if !text.is_empty() {
                commands::restore(family, netns, tools, &text)?;
            }
            if !wanted {
                state::remove_routing(family, netns, tools, found)?;
            }
        }
        let deviations = self.verify(netns, tools)?;
        if deviations.is_empty() { Ok(()) } else { Err(Error::Deviating(deviations)) }
    }

    /// Compares the namespace with the plan. Empty means: as planned, nothing missing, nothing more, and in
    /// order. Rules of others are not looked at, except where they jump into our chains.
    ///
    /// # Errors
    /// When the state cannot be read; it is then unknown, not good.
    pub fn verify(&self, netns: &Netns, tools: &Tools) -> Result<Vec<Deviation>, Error> {
        let plan = self.plan();
        let found = self.read(netns, tools)?;
        let differ = |(family, found): &(Family, Found)| {
            compare::deviations(*family, self.wants(*family), plan.rules(*family), found)
        };
        Ok(found.iter().flat_map(differ).collect())
    }

    /// Removes everything of ours, whatever plan it came from: chains, what jumps into them, ip rule and
    /// route. Tables and chains the kernel itself provides stay, empty as they were.
    ///
    /// # Errors
    /// The first failure; the other family is still tried.
    pub fn remove(&self, netns: &Netns, tools: &Tools) -> Result<(), Error> {
        let removed = self.read(netns, tools)?.into_iter().map(|(family, found)| {
            let text = compare::mend(family, &[], &found);
            if !text.is_empty() {
                commands::restore(family, netns, tools, &text)?;
            }
            state::remove_routing(family, netns, tools, &found)
        });
        // Collected before it is judged, so that one family's failure does not keep the other.
        removed.collect::<Vec<_>>().into_iter().collect()
    }

    /// What of ours is there in each family that can have something.
    fn read(&self, netns: &Netns, tools: &Tools) -> Result<Vec<(Family, Found)>, Error> {
        let mut all = Vec::new();
        for family in Family::ALL {
            if let Some(found) = state::read(family, netns, tools, self.wants(family))? {
                all.push((family, found));
            }
        }
        Ok(all)
    }

    fn wants(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => self.ipv6,
        }
    }
}

/// Directories where programs are looked for unless [`Tools`] says otherwise.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

impl Default for Tools {
    fn default() -> Self {
        Self::looking_in(DIRECTORIES)
    }
}
