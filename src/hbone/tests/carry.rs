//! What two applications see of each other through a tunnel.

use std::io::ErrorKind;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::raw::{self, Raw};
use super::*;
use crate::http2::Code;
use crate::net::socket::unacknowledged;

#[test]
fn every_byte_arrives_once_and_in_order_in_both_directions() {
    story(async || {
        let mut pair = pair().await;
        for (n, length) in [0, 1, 16_384 - 9, 16_384, 65_536, MIB, 20 * MIB].into_iter().enumerate() {
            let line = pair.line().await;
            let (there, back) = (payload(n as u64, length), payload(n as u64 + 100, length));
            let (sent, answered) = (there.clone(), back.clone());
            let talk = async |mut app: TcpStream, say: Vec<u8>| {
                let (mut read, mut write) = app.split();
                let speak = async {
                    write.write_all(&say).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut heard = Vec::new();
                let (_, got) = tokio::join!(speak, read.read_to_end(&mut heard));
                got.unwrap();
                heard
            };
            let (heard_back, heard_there) =
                tokio::join!(talk(line.client, sent), talk(line.server, answered));
            // No assert_eq: nobody reads a difference of megabytes.
            assert!(heard_there == there && heard_back == back, "{length} bytes changed on their way");
            for (ended, counted) in [line.near.await.unwrap(), line.far.await.unwrap()] {
                assert_eq!(ended, Ended::Complete);
                assert_eq!((counted.upstream.get(), counted.downstream.get()), (length, length));
            }
        }
        assert_eq!(pair.tunnel.streams(), 0);
    });
}

#[test]
fn a_client_that_stops_sending_still_hears_the_answer() {
    story(async || {
        let mut pair = pair().await;
        let Line { mut client, mut server, near, far } = pair.line().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        server.write_all(&payload(1, MIB)).await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer == payload(1, MIB));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
    });
}

#[test]
fn a_server_that_stops_sending_still_hears_the_client() {
    story(async || {
        let mut pair = pair().await;
        let Line { mut client, mut server, near, far } = pair.line().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        client.write_all(&payload(2, MIB)).await.unwrap();
        drop(client);
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert!(heard == payload(2, MIB));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
    });
}

#[test]
fn a_client_reset_reaches_the_server_application_as_a_reset() {
    story(async || {
        let mut pair = pair().await;
        let Line { client, server, near, far } = pair.line().await;
        reset(client);
        is_reset(server).await;
        assert_eq!(near.await.unwrap().0, Ended::AppReset(ErrorKind::ConnectionReset));
        assert_eq!(far.await.unwrap().0, Ended::PeerReset(Code::CANCEL));
    });
}

#[test]
fn a_server_reset_reaches_the_client_application_as_a_reset() {
    story(async || {
        let mut pair = pair().await;
        let Line { client, server, near, far } = pair.line().await;
        reset(server);
        is_reset(client).await;
        assert_eq!(far.await.unwrap().0, Ended::AppReset(ErrorKind::ConnectionReset));
        assert_eq!(near.await.unwrap().0, Ended::PeerReset(Code::CANCEL));
    });
}

#[test]
fn a_reset_after_a_half_close_is_a_reset_too() {
    story(async || {
        let mut pair = pair().await;
        let Line { mut client, mut server, near, far } = pair.line().await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        reset(client);
        assert!(matches!(near.await.unwrap().0, Ended::AppReset(_)));
        assert_eq!(far.await.unwrap().0, Ended::PeerReset(Code::CANCEL));
        // Already at the end of what it reads, it learns when it looks or writes.
        server.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert!(server.write(b"x").await.is_err());
    });
}

#[test]
fn a_reset_is_seen_while_the_peer_takes_nothing() {
    story(async || {
        let mut pair = pair().await;
        let Line { mut client, server, near, far } = pair.line().await;
        // The server application reads nothing, so all windows and buffers on the way fill up.
        let chunk = payload(3, MIB);
        while timeout(Duration::from_millis(500), client.write_all(&chunk)).await.is_ok() {}
        reset(client);
        assert_eq!(near.await.unwrap().0, Ended::AppReset(ErrorKind::ConnectionReset));
        drop(server);
        assert!(!matches!(far.await.unwrap().0, Ended::Complete));
    });
}

#[test]
fn a_tunnel_that_dies_reaches_both_applications_as_a_reset() {
    story(async || {
        let mut pair = pair().await;
        let Line { client, server, near, far } = pair.line().await;
        pair.serving.abort();
        is_reset(client).await;
        is_reset(server).await;
        assert!(matches!(near.await.unwrap().0, Ended::TunnelLost(_)));
        assert!(matches!(far.await.unwrap().0, Ended::TunnelLost(_)));
    });
}

#[test]
fn dropping_the_carrying_resets_both_applications() {
    story(async || {
        let mut pair = pair().await;
        let Line { client, server, near, far } = pair.line().await;
        near.abort();
        is_reset(client).await;
        is_reset(server).await;
        assert_eq!(far.await.unwrap().0, Ended::PeerReset(Code::CANCEL));
        assert_eq!(pair.tunnel.streams(), 0);
    });
}

#[test]
fn a_tunnel_handed_to_another_thread_works_there() {
    let (client, server) = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(secured())
    };
    let (opened, is_open) = std::sync::mpsc::channel();
    let far = thread::spawn(move || {
        once(async {
            let server = Server::start(server, &config(), Share::alone()).await.unwrap();
            let each = |incoming: Incoming| {
                spawn_local(async move {
                    let (mut app, carrying) = carried(incoming.accept(None).unwrap()).await;
                    let mut heard = Vec::new();
                    app.read_to_end(&mut heard).await.unwrap();
                    app.write_all(&heard).await.unwrap();
                    drop(app);
                    carrying.await.unwrap();
                });
            };
            server.serve(each, std::future::pending()).await.unwrap();
        });
    });
    let near = thread::spawn(move || {
        once(async {
            let tunnel = Tunnel::start(client, &config(), Share::alone()).await.unwrap();
            let (mut app, carrying) = carried(tunnel.open(&request()).await.unwrap()).await;
            opened.send(()).unwrap();
            app.write_all(b"echo").await.unwrap();
            app.shutdown().await.unwrap();
            let mut heard = Vec::new();
            app.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"echo");
            assert_eq!(carrying.await.unwrap().0, Ended::Complete);
            drop(tunnel);
            // Its task says goodbye.
            sleep(Duration::from_millis(300)).await;
        });
    });
    is_open.recv().unwrap();
    near.join().unwrap();
    far.join().unwrap();
}

/// What the client's application and its proxy see when the peer answers 200 and then writes `then` at once.
fn after(then: Vec<u8>, check: impl AsyncFn(TcpStream, Ended)) {
    story(async || {
        let (listener, addr) = listen();
        let (seen, done) = std::sync::mpsc::channel::<()>();
        let then = then.clone();
        let peer = thread::spawn(move || {
            let mut peer = Raw::serve(&listener);
            assert_eq!(peer.until(raw::HEADERS).stream, 1);
            peer.write(&[raw::frame(raw::HEADERS, raw::END_HEADERS, 1, raw::OK), then].concat());
            // The connection stays up until the ending was seen.
            let _ = done.recv();
        });
        let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
        let tunnel = Tunnel::start(secured, &config(), Share::alone()).await.unwrap();
        let opened = tunnel.open(&request()).await.unwrap();
        let (app, carrying) = carried(opened).await;
        check(app, carrying.await.unwrap().0).await;
        drop(seen);
        peer.join().unwrap();
    });
}

async fn all_of(mut app: TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    app.read_to_end(&mut heard).await.unwrap();
    heard
}

#[test]
fn a_finished_answer_followed_by_no_error_is_a_clean_end() {
    let body = payload(4, 10_000);
    let then = [raw::frame(raw::DATA, raw::END_STREAM, 1, &body), raw::rst(1, raw::NO_ERROR)].concat();
    after(then, async |app, ended| {
        assert_eq!(ended, Ended::Complete);
        assert!(all_of(app).await == body);
    });
}

#[test]
fn an_answer_that_ended_is_delivered_whole_before_the_reset_behind_it() {
    let body = payload(5, 10_000);
    let then = [raw::frame(raw::DATA, raw::END_STREAM, 1, &body), raw::rst(1, raw::CANCEL)].concat();
    after(then, async |mut app, ended| {
        assert_eq!(ended, Ended::PeerReset(Code::CANCEL));
        let mut heard = vec![0; body.len()];
        app.read_exact(&mut heard).await.unwrap();
        assert!(heard == body);
        app.ready(tokio::io::Interest::ERROR).await.unwrap();
    });
}

#[test]
fn a_reset_of_any_code_before_the_end_is_a_reset() {
    for code in [raw::NO_ERROR, 1, 2, 5, raw::REFUSED_STREAM, raw::CANCEL, 0xd, 0xffff] {
        let then = [raw::frame(raw::DATA, 0, 1, b"half an answ"), raw::rst(1, code)].concat();
        after(then, async |app, ended| {
            assert_eq!(ended, Ended::PeerReset(Code(code)));
            is_reset(app).await;
        });
    }
}

#[test]
fn streams_that_say_nothing_hold_no_window_that_others_need() {
    story(async || {
        let (listener, addr) = listen();
        let peer = thread::spawn(move || {
            // 65,535 bytes of connection window, as every HTTP/2 connection starts, and never more.
            let mut peer = Raw::serve(&listener);
            let (mut bytes, mut talker) = (0, Vec::new());
            while talker.len() < 40_000 {
                let frame = peer.next();
                match (frame.kind, frame.stream) {
                    (raw::HEADERS, stream) => {
                        peer.write(&raw::frame(raw::HEADERS, raw::END_HEADERS, stream, raw::OK));
                    }
                    (raw::DATA, 21) => talker.extend(frame.payload),
                    (raw::DATA, _) => bytes += frame.payload.len(),
                    _ => {}
                }
            }
            (bytes, talker)
        });
        let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
        let tunnel = Tunnel::start(secured, &config(), Share::alone()).await.unwrap();
        let mut quiet = Vec::new();
        for _ in 0..10 {
            let (mut app, carrying) = carried(tunnel.open(&request()).await.unwrap()).await;
            app.write_all(b"hello").await.unwrap();
            quiet.push((app, carrying));
        }
        let (mut app, _carrying) = carried(tunnel.open(&request()).await.unwrap()).await;
        app.write_all(&payload(6, 40_000)).await.unwrap();
        let (bytes, talker) = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        assert_eq!(bytes, 50);
        assert!(talker == payload(6, 40_000));
    });
}

#[test]
fn what_was_said_before_a_fin_arrives_although_a_reset_came_behind_it() {
    for backwards in [false, true] {
        story(async || {
            let mut pair = pair().await;
            let Line { client, server, near, far } = pair.line().await;
            let (first, mut second) = if backwards { (server, client) } else { (client, server) };
            // What is said waits everywhere on the way, also in the socket that the carrier reads from.
            let said = payload(5, 64 * MIB);
            let mut written = 0;
            while timeout(Duration::from_millis(500), first.writable()).await.is_ok() {
                written += first.try_write(&said[written..][..16 << 10]).unwrap_or(0);
            }
            let mut heard = Vec::new();
            let mut piece = vec![0; 16 << 10];
            while unacknowledged(&first) > 0 {
                second.read_exact(&mut piece).await.unwrap();
                heard.extend_from_slice(&piece);
                sleep(Duration::from_millis(20)).await;
            }
            assert!(heard.len() < written, "nothing waits any more");
            drop(first);
            // Nobody is there for this, which the kernel says by a reset.
            sleep(Duration::from_millis(50)).await;
            second.write_all(&payload(6, 1 << 10)).await.unwrap();
            sleep(Duration::from_millis(200)).await;
            second.read_to_end(&mut heard).await.unwrap();
            assert!(heard == said[..written], "{} bytes of {written} arrived", heard.len());
            // And then it is told, although it had read the end.
            second.ready(tokio::io::Interest::ERROR).await.unwrap();
            let ((near, _), (far, _)) = (near.await.unwrap(), far.await.unwrap());
            let (told, passed_on) = if backwards { (far, near) } else { (near, far) };
            assert_eq!(told, Ended::AppReset(ErrorKind::BrokenPipe));
            assert_eq!(passed_on, Ended::PeerReset(Code::CANCEL));
        });
    }
}

#[test]
fn a_reset_behind_a_fin_waits_for_what_was_said_before() {
    story(async || {
        let mut pair = pair().await;
        // Less than the windows hold, so that all of it has left the near side when the reset comes. Some waits in the far carrier,
        // some only in the sockets.
        for length in [20 << 10, 30 << 10, 40 << 10, 50 << 10, 200 << 10] {
            let Line { mut client, mut server, near, far } = pair.line_of(Some(16 << 10)).await;
            let said = payload(7, length);
            client.write_all(&said).await.unwrap();
            client.shutdown().await.unwrap();
            while unacknowledged(&client) > 0 {
                sleep(Duration::from_millis(10)).await;
            }
            reset(client);
            assert!(matches!(near.await.unwrap().0, Ended::AppReset(_)));
            sleep(Duration::from_millis(200)).await;
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert!(heard == said, "{} bytes of {length} arrived", heard.len());
            server.ready(tokio::io::Interest::ERROR).await.unwrap();
            assert_eq!(far.await.unwrap().0, Ended::PeerReset(Code::CANCEL));
        }
    });
}
