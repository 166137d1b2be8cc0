//! Sessions that end, and agents and proxies that restart.

use super::*;

#[test]
fn an_agent_that_restarts_costs_no_pod() {
    story(async {
        let (agent, [a, b, gone]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        let node = Node::start(&agent);
        let peer = agent.session().await;
        for (uid, netns) in [("a", &a), ("b", &b), ("gone", &gone)] {
            assert_eq!(peer.add(uid, netns).await, "");
        }
        peer.snapshot_sent().await;
        drop(peer);
        eventually("the node is not ready", || !node.is_ready()).await;
        let agent = agent.restart();
        let peer = agent.session().await;
        assert_eq!(node.pods.log().len(), 3, "pods run on without an agent");
        assert_eq!(peer.add("a", &a).await, "");
        assert_eq!(peer.keep("b").await, "");
        assert_eq!(peer.snapshot_sent().await, "");
        assert!(node.is_ready());
        assert_eq!(node.pods.log(), ["start a", "start b", "start gone", "cut gone"]);
    });
}

#[test]
fn an_agent_that_comes_later_is_found() {
    story(async {
        let directory = tempfile::tempdir().unwrap();
        let path = Agent::path_in(directory.path());
        let node = Node::at(&path, timing());
        sleep(Duration::from_millis(20)).await;
        assert_eq!(node.count(|m| &m.sessions), 0);
        let agent = Agent { listener: Agent::listen(&path), directory };
        let peer = agent.session().await;
        assert_eq!(peer.snapshot_sent().await, "");
        assert!(node.is_ready());
    });
}

#[test]
fn a_proxy_that_restarts_gets_every_pod_from_the_snapshot() {
    story(async {
        let (agent, [a, b]) = (Agent::start(), std::array::from_fn(|_| namespace()));
        for _life in 0..2 {
            let node = Node::start(&agent);
            let peer = agent.session().await;
            assert_eq!(peer.add("a", &a).await, "");
            assert_eq!(peer.add("b", &b).await, "");
            assert_eq!(peer.snapshot_sent().await, "");
            assert!(node.pods.serves("a") && node.pods.serves("b"));
            node.stop().await;
        }
    });
}

#[test]
fn a_pod_whose_answer_could_not_be_sent_runs_on() {
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.snapshot_sent().await;
        peer.send(
            &proto::WorkloadRequest { payload: Some(Payload::Add(add("a"))) }.encode_to_vec(),
            &[netns.as_fd()],
        )
        .await;
        drop(peer);
        let peer = agent.session().await;
        assert!(node.pods.serves("a"));
        assert_eq!(peer.add("a", &netns).await, "");
        assert_eq!(peer.snapshot_sent().await, "");
        assert_eq!(node.pods.log(), ["start a"]);
    });
}

#[test]
fn an_empty_packet_is_the_end_of_a_session() {
    story(async {
        let agent = Agent::start();
        let node = Node::start(&agent);
        let peer = agent.session().await;
        peer.send(&[], &[]).await;
        peer.ends().await;
        let _next = agent.session().await;
        assert_eq!(node.count(|m| &m.protocol_errors), 0);
    });
}

#[test]
fn the_end_of_the_process_does_not_wait_for_an_agent() {
    story(async {
        let directory = tempfile::tempdir().unwrap();
        let reconnect = Wait { first: HOUR, longest: HOUR };
        let node = Node::at(&Agent::path_in(directory.path()), Timing { reconnect, ..timing() });
        sleep(Duration::from_millis(5)).await;
        assert_eq!(node.stop().await.log(), [""; 0]);
    });
}

#[test]
fn the_session_is_closed_before_pods_drain() {
    struct Slow(RefCell<Option<oneshot::Receiver<()>>>);
    impl Pods for Slow {
        async fn start(&self, _: PodInfo, _: Arc<Netns>) -> Result<(), StartError> {
            Ok(())
        }
        async fn stop(&self, _: &str, how: Stop) {
            assert_eq!(how, Stop::Drain);
            let drained = self.0.borrow_mut().take().expect("one pod is drained once");
            drained.await.unwrap();
        }
    }
    story(async {
        let (agent, netns) = (Agent::start(), namespace());
        let config = Config::new(Agent::path_in(agent.directory.path())).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (drained, drain) = oneshot::channel();
        let task = spawn_local(async move {
            let pods = Slow(RefCell::new(Some(drain)));
            let stop = async { drop(stopped.await) };
            run(config, &pods, &Metrics::default(), |_| {}, stop).await;
        });
        let peer = agent.session().await;
        peer.add("a", &netns).await;
        stop.send(()).unwrap();
        peer.ends().await;
        assert!(!task.is_finished(), "the pod drains");
        drained.send(()).unwrap();
        in_time(task).await.unwrap();
    });
}
