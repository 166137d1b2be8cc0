//! What peers see of us before the first stream, and when nothing happens.

use std::io::{Read, Write};
use std::thread;

use super::raw::{self, Raw};
use super::*;
use crate::http2::{FIRST_CONNECTION_WINDOW, FIRST_STREAM_WINDOW};

/// Identifiers, RFC 9113 §6.5.2.
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The window that streams begin with: in place it grows for those that drain.
fn first_window() -> u32 {
    match CARRIER.get() {
        Carrier::InPlace => FIRST_STREAM_WINDOW,
        Carrier::Classic => 4 << 20,
    }
}

/// What is added to the window that every connection starts with. In place it grows, too.
fn widened() -> u32 {
    let window = match CARRIER.get() {
        Carrier::InPlace => FIRST_CONNECTION_WINDOW,
        Carrier::Classic => 16 << 20,
    };
    window - 65_535
}

#[test]
fn a_client_announces_the_limits_of_the_reference() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut peer = Raw::accept(&listener);
            assert_eq!(peer.read(raw::PREFACE.len()), raw::PREFACE);
            (peer.next().settings(), peer.until(raw::WINDOW_UPDATE))
        });
        let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
        let _tunnel = Tunnel::start(secured, &config(), Share::alone()).await.unwrap();
        let (settings, update) = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        let expected = [
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, first_window()),
            (MAX_FRAME_SIZE, 1 << 20),
            (MAX_HEADER_LIST_SIZE, 16 << 10),
        ];
        assert_eq!(settings, expected.into());
        assert_eq!((update.stream, update.code()), (0, widened()));
    });
}

#[test]
fn a_server_announces_the_limits_of_the_reference() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut peer = Raw::connect(addr);
            peer.write(raw::PREFACE);
            peer.write(&raw::frame(raw::SETTINGS, 0, 0, &[]));
            (peer.next().settings(), peer.until(raw::WINDOW_UPDATE))
        });
        let tcp = accept_tcp(listener).await;
        let secured = PLACE.handshakes.accept(tcp, PLACE.server.clone(), CARRIER.get()).await.unwrap();
        let server = Server::start(secured, &config(), Share::alone()).await.unwrap();
        let _serving = spawn_local(server.serve(|_| {}, std::future::pending()));
        let (settings, update) = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        let expected = [
            (MAX_CONCURRENT_STREAMS, 200),
            (INITIAL_WINDOW_SIZE, first_window()),
            (MAX_FRAME_SIZE, 1 << 20),
            (MAX_HEADER_LIST_SIZE, 64 << 10),
        ];
        assert_eq!(settings, expected.into());
        assert_eq!((update.stream, update.code()), (0, widened()));
    });
}

#[test]
fn a_silent_server_is_pinged_after_10_s_and_given_up_20_s_later() {
    story(async || {
        let (listener, addr) = listen();
        let (lives, died) = std::sync::mpsc::channel::<()>();
        let peer = thread::spawn(move || {
            let mut peer = Raw::serve(&listener);
            let ping = peer.until(raw::PING);
            // Holds the connection without an answer until the tunnel is found dead.
            died.recv().unwrap_err();
            ping.flags
        });
        let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
        let started = tokio::time::Instant::now();
        let tunnel = Tunnel::start(secured, &config(), Share::alone()).await.unwrap();
        // Real time for the greetings; then there is only silence.
        tokio::time::sleep(Duration::from_secs(2)).await;
        tokio::time::pause();
        while !tunnel.is_closed() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let after = started.elapsed();
        assert!((30.0..30.5).contains(&after.as_secs_f64()), "given up after {after:?}");
        drop(lives);
        assert_eq!(peer.join().unwrap(), 0);
    });
}

#[test]
fn a_silent_client_is_given_up_as_well() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut peer = Raw::connect(addr);
            peer.write(raw::PREFACE);
            peer.write(&raw::frame(raw::SETTINGS, 0, 0, &[]));
            peer.until(raw::SETTINGS);
            peer.write(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[]));
            peer.until(raw::PING);
            let last = peer.until(raw::GOAWAY);
            u32::from_be_bytes(last.payload[4..8].try_into().unwrap())
        });
        let tcp = accept_tcp(listener).await;
        let secured = PLACE.handshakes.accept(tcp, PLACE.server.clone(), CARRIER.get()).await.unwrap();
        let server = Server::start(secured, &config(), Share::alone()).await.unwrap();
        let serving = spawn_local(server.serve(|_| {}, std::future::pending()));
        // Real time for what the peer says of itself; then there is only silence.
        tokio::time::sleep(Duration::from_secs(2)).await;
        tokio::time::pause();
        let ended = serving.await.unwrap();
        let why = match CARRIER.get() {
            Carrier::InPlace => "no sign of life for 20s, and none after a PING",
            Carrier::Classic => "HBONE ping timeout: no answer within 20s",
        };
        assert_eq!(ended, Err(why.to_owned()));
        assert_eq!(peer.join().unwrap(), raw::NO_ERROR);
    });
}

#[test]
fn a_client_that_sends_no_preface_is_given_up() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut peer = Raw::connect(addr);
            // An empty write finishes the handshake.
            peer.write(&[]);
            peer.ends_without(raw::GOAWAY)
        });
        let tcp = accept_tcp(listener).await;
        let secured = PLACE.handshakes.accept(tcp, PLACE.server.clone(), CARRIER.get()).await.unwrap();
        tokio::time::pause();
        let refused = Server::start(secured, &config(), Share::alone()).await.err();
        assert!(matches!(refused, Some(HandshakeError::Http2Timeout(_))), "{refused:?}");
        // In place the machine says goodbye to whoever may be there.
        assert_eq!(peer.join().unwrap(), CARRIER.get() == Carrier::Classic);
    });
}

#[test]
fn a_tls_handshake_that_never_answers_is_given_up_in_both_roles() {
    story(async || {
        let (mute, addr) = listen();
        let (listener, ours) = listen();
        let silent = PLACE.pod.netns.run(|| StdStream::connect(ours)).unwrap();
        let accept = async {
            PLACE.handshakes.accept(accept_tcp(listener).await, PLACE.server.clone(), CARRIER.get()).await
        };
        let (as_client, as_server) = tokio::join!(PLACE.handshakes.connect(plan(addr)), accept);
        assert!(matches!(as_client.err(), Some(HandshakeError::TlsTimeout(_))));
        assert!(matches!(as_server.err(), Some(HandshakeError::TlsTimeout(_))));
        drop((mute, silent));
    });
}

#[test]
fn a_server_with_another_identity_than_expected_is_refused() {
    story(async || {
        let (listener, addr) = listen();
        let (_, stranger) = certificates().await;
        let accept = async {
            PLACE.handshakes.accept(accept_tcp(listener).await, stranger.server_config(), CARRIER.get()).await
        };
        let (client, server) = tokio::join!(PLACE.handshakes.connect(plan(addr)), accept);
        assert!(matches!(client.err(), Some(HandshakeError::Tls(_))));
        assert!(matches!(server.err(), Some(HandshakeError::Tls(_))));
    });
}

#[test]
fn handshakes_beyond_the_budget_are_refused_and_the_budget_comes_back() {
    story(async || {
        let (few, _) = Handshakes::start(1, 1).unwrap();
        let (mute, addr) = listen();
        let stuck = spawn_local({
            let few = few.clone();
            async move { few.connect(plan(addr)).await.err() }
        });
        tokio::task::yield_now().await;
        let refused = few.connect(plan(addr)).await.err();
        assert!(matches!(refused, Some(HandshakeError::Busy(1))), "{refused:?}");
        let (tcp, _) = tokio::task::spawn_blocking(move || mute.accept()).await.unwrap().unwrap();
        drop(tcp);
        assert!(matches!(stuck.await.unwrap(), Some(HandshakeError::Tls(_))));
        // The place is given back by the handshake's task, a moment after its answer.
        let (mute, addr) = listen();
        drop(mute);
        let after = loop {
            match few.connect(plan(addr)).await.err() {
                Some(HandshakeError::Busy(_)) => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert!(matches!(after, Some(HandshakeError::Connect { .. })), "{after:?}");
    });
}

#[test]
fn bytes_that_are_no_tls_end_the_handshake() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            let mut tcp = PLACE.pod.netns.run(|| StdStream::connect(addr)).unwrap();
            tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let _ = tcp.read_to_end(&mut Vec::new());
        });
        let tcp = accept_tcp(listener).await;
        let refused = PLACE.handshakes.accept(tcp, PLACE.server.clone(), CARRIER.get()).await.err();
        assert!(matches!(refused, Some(HandshakeError::Tls(_))), "{refused:?}");
        peer.join().unwrap();
    });
}
