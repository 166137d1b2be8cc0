//! What the rules do to real connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::Tools;
use super::{ordinary, sh};
use crate::net::socket::{self, Listen, Mark};
use crate::net::{Netns, canonical};

const PROXY: Mark = Some(0x539);
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod with its rules, joined by a veth pair to the rest of the world.
struct Wired {
    pod: Netns,
    world: Netns,
}

fn wired() -> Wired {
    let (pod, world) = (super::pod(), super::pod());
    let [in_pod, in_world] = [&pod, &world].map(|netns| {
        // A process in the namespace names it for `ip`.
        netns.run(|| std::process::Command::new("sleep").arg("60").spawn()).unwrap()
    });
    let line =
        format!("ip link add eth0 netns {} type veth peer name eth0 netns {}", in_pod.id(), in_world.id());
    sh(&pod, &line);
    for mut child in [in_pod, in_world] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Both ends first: an address of a link without its other end is not usable yet.
    for netns in [&pod, &world] {
        sh(netns, "ip link set eth0 up");
    }
    for (netns, host, other) in [(&pod, 2, 1), (&world, 1, 2)] {
        sh(
            netns,
            &format!(
                "ip addr add 10.9.0.{host}/24 dev eth0; \
                 ip addr add fd09::{host}/64 dev eth0 nodad; \
                 ip route add default via 10.9.0.{other}; ip -6 route add default via fd09::{other}"
            ),
        );
    }
    for netns in [&pod, &world] {
        // The kernel notices the link in its own time.
        sh(
            netns,
            "timeout 20 sh -c 'until ip link show eth0 | grep -q LOWER_UP && ip -6 route get fd09::1 && \
             ip -6 route get fd09::2; do sleep 0.01; done' >/dev/null 2>&1",
        );
    }
    ordinary().install(&pod, &Tools::default()).unwrap();
    Wired { pod, world }
}

fn listen(netns: &Netns, addr: SocketAddr, mark: Mark) -> TcpListener {
    let how = Listen { addr, mark, reuse_port: true, congestion: None, keepalive: None };
    netns.run(|| socket::listen(&how)).unwrap()
}

/// Accepts the one connection that should come.
fn accept(listener: &TcpListener) -> TcpStream {
    let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut wait, patience).unwrap(), 1, "no connection came to {:?}", listener.local_addr());
    listener.accept().unwrap().0
}

fn nobody_came(listener: &TcpListener) {
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

fn dial(netns: &Netns, to: SocketAddr) -> TcpStream {
    let dialled = netns.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    dialled.unwrap_or_else(|cause| panic!("dialling {to}: {cause}"))
}

/// Dials as the proxy does, with its mark, and waits until it is connected.
fn dial_marked(netns: &Netns, to: SocketAddr) -> TcpStream {
    let dialer = netns.run(|| socket::dialer(to, PROXY, None)).unwrap();
    socket::start_connect(&dialer, to).unwrap();
    let mut wait = [PollFd::new(dialer.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut wait, PollTimeout::try_from(PATIENCE).unwrap()).unwrap(), 1);
    assert!(dialer.take_error().unwrap().is_none());
    dialer.into()
}

fn addrs(port: u16, host: u16) -> [SocketAddr; 2] {
    [format!("10.9.0.{host}:{port}"), format!("[fd09::{host}]:{port}")].map(|addr| addr.parse().unwrap())
}

#[test]
fn what_an_application_dials_comes_to_the_proxy_which_sees_what_was_dialled() {
    let Wired { pod, world: _keeps_the_link_up } = wired();
    let outbound = listen(&pod, socket::wildcard(15001, true), PROXY);
    for dialled in ["203.0.113.9:80", "[2001:db8:9::9]:443"] {
        let client = dial(&pod, dialled.parse().unwrap());
        let captured = accept(&outbound);
        assert_eq!(socket::original_dst(&captured).unwrap().addr(), dialled.parse().unwrap());
        assert_eq!(canonical(captured.peer_addr().unwrap()), client.local_addr().unwrap());
    }
}

#[test]
fn the_proxys_own_connections_leave_the_pod() {
    let Wired { pod, world } = wired();
    let outbound = listen(&pod, socket::wildcard(15001, true), PROXY);
    let server = listen(&world, socket::wildcard(8080, true), None);
    for to in addrs(8080, 1) {
        let client = dial_marked(&pod, to);
        let arrived = accept(&server);
        assert_eq!(canonical(arrived.peer_addr().unwrap()), client.local_addr().unwrap());
    }
    nobody_came(&outbound);
}

#[test]
fn a_pod_reaches_its_own_addresses_and_loopback_directly() {
    let Wired { pod, world: _keeps_the_link_up } = wired();
    let captured = [15001, 15006].map(|port| listen(&pod, socket::wildcard(port, true), PROXY));
    let server = listen(&pod, socket::wildcard(8080, true), None);
    let loopback = ["127.0.0.1:8080", "127.0.0.2:8080", "[::1]:8080"].map(|addr| addr.parse().unwrap());
    for to in addrs(8080, 2).into_iter().chain(loopback) {
        let client = dial(&pod, to);
        assert_eq!(canonical(accept(&server).peer_addr().unwrap()), client.local_addr().unwrap());
    }
    captured.iter().for_each(nobody_came);
}

#[test]
fn plaintext_from_outside_comes_to_the_proxy_and_tunnels_are_not_redirected() {
    let Wired { pod, world } = wired();
    let plaintext = listen(&pod, socket::wildcard(15006, true), PROXY);
    let tunnels = listen(&pod, socket::wildcard(15008, true), PROXY);
    let server = listen(&pod, socket::wildcard(8080, true), None);
    for (dialled, tunnel) in addrs(8080, 2).into_iter().zip(addrs(15008, 2)) {
        let client = dial(&world, dialled);
        let captured = accept(&plaintext);
        assert_eq!(socket::original_dst(&captured).unwrap().addr(), dialled);
        assert_eq!(canonical(captured.peer_addr().unwrap()), client.local_addr().unwrap());

        let _peer = dial(&world, tunnel);
        assert_eq!(canonical(accept(&tunnels).local_addr().unwrap()), tunnel);
    }
    nobody_came(&server);
    nobody_came(&plaintext);
}

#[test]
fn an_application_answers_a_kept_client_address_through_the_proxy() {
    let Wired { pod, world: _keeps_the_link_up } = wired();
    let server = listen(&pod, socket::wildcard(8080, true), None);
    for (to, client) in addrs(8080, 2).into_iter().zip(["198.51.100.7", "2001:db8:7::7"]) {
        let client: IpAddr = client.parse().unwrap();
        let dialer = pod.run(|| socket::dialer(to, PROXY, None)).unwrap();
        socket::bind_spoofed(&dialer, client, socket::PortChoice::AtBind).unwrap();
        socket::start_connect(&dialer, to).unwrap();
        // The three-way handshake needs the application's SYN-ACK to reach this socket.
        let arrived = accept(&server);
        assert_eq!(canonical(arrived.peer_addr().unwrap()).ip(), client);
    }
}

#[test]
fn a_health_probe_reaches_the_application() {
    let Wired { pod, world } = wired();
    let server = listen(&pod, socket::wildcard(8080, true), None);
    sh(&world, "ip addr add 169.254.7.127/32 dev eth0");
    let to = addrs(8080, 2)[0];
    let dialer = world.run(|| socket::dialer(to, None, None)).unwrap();
    dialer.bind(&SocketAddr::new(Ipv4Addr::new(169, 254, 7, 127).into(), 0).into()).unwrap();
    socket::start_connect(&dialer, to).unwrap();
    assert_eq!(canonical(accept(&server).peer_addr().unwrap()).ip().to_string(), "169.254.7.127");
}

#[test]
fn a_query_comes_to_the_proxy_and_its_answer_seems_to_come_from_the_resolver() {
    let Wired { pod, world: _keeps_the_link_up } = wired();
    for (proxy, resolver) in [("127.0.0.1:15053", "203.0.113.53:53"), ("[::1]:15053", "[2001:db8:53::53]:53")]
    {
        let resolver: SocketAddr = resolver.parse().unwrap();
        let any = SocketAddr::new(if resolver.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap(), 0);
        let (proxy, client) = pod.run(|| Ok((UdpSocket::bind(proxy)?, UdpSocket::bind(any)?))).unwrap();
        for socket in [&proxy, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        client.send_to(b"query", resolver).unwrap();
        let mut bytes = [0; 16];
        let (length, from) = proxy.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"query");
        proxy.send_to(b"answer", from).unwrap();
        let (length, from) = client.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"answer"[..], resolver));
    }
}
