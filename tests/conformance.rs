//! The HTTP/2 machine as a server under h2spec, a test suite for RFC 9113 and RFC 7541 by people who never saw it.
//!
//! `make conformance` installs h2spec and runs this. The machine stands behind a plain TCP socket on loopback, answers each request when
//! it has ended, and keeps to the client's windows. Every case must pass but those of [`KNOWN`], and those must fail: a list that is no
//! longer true is an error too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use adit::http2::{Action, Config, Machine, Role, StreamId};

/// Cases that fail, and why that is right here.
const KNOWN: &[(&str, &str)] = &[
    ("http2/5.3.1: Sends HEADERS frame that depend on itself", NO_PRIORITIES),
    ("http2/5.3.1: Sends PRIORITY frame that depend on itself", NO_PRIORITIES),
    (
        "http2/8.1.2.6: Sends a HEADERS frame with the 'content-length' header field which does not equal the DATA frame payload \
         length",
        NO_CONTENT,
    ),
    (
        "http2/8.1.2.6: Sends a HEADERS frame with the 'content-length' header field which does not equal the sum of the multiple \
         DATA frames payload length",
        NO_CONTENT,
    ),
];

const NO_PRIORITIES: &str = "RFC 9113 §5.3 took priorities out; what they say is read over";
const NO_CONTENT: &str =
    "a tunnel's DATA is no content (RFC 9110 §9.3.6), and no other method is ever served";

/// What each request is answered with: enough for the cases that give the server a small window.
const BODY: &[u8] = b"carried";

#[test]
fn the_machine_conforms_to_h2spec() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve(socket));
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let report = dir.path().join("report.xml");
    let output = Command::new("h2spec")
        .args([
            "generic",
            "http2",
            "hpack",
            "--strict",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--junit-report",
        ])
        .arg(&report)
        .output()
        .expect("h2spec is installed: `make conformance` does that");
    let text = String::from_utf8_lossy(&output.stdout);
    let report =
        std::fs::read_to_string(&report).unwrap_or_else(|_| panic!("h2spec wrote no report:\n{text}"));
    let (passed, failed) = cases(&report);
    assert!(passed.len() + failed.len() > 140, "only {} cases ran:\n{text}", passed.len() + failed.len());
    let known: BTreeSet<_> = KNOWN.iter().map(|(case, _)| (*case).to_owned()).collect();
    let wrong: Vec<_> = failed.symmetric_difference(&known).collect();
    assert!(wrong.is_empty(), "these fail and should not, or should and do not: {wrong:#?}\n{text}");
    println!("h2spec: {} cases passed; known to fail:", passed.len());
    for (case, why) in KNOWN {
        println!("  {case}: {why}");
    }
}

/// The names of the cases of a JUnit report that passed, and of those that did not; skipped ones are neither.
fn cases(report: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut passed, mut failed) = (BTreeSet::new(), BTreeSet::new());
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let rest =
                case.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {case}")).1;
            rest.split('"').next().unwrap_or_default().replace("&#34;", "'").replace("&#39;", "'")
        };
        let name = format!("{}: {}", attribute("package"), attribute("classname"));
        let body = case.split("</testcase>").next().unwrap_or_default();
        if body.contains("<failure") || body.contains("<error") {
            failed.insert(name);
        } else if !body.contains("<skipped") {
            passed.insert(name);
        }
    }
    (passed, failed)
}

/// One connection, until either side ends it.
fn serve(mut socket: TcpStream) {
    let config = Config {
        stream_window: 1 << 20,
        connection_window: 1 << 20,
        frame_size: 16_384,
        header_list: 16 << 10,
        header_table: 4_096,
        streams: 100,
    };
    let mut machine = Machine::new(Role::Server, config, Instant::now());
    let mut answers: BTreeMap<StreamId, &[u8]> = BTreeMap::new();
    let mut buffer = vec![0; 64 << 10];
    socket.set_nodelay(true).expect("a TCP socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a TCP socket");
    loop {
        if write(&mut machine, &mut answers, &mut socket).is_err() || machine.failure().is_some() {
            break;
        }
        let read = match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(_) => break,
        };
        let mut bytes = &buffer[..read];
        while let Ok(Some(action)) = machine.read(&mut bytes, Instant::now()) {
            match action {
                Action::Request { stream, end: true, .. } => {
                    answers.insert(stream, BODY);
                }
                Action::Data { stream, bytes, end } => {
                    machine.left_arena(bytes.len());
                    machine.taken(stream, bytes.len());
                    if end {
                        answers.insert(stream, BODY);
                    }
                }
                Action::Reset { stream, .. } => {
                    answers.remove(&stream);
                }
                _ => {}
            }
            // A stream that ended in these bytes is answered before the next of them are looked at, as a quick application would.
            if write(&mut machine, &mut answers, &mut socket).is_err() {
                return;
            }
        }
    }
    // What is unread would turn the close into a reset, and the client would never see why.
    let _ = socket.shutdown(std::net::Shutdown::Write);
    while matches!(socket.read(&mut buffer), Ok(1..)) {}
}

fn write(
    machine: &mut Machine,
    answers: &mut BTreeMap<StreamId, &[u8]>,
    socket: &mut TcpStream,
) -> std::io::Result<()> {
    let mut wire = Vec::new();
    answers.retain(|stream, rest| {
        // Answered already, or not yet.
        let _ = machine.respond(*stream, []);
        wire.extend_from_slice(machine.output());
        machine.sent(machine.output().len());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(machine.room(*stream).min(rest.len()));
            if now.is_empty() {
                return true;
            }
            let Ok(head) = machine.send(*stream, now.len(), later.is_empty()) else { return false };
            wire.extend_from_slice(&head);
            wire.extend_from_slice(now);
            *rest = later;
        }
        false
    });
    wire.extend_from_slice(machine.output());
    machine.sent(machine.output().len());
    socket.write_all(&wire)
}
