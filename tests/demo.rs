//! The demo, run as its users run it: every line as it has to be, and nothing left behind however it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The demo takes some 5 s; a busy machine may need several times that.
const LONG: Duration = Duration::from_secs(90);

/// The demo in a directory of its own for temporary files, so that what it leaves is seen.
struct Demo {
    child: Child,
    scratch: tempfile::TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test runs as root, because it looks at processes");
        let scratch = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_adit"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, scratch }
    }

    fn lines(&mut self) -> impl Iterator<Item = Value> + use<> {
        let output = BufReader::new(self.child.stdout.take().expect("taken once"));
        output.lines().map(|line| {
            let line = line.unwrap();
            serde_json::from_str(&line).unwrap_or_else(|cause| panic!("{line:?} is no JSON: {cause}"))
        })
    }

    fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + LONG;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None if Instant::now() > end => panic!("the demo still runs after {LONG:?}"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// No process that has this test's scratch directory in its environment, and nothing in that directory.
    fn leaves_nothing(&self) {
        let scratch = self.scratch.path().to_str().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let processes = processes_with(scratch);
            let files: Vec<_> = std::fs::read_dir(scratch).unwrap().map(|it| it.unwrap().path()).collect();
            if processes.is_empty() && files.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "the demo left processes {processes:?} and files {files:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Processes whose environment or command line names `text`.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |name| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let about = [read("environ"), read("cmdline")].concat();
        if String::from_utf8_lossy(&about).contains(text) {
            found.push(format!("{} {}", entry.path().display(), String::from_utf8_lossy(&read("cmdline"))));
        }
    }
    found
}

#[test]
fn every_line_of_the_demo_is_as_it_has_to_be_and_nothing_is_left() {
    let mut demo = Demo::start(&["--json"]);
    let lines: Vec<Value> = demo.lines().collect();
    let status = demo.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    let rows = of("row");
    assert!(rows.len() >= 10, "{} rows", rows.len());
    let refused: Vec<_> = rows.iter().filter(|row| row["verdict"] == "refused").collect();
    assert_eq!(refused.len(), 2, "{refused:#?}");
    assert!(
        refused.iter().all(|row| row["policy"].as_str().is_some_and(|policy| policy.starts_with("shop/")))
    );
    assert!(rows.iter().all(|row| row["problems"] == serde_json::json!([])));
    let [wire] = of("wire")[..] else { panic!("one report of the wire in {lines:#?}") };
    assert_eq!(wire["secret_seen"], 0);
    assert!(wire["control_seen"].as_u64() > Some(0), "the search finds nothing at all: {wire}");
    assert!(wire["tunnels"].as_u64() > Some(0), "no tunnel crossed the wire: {wire}");
    let [result] = of("result")[..] else { panic!("one result in {lines:#?}") };
    assert_eq!(result["as_expected"], true, "{result}");
    demo.leaves_nothing();
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    let mut demo = Demo::start(&["--json"]);
    let mut lines = demo.lines();
    lines.find(|line| line["kind"] == "row").expect("the demo ended before its first row");
    kill(Pid::from_raw(demo.child.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = demo.wait();
    assert_ne!(status.code(), Some(0), "an interrupted demo is no success");
    demo.leaves_nothing();
}

#[test]
fn a_demo_that_is_killed_leaves_no_process() {
    let mut demo = Demo::start(&["--json"]);
    let mut lines = demo.lines();
    lines.find(|line| line["kind"] == "row").expect("the demo ended before its first row");
    let scratch = demo.scratch.path().to_str().unwrap().to_owned();
    assert!(
        processes_with(&scratch).len() >= 3,
        "the demo and two proxies run: {:?}",
        processes_with(&scratch)
    );
    demo.child.kill().unwrap();
    demo.wait();
    let end = Instant::now() + Duration::from_secs(10);
    while !processes_with(&scratch).is_empty() {
        assert!(Instant::now() < end, "left: {:?}", processes_with(&scratch));
        std::thread::sleep(Duration::from_millis(50));
    }
}
