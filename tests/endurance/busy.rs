//! More than one core can do: a destination whose worker is full gets a tunnel on another one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit::lab::Pod;

use crate::stage::{Stage, Way, connect, talks, until};

/// Connections that send as much as they can.
const BULK: usize = 4;

#[test]
fn a_destination_whose_worker_is_full_gets_a_second_tunnel_on_another_worker() {
    let stage = Stage::tuned(|launch| launch.env("ZTUNNEL_WORKER_THREADS", "2"));
    let quiet = stage.connect(Way::Tunnel);
    talks(&quiet).unwrap();
    assert_eq!(tunnels(&stage.client), 1);
    let bulk: Vec<_> = (0..BULK).map(|_| stage.connect(Way::Tunnel)).collect();
    assert_eq!(tunnels(&stage.client), 1, "nobody is busy yet");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (client, server) in &bulk {
            scope.spawn(|| pour(client, &stop));
            scope.spawn(|| drain(server));
        }
        let mut later = Vec::new();
        until("a second tunnel", Duration::from_secs(60), || {
            let (client, server) =
                connect(&stage.client, &stage.server).map_err(|cause| cause.to_string())?;
            talks(&(client.try_clone().unwrap(), server.try_clone().unwrap()))
                .map_err(|cause| cause.to_string())?;
            later.push((client, server));
            match tunnels(&stage.client) {
                1 => Err(format!("{} more connections are in the same tunnel", later.len())),
                _ => Ok(()),
            }
        });
        println!("the second tunnel came with connection {} beside {BULK} that are busy", later.len());
        later.iter().chain([&quiet]).for_each(|both| talks(both).unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(tunnels(&stage.client), 2);
}

/// Writes until it is told to stop, and says that this was all.
fn pour(mut client: &TcpStream, stop: &AtomicBool) {
    let chunk = vec![7; 256 << 10];
    while !stop.load(Ordering::Relaxed) {
        client.write_all(&chunk).unwrap();
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
}

/// Reads to the end.
fn drain(mut server: &TcpStream) {
    let mut chunk = vec![0; 256 << 10];
    while server.read(&mut chunk).unwrap() > 0 {}
}

/// Connections from `pod`'s namespace to a tunnel port.
fn tunnels(pod: &Pod) -> usize {
    // Source: proc_pid_net(5); addresses are hexadecimal, and 01 is ESTABLISHED.
    let table = pod.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/tcp")).unwrap();
    let is_tunnel = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(":3AA0") && fields[3] == "01"
    };
    table.lines().skip(1).filter(is_tunnel).count()
}
