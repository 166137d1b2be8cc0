//! Pods come and go.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use adit::lab::{Answer, Behaviour, Membership, MeshFile, Pod, Server, Side, ask, dial};

use crate::stage::{End, SOON, Stage, connect, end_of, fresh_port, talks, until};

/// How many come and go.
const PODS: usize = 200;
/// Every so many one is called while it is there.
const CALLED: usize = 20;
/// What a process may have grown by, for allocator slack, in KiB.
const GROWTH: u64 = 32 << 10;

/// What a process holds.
#[derive(Debug)]
struct Holdings {
    descriptors: BTreeMap<String, usize>,
    namespaces: Vec<String>,
    threads: usize,
    resident_kib: u64,
}

impl Holdings {
    fn of(pid: u32) -> Self {
        let mut descriptors = BTreeMap::new();
        let mut namespaces = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            // One that is closed while we look is not held.
            let Ok(link) = fs::read_link(entry.unwrap().path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            let kind = link.split_once(":[").map_or(link.as_str(), |(kind, _)| kind);
            *descriptors.entry(kind.to_owned()).or_default() += 1;
            if link.starts_with("net:[") {
                namespaces.push(link);
            }
        }
        namespaces.sort();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            descriptors,
            namespaces,
            threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

#[test]
fn two_hundred_pods_come_and_go_without_a_trace() {
    let mut stage = Stage::new();
    let called: Vec<Pod> = (0..=PODS / CALLED)
        .map(|nth| {
            let name = format!("guest-{nth}");
            let pod = stage.world.add_pod(Side::Two, "shop", &name, Membership::Mesh).unwrap();
            pod.install_rules().unwrap();
            pod
        })
        .collect();
    let residents = [stage.client.clone(), stage.server.clone(), stage.plain.clone()];
    stage.enforce(&MeshFile::new(residents.iter().chain(&called)));
    let server = stage.connect(crate::stage::Way::Tunnel);

    // One full round first: what a process makes once and keeps is no leak.
    let mut called = called.into_iter();
    visit(&stage, called.next().unwrap(), 0);
    // The page shows a moment late what the proxy has done.
    until("the first round is counted", SOON, || {
        match stage.metric(Side::Two, "workload_manager_proxies_stopped_total") {
            1.0 => Ok(()),
            seen => Err(format!("{seen} proxies were stopped")),
        }
    });
    let before = Side::BOTH.map(|side| Holdings::of(stage.proxy(side).pid()));
    let started = stage.metric(Side::Two, "workload_manager_proxies_started_total");
    let stopped = stage.metric(Side::Two, "workload_manager_proxies_stopped_total");

    for nth in 0..PODS {
        if nth % CALLED == 0 {
            visit(&stage, called.next().unwrap(), nth);
            continue;
        }
        let name = format!("passer-{nth}");
        let pod = stage.world.add_pod(Side::Two, "shop", &name, Membership::Mesh).unwrap();
        assert_eq!(stage.sessions[1].add(&pod).unwrap(), Answer::Done, "adding pod {nth}");
        assert_eq!(stage.sessions[1].delete(&pod.uid()).unwrap(), Answer::Done, "removing pod {nth}");
    }

    talks(&server).unwrap_or_else(|cause| panic!("a pod that stayed lost its connection: {cause}"));
    for (side, before) in Side::BOTH.into_iter().zip(before) {
        let what = format!("the proxy of {side} is back to what it held");
        until(&what, SOON, || {
            let now = Holdings::of(stage.proxy(side).pid());
            let same = now.descriptors == before.descriptors
                && now.namespaces == before.namespaces
                && now.threads == before.threads
                && now.resident_kib <= before.resident_kib + GROWTH;
            if same { Ok(()) } else { Err(format!("before: {before:#?}\nnow: {now:#?}")) }
        });
    }
    until("the metrics say so", SOON, || {
        let metric = |name| stage.metric(Side::Two, &format!("workload_manager_{name}"));
        let seen = (
            metric("active_proxy_count"),
            metric("pending_proxy_count"),
            metric("proxies_started_total") - started,
            metric("proxies_stopped_total") - stopped,
        );
        let wanted = (1.0, 0.0, PODS as f64, PODS as f64);
        if seen == wanted {
            Ok(())
        } else {
            Err(format!("active, pending, started, stopped: {seen:?}, not {wanted:?}"))
        }
    });
}

/// A pod comes, is called through the tunnel and in plaintext, and goes while a connection is still open.
fn visit(stage: &Stage, pod: Pod, nth: usize) {
    let agent = &stage.sessions[1];
    assert_eq!(agent.add(&pod).unwrap(), Answer::Done, "adding pod {nth}");
    let port = fresh_port();
    let server = Server::start(&pod, port, Behaviour::Respond).unwrap();
    for caller in [&stage.client, &stage.plain] {
        let seen = dial(caller.netns(), pod.at(port), SOON)
            .and_then(|stream| ask(&stream, "a visit"))
            .unwrap_or_else(|cause| panic!("{} calls pod {nth}: {cause}", caller.full_name()));
        assert_eq!(seen.ip(), caller.ipv4(), "whom pod {nth} saw");
    }
    drop(server);
    let open = connect(&stage.client, &pod).unwrap();
    talks(&open).unwrap();
    assert_eq!(agent.delete(&pod.uid()).unwrap(), Answer::Done, "removing pod {nth}");
    let what = format!("the client of pod {nth}, which is gone");
    assert_eq!(end_of(&open.0, SOON, &what), End::Reset, "{what}");
    assert!((&open.1).read(&mut [0]).is_err(), "the application in pod {nth} sees a clean end");
}
