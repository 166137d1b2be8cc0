//! Pods that cannot start at once.

use super::*;

fn soon() -> Timing {
    let retry = Wait { first: Duration::from_millis(5), longest: Duration::from_millis(20) };
    Timing { retry, ..timing() }
}

#[test]
fn a_pod_whose_port_is_taken_is_refused_and_served_once_it_is_free() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::with(&agent, soon());
        let in_the_way = netns.run(|| TcpListener::bind("0.0.0.0:15008")).unwrap();
        let peer = agent.session().await;
        let refusal = peer.add("a", &netns).await;
        assert!(refusal.starts_with("failure to start proxy: cannot listen inside the pod"), "{refusal}");
        assert!(refusal.contains("Address already in use"), "{refusal}");
        peer.snapshot_sent().await;
        assert!(!node.is_ready());
        eventually("it is tried again", || node.count(|m| &m.failed_starts) > 2).await;
        drop(in_the_way);
        eventually("the node is ready", || node.is_ready()).await;
        assert!(node.pods.serves("a"));
        assert_eq!([node.count(|m| &m.pending), node.count(|m| &m.active)], [0, 1]);
        peer.hears_nothing().await;
    });
}

#[test]
fn a_live_pod_that_fails_makes_the_node_unready_until_it_is_gone() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.snapshot_sent().await;
        *node.pods.unavailable.borrow_mut() = Some("no worker".to_owned());
        peer.add("a", &netns).await;
        assert!(!node.is_ready());
        peer.del("a").await;
        assert!(node.is_ready());
        assert_eq!(node.pods.log(), ["start a", "cut a"], "what the failed start made is cut, and only that");
    });
}

#[test]
fn a_waiting_pod_is_started_at_once_when_the_agent_adds_it_again() {
    story(async {
        let (agent, [old, new]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.snapshot_sent().await;
        let _in_the_way = old.run(|| TcpListener::bind("0.0.0.0:15008")).unwrap();
        assert_ne!(peer.add("a", &old).await, "");
        assert_eq!(peer.add("a", &new).await, "");
        assert!(node.is_ready());
        assert_eq!(node.pods.log(), ["start a", "cut a", "start a"]);
    });
}

#[test]
fn a_start_that_never_ends_is_refused_in_time_and_cut() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let start = Duration::from_millis(30);
        let node = Node::with(&agent, Timing { start, ..timing() });
        node.pods.stuck.borrow_mut().insert("a");
        let peer = agent.session().await;
        let refusal = peer.add("a", &netns).await;
        assert!(refusal.contains("the listeners were not up within 30ms"), "{refusal}");
        assert_eq!(node.pods.log(), ["start a", "cut a"]);
        assert_eq!(peer.snapshot_sent().await, "");
    });
}

/// A node where a repeated start of `a` is under way and does not end.
async fn with_a_start_under_way(agent: &Agent, netns: &Netns) -> (Node, Peer) {
    let node = Node::with(agent, soon());
    *node.pods.unavailable.borrow_mut() = Some("no worker".to_owned());
    let peer = agent.session().await;
    peer.snapshot_sent().await;
    assert_ne!(peer.add("a", netns).await, "");
    node.pods.stuck.borrow_mut().insert("a");
    *node.pods.unavailable.borrow_mut() = None;
    eventually("no start of a has ended since the last began", || {
        node.pods.log().iter().rev().take(1).eq(["start a"])
    })
    .await;
    (node, peer)
}

#[test]
fn requests_are_answered_while_a_start_is_repeated() {
    story(async {
        let (agent, [a, b]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let (node, peer) = with_a_start_under_way(&agent, &a).await;
        assert_eq!(peer.add("b", &b).await, "");
        assert!(node.pods.serves("b"));
    });
}

#[test]
fn a_pod_deleted_while_its_start_is_repeated_is_cut_and_stays_gone() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let (node, peer) = with_a_start_under_way(&agent, &netns).await;
        assert_eq!(peer.del("a").await, "");
        assert_eq!(node.pods.log().last().unwrap(), "cut a");
        assert!(node.is_ready());
        assert_eq!([node.count(|m| &m.pending), node.count(|m| &m.stopped)], [0, 0]);
        node.pods.release.notify_waiters();
        peer.hears_nothing().await;
        assert!(!node.pods.serves("a"), "the start under way was dropped");
    });
}

#[test]
fn a_pod_added_while_its_start_is_repeated_is_started_once() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let (node, peer) = with_a_start_under_way(&agent, &netns).await;
        node.pods.stuck.borrow_mut().remove("a");
        let before = node.pods.log().len();
        assert_eq!(peer.add("a", &netns).await, "");
        node.pods.release.notify_waiters();
        peer.hears_nothing().await;
        assert_eq!(node.pods.log()[before..], ["cut a", "start a"]);
        assert!(node.is_ready());
    });
}

#[test]
fn a_start_under_way_is_cut_when_the_process_ends() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let (node, _peer) = with_a_start_under_way(&agent, &netns).await;
        assert_eq!(node.stop().await.log().last().unwrap(), "cut a");
    });
}

#[test]
fn a_waiting_pod_is_tried_on_while_the_agent_is_away() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::with(&agent, soon());
        *node.pods.unavailable.borrow_mut() = Some("no worker".to_owned());
        let peer = agent.session().await;
        peer.add("a", &netns).await;
        drop((peer, agent));
        *node.pods.unavailable.borrow_mut() = None;
        eventually("the pod is served", || node.pods.serves("a")).await;
        assert!(!node.is_ready(), "nobody has said which pods this node has");
    });
}
