//! Descriptors that come along are never left open.

use std::fs::File;

use rustix::net::socketpair;

use super::super::error::Violation;
use super::super::socket::{Connection, Received};
use super::super::wire::Request;
use super::*;

fn pair() -> (Connection, Peer) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Connection::over(ours).unwrap(), Peer::over(theirs))
}

/// Descriptors of this process that name `netns`. Nobody else has this namespace, whatever runs beside.
fn open_to(netns: &Netns) -> usize {
    let name = format!("net:[{}]", netns.id().inode);
    let names = |entry: io::Result<std::fs::DirEntry>| std::fs::read_link(entry.unwrap().path()).ok();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(names)
        .filter(|link| link.as_os_str() == &*name)
        .count()
}

/// Packets nobody should send, with how many descriptors.
fn garbage(round: usize) -> (Vec<u8>, usize) {
    let add = proto::WorkloadRequest { payload: Some(Payload::Add(add("a"))) }.encode_to_vec();
    let bare = Payload::Add(proto::AddWorkload { uid: "a".to_owned(), workload_info: None });
    match round % 10 {
        0 => (vec![0xff; 17], 1),
        1 => (vec![0x0a; 1025], 1),
        2 => (vec![0x0a; 4000], 253),
        3 => (add, 2),
        4 => (add, 253),
        5 => (vec![0x1a, 0x00], 1),
        6 => (vec![0x22, 0x00], 3),
        7 => (proto::WorkloadRequest { payload: Some(bare) }.encode_to_vec(), 1),
        8 => (Vec::new(), 2),
        _ => ((0..round % 900).map(|_| fastrand::u8(..)).collect(), round % 5),
    }
}

#[test]
fn five_hundred_garbage_packets_leave_no_descriptor_open() {
    story(async {
        let netns = namespace();
        assert_eq!(open_to(&netns), 1);
        let (ours, theirs) = pair();
        for round in 0..500 {
            let (bytes, descriptors) = garbage(round);
            theirs.send(&bytes, &vec![netns.as_fd(); descriptors]).await;
            if let Received::Packet(packet) = in_time(ours.receive()).await.unwrap() {
                let _ = Request::read(packet);
            }
            assert_eq!(open_to(&netns), 1, "after round {round}");
        }
    });
}

#[test]
fn garbage_in_sessions_leaves_no_descriptor_open_and_no_session_dead() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        for round in 0..100 {
            let peer = agent.session().await;
            let (bytes, descriptors) = garbage(round);
            peer.send(&bytes, &vec![netns.as_fd(); descriptors]).await;
        }
        let peer = agent.session().await;
        assert_eq!(peer.snapshot_sent().await, "");
        eventually("only the test's own descriptor is open", || open_to(&netns) == 1).await;
        assert_eq!(node.stop().await.log(), [""; 0]);
    });
}

#[test]
fn a_packet_longer_than_1024_bytes_is_damaged_and_one_of_1024_is_not() {
    story(async {
        let (ours, theirs) = pair();
        theirs.send(&[7; 1025], &[]).await;
        let received = in_time(ours.receive()).await.unwrap();
        assert!(matches!(received, Received::Damaged(Violation::Truncated)));
        theirs.send(&[7; 1024], &[]).await;
        let Received::Packet(packet) = in_time(ours.receive()).await.unwrap() else { panic!("a packet") };
        assert_eq!(packet.bytes, [7; 1024]);
    });
}

#[test]
fn a_received_descriptor_does_not_leak_into_child_processes() {
    story(async {
        let (ours, theirs) = pair();
        theirs.send(&[0x1a, 0x00], &[namespace().as_fd()]).await;
        let Received::Packet(packet) = in_time(ours.receive()).await.unwrap() else { panic!("a packet") };
        let flags = rustix::io::fcntl_getfd(&packet.descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    });
}

/// The limit on open files is the whole process's, so this runs in one of its own.
#[test]
fn descriptors_beyond_the_limit_on_open_files_are_refused_and_the_others_closed() {
    let line = "ulimit -n 100; exec \"$0\" --exact node::tests::descriptors::under_a_low_limit --ignored";
    let exe = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh").arg("-c").arg(line).arg(exe).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn under_a_low_limit() {
    story(async {
        let netns = namespace();
        let (ours, theirs) = pair();
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len() - 3);
        theirs.send(&[0x1a, 0x00], &[netns.as_fd(); 20]).await;
        let received = in_time(ours.receive()).await.unwrap();
        assert!(matches!(received, Received::Damaged(Violation::ControlTruncated)));
        drop(taken);
        assert_eq!(open_to(&netns), 1);
    });
}
