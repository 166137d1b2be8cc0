//! Streams that share one tunnel, over an in-memory pipe instead of TLS.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::*;

/// The connection window of a peer that never announced a larger one (RFC 9113 §6.9.2), in first chunks.
const WINDOW_IN_CHUNKS: usize = 65_535usize.div_ceil(FIRST_CHUNK);

struct Uncounted;

impl Meter for Uncounted {
    fn to_upstream(&self, _: usize) {}
    fn to_downstream(&self, _: usize) {}
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
    (near.unwrap(), far.unwrap().0)
}

/// A client of a peer with default windows; the peer answers 200 and hands over every byte it gets.
async fn client() -> (SendRequest<Bytes>, tokio::sync::mpsc::UnboundedReceiver<Bytes>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (got, bytes) = tokio::sync::mpsc::unbounded_channel();
    spawn_local(async move {
        let mut server = h2::server::handshake(far).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let got = got.clone();
            spawn_local(async move {
                let _open = respond.send_response(Response::new(()), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    got.send(data).unwrap();
                }
            });
        }
    });
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    spawn_local(connection);
    (requests, bytes)
}

/// One carried stream; what is returned is its application's end.
async fn stream(requests: &SendRequest<Bytes>) -> TcpStream {
    let head = Request::builder().method("CONNECT").uri("10.0.0.1:80").body(()).unwrap();
    let (response, send) = requests.clone().ready().await.unwrap().send_request(head, false).unwrap();
    let (parts, receive) = response.await.unwrap().into_parts();
    let opened = Opened {
        send,
        receive,
        headers: parts.headers,
        app: Side::Client,
        share: Share::alone(),
        _count: None,
    };
    let (app, socket) = sockets().await;
    spawn_local(async move { opened.carry(socket, Rc::new(Uncounted)).await });
    app
}

#[tokio::test]
async fn silent_streams_hold_none_of_the_window_that_others_need() {
    LocalSet::new()
        .run_until(async {
            let (requests, mut bytes) = client().await;
            let mut silent = Vec::new();
            for _ in 0..=WINDOW_IN_CHUNKS {
                let mut app = stream(&requests).await;
                app.write_all(b"x").await.unwrap();
                let said = timeout(Duration::from_secs(20), bytes.recv()).await;
                assert_eq!(said.expect("the window is held by silent streams").unwrap(), "x");
                silent.push(app);
            }
        })
        .await;
}

#[tokio::test]
async fn a_short_read_keeps_no_large_buffer() {
    let mut read = BytesMut::with_capacity(LARGEST_CHUNK);
    read.extend_from_slice(b"x");
    let packed = packed(read);
    assert_eq!(packed, "x");
    assert!(BytesMut::from(packed).capacity() < FIRST_CHUNK);
}

#[tokio::test]
async fn a_tunnel_that_dies_is_a_reset_for_the_application() {
    LocalSet::new()
        .run_until(async {
            let (near, far) = tokio::io::duplex(1 << 16);
            let peer = spawn_local(async move {
                let mut server = h2::server::handshake(far).await.unwrap();
                let (_request, mut respond) = server.accept().await.unwrap().unwrap();
                let _open = respond.send_response(Response::new(()), false).unwrap();
                // The answer leaves; then the connection is dropped without a word.
                let _ = timeout(Duration::from_millis(200), server.accept()).await;
            });
            let (requests, connection) = h2::client::handshake(near).await.unwrap();
            spawn_local(connection);
            let mut app = stream(&requests).await;
            peer.await.unwrap();
            let end = timeout(Duration::from_secs(20), app.read(&mut [0])).await.unwrap();
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
}
