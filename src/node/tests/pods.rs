//! What each request does to a pod: the handling table, row by row.

use super::*;

#[test]
fn a_session_from_snapshot_to_drain() {
    story(async {
        let (agent, [a, b, c]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.hears_nothing().await;
        assert_eq!(peer.add("a", &a).await, "");
        assert_eq!(peer.add("b", &b).await, "");
        assert!(!node.is_ready(), "the snapshot is not complete");
        assert_eq!(peer.snapshot_sent().await, "");
        assert!(node.is_ready());
        assert_eq!(peer.add("c", &c).await, "");
        assert_eq!(peer.del("a").await, "");
        assert_eq!(peer.del("a").await, "", "an unknown pod is gone already");
        peer.hears_nothing().await;
        assert_eq!(node.pods.running.borrow()["b"].0.service_account, "till");
        assert_eq!(*node.ready.borrow(), [false, true]);
        let counted = [
            node.count(|m| &m.active),
            node.count(|m| &m.pending),
            node.count(|m| &m.started),
            node.count(|m| &m.stopped),
            node.count(|m| &m.sessions),
            node.count(|m| &m.nacks) + node.count(|m| &m.protocol_errors) + node.count(|m| &m.failed_starts),
        ];
        assert_eq!(counted, [2, 0, 3, 1, 1, 0]);
        let (ready, metrics) = (Rc::clone(&node.ready), Arc::clone(&node.metrics));
        let mut log = node.stop().await.log();
        log[4..].sort();
        assert_eq!(log, ["start a", "start b", "start c", "cut a", "drain b", "drain c"]);
        peer.ends().await;
        assert_eq!(*ready.borrow(), [false, true, false]);
        assert_eq!(metrics.stopped.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn adding_a_running_pod_again_disturbs_nothing() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        assert_eq!(peer.add("a", &netns).await, "");
        let another_descriptor = netns.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(peer.add("a", &another_descriptor).await, "");
        peer.snapshot_sent().await;
        assert_eq!(peer.add("a", &another_descriptor).await, "");
        assert_eq!(node.pods.log(), ["start a"]);
    });
}

#[test]
fn a_pod_with_a_new_namespace_is_started_anew_in_it() {
    story(async {
        let (agent, [first, second]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.snapshot_sent().await;
        assert_eq!(peer.add("a", &first).await, "");
        assert_eq!(peer.add("a", &second).await, "");
        assert_eq!(node.pods.log(), ["start a", "cut a", "start a"]);
        assert!(second.run(|| TcpListener::bind("0.0.0.0:15008")).is_err(), "it listens there");
        assert!(first.run(|| TcpListener::bind("0.0.0.0:15008")).is_ok(), "it no longer listens here");
        assert_eq!([node.count(|m| &m.active), node.count(|m| &m.stopped)], [1, 1]);
    });
}

#[test]
fn a_kept_pod_runs_on_and_one_nobody_named_ends_with_the_snapshot() {
    story(async {
        let (agent, [a, b]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.add("a", &a).await;
        peer.add("b", &b).await;
        peer.snapshot_sent().await;
        drop(peer);
        let peer = agent.session().await;
        assert_eq!(peer.keep("a").await, "");
        assert!(node.pods.serves("b"));
        assert_eq!(peer.snapshot_sent().await, "");
        assert_eq!(node.pods.log(), ["start a", "start b", "cut b"]);
        assert!(node.is_ready());
    });
}

#[test]
fn keeping_a_pod_nobody_serves_is_refused_by_name_and_the_session_goes_on() {
    story(async {
        let agent = Agent::start();
        let node = Node::start(&agent);
        let peer = agent.session().await;
        let refusal = peer.keep("lost-pod").await;
        assert!(refusal.contains("keep for pod lost-pod, which this proxy does not serve"), "{refusal}");
        assert_eq!(peer.snapshot_sent().await, "");
        assert_eq!([node.count(|m| &m.nacks), node.count(|m| &m.protocol_errors)], [1, 0]);
    });
}

#[test]
fn a_pod_deleted_within_the_snapshot_ends_when_the_snapshot_does() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.add("a", &netns).await;
        assert_eq!(peer.del("a").await, "");
        assert!(node.pods.serves("a"));
        peer.snapshot_sent().await;
        assert_eq!(node.pods.log(), ["start a", "cut a"]);
    });
}

#[test]
fn a_waiting_pod_deleted_within_the_snapshot_is_forgotten() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        *node.pods.unavailable.borrow_mut() = Some("no worker".to_owned());
        let peer = agent.session().await;
        assert_eq!(peer.add("a", &netns).await, "failure to start proxy: no worker");
        assert_eq!(node.count(|m| &m.pending), 1);
        assert_eq!(peer.del("a").await, "");
        assert_eq!(node.count(|m| &m.pending), 0);
        peer.snapshot_sent().await;
        assert!(node.is_ready());
    });
}

#[test]
fn a_waiting_pod_nobody_names_is_forgotten_and_a_kept_one_is_not() {
    story(async {
        let (agent, [a, b]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        *node.pods.unavailable.borrow_mut() = Some("no worker".to_owned());
        let peer = agent.session().await;
        peer.add("a", &a).await;
        peer.add("b", &b).await;
        drop(peer);
        let peer = agent.session().await;
        assert_eq!(peer.keep("a").await, "");
        peer.snapshot_sent().await;
        assert_eq!(node.count(|m| &m.pending), 1);
        assert!(!node.is_ready());
    });
}

#[test]
fn the_proxys_own_namespace_is_never_served() {
    story(async {
        let agent = Agent::start();
        let node = Node::start(&agent);
        let peer = agent.session().await;
        let refusal = peer.add("a", &Netns::current().unwrap()).await;
        assert!(refusal.contains("the proxy's own network namespace; send the pod's"), "{refusal}");
        assert_eq!(peer.snapshot_sent().await, "");
        assert!(node.is_ready(), "trying the same descriptor again would change nothing");
        assert_eq!(node.pods.log(), [""; 0]);
    });
}

#[test]
fn a_descriptor_of_something_else_is_refused_and_a_running_pod_of_that_uid_is_left_alone() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.add("a", &netns).await;
        peer.snapshot_sent().await;
        drop(peer);
        let peer = agent.session().await;
        let refusal = peer.add("a", &std::fs::File::open("/dev/null").unwrap()).await;
        assert!(
            refusal.starts_with("failure to start proxy: the descriptor that came with the pod"),
            "{refusal}"
        );
        let refusal = peer.add("b", &std::fs::File::open("/proc/self/ns/mnt").unwrap()).await;
        assert!(refusal.contains("not a network namespace"), "{refusal}");
        assert_eq!(peer.snapshot_sent().await, "");
        assert_eq!(node.pods.log(), ["start a"]);
        assert!(node.is_ready());
    });
}

#[test]
fn two_hundred_pods_come_and_go() {
    story(async {
        let agent = Agent::start();
        let node = Node::start(&agent);
        let peer = agent.session().await;
        let pods: Vec<_> = (0..200).map(|number| (format!("pod-{number}"), namespace())).collect();
        for (uid, netns) in &pods[..100] {
            assert_eq!(peer.add(uid, netns).await, "");
        }
        peer.snapshot_sent().await;
        for (uid, netns) in &pods[100..] {
            assert_eq!(peer.add(uid, netns).await, "");
        }
        assert_eq!(node.count(|m| &m.active), 200);
        for (uid, _) in &pods {
            assert_eq!(peer.del(uid).await, "");
        }
        let counted = [node.count(|m| &m.active), node.count(|m| &m.started), node.count(|m| &m.stopped)];
        assert_eq!(counted, [0, 200, 200]);
        assert!(node.pods.running.borrow().is_empty());
        peer.hears_nothing().await;
    });
}
