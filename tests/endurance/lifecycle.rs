//! Agents and processes that end and start anew.

use std::net::Shutdown;

use adit::lab::{Agent, Answer, Membership, MeshFile, Side, dial};
use nix::sys::signal::Signal;

use crate::stage::{End, SOON, Stage, Way, connect, end_of, index, talks, until};

#[test]
fn an_agent_may_restart_and_its_new_list_counts() {
    let mut stage = Stage::new();
    let leaving = stage.world.add_pod(Side::Two, "shop", "leaving", Membership::Mesh).unwrap();
    leaving.install_rules().unwrap();
    assert_eq!(stage.sessions[1].add(&leaving).unwrap(), Answer::Done);
    stage.enforce(&MeshFile::new([&stage.client, &stage.server, &stage.plain, &leaving]));
    let staying = [stage.connect(Way::Tunnel), stage.connect(Way::PlainIn)];
    let going = [connect(&stage.client, &leaving).unwrap(), connect(&stage.plain, &leaving).unwrap()];
    staying.iter().chain(&going).for_each(|pair| talks(pair).unwrap());

    // The agent goes: what is served is served on.
    let path = stage.agents[1].path().to_owned();
    drop((stage.sessions.remove(1), stage.agents.remove(1)));
    let ready = |stage: &Stage| stage.proxy(Side::Two).get(15021, "/healthz/ready", SOON).unwrap();
    until("the proxy noticed", SOON, || {
        match stage.metric(Side::Two, "workload_manager_active_proxy_count") {
            2.0 => Ok(()),
            seen => Err(format!("{seen} pods are served, not 2")),
        }
    });
    staying.iter().chain(&going).for_each(|pair| talks(pair).unwrap());
    for way in [Way::Tunnel, Way::PlainIn] {
        talks(&stage.connect(way)).unwrap_or_else(|cause| panic!("{way:?} without an agent: {cause}"));
    }

    // A new one keeps one pod and does not name the other.
    let agent = Agent::listen(&path).unwrap();
    let session = agent.accept(SOON).unwrap();
    staying.iter().chain(&going).for_each(|pair| talks(pair).unwrap());
    assert_eq!(session.keep(&stage.server.uid()).unwrap(), Answer::Done);
    assert_eq!(session.snapshot_sent().unwrap(), Answer::Done);
    for (pair, what) in going.iter().zip(["the tunnel's client", "the plaintext client"]) {
        let what = format!("{what} of the pod that is no longer listed");
        assert_eq!(end_of(&pair.0, SOON, &what), End::Reset, "{what}");
    }
    let refused = dial(stage.plain.netns(), leaving.at(80), SOON).map(drop).map_err(|cause| cause.kind());
    assert_eq!(
        refused,
        Err(std::io::ErrorKind::ConnectionRefused),
        "calling the pod that is no longer listed"
    );
    staying.iter().for_each(|pair| talks(pair).unwrap());
    for way in Way::ALL {
        talks(&stage.connect(way)).unwrap();
    }
    let ready = ready(&stage);
    assert_eq!((ready.status, &*ready.body), (200, "ready\n"));
    stage.agents.push(agent);
    stage.sessions.push(session);
}

#[test]
fn a_stop_lets_connections_finish_but_not_for_ever() {
    let mut stage = Stage::tuned(|launch| launch.env("CONNECTION_TERMINATION_DEADLINE", "60s"));
    let open = Way::ALL.map(|way| stage.connect(way));
    open.iter().for_each(|pair| talks(pair).unwrap());
    for proxy in &stage.proxies {
        proxy.signal(Signal::SIGTERM).unwrap();
    }
    for way in Way::ALL {
        let (from, to) = stage.ends(way);
        let what = format!("{way:?}: the listeners are closed");
        until(&what, SOON, || match dial(from.netns(), to.at(80), SOON) {
            Err(cause) if cause.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("a new connection gave {other:?}")),
        });
    }
    for (way, (client, server)) in Way::ALL.iter().zip(&open) {
        for _ in 0..10 {
            talks(&(client.try_clone().unwrap(), server.try_clone().unwrap()))
                .unwrap_or_else(|cause| panic!("{way:?}: an open connection, while draining: {cause}"));
        }
    }
    for proxy in &mut stage.proxies {
        proxy.still_runs().unwrap();
    }
    for (way, (client, server)) in Way::ALL.iter().zip(&open) {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end_of(server, SOON, "the half-close"), End::Clean, "{way:?}");
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end_of(client, SOON, "the other half"), End::Clean, "{way:?}");
    }
    // Well before the deadline: there is nothing left to wait for.
    for proxy in &mut stage.proxies {
        let status = proxy
            .wait(SOON)
            .unwrap_or_else(|cause| panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(20)));
        assert_eq!(status.code(), Some(0), "{}", proxy.log().last(20));
    }

    // Once more, with connections that never end.
    for side in Side::BOTH {
        assert!(stage.proxy(side).log().last(5).contains("shutdown complete"), "{side}");
        let launch = stage.launch(side).env("CONNECTION_TERMINATION_DEADLINE", "2s");
        let mut proxy = launch.start(stage.world.node(side)).unwrap();
        let session = stage.agents[index(side)].accept(SOON).unwrap();
        session.snapshot([if side == Side::One { &stage.client } else { &stage.server }]).unwrap();
        proxy.wait_ready(SOON).unwrap();
        stage.proxies[index(side)] = proxy;
        stage.sessions[index(side)] = session;
    }
    let open = Way::ALL.map(|way| stage.connect(way));
    open.iter().for_each(|pair| talks(pair).unwrap());
    for proxy in &stage.proxies {
        proxy.signal(Signal::SIGTERM).unwrap();
    }
    for proxy in &mut stage.proxies {
        let status = proxy
            .wait(SOON)
            .unwrap_or_else(|cause| panic!("{}; its last words:\n{}", cause.story(), proxy.log().last(20)));
        assert_eq!(status.code(), Some(0), "{}", proxy.log().last(20));
    }
    for (way, (client, server)) in Way::ALL.iter().zip(&open) {
        for (end, who) in [(client, "client"), (server, "server")] {
            let what = format!("{way:?}, the {who} of a connection cut by the deadline");
            assert_eq!(end_of(end, SOON, &what), End::Reset, "{what}");
        }
    }
}

#[test]
fn readiness_waits_for_the_agents_list() {
    let mut stage = Stage::new();
    let path = stage.agents[0].path().to_owned();
    drop((stage.sessions.remove(0), stage.agents.remove(0)));
    stage.proxies[0].stop(SOON).unwrap();
    let mut proxy = stage.launch(Side::One).start(stage.world.node(Side::One)).unwrap();
    let ready = || proxy.get(15021, "/healthz/ready", SOON);
    until("the readiness page is there", SOON, || ready().map(drop).map_err(|cause| cause.story()));
    let not_ready = |reply: adit::lab::Reply| {
        assert_eq!(reply.status, 500, "{reply:?}");
        assert_eq!(reply.body, "not ready, pending: workload proxy manager\n");
    };
    not_ready(ready().unwrap());
    let agent = Agent::listen(&path).unwrap();
    let session = agent.accept(SOON).unwrap();
    not_ready(ready().unwrap());
    assert_eq!(session.add(&stage.client).unwrap(), Answer::Done);
    not_ready(ready().unwrap());
    assert_eq!(session.snapshot_sent().unwrap(), Answer::Done);
    until("it is ready", SOON, || match ready().unwrap() {
        reply if (reply.status, &*reply.body) == (200, "ready\n") => Ok(()),
        reply => Err(format!("{reply:?}")),
    });
    proxy.wait_ready(SOON).unwrap();
    stage.proxies[0] = proxy;
    stage.sessions.insert(0, session);
    stage.agents.insert(0, agent);
    talks(&stage.connect(Way::Tunnel)).unwrap();
}
