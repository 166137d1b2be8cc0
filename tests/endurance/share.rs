//! Pods that share a worker: one with many connections leaves room for one that has a single one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use adit::lab::{Answer, Membership, MeshFile, Side};

use crate::stage::{Stage, Way, connect, talks};

/// Connections of the pod that has many.
const CROWD: usize = 48;
const WINDOW: Duration = Duration::from_secs(4);

#[test]
fn a_pod_with_one_connection_moves_bytes_beside_one_with_many() {
    let mut stage = Stage::tuned(|launch| launch.env("ZTUNNEL_WORKER_THREADS", "1"));
    let single = stage.world.add_pod(Side::One, "shop", "single", Membership::Mesh).unwrap();
    single.install_rules().unwrap();
    stage.enforce(&MeshFile::new([&stage.client, &stage.server, &stage.plain, &single]));
    assert_eq!(stage.sessions[0].add(&single).unwrap(), Answer::Done);
    let crowd: Vec<_> = (0..CROWD).map(|_| stage.connect(Way::Tunnel)).collect();
    let one = connect(&single, &stage.server).unwrap();
    talks(&one).unwrap();
    let (by_crowd, by_one, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (client, server) in &crowd {
            scope.spawn(|| pour(client, &stop));
            scope.spawn(|| count(server, &by_crowd));
        }
        scope.spawn(|| pour(&one.0, &stop));
        scope.spawn(|| count(&one.1, &by_one));
        std::thread::sleep(Duration::from_secs(1));
        let before = (by_crowd.load(Ordering::Relaxed), by_one.load(Ordering::Relaxed));
        std::thread::sleep(WINDOW);
        let crowd = by_crowd.load(Ordering::Relaxed) - before.0;
        let one = by_one.load(Ordering::Relaxed) - before.1;
        stop.store(true, Ordering::Relaxed);
        println!(
            "{CROWD} connections moved {} MiB, the single one of another pod {} MiB",
            crowd >> 20,
            one >> 20
        );
        // Half of it all is its share; with turns by connection it was a fifth, and it would be less with more of them.
        assert!(one > crowd / 3, "{CROWD} connections moved {crowd} bytes, the single one {one}");
    });
}

/// Writes until it is told to stop, and says that this was all.
fn pour(mut client: &TcpStream, stop: &AtomicBool) {
    let chunk = vec![7; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        client.write_all(&chunk).unwrap();
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
}

/// Counts to the end.
fn count(mut server: &TcpStream, bytes: &AtomicU64) {
    let mut chunk = vec![0; 64 << 10];
    loop {
        match server.read(&mut chunk).unwrap() {
            0 => return,
            read => bytes.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}
