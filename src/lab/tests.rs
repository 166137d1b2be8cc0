use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::net::NetnsId;

const SOON: Duration = Duration::from_secs(5);

fn world() -> World {
    World::new().expect("tests run as root: a lab needs CAP_SYS_ADMIN and iproute2")
}

fn pair(world: &mut World) -> (Pod, Pod) {
    let alice = world.add_pod(Side::One, "lab", "alice", Membership::Outside).unwrap();
    let bob = world.add_pod(Side::Two, "lab", "bob", Membership::Outside).unwrap();
    (alice, bob)
}

fn answer(from: &Pod, to: SocketAddr, secret: &str) -> std::io::Result<SocketAddr> {
    ask(&dial(from.netns(), to, SOON)?, secret)
}

#[test]
fn pods_reach_each_other_over_the_wire_in_both_families_as_themselves() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let server = Server::start(&bob, 8080, Behaviour::Respond).unwrap();
    assert_eq!(answer(&alice, bob.at(8080), "four").unwrap().ip(), alice.ipv4());
    assert_eq!(answer(&alice, bob.at_v6(8080), "six").unwrap().ip(), alice.ipv6());
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|it| it.bytes > 0));
}

#[test]
fn pods_of_one_node_reach_each_other_and_themselves() {
    let mut world = world();
    let alice = world.add_pod(Side::One, "lab", "alice", Membership::Outside).unwrap();
    let carol = world.add_pod(Side::One, "lab", "carol", Membership::Outside).unwrap();
    let _server = Server::start(&carol, 8080, Behaviour::Respond).unwrap();
    assert_eq!(answer(&alice, carol.at(8080), "near").unwrap().ip(), alice.ipv4());
    assert_eq!(answer(&carol, carol.at_v6(8080), "self").unwrap().ip(), carol.ipv6());
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let _server = Server::start(&bob, 25, Behaviour::Greet).unwrap();
    let stream = dial(alice.netns(), bob.at(25), SOON).unwrap();
    assert_eq!(hear(&stream, "after you").unwrap(), stream.local_addr().unwrap());
}

#[test]
fn an_echo_comes_back_whole_after_a_half_close() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let server = Server::start(&bob, 7, Behaviour::Echo).unwrap();
    let mut stream = dial(alice.netns(), bob.at(7), SOON).unwrap();
    stream.write_all(b"there and back").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "there and back");
    assert_eq!(server.seen()[0].bytes, 14);
}

#[test]
fn a_sink_counts_every_byte_poured_into_it() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let server = Server::start(&bob, 9, Behaviour::Sink).unwrap();
    let stream = dial(alice.netns(), bob.at(9), SOON).unwrap();
    let (bytes, _) = pour(&stream, Duration::from_millis(50)).unwrap();
    assert!(bytes > 0);
    assert_eq!(server.seen()[0].bytes, bytes);
}

#[test]
fn a_dropped_server_leaves_its_port_free_and_cuts_its_connections() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let server = Server::start(&bob, 7, Behaviour::Echo).unwrap();
    let mut stream = dial(alice.netns(), bob.at(7), SOON).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    drop(server);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(
        dial(alice.netns(), bob.at(7), SOON).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    Server::start(&bob, 7, Behaviour::Echo).unwrap();
}

#[test]
fn an_eavesdropper_counts_connections_and_finds_what_is_said_in_the_clear() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let _server = Server::start(&bob, 8080, Behaviour::Respond).unwrap();
    let _tunnel = Server::start(&bob, 15008, Behaviour::Sink).unwrap();
    let capture = Capture::start(&world, &["said-aloud", "never-said"]).unwrap();
    answer(&alice, bob.at(8080), "said-aloud").unwrap();
    answer(&alice, bob.at_v6(8080), "said-aloud").unwrap();
    pour(&dial(alice.netns(), bob.at(15008), SOON).unwrap(), Duration::ZERO).unwrap();
    let report = capture.stop().unwrap();
    // Each secret goes there and comes back, in two connections.
    assert_eq!(report.findings[0], Finding { secret: "said-aloud".to_owned(), times: 4 });
    assert_eq!(report.findings[1].times, 0);
    assert_eq!((report.connections, report.tunnels), (3, 1));
    assert_eq!(report.lost, 0);
    assert!(report.packets >= 12 && report.bytes > 12 * 54);
}

#[test]
fn an_eavesdropper_finds_a_secret_that_is_sent_byte_by_byte() {
    let mut world = world();
    let (alice, bob) = pair(&mut world);
    let _server = Server::start(&bob, 9, Behaviour::Sink).unwrap();
    let capture = Capture::start(&world, &["piece-meal"]).unwrap();
    let mut stream = dial(alice.netns(), bob.at(9), SOON).unwrap();
    for byte in b"..piece-meal..piece-mea" {
        stream.write_all(&[*byte]).unwrap();
        // Segments of one byte only leave apart when the one before has left.
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(stream);
    assert_eq!(capture.stop().unwrap().findings[0].times, 1);
}

/// The proxy's side of the agent's socket, doing what a scenario scripts.
struct ScriptedProxy(socket2::Socket);

impl ScriptedProxy {
    fn connect(path: &Path) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).unwrap();
        socket.connect(&socket2::SockAddr::unix(path).unwrap()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self(socket)
    }

    fn say(&self, packet: &[u8]) {
        self.0.send(packet).unwrap();
    }

    /// One packet, and the namespace of the descriptor that came with it.
    fn hear(&self) -> (Vec<u8>, Option<NetnsId>) {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
        use std::os::fd::AsRawFd;
        let mut buffer = [0; 1024];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<UnixAddr>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let netns = message.cmsgs().unwrap().find_map(|it| match it {
            ControlMessageOwned::ScmRights(fds) => {
                let netns = crate::net::Netns::open(format!("/proc/self/fd/{}", fds[0])).unwrap();
                fds.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
                Some(netns.id())
            }
            _ => None,
        });
        let len = message.bytes;
        (buffer[..len].to_vec(), netns)
    }
}

fn agent() -> (tempfile::TempDir, Agent) {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::listen(&dir.path().join("agent.sock")).unwrap();
    (dir, agent)
}

/// A session whose proxy runs `script` on its own thread after the hello.
fn session(
    agent: &Agent,
    script: impl FnOnce(ScriptedProxy) + Send + 'static,
) -> (Session, std::thread::JoinHandle<()>) {
    let proxy = ScriptedProxy::connect(agent.path());
    proxy.say(&[0x08, 0x01]);
    let session = agent.accept(SOON).unwrap();
    (session, std::thread::spawn(move || script(proxy)))
}

#[test]
fn a_pod_is_handed_over_with_its_namespace() {
    let mut world = world();
    let (alice, _) = pair(&mut world);
    let (_dir, agent) = agent();
    let (handed, heard) = std::sync::mpsc::channel();
    let (session, proxy) = session(&agent, move |proxy| {
        handed.send(proxy.hear()).unwrap();
        proxy.say(&[0x0a, 0x00]);
        assert_eq!(proxy.hear(), (vec![0x1a, 0x00], None));
        proxy.say(&[0x0a, 0x00]);
    });
    session.snapshot([&alice]).unwrap();
    proxy.join().unwrap();
    let (packet, netns) = heard.recv().unwrap();
    assert_eq!(netns, Some(alice.netns().id()));
    let text = String::from_utf8_lossy(&packet).into_owned();
    assert!(["uid-lab-alice", "alice", "lab"].iter().all(|it| text.contains(it)), "{text:?}");
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let (_dir, agent) = agent();
    let (session, proxy) = session(&agent, |proxy| {
        assert_eq!(proxy.hear(), (vec![0x12, 0x03, 0x12, 0x01, 0x61], None));
        proxy.say(&[0x0a, 0x03, 0x0a, 0x01, 0x78]);
        assert_eq!(proxy.hear(), (vec![0x2a, 0x03, 0x0a, 0x01, 0x61], None));
        proxy.say(&[0x0a, 0x00]);
    });
    assert_eq!(session.delete("a").unwrap(), Answer::Refused("x".to_owned()));
    assert_eq!(session.keep("a").unwrap(), Answer::Done);
    proxy.join().unwrap();
    session.wait_for_end(SOON).unwrap();
}

#[test]
fn what_is_no_hello_opens_no_session() {
    let (_dir, agent) = agent();
    let proxy = ScriptedProxy::connect(agent.path());
    proxy.say(&[0x08, 0x02]);
    assert!(matches!(agent.accept(SOON), Err(Error::Protocol { .. })));
    let proxy = ScriptedProxy::connect(agent.path());
    proxy.say(b"\xff");
    assert!(matches!(agent.accept(SOON), Err(Error::Protocol { .. })));
}

#[test]
fn a_proxy_that_does_not_come_is_waited_for_only_so_long() {
    let (_dir, agent) = agent();
    assert!(matches!(agent.accept(Duration::from_millis(20)), Err(Error::TooLate { .. })));
}

#[test]
fn any_packet_and_any_descriptors_can_be_sent() {
    let (_dir, agent) = agent();
    let (session, proxy) = session(&agent, |proxy| assert!(proxy.hear().1.is_some()));
    let here = crate::net::Netns::current().unwrap();
    session.send_raw(b"?", &[here.as_fd(), here.as_fd()]).unwrap();
    proxy.join().unwrap();
}

#[test]
fn an_agent_takes_the_place_of_a_socket_left_behind_and_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    std::fs::write(&path, b"").unwrap();
    let agent = Agent::listen(&path).unwrap();
    drop(agent);
    assert!(!path.exists());
}

fn mesh_file(world: &mut World) -> (MeshFile, Pod) {
    let alice = world.add_pod(Side::One, "lab", "alice", Membership::Mesh).unwrap();
    let bob = world.add_pod(Side::Two, "lab", "bob", Membership::Outside).unwrap();
    let deny = Match { not_principals: vec![Text::Presence], ..Match::default() };
    let file = MeshFile::new([&alice, &bob])
        .service(Service {
            namespace: "lab".to_owned(),
            name: "alice".to_owned(),
            addresses: vec!["10.96.0.1".parse().unwrap(), "fd96::1".parse().unwrap()],
            ports: vec![(80, 8080)],
            behind: vec!["lab/alice".to_owned()],
        })
        .policy(Policy {
            namespace: "lab".to_owned(),
            name: "strict".to_owned(),
            action: Action::Deny,
            on: vec!["lab/alice".to_owned()],
            rules: vec![vec![vec![deny]]],
        });
    (file, alice)
}

#[test]
fn the_mesh_file_is_yaml_and_says_who_lives_there() {
    let mut world = world();
    let (file, alice) = mesh_file(&mut world);
    let text = file.yaml();
    // The tag of a matcher is not part of the data model this reads into.
    let value: serde_json::Value = serde_saphyr::from_str(&text.replace("!Presence ", "")).unwrap();
    let first = &value["workloads"][0];
    assert_eq!(first["workloadIps"], serde_json::json!([alice.ipv4(), alice.ipv6()]));
    assert_eq!(first["protocol"], "HBONE");
    assert_eq!(first["node"], "node-one");
    assert_eq!(first["authorizationPolicies"], serde_json::json!(["lab/strict"]));
    assert_eq!(first["services"]["lab/alice.lab.svc.cluster.local"]["80"], 8080);
    assert_eq!(value["workloads"][1]["protocol"], "TCP");
    assert_eq!(value["services"][0]["vips"], serde_json::json!(["/10.96.0.1", "/fd96::1"]));
    assert_eq!(value["policies"][0]["rules"], serde_json::json!([[[{"notPrincipals": [[]]}]]]));
    assert!(text.contains("notPrincipals: [!Presence []]"));
}

#[test]
fn a_pod_without_a_possible_identity_is_refused() {
    let refused = world().add_pod(Side::One, "lab", "not a name", Membership::Mesh);
    assert!(matches!(refused, Err(Error::Protocol { .. })));
}

const SAID: &str = r#"{"level":"error","time":"2026-01-01T00:00:00.000000Z","scope":"access","message":"connection complete","src.addr":"10.77.1.1:5","dst.addr":"10.77.2.1:15008","dst.hbone_addr":"10.77.2.1:80","direction":"inbound","bytes_sent":3,"bytes_recv":4,"duration":"1ms","error":"refused","policy":"lab/strict","inbound":{"id":"1"}}"#;

#[test]
fn an_access_log_line_is_read_field_by_field_and_nothing_else_is_one() {
    let line = AccessLine::parse(SAID).unwrap();
    assert_eq!(line.src_addr.as_deref(), Some("10.77.1.1:5"));
    assert_eq!(line.dst_hbone_addr.as_deref(), Some("10.77.2.1:80"));
    assert_eq!((line.bytes_sent, line.bytes_recv), (Some(3), Some(4)));
    assert_eq!(line.policy.as_deref(), Some("lab/strict"));
    assert_eq!(line.src_identity, None);
    assert_eq!(AccessLine::parse(&SAID.replace("\"access\"", "\"state\"")), None);
    assert_eq!(AccessLine::parse("plain text"), None);
}

/// A program that stands where adit stands, saying and doing what `script` (sh) tells.
fn program(dir: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn launch(dir: &Path, script: &str) -> Launch {
    Launch::new(&program(dir, script), Side::One, &dir.join("agent.sock"), &dir.join("mesh.yaml"), dir)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
}

#[test]
fn a_process_runs_on_its_node_with_the_environment_given_and_its_words_are_kept() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("echo \"$1 $2 $NODE_NAME\"; ip -o addr show dev eth0; echo '{SAID}' >&2; exec sleep 60");
    let mut proxy = launch(dir.path(), &script).start(world.node(Side::One)).unwrap();
    let line = proxy.access_log().wait_for(|line| line.direction == "inbound", SOON).unwrap();
    assert_eq!(line.error.as_deref(), Some("refused"));
    let said = proxy.log().last(20);
    assert!(said.starts_with("proxy ztunnel node-one\n"), "{said}");
    assert!(said.contains("10.76.0.1/24"), "{said}");
    proxy.still_runs().unwrap();
}

#[test]
fn a_process_that_ends_instead_of_becoming_ready_is_told_with_its_last_words() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), "echo cannot go on; exit 3").start(world.node(Side::One)).unwrap();
    let error = proxy.wait_ready(SOON).unwrap_err().to_string();
    assert!(error.contains("cannot go on") && error.contains("exit status: 3"), "{error}");
}

#[test]
fn a_process_that_does_not_heed_the_wish_to_end_is_killed() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let mut proxy = launch(dir.path(), script).start(world.node(Side::One)).unwrap();
    proxy
        .log()
        .find(Position::START, "the program's start", SOON, |line| (line == "up").then_some(()))
        .unwrap();
    assert!(matches!(proxy.stop(Duration::from_millis(300)), Err(Error::TooLate { .. })));
    assert!(matches!(proxy.still_runs(), Err(Error::Ended { .. })));
}

#[test]
fn a_process_hears_the_wish_to_end_also_from_a_thread_that_blocks_it() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    // This thread is the test's own and ends with it.
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGTERM);
    blocked.thread_block().unwrap();
    let mut proxy = launch(dir.path(), "echo up; exec sleep 60").start(world.node(Side::One)).unwrap();
    proxy
        .log()
        .find(Position::START, "the program's start", SOON, |line| (line == "up").then_some(()))
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&proxy.stop(SOON).unwrap()), Some(15));
}

#[test]
fn a_process_dies_with_the_thread_that_watches_it() {
    let dir = tempfile::tempdir().unwrap();
    let sleeper = program(dir.path(), "exec sleep 60");
    let mut child = std::thread::spawn(move || {
        crate::net::die_with_this_thread(&mut std::process::Command::new(sleeper)).spawn().unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
}

#[test]
fn a_process_that_heeds_the_wish_to_end_says_how_it_ended() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let mut proxy = launch(dir.path(), script).start(world.node(Side::One)).unwrap();
    proxy
        .log()
        .find(Position::START, "the program's start", SOON, |line| (line == "up").then_some(()))
        .unwrap();
    assert_eq!(proxy.stop(SOON).unwrap().code(), Some(7));
}
