//! A new process beside an old one, on the same pods.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use adit::lab::{AccessLine, Behaviour, Log, Pod, Position, Proxy, Server, Side, ask, dial};
use nix::sys::signal::Signal;

use crate::stage::{SOON, Stage, Way, fresh_port, index, until};

/// Calls that each caller is to have answered before and after each change.
const CALLS: usize = 40;
/// Callers on each way.
const CALLERS: usize = 3;

/// Calls one server over and over, each time by a new connection, until one call fails or it is over.
struct Caller {
    way: Way,
    from: Pod,
    to: SocketAddr,
    answered: AtomicUsize,
}

impl Caller {
    fn call(&self, over: &AtomicBool) -> Result<(), String> {
        while !over.load(Ordering::Relaxed) {
            let nth = self.answered.load(Ordering::Relaxed);
            let called = dial(self.from.netns(), self.to, SOON).and_then(|stream| {
                let local = stream.local_addr()?;
                ask(&stream, "a call")
                    .map_err(|cause| std::io::Error::other(format!("{cause}, from {local}")))
            });
            called.map_err(|cause| format!("{:?}, call {nth}: {cause}", self.way))?;
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Ends the calling also when a check fails meanwhile.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_new_process_takes_over_and_nobody_is_refused() {
    let mut stage = Stage::tuned(|launch| launch.env("CONNECTION_TERMINATION_DEADLINE", "60s"));
    let port = fresh_port();
    let _servers =
        [&stage.server, &stage.plain].map(|pod| Server::start(pod, port, Behaviour::Respond).unwrap());
    let callers: Vec<Caller> = Way::ALL
        .iter()
        .flat_map(|way| [*way; CALLERS])
        .map(|way| {
            let (from, to) = stage.ends(way);
            Caller { way, from: from.clone(), to: to.at(port), answered: AtomicUsize::new(0) }
        })
        .collect();
    let mut logs: Vec<(String, Log)> =
        Side::BOTH.map(|side| (format!("the old process of {side}"), stage.proxy(side).log().clone())).into();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_calling = SetWhenDropped(&over);
        let calling: Vec<_> = callers.iter().map(|caller| scope.spawn(|| caller.call(&over))).collect();
        let answered = || callers.iter().map(|it| it.answered.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let some_more = || {
            let before = answered();
            until("every caller is answered again", SOON, || {
                let now = answered();
                let all = before.iter().zip(&now).all(|(before, now)| *now >= before + CALLS);
                // A caller that gave up says why at the end.
                let failed = calling.iter().any(std::thread::ScopedJoinHandle::is_finished);
                if all || failed { Ok(()) } else { Err(format!("{before:?} calls before, {now:?} now")) }
            });
        };
        let mut open = Side::BOTH.map(|side| (side, open_on_every_way(&stage, port)));
        some_more();
        for side in Side::BOTH {
            let proxy = start_beside(&mut stage, side);
            logs.push((format!("the new process of {side}"), proxy.log().clone()));
            some_more();
            let old = std::mem::replace(&mut stage.proxies[index(side)], proxy);
            old.signal(Signal::SIGTERM).unwrap();
            some_more();
            // It carries what was opened before, until that is done.
            stage.proxies.push(old);
            stage.proxies.last_mut().unwrap().still_runs().unwrap();
            for (way, stream) in open[index(side)].1.drain(..) {
                let what = format!("{way:?}, opened before, while the old process of {side} drains");
                ask(&stream, "a late word").unwrap_or_else(|cause| panic!("{what}: {cause}"));
            }
        }
        for mut old in stage.proxies.drain(2..) {
            let status = old
                .wait(SOON)
                .unwrap_or_else(|cause| panic!("{}; its last words:\n{}", cause.story(), old.log().last(20)));
            assert_eq!(status.code(), Some(0), "{}", old.log().last(20));
        }
        some_more();
        drop(stop_calling);
        let failures: Vec<String> = calling.into_iter().filter_map(|it| it.join().unwrap().err()).collect();
        assert!(failures.is_empty(), "calls failed: {failures:#?}\n{}", complaints(&logs));
        println!("{} calls were answered meanwhile", answered().iter().sum::<usize>());
    });
}

/// Connections that are not used yet.
fn open_on_every_way(stage: &Stage, port: u16) -> Vec<(Way, TcpStream)> {
    let open = |way| {
        let (from, to) = stage.ends(way);
        (way, dial(from.netns(), to.at(port), SOON).unwrap_or_else(|cause| panic!("{way:?}: {cause}")))
    };
    Way::ALL.map(open).into()
}

/// A second process on a node, served with the same pod, ready.
fn start_beside(stage: &mut Stage, side: Side) -> Proxy {
    // In a cluster each process has a network namespace of its own; here they share the node's ports.
    let launch = stage
        .launch(side)
        .env("CONNECTION_TERMINATION_DEADLINE", "60s")
        .env("ADIT_ADMIN_PORT", "16000")
        .env("ADIT_STATS_PORT", "16020")
        .env("ADIT_READINESS_PORT", "16021");
    let proxy = launch.start(stage.world.node(side)).unwrap();
    let session = stage.agents[index(side)].accept(SOON).unwrap();
    session.snapshot([if side == Side::One { &stage.client } else { &stage.server }]).unwrap();
    until("the new process is ready", SOON, || {
        let reply = proxy.get(16021, "/healthz/ready", SOON).map_err(|cause| cause.story())?;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    });
    // The old process's session ends here, as when the agent lets go of it.
    stage.sessions[index(side)] = session;
    proxy
}

/// What the processes had to complain about.
fn complaints(logs: &[(String, Log)]) -> String {
    let mut text = String::new();
    for (who, log) in logs {
        for line in log.since(Position::START) {
            let failed = AccessLine::parse(&line).is_none_or(|line| line.level == "error");
            if failed {
                text.push_str(&format!("{who}: {line}\n"));
            }
        }
    }
    text
}
