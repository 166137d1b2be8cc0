//! Many connections.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use adit::lab::{self, Behaviour, Capture, Server, Side};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::stage::{SOON, Stage, Way, accept, fresh_port, until};

const IN_TUNNELS: usize = 200;
/// Streams in one tunnel, unless configured otherwise.
const PER_TUNNEL: usize = 100;
const PLAINTEXT: u32 = 5000;
const DIALLERS: u32 = 8;

#[test]
fn hundreds_of_connections_share_a_few_tunnels_and_thousands_share_one_source_address() {
    let stage = Stage::new();
    two_hundred_through_tunnels(&stage);
    five_thousand_from_one_address(&stage);
    one_client_port_towards_two_ports(&stage);
}

fn two_hundred_through_tunnels(stage: &Stage) {
    let port = fresh_port();
    let _echo = Server::start(&stage.server, port, Behaviour::Echo).unwrap();
    let capture = Capture::start(&stage.world, &[]).unwrap();
    let clients: Vec<TcpStream> = (0..IN_TUNNELS)
        .map(|nth| {
            let to = stage.server.at(port);
            let client = lab::dial(stage.client.netns(), to, SOON)
                .unwrap_or_else(|cause| panic!("connection {nth}: {cause}"));
            // The proxy accepts at once; a byte back says that the stream is open.
            (&client).write_all(b"?").unwrap();
            (&client).read_exact(&mut [0]).unwrap_or_else(|cause| panic!("connection {nth}: {cause}"));
            client
        })
        .collect();
    std::thread::scope(|scope| {
        for (nth, client) in clients.iter().enumerate() {
            scope.spawn(move || echoes(client, nth));
        }
    });
    drop(clients);
    let report = capture.stop().unwrap();
    assert_eq!(report.lost, 0, "the capture lost frames: {report:?}");
    let needed = IN_TUNNELS / PER_TUNNEL;
    assert!(
        (needed..=2 * needed).contains(&report.tunnels),
        "{IN_TUNNELS} streams at once used {} tunnels, where {needed} to {} were expected",
        report.tunnels,
        2 * needed
    );
    println!("{IN_TUNNELS} connections through {} tunnels", report.tunnels);
}

/// The kernel may meet both connections at one redirected listener; neither may get in the other's way.
fn one_client_port_towards_two_ports(stage: &Stage) {
    let (from, to) = stage.ends(Way::PlainIn);
    let ports = [fresh_port(), fresh_port()];
    let _echoes = ports.map(|port| Server::start(to, port, Behaviour::Echo).unwrap());
    for client_port in 20_000..20_020 {
        let dial = |port| {
            from.netns().run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_read_timeout(Some(SOON))?;
                socket.bind(&SocketAddr::new(from.ipv4().into(), client_port).into())?;
                socket.connect_timeout(&to.at(port).into(), SOON)?;
                Ok(TcpStream::from(socket))
            })
        };
        let both = ports.map(|port| {
            dial(port).unwrap_or_else(|cause| panic!("from port {client_port} to port {port}: {cause}"))
        });
        for (nth, client) in both.iter().enumerate() {
            echoes(client, nth);
        }
    }
}

/// 64 KiB that no other connection sends come back as they were.
fn echoes(mut client: &TcpStream, nth: usize) {
    let mut random = fastrand::Rng::with_seed(nth as u64);
    let mut back = vec![0; 4096];
    for round in 0..16 {
        let sent: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(back.len()).collect();
        client.write_all(&sent).unwrap_or_else(|cause| panic!("connection {nth}, round {round}: {cause}"));
        client
            .read_exact(&mut back)
            .unwrap_or_else(|cause| panic!("connection {nth}, round {round}: {cause}"));
        assert!(back == sent, "connection {nth}, round {round}: other bytes came back than were sent");
    }
}

fn five_thousand_from_one_address(stage: &Stage) {
    allow_open_files(u64::from(PLAINTEXT) * 4);
    let (from, to) = stage.ends(Way::PlainIn);
    let port = fresh_port();
    let listener = lab::listen_for(to.netns(), port).unwrap();
    let (clients, guests) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| -> Vec<(TcpStream, SocketAddr)> {
            (0..PLAINTEXT)
                .map(|nth| accept(&listener).unwrap_or_else(|cause| panic!("accepting guest {nth}: {cause}")))
                .collect()
        });
        // Several dial at once, so that new client ports and the proxy's own choices interleave.
        let dialling: Vec<_> = (0..DIALLERS)
            .map(|_| {
                scope.spawn(|| -> Vec<TcpStream> {
                    let dial = |_| lab::dial(from.netns(), to.at(port), SOON).unwrap();
                    (0..PLAINTEXT / DIALLERS).map(dial).collect()
                })
            })
            .collect();
        let clients: Vec<TcpStream> = dialling.into_iter().flat_map(|it| it.join().unwrap()).collect();
        (clients, accepting.join().unwrap())
    });
    println!("{} live plaintext connections from {} to port {port}", clients.len(), from.ipv4());
    assert_eq!(
        guests.iter().filter(|(_, peer)| peer.ip() != IpAddr::from(from.ipv4())).count(),
        0,
        "guests that the server saw come from another address than {}",
        from.ipv4()
    );
    let peers: HashSet<SocketAddr> = guests.iter().map(|(_, peer)| *peer).collect();
    assert_eq!(peers.len(), guests.len(), "different addresses among the guests");

    for (nth, mut client) in (0..PLAINTEXT).zip(&clients) {
        client.write_all(&nth.to_be_bytes()).unwrap_or_else(|cause| panic!("asking on {nth}: {cause}"));
    }
    let mut heard = HashSet::new();
    for (nth, (guest, _)) in guests.iter().enumerate() {
        let mut guest = guest;
        let mut number = [0; 4];
        guest.read_exact(&mut number).unwrap_or_else(|cause| panic!("hearing guest {nth}: {cause}"));
        guest.write_all(&number).unwrap_or_else(|cause| panic!("answering guest {nth}: {cause}"));
        assert!(heard.insert(u32::from_be_bytes(number)), "{number:?} was heard twice");
    }
    for (nth, mut client) in (0..PLAINTEXT).zip(&clients) {
        let mut number = [0; 4];
        client.read_exact(&mut number).unwrap_or_else(|cause| panic!("the answer on {nth}: {cause}"));
        assert_eq!(u32::from_be_bytes(number), nth, "somebody else's answer");
    }
    drop((clients, guests));

    let opened = stage.metric(Side::Two, "istio_tcp_connections_opened_total");
    until("every connection is closed and counted", SOON, || {
        let closed = stage.metric(Side::Two, "istio_tcp_connections_closed_total");
        if closed == opened { Ok(()) } else { Err(format!("{opened} were opened and {closed} closed")) }
    });
}

fn allow_open_files(wanted: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).unwrap_or_else(|cause| {
            panic!("raising the limit of open files from {soft} to {wanted}: {cause}")
        });
    }
}
