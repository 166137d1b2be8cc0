//! What the agent may get wrong: the error table, row by row.

use super::*;

/// The session is answered with an error that starts like this, dropped, and opened anew; pods run on.
async fn breaks(bytes: &[u8], descriptors: usize, synced: bool, starts: &str) {
    let (agent, [a, sent]) = (Agent::start(), std::array::from_fn(|_| namespace()));
    let node = Node::start(&agent);
    let peer = agent.session().await;
    assert_eq!(peer.add("a", &a).await, "");
    if synced {
        assert_eq!(peer.snapshot_sent().await, "");
        assert!(node.is_ready());
    }
    peer.send(bytes, &vec![sent.as_fd(); descriptors]).await;
    let error = peer.answer().await;
    assert!(error.starts_with(starts), "{error:?} does not start with {starts:?}");
    peer.ends().await;
    let _next = agent.session().await;
    assert!(!node.is_ready());
    assert_eq!([node.count(|m| &m.protocol_errors), node.count(|m| &m.nacks)], [1, 1]);
    assert_eq!(node.pods.log(), ["start a"]);
}

fn bytes(payload: Payload) -> Vec<u8> {
    proto::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

#[test]
fn bytes_that_are_no_request_end_the_session() {
    story(breaks(&[0xff, 0xff, 0xff], 0, true, "failure to read message: not a WorkloadRequest"));
}

#[test]
fn a_packet_that_is_too_long_ends_the_session() {
    story(breaks(&[0x0a; 1025], 1, true, "failure to read message: longer than 1024 bytes"));
}

#[test]
fn an_added_pod_without_descriptor_ends_the_session() {
    story(async {
        breaks(&bytes(Payload::Add(add("b"))), 0, true, "failure to read message: an added pod").await
    });
}

#[test]
fn a_descriptor_with_anything_else_ends_the_session() {
    let packet = bytes(Payload::Del(proto::DelWorkload { uid: "a".to_owned() }));
    story(breaks(&packet, 1, true, "failure to read message: 1 descriptors with a message that takes 0"));
}

#[test]
fn more_than_one_descriptor_ends_the_session() {
    let packet = bytes(Payload::Add(add("b")));
    story(breaks(&packet, 2, false, "failure to read message: 2 descriptors with a message that takes 1"));
}

#[test]
fn an_added_pod_without_workload_info_ends_the_session() {
    let packet = bytes(Payload::Add(proto::AddWorkload { uid: "b".to_owned(), workload_info: None }));
    story(breaks(&packet, 1, false, "failure to process message: pod b was added without workload_info"));
}

#[test]
fn keeping_a_pod_after_the_snapshot_ends_the_session() {
    let packet = bytes(Payload::Keep(proto::KeepWorkload { uid: "a".to_owned() }));
    story(breaks(&packet, 0, true, "failure to process message: pod a is kept after the snapshot ended"));
}

#[test]
fn a_second_end_of_the_snapshot_ends_the_session() {
    let packet = bytes(Payload::SnapshotSent(proto::SnapshotSent {}));
    story(breaks(&packet, 0, true, "failure to process message: the snapshot ended twice"));
}

#[test]
fn a_request_of_a_newer_agent_is_refused_and_the_session_goes_on() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.send(&[0x32, 0x02, 0x08, 0x01], &[netns.as_fd()]).await;
        let error = peer.answer().await;
        assert!(error.contains("does not know this kind of request"), "{error}");
        assert_eq!(peer.add("a", &netns).await, "");
        assert_eq!(peer.snapshot_sent().await, "");
        peer.send(&[0x32, 0x00], &[]).await;
        assert_ne!(peer.answer().await, "");
        assert!(node.is_ready());
        assert_eq!([node.count(|m| &m.nacks), node.count(|m| &m.protocol_errors)], [2, 0]);
    });
}

#[test]
fn an_error_text_of_any_length_reaches_the_agent_in_one_packet() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        *node.pods.unavailable.borrow_mut() = Some("é".repeat(5000));
        let peer = agent.session().await;
        let error = peer.add("a", &netns).await;
        assert!(error.len() < 1000 && error.ends_with("é [cut]"), "{error}");
        assert_eq!(peer.snapshot_sent().await, "");
    });
}

#[test]
fn an_answer_that_would_come_too_late_is_not_given() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::with(&agent, Timing { answer: Duration::from_millis(20), ..timing() });
        *node.pods.holds_thread.borrow_mut() = Duration::from_millis(60);
        let peer = agent.session().await;
        let packet = bytes(Payload::Add(add("a")));
        peer.send(&packet, &[netns.as_fd()]).await;
        peer.ends().await;
        let peer = agent.session().await;
        assert!(node.pods.serves("a"));
        assert_eq!(peer.add("a", &netns).await, "", "the pod runs, so this is quick");
    });
}
