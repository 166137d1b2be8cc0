//! Which tunnel a stream gets, and how many handshakes that takes.

use std::io;
use std::net::IpAddr;

use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::net::canonical;

fn key(workload: &str) -> TunnelKey {
    TunnelKey {
        source: id("web"),
        source_ip: IpAddr::from([10, 0, 0, 5]),
        expected: [id("cart")].into(),
        to: "10.0.1.9:15008".parse().unwrap(),
        workload: workload.into(),
    }
}

/// A pool and a far end that makes tunnels for it and accepts every stream.
struct Workshop {
    pool: Rc<Pool>,
    placement: Arc<Placement>,
    handshakes: Cell<usize>,
}

impl Workshop {
    fn new(config: Config) -> Rc<Self> {
        let placement = Arc::new(Placement::new(2));
        let pool = Pool::start(0, config, placement.clone());
        Rc::new(Self { pool, placement, handshakes: Cell::new(0) })
    }

    async fn make(&self) -> Result<Tunnel, HandshakeError> {
        self.handshakes.set(self.handshakes.get() + 1);
        let (client, server) = secured().await;
        let config = config();
        let (tunnel, server) = tokio::join!(
            Tunnel::start(client, &config, Share::alone()),
            Server::start(server, &config, Share::alone())
        );
        spawn_local(server.unwrap().serve(
            |incoming| {
                spawn_local(async move {
                    let opened = incoming.accept(None).unwrap();
                    let (_app, carrying) = carried(opened).await;
                    carrying.await.unwrap();
                });
            },
            std::future::pending(),
        ));
        tunnel
    }

    /// A stream of `key`, as a connection gets it.
    async fn stream(&self, key: &TunnelKey) -> Opened {
        let acquired = self.pool.acquire(key, || self.make()).await.unwrap();
        let opened = acquired.tunnel.open(&request()).await.unwrap();
        self.pool.note_room(key);
        opened
    }
}

fn limited(streams_per_tunnel: usize) -> Config {
    Config { streams_per_tunnel, ..config() }
}

#[test]
fn however_many_ask_at_once_one_handshake_is_made() {
    story(async || {
        let shop = Workshop::new(config());
        let asking: Vec<_> = (0..20)
            .map(|_| {
                let shop = shop.clone();
                spawn_local(async move { shop.stream(&key("cart-1")).await })
            })
            .collect();
        let mut streams = Vec::new();
        for one in asking {
            streams.push(one.await.unwrap());
        }
        assert_eq!(shop.handshakes.get(), 1);
        let again = shop.pool.acquire(&key("cart-1"), || shop.make()).await.unwrap();
        assert!(again.reused);
        assert_eq!((again.tunnel.streams(), shop.handshakes.get()), (20, 1));
    });
}

#[test]
fn another_key_gets_a_tunnel_of_its_own() {
    story(async || {
        let shop = Workshop::new(config());
        let _one = shop.stream(&key("cart-1")).await;
        let _two = shop.stream(&key("cart-2")).await;
        assert_eq!(shop.handshakes.get(), 2);
    });
}

#[test]
fn a_failed_handshake_is_told_to_all_who_wait_and_the_next_tries_again() {
    story(async || {
        let shop = Workshop::new(config());
        let (attempts, gate) = (Rc::new(Cell::new(0)), Rc::new(Semaphore::new(0)));
        let asking: Vec<_> = (0..5)
            .map(|_| {
                let (shop, attempts, gate) = (shop.clone(), attempts.clone(), gate.clone());
                spawn_local(async move {
                    let fail = || async {
                        attempts.set(attempts.get() + 1);
                        let _open = gate.acquire().await;
                        let cause = io::Error::from(io::ErrorKind::ConnectionRefused);
                        Err(HandshakeError::Connect { to: key("cart-1").to, cause: cause.into() })
                    };
                    shop.pool.acquire(&key("cart-1"), fail).await.err().unwrap().to_string()
                })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for one in asking {
            assert_eq!(one.await.unwrap(), "io error: connection refused");
        }
        assert_eq!(attempts.get(), 1);
        shop.stream(&key("cart-1")).await;
        assert_eq!(shop.handshakes.get(), 1);
    });
}

#[test]
fn a_waiter_takes_over_from_an_opener_that_leaves() {
    story(async || {
        let shop = Workshop::new(config());
        let opener = spawn_local({
            let shop = shop.clone();
            async move { shop.pool.acquire(&key("cart-1"), std::future::pending).await.map(drop) }
        });
        tokio::task::yield_now().await;
        let waiter = spawn_local({
            let shop = shop.clone();
            async move { shop.stream(&key("cart-1")).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(shop.handshakes.get(), 0);
        opener.abort();
        waiter.await.unwrap();
        assert_eq!(shop.handshakes.get(), 1);
    });
}

#[test]
fn a_full_tunnel_gets_a_second_beside_it_and_its_room_is_used_again() {
    story(async || {
        let shop = Workshop::new(limited(2));
        let first = shop.stream(&key("cart-1")).await;
        let second = shop.stream(&key("cart-1")).await;
        assert_eq!(shop.handshakes.get(), 1);
        let third = shop.stream(&key("cart-1")).await;
        assert_eq!(shop.handshakes.get(), 2);
        // The first tunnel has room for one again; the second has had room all along.
        drop(first);
        let fourth = shop.stream(&key("cart-1")).await;
        let fifth = shop.stream(&key("cart-1")).await;
        assert_eq!(shop.handshakes.get(), 2);
        drop((second, third, fourth, fifth));
    });
}

#[test]
fn more_streams_than_tunnels_hold_all_get_a_place_when_they_come_at_once() {
    story(async || {
        let shop = Workshop::new(limited(3));
        let asking: Vec<_> = (0..10)
            .map(|_| {
                let shop = shop.clone();
                spawn_local(async move { shop.stream(&key("cart-1")).await })
            })
            .collect();
        let mut streams = Vec::new();
        for one in asking {
            streams.push(one.await.unwrap());
        }
        assert_eq!(shop.handshakes.get(), 4);
    });
}

#[test]
fn a_tunnel_that_died_is_replaced() {
    story(async || {
        let shop = Workshop::new(config());
        let acquired = shop.pool.acquire(&key("cart-1"), || shop.make()).await.unwrap();
        assert!(!acquired.reused);
        acquired.tunnel.retire();
        shop.stream(&key("cart-1")).await;
        assert_eq!(shop.handshakes.get(), 2);
    });
}

#[test]
fn a_tunnel_without_streams_is_let_go_and_one_with_a_stream_is_kept() {
    story(async || {
        let shop = Workshop::new(Config { idle_release: Duration::from_millis(400), ..config() });
        let (idle, busy) = (key("cart-1"), key("cart-2"));
        let stream = shop.stream(&busy).await;
        let acquired = shop.pool.acquire(&idle, || shop.make()).await.unwrap();
        shop.pool.note_room(&idle);
        let tunnel = acquired.tunnel;
        while !tunnel.is_closed() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The placement table forgets the one and keeps the other, whoever carries less.
        let _elsewhere: Vec<_> = (0..100).map(|_| shop.placement.carry(0)).collect();
        assert_eq!(shop.placement.place(&idle, 0), 1);
        assert_eq!(shop.placement.place(&busy, 1), 0);
        drop(stream);
    });
}

#[test]
fn the_owner_of_a_tunnel_with_room_is_preferred_until_it_is_full() {
    story(async || {
        let shop = Workshop::new(limited(1));
        let key = key("cart-1");
        assert_eq!(shop.placement.place(&key, 1), 1);
        let (made, make) = oneshot::channel();
        made.send(shop.make().await).ok().unwrap();
        let make = Cell::new(Some(make));
        let acquired =
            shop.pool.acquire(&key, || async { make.take().unwrap().await.unwrap() }).await.unwrap();
        assert_eq!(shop.placement.place(&key, 1), 0);
        let opened = acquired.tunnel.open(&request()).await.unwrap();
        shop.pool.note_room(&key);
        assert_eq!(shop.placement.place(&key, 1), 1);
        drop(opened);
        shop.pool.note_room(&key);
        assert_eq!(shop.placement.place(&key, 1), 0);
        let placement = shop.placement.clone();
        drop((acquired, shop));
        assert_eq!(placement.place(&key, 1), 1);
    });
}

#[test]
fn a_worker_that_is_clearly_busier_gets_no_new_connections() {
    let placement = Arc::new(Placement::new(3));
    let mut carried: Vec<_> = (0..16).map(|_| placement.carry(0)).collect();
    assert_eq!(placement.least_loaded(0), 0);
    carried.push(placement.carry(0));
    carried.push(placement.carry(1));
    assert_eq!(placement.least_loaded(0), 2);
    assert_eq!(placement.loads(), [17, 1, 0]);
    carried.clear();
    assert_eq!(placement.loads(), [0, 0, 0]);
}

#[test]
fn both_ends_of_a_handshake_know_each_others_addresses() {
    story(async || {
        let (client, server) = secured().await;
        assert_eq!((client.local, client.remote), (canonical(server.remote), canonical(server.local)));
        assert_eq!(*server.peer.identity(), id("web"));
        assert_eq!(*client.peer.identity(), id("cart"));
        assert!(client.stamps.tcp <= client.stamps.tls);
    });
}

#[test]
fn a_full_worker_gets_no_new_connections_while_another_has_time() {
    let placement = Arc::new(Placement::new(3));
    let carried: Vec<_> = (0..100).map(|_| placement.carry(1)).collect();
    placement.tell_busy(0, 850);
    assert_eq!(placement.least_loaded(0), 2);
    assert_eq!(placement.least_loaded(2), 2);
    placement.tell_busy(2, 1_000);
    assert_eq!(placement.least_loaded(0), 1);
    // Where all are full, what counts is what they carry.
    placement.tell_busy(1, 900);
    assert_eq!(placement.least_loaded(0), 0);
    assert_eq!(placement.least_loaded(1), 0);
    drop(carried);
}

#[test]
fn a_tunnel_of_a_full_worker_gets_a_second_one_on_a_worker_that_has_time() {
    let placement = Arc::new(Placement::new(3));
    let key = key("cart-1");
    placement.set(&key, 0, Some(false));
    placement.tell_busy(0, 849);
    assert_eq!(placement.place(&key, 2), 0);
    placement.tell_busy(0, 850);
    placement.tell_busy(1, 501);
    assert_eq!(placement.place(&key, 1), 2);
    // It takes load off another only if it has enough time for that.
    placement.tell_busy(2, 501);
    assert_eq!(placement.place(&key, 1), 0);
    // The second tunnel is used while the first's worker is full, and no longer.
    placement.tell_busy(2, 100);
    placement.set(&key, 2, Some(false));
    assert_eq!(placement.place(&key, 0), 2);
    placement.tell_busy(0, 300);
    assert_eq!(placement.place(&key, 1), 0);
    assert_eq!(placement.place(&key, 2), 2);
    // A tunnel that has no room is none.
    placement.set(&key, 0, Some(true));
    assert_eq!(placement.place(&key, 0), 2);
}
