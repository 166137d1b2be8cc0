//! The store under simulated time: when the authority is asked, and what connections get meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::identity::{
    Authority, AuthorityError, CertificateError, EmbeddedCa, Issuing, Store, VerifiedPeer, Wanted,
};

use super::*;

/// How an authority answers one request.
#[derive(Clone)]
enum Answer {
    Issue(Duration),
    Refuse,
    Never,
    Panic,
    After(Duration, Box<Answer>),
    ForSomebodyElse,
}

/// An authority that answers as it is told and remembers who was asked for and when.
struct FakeCa {
    mint: Mint,
    clock: Clock,
    answer: Mutex<Answer>,
    asked: Mutex<Vec<(SpiffeId, Instant)>>,
    under_way: Arc<AtomicUsize>,
    most_under_way: AtomicUsize,
}

/// Counts down when a request ends, however it ends.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FakeCa {
    fn answering(answer: Answer, clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            mint: Mint::new(),
            clock: clock.clone(),
            answer: Mutex::new(answer),
            asked: Mutex::default(),
            under_way: Arc::default(),
            most_under_way: AtomicUsize::new(0),
        })
    }

    fn issuing_for(life: Duration) -> Arc<Self> {
        Self::answering(Answer::Issue(life), &simulated())
    }

    fn now_answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<SpiffeId> {
        self.asked.lock().unwrap().iter().map(|(id, _)| id.clone()).collect()
    }

    fn times(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn make(&self, id: &SpiffeId, life: Duration) -> Issued {
        let mut params = Mint::leaf(vec![uri(id.as_str())]);
        params.not_before = (self.clock.now() - seconds(120)).into();
        params.not_after = (self.clock.now() + life).into();
        self.mint.issue(&params)
    }

    fn answer(&self, identity: &SpiffeId, answer: Answer) -> Issuing {
        match answer {
            Answer::Issue(life) => {
                let issued = self.make(identity, life);
                Box::pin(async { Ok(issued) })
            }
            Answer::ForSomebodyElse => {
                let issued = self.make(&id("thief"), hours(24));
                Box::pin(async { Ok(issued) })
            }
            Answer::Refuse => Box::pin(async { Err(AuthorityError::Failed("not today".into())) }),
            Answer::Never => Box::pin(std::future::pending()),
            Answer::Panic => Box::pin(async { panic!("the authority is broken") }),
            Answer::After(pause, answer) => {
                let then = self.answer(identity, *answer);
                Box::pin(async move {
                    sleep(pause).await;
                    then.await
                })
            }
        }
    }
}

impl Authority for FakeCa {
    fn issue(&self, identity: SpiffeId, _ttl: Duration) -> Issuing {
        self.asked.lock().unwrap().push((identity.clone(), Instant::now()));
        let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_under_way.fetch_max(now, Ordering::Relaxed);
        let counted = UnderWay(self.under_way.clone());
        let answer = self.answer.lock().unwrap().clone();
        let issuing = self.answer(&identity, answer);
        Box::pin(async move {
            let _counted = counted;
            issuing.await
        })
    }
}

/// A wall clock that runs with the simulated time of the test.
fn simulated() -> Clock {
    let start = Instant::now();
    Clock::new(move || new_year() + start.elapsed())
}

fn start_with(authority: Arc<dyn Authority>, clock: &Clock) -> (Store, JoinHandle<()>) {
    let policy = TlsPolicy::new(Tls::default(), clock.clone());
    let (store, keeper) = Store::new(authority, hours(24), policy);
    (store, tokio::spawn(keeper.run()))
}

fn start(ca: &Arc<FakeCa>) -> Store {
    start_with(ca.clone(), &ca.clock).0
}

#[tokio::test(start_paused = true)]
async fn an_announced_identity_is_fetched_ahead() {
    let ca = FakeCa::issuing_for(hours(24));
    let store = start(&ca);
    assert!(store.current(&id("cart")).is_none());
    let _pod = store.want(id("cart"));
    sleep(seconds(1)).await;
    assert_eq!(store.current(&id("cart")).unwrap().identity(), &id("cart"));
    assert_eq!(ca.asked(), [id("cart")]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_its_lifetime() {
    let ca = FakeCa::issuing_for(hours(24));
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    let first = store.credentials(&id("cart")).await.unwrap();
    sleep(hours(12) - seconds(12 * 360 + 60)).await;
    assert_eq!(ca.times(), 1, "10 % before half of it is the earliest");
    sleep(seconds(2 * (12 * 360 + 60))).await;
    assert_eq!(ca.times(), 2, "10 % after half of it is the latest");
    let second = store.current(&id("cart")).unwrap();
    assert!(second.not_after() > first.not_after());
}

#[tokio::test(start_paused = true)]
async fn connections_that_wait_for_one_identity_share_one_request() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::After(seconds(3), Box::new(Answer::Issue(hours(24)))));
    let store = start(&ca);
    let mut connections = JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        connections.spawn(async move { store.credentials(&id("cart")).await.unwrap() });
    }
    let all = connections.join_all().await;
    assert!(all.iter().all(|credentials| Arc::ptr_eq(credentials, &all[0])));
    assert_eq!(ca.times(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_authority_is_away_the_old_certificate_serves_until_it_expires_and_no_longer() {
    let ca = FakeCa::issuing_for(hours(24));
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    let old = store.credentials(&id("cart")).await.unwrap();
    ca.now_answers(Answer::Refuse);
    sleep(hours(24) - seconds(1)).await;
    assert!(Arc::ptr_eq(&store.current(&id("cart")).unwrap(), &old));
    assert!(ca.times() > 100, "it was asked again every 150 s or so, {} times", ca.times());
    assert!(ca.times() < 500, "{} times", ca.times());
    sleep(seconds(1)).await;
    assert!(store.current(&id("cart")).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_not_lent_even_if_the_keeper_does_not_run() {
    let clock = simulated();
    let ca = FakeCa::answering(Answer::Issue(hours(1)), &clock);
    let (store, keeper) = start_with(ca, &clock);
    store.credentials(&id("cart")).await.unwrap();
    keeper.abort();
    assert!(store.current(&id("cart")).is_some(), "what was published stays readable");
    sleep(hours(1)).await;
    assert!(store.current(&id("cart")).is_none());
    let error = store.credentials(&id("cart")).await.unwrap_err();
    assert!(matches!(&error, CertificateError::Stopped { identity } if *identity == id("cart")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_ten_seconds_and_learns_the_cause() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::Refuse);
    let store = start(&ca);
    let begun = Instant::now();
    let error = store.credentials(&id("cart")).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(error.to_string(), "no certificate for spiffe://cluster.local/ns/shop/sa/cart");
    let cause = crate::identity::keeper::chain(&error);
    assert!(cause.ends_with("issuing the certificate failed: not today"), "{cause}");
    assert!((9..=11).contains(&ca.times()), "one attempt a second, not {}", ca.times());
}

#[tokio::test(start_paused = true)]
async fn a_recovered_authority_serves_the_next_connection_within_a_second() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::Refuse);
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    sleep(hours(1)).await;
    ca.now_answers(Answer::Issue(hours(24)));
    let begun = Instant::now();
    store.credentials(&id("cart")).await.unwrap();
    assert!(begun.elapsed() <= seconds(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_answers_does_not_wait_for_ever() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::Never);
    let store = start(&ca);
    let begun = Instant::now();
    let error = store.credentials(&id("cart")).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(
        matches!(&error, CertificateError::TimedOut { .. } | CertificateError::Refused { .. }),
        "{error}"
    );
    ca.now_answers(Answer::Issue(hours(24)));
    sleep(seconds(1)).await;
    assert!(store.credentials(&id("cart")).await.is_ok(), "a hung request ends after 10 s");
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_requests_are_under_way_and_a_waiting_connection_goes_first() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::After(seconds(2), Box::new(Answer::Issue(hours(24)))));
    let store = start(&ca);
    let pods: Vec<Wanted> = (0..30).map(|pod| store.want(id(&format!("pod-{pod}")))).collect();
    sleep(seconds(1)).await;
    assert_eq!(ca.times(), 8);
    let begun = Instant::now();
    store.credentials(&id("urgent")).await.unwrap();
    assert!(begun.elapsed() <= seconds(4), "it waits for one slot only: {:?}", begun.elapsed());
    assert_eq!(ca.asked()[8], id("urgent"));
    sleep(seconds(20)).await;
    assert_eq!((ca.times(), ca.most_under_way.load(Ordering::Relaxed)), (31, 8));
    assert_eq!(pods.len(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_forgotten_a_minute_after_its_last_pod() {
    let ca = FakeCa::issuing_for(hours(24));
    let store = start(&ca);
    let (one, other) = (store.want(id("cart")), store.want(id("cart")));
    store.credentials(&id("cart")).await.unwrap();
    drop(one);
    sleep(seconds(120)).await;
    assert!(store.current(&id("cart")).is_some(), "one pod is left");
    drop(other);
    sleep(seconds(50)).await;
    let again = store.want(id("cart"));
    sleep(seconds(120)).await;
    assert!(store.current(&id("cart")).is_some(), "a pod came back in time");
    assert_eq!(ca.times(), 1);
    drop(again);
    sleep(seconds(61)).await;
    assert!(store.current(&id("cart")).is_none());
    sleep(hours(24)).await;
    assert_eq!(ca.times(), 1, "nobody renews what nobody wants");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_authority_is_a_refusal() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::Panic);
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    sleep(Duration::from_millis(100)).await;
    ca.now_answers(Answer::Issue(hours(24)));
    store.credentials(&id("cart")).await.unwrap();
    assert_eq!(ca.times(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_somebody_else_is_never_lent() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::ForSomebodyElse);
    let store = start(&ca);
    let error = store.credentials(&id("cart")).await.unwrap_err();
    let cause = crate::identity::keeper::chain(&error);
    assert!(cause.contains("is for spiffe://cluster.local/ns/shop/sa/thief, not for"), "{cause}");
    assert!(store.current(&id("cart")).is_none() && store.current(&id("thief")).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_authority_of_one_second_certificates_is_not_called_in_a_loop() {
    let ca = FakeCa::issuing_for(seconds(1));
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    sleep(seconds(100)).await;
    assert!((15..=25).contains(&ca.times()), "{} times", ca.times());
    for _ in 0..100 {
        store.credentials(&id("cart")).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(ca.times() <= 36, "{} times", ca.times());
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_is_noticed_within_ten_seconds() {
    let dial = Dial::at(new_year());
    let ca = FakeCa::answering(Answer::Issue(hours(24)), &dial.clock());
    let store = start(&ca);
    let _pod = store.want(id("cart"));
    let first = store.credentials(&id("cart")).await.unwrap();
    sleep(seconds(60)).await;
    dial.set(new_year() + hours(14));
    sleep(seconds(11)).await;
    assert_eq!(ca.times(), 2);
    assert!(!Arc::ptr_eq(&store.current(&id("cart")).unwrap(), &first));
    dial.set(new_year() + hours(100));
    assert!(store.current(&id("cart")).is_none());
    store.credentials(&id("cart")).await.unwrap();
    assert_eq!(ca.times(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_gives_up_leaves_the_certificate_to_others() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::After(seconds(5), Box::new(Answer::Issue(hours(24)))));
    let store = start(&ca);
    tokio::time::timeout(seconds(1), store.credentials(&id("cart"))).await.unwrap_err();
    sleep(seconds(5)).await;
    assert!(store.current(&id("cart")).is_some());
    assert_eq!(ca.times(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_gave_up_no_longer_advances_retries() {
    let ca = FakeCa::issuing_for(hours(24));
    ca.now_answers(Answer::Refuse);
    let store = start(&ca);
    tokio::time::timeout(Duration::from_millis(1500), store.credentials(&id("cart"))).await.unwrap_err();
    sleep(seconds(8)).await;
    assert!((3..=5).contains(&ca.times()), "at 0, 1, about 3 and about 7 s, not {} times", ca.times());
}

#[tokio::test(start_paused = true)]
async fn the_keeper_ends_with_its_last_handle() {
    let clock = simulated();
    let ca = FakeCa::answering(Answer::Never, &clock);
    let (store, keeper) = start_with(ca.clone(), &clock);
    let pod = store.want(id("cart"));
    sleep(seconds(1)).await;
    assert_eq!(ca.under_way.load(Ordering::Relaxed), 1);
    drop(store);
    drop(pod);
    keeper.await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(ca.under_way.load(Ordering::Relaxed), 0, "its request was given up");
}

#[tokio::test(start_paused = true)]
async fn the_state_dump_has_the_shape_istioctl_reads() {
    let ca = FakeCa::issuing_for(hours(24));
    let store = start(&ca);
    let _pods = [store.want(id("cart"))];
    sleep(seconds(1)).await;
    ca.now_answers(Answer::Refuse);
    let _more = store.want(id("till"));
    sleep(seconds(1)).await;
    ca.now_answers(Answer::Never);
    let _most = store.want(id("zoo"));
    sleep(seconds(1)).await;
    let dump = serde_json::to_value(store.snapshot().await).unwrap();
    assert_eq!(dump[0]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(dump[0]["state"], "Available");
    assert_eq!(dump[1]["state"], "Unavailable: issuing the certificate failed: not today");
    assert_eq!(dump[2]["state"], "Initializing");
    assert_eq!(dump[1]["certChain"], serde_json::json!([]));
    let leaf = &dump[0]["certChain"][0];
    assert_eq!(
        (leaf["validFrom"].as_str(), leaf["expirationTime"].as_str()),
        (Some("2025-12-31T23:58:00Z"), Some("2026-01-02T00:00:00Z"))
    );
    let pem =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, leaf["pem"].as_str().unwrap())
            .unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let parsed = pem.parse_x509().unwrap();
    assert_eq!(leaf["serialNumber"], parsed.tbs_certificate.serial.to_string());
    let root = x509_parser::pem::parse_x509_pem(
        &base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            dump[0]["rootCerts"][0]["pem"].as_str().unwrap(),
        )
        .unwrap(),
    )
    .unwrap()
    .1;
    assert_eq!(root.contents, ca.mint.certificate.to_vec());
}

/// One handshake between the certificates of this moment.
fn shake(client: &Credentials, server: &Credentials) -> SpiffeId {
    let expected: Arc<[SpiffeId]> = Arc::new([server.identity().clone()]);
    let name = ServerName::try_from("0.0.0.0").unwrap();
    let mut client = ClientConnection::new(client.client_config(expected), name).unwrap();
    let mut server = ServerConnection::new(server.server_config()).unwrap();
    for _ in 0..3 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    VerifiedPeer::of(&server).unwrap().identity().clone()
}

#[tokio::test(start_paused = true)]
async fn handshakes_during_renewal_never_fail() {
    let clock = simulated();
    let home = tempfile::tempdir().unwrap();
    let ca = Arc::new(EmbeddedCa::open(home.path(), "cluster.local", clock.clone()).unwrap());
    let policy = TlsPolicy::new(Tls::default(), clock.clone());
    let (store, keeper) = Store::new(ca, seconds(60), policy);
    tokio::spawn(keeper.run());
    let _pods = [store.want(id("cart")), store.want(id("till"))];
    store.credentials(&id("cart")).await.unwrap();
    store.credentials(&id("till")).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..400 {
        let (cart, till) = (store.current(&id("cart")).unwrap(), store.current(&id("till")).unwrap());
        assert_eq!(shake(&till, &cart), id("till"));
        if seen.last() != Some(&cart.not_after()) {
            seen.push(cart.not_after());
        }
        sleep(Duration::from_millis(500)).await;
    }
    assert!(seen.len() >= 5, "200 s at one renewal each 30 s: {}", seen.len());
}

#[test]
fn workers_on_other_threads_are_served() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let home = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::open(home.path(), "cluster.local", Clock::system()).unwrap();
    let policy = TlsPolicy::new(Tls::default(), Clock::system());
    let (store, keeper) = Store::new(Arc::new(ca), hours(1), policy);
    std::thread::scope(|scope| {
        scope.spawn(|| runtime().block_on(keeper.run()));
        let lent = |store: Store| runtime().block_on(store.credentials(&id("cart"))).unwrap();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                scope.spawn(move || lent(store))
            })
            .collect();
        let lent: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert!(lent.iter().all(|credentials| Arc::ptr_eq(credentials, &lent[0])));
        // The last handle; the keeper's thread ends with it.
        drop(store);
    });
}
