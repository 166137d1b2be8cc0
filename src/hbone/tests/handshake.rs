//! The handshake for either carrier: it works with the other one too, and operators read the same words.

use std::io::{Read, Write};
use std::thread;

use super::*;

const CARRIERS: [Carrier; 2] = [Carrier::InPlace, Carrier::Classic];

/// Both ends' results of one handshake, client first.
async fn shake(
    client: Carrier,
    server: Carrier,
    config: Arc<ServerConfig>,
) -> (Result<Secured, HandshakeError>, Result<Secured, HandshakeError>) {
    let (listener, addr) = listen();
    let plan = DialPlan { carrier: client, ..plan(addr) };
    let accept = async { PLACE.handshakes.accept(accept_tcp(listener).await, config, server).await };
    tokio::join!(PLACE.handshakes.connect(plan), accept)
}

fn error(ended: Result<Secured, HandshakeError>) -> String {
    ended.err().expect("the handshake must fail").to_string()
}

#[test]
fn each_carrier_shakes_hands_with_each() {
    once(async {
        for client in CARRIERS {
            for server in CARRIERS {
                let (one, other) = shake(client, server, PLACE.server.clone()).await;
                let (one, other) = (one.unwrap(), other.unwrap());
                assert_eq!(*one.peer.identity(), id("cart"), "{client:?} to {server:?}");
                assert_eq!(*other.peer.identity(), id("web"), "{client:?} to {server:?}");
            }
        }
    });
}

#[test]
fn a_tunnel_carries_bytes_whichever_carrier_each_end_has() {
    once(async {
        for (near, far) in [(Carrier::InPlace, Carrier::Classic), (Carrier::Classic, Carrier::InPlace)] {
            let (client, server) = shake(near, far, PLACE.server.clone()).await;
            let tunnel = spawn_local(async move {
                Tunnel::start(client.unwrap(), &config(), Share::alone()).await.unwrap()
            });
            let server = Server::start(server.unwrap(), &config(), Share::alone()).await.unwrap();
            let (asked, mut asks) = unbounded_channel();
            let _serving =
                spawn_local(server.serve(move |incoming| drop(asked.send(incoming)), std::future::pending()));
            let tunnel = tunnel.await.unwrap();
            let request = request();
            let answer = async { asks.recv().await.unwrap().accept(None).unwrap() };
            let (opened, accepted) = tokio::join!(tunnel.open(&request), answer);
            let (mut app, _near) = carried(opened.unwrap()).await;
            let (mut served, _far) = carried(accepted).await;
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            app.write_all(b"there").await.unwrap();
            app.shutdown().await.unwrap();
            let mut came = Vec::new();
            served.read_to_end(&mut came).await.unwrap();
            assert_eq!(came, b"there", "{near:?} to {far:?}");
            served.write_all(b"and back").await.unwrap();
            served.shutdown().await.unwrap();
            came.clear();
            app.read_to_end(&mut came).await.unwrap();
            assert_eq!(came, b"and back", "{near:?} to {far:?}");
        }
    });
}

#[test]
fn a_wrong_identity_is_refused_in_the_same_words_by_either_carrier() {
    once(async {
        let (_, stranger) = certificates().await;
        let mut said = Vec::new();
        for client in CARRIERS {
            for server in CARRIERS {
                let (one, other) = shake(client, server, stranger.server_config()).await;
                said.push((error(one), error(other)));
            }
        }
        assert!(said.iter().all(|words| *words == said[0]), "{said:#?}");
        assert!(said[0].1.contains("alert"), "the server must hear why: {said:#?}");
    });
}

/// What a server says to a client that writes `bytes` and then stops sending, and what that client hears.
async fn server_meets(carrier: Carrier, bytes: &'static [u8]) -> (String, Vec<u8>) {
    let (listener, addr) = listen();
    let peer = thread::spawn(move || {
        let mut tcp = PLACE.pod.netns.run(|| StdStream::connect(addr)).unwrap();
        tcp.write_all(bytes).unwrap();
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        // What came before a reset stays in `heard`.
        let _ = tcp.read_to_end(&mut heard);
        heard
    });
    let tcp = accept_tcp(listener).await;
    let said = error(PLACE.handshakes.accept(tcp, PLACE.server.clone(), carrier).await);
    (said, peer.join().unwrap())
}

#[test]
fn bytes_that_are_no_handshake_get_the_same_words_and_the_same_alert_from_either_carrier() {
    once(async {
        for bytes in [
            &b""[..],
            b"\0",
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            &[0x16, 3, 1, 0xff, 0xff],
            &[0x16, 3, 1, 0, 40, 1],
        ] {
            let [in_place, classic] =
                [Carrier::InPlace, Carrier::Classic].map(|carrier| server_meets(carrier, bytes));
            let (in_place, classic) = (in_place.await, classic.await);
            assert_eq!(in_place, classic, "{}", bytes.escape_ascii());
        }
    });
}
