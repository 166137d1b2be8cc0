//! Configures a namespace: interfaces and routes with the `ip` command, kernel settings through `/proc/sys`.

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};

use super::error::Error;
use crate::net::Netns;

/// Gives `lines` to one `ip -batch -` inside `netns`; the first line it refuses ends it.
pub(super) fn batch(netns: &Netns, place: &str, lines: &str) -> Result<(), Error> {
    let failed = |answer: String| Error::Command {
        command: format!("ip -batch - <<< {}", lines.trim().replace('\n', "; ")),
        place: place.to_owned(),
        answer,
    };
    let output = netns
        .run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .env("PATH", search_path())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(lines.as_bytes())?;
            }
            child.wait_with_output()
        })
        .map_err(|cause| failed(format!("{cause}; is the package iproute2 installed?")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// The user's PATH and the administrators' directories, which the PATH of others than root may lack.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Writes kernel settings of `netns`; names are relative to `/proc/sys/net`.
pub(super) fn settings(netns: &Netns, place: &str, pairs: &[(&str, &str)]) -> Result<(), Error> {
    for (name, value) in pairs {
        let path = format!("/proc/sys/net/{name}");
        // /proc/sys/net shows the namespace of the thread that opens it.
        netns
            .run(|| std::fs::write(&path, value))
            .map_err(Error::io(format!("writing {value} to {path} of {place}")))?;
    }
    Ok(())
}

/// Asks for cubic as the namespace's congestion control and says which one it has afterwards.
///
/// A namespace may only choose what the host lists in `net.ipv4.tcp_allowed_congestion_control`; where cubic is
/// not listed the host's default stays.
pub(super) fn prefer_cubic(netns: &Netns, place: &str) -> Result<String, Error> {
    netns
        .run(|| {
            let _ = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic");
            crate::net::socket::default_congestion()
        })
        .map_err(Error::io(format!("reading the congestion control of {place}")))
}
