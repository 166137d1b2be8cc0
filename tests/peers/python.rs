//! Python's `h2` as the far proxy (`peer.py`), which also does what Envoy cannot be made to do: change keys while bytes are under way,
//! and leave a tunnel so that a CONNECT is left out.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit::identity::SpiffeId;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::checks;
use super::stage::{APPLICATION, ENTRANCE, Role, SOON, Stage};

/// One peer; ended when dropped.
struct Python {
    child: Child,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Python {
    fn start(stage: &Stage, role: Role, shows: &SpiffeId, expects: &SpiffeId) -> Self {
        let papers = stage.papers(shows);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(here.join("target/tools/python/bin/python"));
        command.arg("-B").arg(here.join("tests/peers/peer.py"));
        command.arg(if role == Role::Serves { "serves" } else { "calls" });
        command.args([papers.chain, papers.key, papers.root]).arg(expects.as_str());
        match role {
            Role::Serves => command.arg("15008").arg(APPLICATION.to_string()),
            Role::Calls => command
                .arg(ENTRANCE.to_string())
                .arg(stage.near.ipv4().to_string())
                .arg(stage.near.at(APPLICATION).to_string()),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = stage.spawn(&mut command);
        let told = Arc::new(Mutex::new(Vec::new()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn({
            let told = told.clone();
            move || {
                for line in stdout.lines().map_while(Result::ok) {
                    let event = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
                    told.lock().unwrap().push(event);
                }
            }
        });
        let mut python = Self { child, told };
        python.until("ready", |python| python.count("ready") == 1);
        python
    }

    /// What it told under this name.
    fn events(&self, name: &str) -> Vec<Value> {
        self.told.lock().unwrap().iter().filter(|it| it["event"] == name).cloned().collect()
    }

    fn count(&self, name: &str) -> usize {
        self.events(name).len()
    }

    fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// RST_STREAM frames received and sent. One that it sends is for an application that broke off.
    fn resets(&self) -> (u64, u64) {
        (self.count("reset") as u64, self.count("broken") as u64)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            let ended = self.child.try_wait().unwrap();
            let last: Vec<_> =
                self.told.lock().unwrap().iter().rev().take(12).map(Value::to_string).collect();
            assert!(
                ended.is_none() && started.elapsed() < SOON,
                "it did not come to this: {what} ({ended:?}); the latest first:\n{}",
                last.join("\n")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn honest(stage: &Stage, role: Role) -> Python {
    Python::start(stage, role, stage.far.identity(), stage.near.identity())
}

fn everything(role: Role) {
    let stage = Stage::new();
    let python = honest(&stage, role);
    let way = stage.way(role, false);
    checks::all(&way, || python.resets());
    for tunnel in python.events("tunnel") {
        assert_eq!((&tunnel["tls"], &tunnel["alpn"]), (&"TLSv1.3".into(), &"h2".into()), "{tunnel}");
    }
    // adit opens a second tunnel when the first is on a worker that has much to carry.
    assert!((1..=4).contains(&python.count("tunnel")), "{:?}", python.events("tunnel"));
    if role == Role::Serves {
        let wanted =
            serde_json::json!({":method": "CONNECT", ":authority": stage.far.at(APPLICATION).to_string()});
        let heads = python.events("connect");
        assert!(heads.len() >= 40, "{} streams", heads.len());
        assert!(heads.iter().all(|it| it["head"] == wanted), "{heads:?}");
    }
    // RST_STREAM(CANCEL), RFC 9113 §7, and each on a stream that carried.
    assert!(python.events("reset").iter().all(|it| it["code"] == 8 && it["live"] == true));
}

/// Keys change both ways, again and again, under bytes both ways.
fn keys(role: Role) {
    let stage = Stage::new();
    let mut python = honest(&stage, role);
    let way = stage.way(role, false);
    let pairs: Vec<_> = (0..4).map(|_| way.connect()).collect();
    let asked = std::thread::scope(|scope| {
        let carrying: Vec<_> = (60..)
            .zip(&pairs)
            .map(|(seed, pair)| scope.spawn(move || pair.carries(seed, 16 << 20)))
            .collect();
        let mut asked = 0;
        while !carrying.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            python.say("keys");
            asked += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        asked
    });
    let changed = |direction: &str| {
        python.events("key update").iter().filter(|it| it["direction"] == direction).count()
    };
    let (sent, answered) = (changed("write"), changed("read"));
    println!("  {role:?}: asked {asked} times; keys changed {sent} times there and {answered} times here");
    assert!(sent >= 5, "{sent} of {asked}");
    // Requests that wait for the same answer have one (RFC 8446 §4.6.3).
    assert!(answered > 0 && answered <= sent, "{answered} answers to {sent}");
    assert_eq!(python.resets(), (0, 0));
    way.connect().talks();
}

/// The peer says GOAWAY behind all streams while one carries; then so that it leaves out a CONNECT.
fn leaving(role: Role) {
    let stage = Stage::new();
    let mut python = honest(&stage, role);
    let way = stage.way(role, false);
    let old = way.connect();
    old.talks();
    python.say("leave");
    python.until("GOAWAY", |python| python.count("left") == 1);
    // Time for it to arrive: a CONNECT that crosses it is the other case.
    std::thread::sleep(Duration::from_millis(500));
    let new = way.connect();
    new.talks();
    python.until("a tunnel for what came after GOAWAY", |python| python.count("tunnel") == 2);
    old.carries(70, 8 << 20);
    python.until("the end of the tunnel that was left", |python| python.count("end") == 1);
    if role == Role::Serves {
        python.say("refuse");
        std::thread::sleep(Duration::from_millis(500));
        let newer = way.connect();
        newer.talks();
        python.until("a CONNECT that was opened anew", |python| {
            (python.count("left out"), python.count("tunnel")) == (1, 3)
        });
        newer.carries(71, 1 << 20);
    }
    new.carries(72, 8 << 20);
    assert_eq!(python.resets(), (0, 0));
}

/// adit says GOAWAY itself when it is to end, and a stream that is open goes on to its end.
fn drained(role: Role) {
    let mut stage = Stage::new();
    let mut python = honest(&stage, role);
    let pair = {
        let way = stage.way(role, false);
        let pair = way.connect();
        pair.talks();
        stage.proxy.signal(Signal::SIGTERM).unwrap();
        python.until("adit's GOAWAY", |python| python.count("goaway") > 0);
        pair
    };
    pair.carries(80, 8 << 20);
    let status = stage.proxy.wait(SOON).unwrap();
    assert!(status.success(), "{status}");
    python.until("the end of the tunnel", |python| python.count("end") == 1);
    assert!(python.events("goaway").iter().all(|it| it["code"] == 0), "{:?}", python.events("goaway"));
    assert_eq!((python.resets(), python.count("lost")), ((0, 0), 0));
}

#[test]
fn python_ends_tunnels_of_adit() {
    everything(Role::Serves);
}

#[test]
fn python_opens_tunnels_to_adit() {
    everything(Role::Calls);
}

#[test]
fn keys_change_in_tunnels_that_python_ends() {
    keys(Role::Serves);
}

#[test]
fn keys_change_in_tunnels_that_python_opens() {
    keys(Role::Calls);
}

#[test]
fn python_leaves_the_tunnels_that_adit_opened() {
    leaving(Role::Serves);
}

#[test]
fn python_leaves_the_tunnels_that_it_opened() {
    leaving(Role::Calls);
}

#[test]
fn adit_drains_beside_tunnels_that_it_opened_to_python() {
    drained(Role::Serves);
}

#[test]
fn adit_drains_beside_tunnels_that_python_opened() {
    drained(Role::Calls);
}

#[test]
fn nobody_is_carried_to_a_python_with_another_identity() {
    let stage = Stage::new();
    let other = SpiffeId::new("cluster.local", "shop", "other").unwrap();
    let python = Python::start(&stage, Role::Serves, &other, stage.near.identity());
    let way = stage.way(Role::Serves, false);
    checks::is_reset(&way.dial(), "a far side with another identity");
    assert_eq!(python.count("connect"), 0);
}
