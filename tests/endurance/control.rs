//! Two nodes that live off a control plane: it tells the mesh, changes it, dies, and comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit::control::testing::{Call, Proof, Server};
use adit::discovery::xds::testing::{
    ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, response, security, workload,
};
use adit::identity::testing::{Answer, IstioCertificateRequest, PATH as CERTIFICATES, Signer};
use adit::lab::{Membership, Pod, Side, World};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::stage::{AT_ONCE, SOON, Stage, Way, connect, index, talks, until};

type Resource = (String, String, Vec<u8>);

/// What the control plane knows; all of it is told to whoever connects.
#[derive(Default)]
struct Told {
    addresses: Vec<Resource>,
    policies: Vec<Resource>,
    /// Signs for both nodes.
    signer: Signer,
}

/// What changes.
#[derive(Clone)]
enum Update {
    /// These are the policies.
    Policies(Vec<Resource>),
    /// This is new, or other than before.
    Address(Resource),
}

/// The control plane of one node, on a thread of its own until it is dropped.
struct Plane {
    updates: Option<mpsc::UnboundedSender<Update>>,
    thread: Option<std::thread::JoinHandle<TcpListener>>,
}

impl Plane {
    fn start(listener: TcpListener, directory: PathBuf, told: Arc<Mutex<Told>>) -> Self {
        let (updates, mut changes) = mpsc::unbounded_channel::<Update>();
        let thread = std::thread::spawn(move || {
            let again = listener.try_clone().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut istiod = Server::on(listener, Proof::Good, &directory);
                let mut stream: Option<Call> = None;
                let mut known: Vec<String> =
                    told.lock().unwrap().policies.iter().map(|(name, ..)| name.clone()).collect();
                loop {
                    tokio::select! {
                        mut call = istiod.next() => match call.path.as_str() {
                            CERTIFICATES => {
                                let request: IstioCertificateRequest = call.message().await;
                                let answer = told.lock().unwrap().signer.answer(&request, Answer::Good);
                                call.answer(&answer);
                            }
                            _ => stream = Some(greet(call, &told).await),
                        },
                        change = changes.recv() => {
                            // Whoever holds the other end goes: so does the control plane.
                            let policies = match change {
                                None => return,
                                Some(Update::Policies(policies)) => policies,
                                Some(Update::Address(address)) => {
                                    if let Some(stream) = &stream {
                                        stream.send(&response(ADDRESS, "update", [address], &[]));
                                    }
                                    continue;
                                }
                            };
                            let names = |all: &[Resource]| -> Vec<String> {
                                all.iter().map(|(name, ..)| name.clone()).collect()
                            };
                            let now = names(&policies);
                            // The other node's control plane may have changed it already.
                            told.lock().unwrap().policies.clone_from(&policies);
                            let gone = std::mem::replace(&mut known, now.clone());
                            let gone: Vec<&str> =
                                gone.iter().filter(|name| !now.contains(name)).map(String::as_str).collect();
                            if let Some(stream) = &stream {
                                stream.send(&response(AUTHORIZATION, "update", policies.clone(), &gone));
                            }
                        }
                    }
                }
            });
            again
        });
        Self { updates: Some(updates), thread: Some(thread) }
    }

    /// These are the policies from now on.
    fn policies(&self, all: &[Resource]) {
        self.update(Update::Policies(all.to_vec()));
    }

    fn update(&self, update: Update) {
        self.updates.as_ref().unwrap().send(update).unwrap();
    }

    /// Dies. Its port stays, for a successor.
    fn kill(&mut self) -> TcpListener {
        drop(self.updates.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Tells everything, and what of the client's is gone.
async fn greet(mut stream: Call, told: &Mutex<Told>) -> Call {
    for _ in 0..2 {
        let request: DeltaDiscoveryRequest = stream.message().await;
        let told = told.lock().unwrap();
        let all = if request.type_url == ADDRESS { &told.addresses } else { &told.policies };
        let known = request.initial_resource_versions.keys().map(String::as_str);
        let gone: Vec<&str> = known.filter(|name| all.iter().all(|(now, ..)| now != name)).collect();
        stream.send(&response(&request.type_url, "first", all.clone(), &gone));
    }
    stream
}

fn address_of(pod: &Pod) -> Resource {
    address_naming(pod, &[])
}

/// A pod whose workload names these policies.
fn address_naming(pod: &Pod, policies: &[&str]) -> Resource {
    let mesh = pod.membership() == Membership::Mesh;
    let protocol = if mesh { workload::TunnelProtocol::Hbone } else { workload::TunnelProtocol::None };
    let uid = format!("Kubernetes//Pod/{}/{}", pod.namespace(), pod.name());
    let one = workload::Workload {
        uid: uid.clone(),
        name: pod.name().into(),
        namespace: pod.namespace().into(),
        service_account: pod.name().into(),
        addresses: vec![pod.ipv4().octets().to_vec().into(), pod.ipv6().octets().to_vec().into()],
        tunnel_protocol: protocol.into(),
        node: pod.side().name().into(),
        authorization_policies: policies.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(one)) };
    (uid, "1".into(), address.encode_to_vec())
}

/// Nobody of the namespace `shop` may be called.
fn closed() -> Vec<Resource> {
    let policy = security::Authorization {
        name: "closed".into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule::default()],
        dry_run: false,
    };
    vec![("shop/closed".into(), String::new(), policy.encode_to_vec())]
}

/// Both nodes, each with a control plane on its loopback, and what these know.
fn stage() -> (Stage, Vec<Plane>, Arc<Mutex<Told>>) {
    let told = Arc::<Mutex<Told>>::default();
    let prepare = |world: &World, place: &Path, pods: [&Pod; 3]| {
        told.lock().unwrap().addresses = pods.map(address_of).to_vec();
        Side::BOTH.map(|side| {
            let directory = place.join(format!("control-{side}"));
            std::fs::create_dir(&directory).unwrap();
            let listener = world.node(side).netns().run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let plane = Plane::start(listener, directory.clone(), told.clone());
            // Its root and the token are there before anybody asks.
            until("the control plane's files", SOON, || match directory.join("token").exists() {
                true => Ok(()),
                false => Err("not there yet".into()),
            });
            (plane, port, directory)
        })
    };
    let (stage, planes) = Stage::prepared(prepare, |launch, side, planes| {
        let (_, port, directory) = &planes[index(side)];
        let file = |name: &str| directory.join(name).display().to_string();
        launch
            .without("LOCAL_XDS_PATH")
            .without("ADIT_CA")
            .env("CA_ADDRESS", format!("https://127.0.0.1:{port}"))
            .env("CA_ROOT_CA", file("root.pem"))
            .env("XDS_ADDRESS", format!("https://127.0.0.1:{port}"))
            .env("XDS_ROOT_CA", file("root.pem"))
            .env("AUTH_TOKEN", file("token"))
            .env("POD_NAME", "adit")
            .env("POD_NAMESPACE", "istio-system")
            .env("INSTANCE_IP", "10.0.0.1")
    });
    let planes = planes.into_iter().map(|(plane, ..)| plane).collect();
    (stage, planes, told)
}

/// Insists that a new connection is carried, over both proxies.
fn is_carried(stage: &Stage, why: &str) {
    talks(&stage.connect(Way::Tunnel)).unwrap_or_else(|cause| panic!("{why}: {cause}"));
}

/// Waits until a new connection is carried.
fn is_carried_soon(stage: &Stage, why: &str) {
    let port = crate::stage::fresh_port();
    let listener = adit::lab::listen_for(stage.server.netns(), port).unwrap();
    // Answers whoever comes, and ends with the test.
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"!");
        }
    });
    until(why, SOON, || {
        let client = adit::lab::dial(stage.client.netns(), stage.server.at(port), SOON)
            .map_err(|cause| cause.to_string())?;
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        (&client).read_exact(&mut [0]).map_err(|cause| cause.to_string())
    });
}

/// Waits until a new connection is refused.
fn is_refused_soon(stage: &Stage, why: &str) {
    let port = crate::stage::fresh_port();
    let _listener = adit::lab::listen_for(stage.server.netns(), port).unwrap();
    until(why, SOON, || {
        let client = adit::lab::dial(stage.client.netns(), stage.server.at(port), SOON)
            .map_err(|cause| cause.to_string())?;
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        match (&client).read(&mut [0]) {
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn nodes_live_off_their_control_plane_and_go_on_without_it() {
    let (stage, mut planes, told) = stage();
    is_carried(&stage, "at first");
    talks(&connect(&stage.client, &stage.plain).unwrap()).unwrap();
    let (mut live, server) = stage.connect(Way::Tunnel);
    talks(&(live.try_clone().unwrap(), server.try_clone().unwrap())).unwrap();

    // A policy comes: who is connected is cut, and nobody else gets in.
    planes.iter().for_each(|plane| plane.policies(&closed()));
    live.set_read_timeout(Some(AT_ONCE)).unwrap();
    let cut = live.read(&mut [0]).expect_err("it is to be cut");
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset, "{cut}");
    is_refused_soon(&stage, "refused by a policy that was told");
    // And goes.
    planes.iter().for_each(|plane| plane.policies(&[]));
    is_carried_soon(&stage, "carried again once the policy is gone");

    // The control plane dies: what is there goes on, and so do new connections.
    let kept = stage.connect(Way::Tunnel);
    let listeners: Vec<TcpListener> = planes.iter_mut().map(Plane::kill).collect();
    for side in Side::BOTH {
        let log = stage.proxy(side).log();
        until("the proxy notices", SOON, || match log.last(50).contains("discovery is interrupted") {
            true => Ok(()),
            false => Err(log.last(5)),
        });
    }
    is_carried(&stage, "without a control plane");
    talks(&kept).unwrap();

    // It is back, and says something else.
    told.lock().unwrap().policies = closed();
    let again: Vec<Plane> = Side::BOTH
        .into_iter()
        .zip(listeners)
        .map(|(side, listener)| {
            Plane::start(listener, stage.place().join(format!("control-{side}")), told.clone())
        })
        .collect();
    is_refused_soon(&stage, "refused by what the new control plane says");
    drop(again);
}

#[test]
fn a_policy_that_is_named_before_it_comes_is_waited_for_and_then_missing() {
    let (stage, planes, _told) = stage();
    let names = |policy: &str| {
        let address = address_naming(&stage.server, &[policy]);
        planes.iter().for_each(|plane| plane.update(Update::Address(address.clone())));
    };
    let live = stage.connect(Way::Tunnel);
    talks(&live).unwrap();

    // Named, and told a second later: who is connected stays, who comes waits and is let in.
    names("shop/late");
    std::thread::sleep(Duration::from_millis(300));
    let everybody = security::Authorization {
        name: "late".into(),
        namespace: "shop".into(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Allow.into(),
        rules: vec![security::Rule::default()],
        dry_run: false,
    };
    let late = [("shop/late".to_owned(), String::new(), everybody.encode_to_vec())];
    let waited = std::thread::scope(|scope| {
        let comes = scope.spawn(|| {
            let since = Instant::now();
            is_carried(&stage, "while its policy is on the way");
            since.elapsed()
        });
        std::thread::sleep(Duration::from_millis(700));
        planes.iter().for_each(|plane| plane.policies(&late));
        comes.join().unwrap()
    });
    assert!(waited >= Duration::from_millis(500), "it was let in after {waited:?}, by no policy");
    talks(&live).unwrap();

    // Named, and never told: after a while that closes the workload, also for who is connected.
    names("shop/never");
    let (mut client, _server) = live;
    client.set_read_timeout(Some(2 * AT_ONCE)).unwrap();
    let cut = client.read(&mut [0]).expect_err("it is to be cut");
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset, "{cut}");
    is_refused_soon(&stage, "refused by a policy that is missing");
    let last = stage.proxy(Side::Two).log().last(20);
    assert!(last.contains("shop/never"), "{last}");
}
