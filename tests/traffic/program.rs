//! Real applications in pods: started there, waited for, ended with the test.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use adit::lab::{Pod, dial};
use adit::net::die_with_this_thread;

use super::stage::SOON;

/// Where distributions keep programs, also when the PATH of a test lacks the administrators' directories.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/// A program and its arguments, with nothing of our own environment.
fn command(name: &str, arguments: &[&str]) -> Command {
    let paths = DIRECTORIES.iter().map(|directory| PathBuf::from(directory).join(name));
    let path = paths.into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| {
        panic!(
            "`{name}` is missing: these tests need nginx, curl, redis (redis-server, redis-cli) and iperf3"
        )
    });
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("LC_ALL", "C").env("HOME", "/nonexistent");
    // A proxy in the environment of whoever runs the tests is none of theirs.
    command.env("no_proxy", "*").current_dir("/");
    command
}

/// A program that runs until it is dropped.
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it in `pod` and waits until it answers on `port` at `pod`'s loopback.
    pub fn start(pod: &Pod, name: &str, arguments: &[&str], port: u16) -> Self {
        let mut command = command(name, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = pod.netns().run(|| die_with_this_thread(&mut command).spawn());
        let child = child.unwrap_or_else(|cause| panic!("starting {name} in {}: {cause}", pod.full_name()));
        let mut daemon = Self { name: name.to_owned(), child };
        let deadline = Instant::now() + SOON;
        while dial(pod.netns(), (std::net::Ipv4Addr::LOCALHOST, port).into(), SOON).is_err() {
            if let Some(status) = daemon.child.try_wait().expect("our own child can be asked") {
                let mut words = String::new();
                let stderr = daemon.child.stderr.as_mut().expect("it was piped");
                let _ = stderr.read_to_string(&mut words);
                panic!("{name} ended at once ({status}): {words}");
            }
            assert!(Instant::now() < deadline, "{name} does not listen on {port} within {SOON:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.child.id())
    }
}

/// Runs a program in `pod` to its end.
pub fn run(pod: &Pod, name: &str, arguments: &[&str]) -> Output {
    let mut command = command(name, arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = pod.netns().run(|| die_with_this_thread(&mut command).spawn());
    let child = child.unwrap_or_else(|cause| panic!("starting {name} in {}: {cause}", pod.full_name()));
    child.wait_with_output().unwrap_or_else(|cause| panic!("waiting for {name}: {cause}"))
}

/// Runs a program in `pod`, insists that it succeeds, and returns what it wrote.
pub fn succeed(pod: &Pod, name: &str, arguments: &[&str]) -> Vec<u8> {
    let output = run(pod, name, arguments);
    assert!(
        output.status.success(),
        "{name} {arguments:?} in {} failed ({}): {}{}",
        pod.full_name(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
