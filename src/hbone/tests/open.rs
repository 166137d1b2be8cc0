//! How a CONNECT is answered, and what the client makes of it.

use std::thread;

use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::raw::{self, Raw};
use super::*;

#[test]
fn a_connect_arrives_with_its_headers_and_the_answer_with_its_baggage() {
    story(async || {
        let mut pair = pair().await;
        let request = ConnectRequest { service: Some("cart.shop.svc".into()), ..request() };
        let accept = async {
            let incoming = pair.incoming.recv().await.unwrap();
            let head = incoming.head();
            assert_eq!((head.method(), head.uri().to_string()), (&Method::CONNECT, "10.0.1.9:8080".into()));
            assert_eq!(head.headers()["forwarded"], "for=\"10.0.0.5:40000\";host=cart.shop.svc");
            incoming.accept(Some(HeaderValue::from_static("service.name=cart"))).unwrap()
        };
        let (near, far) = tokio::join!(pair.tunnel.open(&request), accept);
        assert_eq!(near.unwrap().headers()["baggage"], "service.name=cart");
        assert_eq!(far.headers()["traceparent"], request.trace.traceparent());
        assert_eq!(*pair.tunnel.peer().identity(), id("cart"));
    });
}

#[test]
fn a_refusal_reaches_the_client_with_its_status() {
    story(async || {
        let mut pair = pair().await;
        for (status, elsewhere) in [(401, false), (503, true), (400, false)] {
            let status = StatusCode::from_u16(status).unwrap();
            let request = request();
            let refuse = async { pair.incoming.recv().await.unwrap().refuse(status) };
            let (refused, ()) = tokio::join!(pair.tunnel.open(&request), refuse);
            let refused = refused.err().unwrap();
            assert!(matches!(refused, OpenError::Status(got) if got == status), "{status}: {refused}");
            assert_eq!(refused.may_try_elsewhere(), elsewhere, "{status}");
        }
        // The tunnel is none the worse for it.
        pair.opened().await;
    });
}

#[test]
fn a_refusal_is_a_status_that_ends_the_stream_and_then_no_error() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut peer = Raw::connect(addr);
            peer.write(raw::PREFACE);
            peer.write(&raw::frame(raw::SETTINGS, 0, 0, &[]));
            let head = raw::connect_head("10.0.1.9:8080");
            peer.write(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &head));
            let answer = peer.until(raw::HEADERS);
            (answer.stream, answer.flags, peer.until(raw::RST_STREAM).code())
        });
        let tcp = accept_tcp(listener).await;
        let secured = PLACE.handshakes.accept(tcp, PLACE.server.clone(), CARRIER.get()).await.unwrap();
        let server = Server::start(secured, &config(), Share::alone()).await.unwrap();
        let each = |incoming: Incoming| incoming.refuse(StatusCode::UNAUTHORIZED);
        let _serving = spawn_local(server.serve(each, std::future::pending()));
        let seen = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        assert_eq!(seen, (1, raw::END_HEADERS | raw::END_STREAM, raw::NO_ERROR));
    });
}

#[test]
fn an_incoming_that_nobody_answers_is_reset() {
    story(async || {
        let mut pair = pair().await;
        let request = request();
        let forget = async { drop(pair.incoming.recv().await.unwrap()) };
        let (lost, ()) = tokio::join!(pair.tunnel.open(&request), forget);
        let reset = lost.map(drop).unwrap_err();
        assert!(matches!(reset, OpenError::Reset(_)), "{reset}");
        assert!(!reset.may_try_elsewhere());
    });
}

#[test]
fn a_client_that_takes_its_request_back_is_noticed() {
    story(async || {
        let mut pair = pair().await;
        let tunnel = pair.tunnel.clone();
        let opening = spawn_local(async move { tunnel.open(&request()).await.map(drop) });
        let mut incoming = pair.incoming.recv().await.unwrap();
        assert_eq!(pair.tunnel.streams(), 1);
        opening.abort();
        incoming.cancelled().await;
        assert_eq!(pair.tunnel.streams(), 0);
    });
}

/// A tunnel to a peer that does as `script` says, and the thread it says it on.
async fn scripted(script: impl FnOnce(Raw) + Send + 'static) -> (Rc<Tunnel>, thread::JoinHandle<()>) {
    let (listener, addr) = listen();
    let peer = thread::spawn(move || script(Raw::serve(&listener)));
    let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
    (Rc::new(Tunnel::start(secured, &config(), Share::alone()).await.unwrap()), peer)
}

async fn joined(peer: thread::JoinHandle<()>) {
    tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
}

#[test]
fn a_refused_stream_may_be_opened_elsewhere_and_the_tunnel_stays() {
    story(async || {
        let (tunnel, peer) = scripted(|mut peer| {
            peer.until(raw::HEADERS);
            peer.write(&raw::rst(1, raw::REFUSED_STREAM));
            peer.until(raw::HEADERS);
            peer.write(&raw::frame(raw::HEADERS, raw::END_HEADERS, 3, raw::OK));
            peer.until(raw::RST_STREAM);
        })
        .await;
        let refused = tunnel.open(&request()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
        assert!(refused.may_try_elsewhere());
        assert!(tunnel.has_room(1));
        drop(tunnel.open(&request()).await.unwrap());
        joined(peer).await;
    });
}

#[test]
fn a_stream_above_the_last_of_a_goaway_is_refused_and_those_below_run_on() {
    story(async || {
        let (tunnel, peer) = scripted(|mut peer| {
            peer.until(raw::HEADERS);
            peer.write(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, raw::OK));
            assert_eq!(peer.until(raw::HEADERS).stream, 3);
            peer.write(&raw::goaway(1, raw::NO_ERROR));
            assert_eq!(peer.until(raw::DATA).payload, b"still there?");
            peer.write(&raw::frame(raw::DATA, raw::END_STREAM, 1, b"yes"));
            assert_eq!(peer.until(raw::DATA).flags, raw::END_STREAM);
        })
        .await;
        let (mut app, carrying) = carried(tunnel.open(&request()).await.unwrap()).await;
        let refused = tunnel.open(&request()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
        assert!(refused.may_try_elsewhere());
        assert!(tunnel.is_closed() && !tunnel.has_room(100));
        app.write_all(b"still there?").await.unwrap();
        app.shutdown().await.unwrap();
        let mut answer = String::new();
        app.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "yes");
        assert_eq!(carrying.await.unwrap().0, Ended::Complete);
        joined(peer).await;
    });
}

#[test]
fn a_connect_that_is_never_answered_is_given_up_after_10_s() {
    story(async || {
        let (tunnel, peer) = scripted(|mut peer| {
            assert_eq!(peer.until(raw::HEADERS).stream, 1);
            assert_eq!(peer.until(raw::RST_STREAM).code(), raw::CANCEL);
        })
        .await;
        // Real time for the greetings.
        tokio::time::sleep(Duration::from_secs(2)).await;
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        let late = tunnel.open(&request()).await.err().unwrap();
        assert!(matches!(late, OpenError::Timeout(CONNECT_DEADLINE)), "{late}");
        assert!(!late.may_try_elsewhere());
        assert!((10.0..10.5).contains(&started.elapsed().as_secs_f64()));
        assert_eq!(tunnel.streams(), 0);
        joined(peer).await;
    });
}

#[test]
fn a_tunnel_that_dies_before_the_answer_is_lost_and_not_used_again() {
    story(async || {
        let (tunnel, peer) = scripted(|mut peer| drop(peer.until(raw::HEADERS))).await;
        let lost = tunnel.open(&request()).await.err().unwrap();
        assert!(matches!(lost, OpenError::Lost(_)), "{lost}");
        assert!(lost.may_try_elsewhere());
        assert!(tunnel.is_closed());
        joined(peer).await;
    });
}

#[test]
fn a_drained_server_takes_no_new_streams_and_ends_with_its_last() {
    story(async || {
        let mut pair = pair().await;
        let Line { mut client, mut server, near, far } = pair.line().await;
        pair.drain.take().unwrap().send(()).unwrap();
        // The first GOAWAY tells the peer, the second closes the door; both are through when an open is refused.
        let request = request();
        let mut incoming = pair.incoming;
        let _answering = spawn_local(async move {
            while let Some(incoming) = incoming.recv().await {
                incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
            }
        });
        let refused = loop {
            match pair.tunnel.open(&request).await.err().unwrap() {
                OpenError::Status(_) => {}
                other => break other,
            }
        };
        assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
        client.write_all(b"live").await.unwrap();
        let mut heard = [0; 4];
        server.read_exact(&mut heard).await.unwrap();
        drop((client, server));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
        assert_eq!(pair.serving.await.unwrap(), Ok(()));
    });
}

#[test]
fn who_gives_up_waiting_for_room_on_a_tunnel_does_not_count_any_more() {
    once(async {
        let mut pair = pair().await;
        let mut streams = Vec::new();
        // As many as the server allows.
        for _ in 0..200 {
            streams.push(pair.opened().await);
        }
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let tunnel = pair.tunnel.clone();
                spawn_local(async move { tunnel.open(&request()).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(waiting.iter().all(|open| !open.is_finished()), "the tunnel has room");
        assert_eq!(pair.tunnel.streams(), 203);
        waiting.iter().for_each(JoinHandle::abort);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(pair.tunnel.streams(), 200);
        // The next one to come gets the next room.
        drop(streams.pop());
        let stream = pair.opened().await;
        assert_eq!(pair.tunnel.streams(), 200);
        drop((stream, streams));
    });
}
