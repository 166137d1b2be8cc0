//! Two applications, each with a socket of ours, over loopback.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_local};

use super::pool::BUFFER;
use super::*;

const MIB: usize = 1 << 20;

#[derive(Debug, Default)]
struct Counted {
    up: Cell<usize>,
    down: Cell<usize>,
}

impl Meter for Counted {
    fn to_upstream(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes);
    }

    fn to_downstream(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes);
    }
}

/// A relayed connection: both applications' ends, and how the relaying ends.
struct Line {
    client: TcpStream,
    server: TcpStream,
    relaying: JoinHandle<(Result<(), Broken>, Counted)>,
}

async fn line() -> Line {
    let (client, downstream) = socket_pair().await;
    let (server, upstream) = socket_pair().await;
    let relaying = spawn_local(async move {
        let counted = Counted::default();
        (relay(downstream, upstream, &counted).await, counted)
    });
    Line { client, server, relaying }
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (app, accepted) = tokio::join!(dial, listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

/// Runs one story on one worker's runtime, and fails it when it hangs.
fn story(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), story).await.expect("the story hangs");
    });
}

/// Bytes that a lost, doubled or moved piece would change.
fn payload(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn reset(app: TcpStream) {
    reset_on_close(&app);
}

async fn is_reset(mut app: TcpStream) {
    let ended = app.read_to_end(&mut Vec::new()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn every_byte_arrives_once_in_order_and_counted() {
    story(async {
        for (n, length) in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, MIB, 20 * MIB].into_iter().enumerate() {
            let Line { client, server, relaying } = line().await;
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
            let (there, back) = (payload(n as u64, length), payload(n as u64 + 100, length / 2));
            let (heard_back, heard_there) =
                tokio::join!(talk(client, there.clone()), talk(server, back.clone()));
            // No assert_eq: nobody reads a difference of megabytes.
            assert!(heard_there == there && heard_back == back, "{length} bytes changed on their way");
            let (ended, counted) = relaying.await.unwrap();
            assert_eq!(ended, Ok(()));
            assert_eq!((counted.up.get(), counted.down.get()), (length, length / 2));
        }
    });
}

#[test]
fn a_client_that_stops_sending_still_hears_the_answer() {
    story(async {
        let Line { mut client, mut server, relaying } = line().await;
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
        assert_eq!(relaying.await.unwrap().0, Ok(()));
    });
}

#[test]
fn a_server_that_stops_sending_still_hears_the_client() {
    story(async {
        let Line { mut client, mut server, relaying } = line().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        client.write_all(b"more").await.unwrap();
        drop(client);
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "more");
        assert_eq!(relaying.await.unwrap().0, Ok(()));
    });
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    story(async {
        let Line { client, server, relaying } = line().await;
        reset(client);
        is_reset(server).await;
        assert_eq!(relaying.await.unwrap().0, Err(Broken::Downstream(ErrorKind::ConnectionReset)));
        let Line { client, server, relaying } = line().await;
        reset(server);
        is_reset(client).await;
        assert_eq!(relaying.await.unwrap().0, Err(Broken::Upstream(ErrorKind::ConnectionReset)));
    });
}

#[test]
fn a_reset_after_a_half_close_reaches_the_other_end() {
    story(async {
        let Line { mut client, mut server, relaying } = line().await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        reset(client);
        assert!(matches!(relaying.await.unwrap().0, Err(Broken::Downstream(_))));
        server.ready(Interest::ERROR).await.unwrap();

        let Line { mut client, mut server, relaying } = line().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        reset(server);
        assert!(matches!(relaying.await.unwrap().0, Err(Broken::Upstream(_))));
        client.ready(Interest::ERROR).await.unwrap();
    });
}

#[test]
fn a_reset_is_seen_while_the_other_end_takes_nothing() {
    story(async {
        let Line { mut client, server, relaying } = line().await;
        let chunk = payload(2, MIB);
        while tokio::time::timeout(Duration::from_millis(500), client.write_all(&chunk)).await.is_ok() {}
        reset(client);
        assert_eq!(relaying.await.unwrap().0, Err(Broken::Downstream(ErrorKind::ConnectionReset)));
        is_reset(server).await;
    });
}

#[test]
fn dropping_the_relaying_resets_both_ends() {
    story(async {
        let Line { client, server, relaying } = line().await;
        tokio::task::yield_now().await;
        relaying.abort();
        is_reset(client).await;
        is_reset(server).await;
    });
}

#[test]
fn an_idle_connection_owns_no_buffer() {
    story(async {
        let mut lines = Vec::new();
        for _ in 0..8 {
            let mut line = line().await;
            // Both directions have carried something before they fall silent.
            line.client.write_all(b"ping").await.unwrap();
            line.server.read_exact(&mut [0; 4]).await.unwrap();
            line.server.write_all(b"pong").await.unwrap();
            line.client.read_exact(&mut [0; 4]).await.unwrap();
            lines.push(line);
        }
        // Until the relays have found out that there is nothing more to read.
        while spare().buffers == 0 {
            tokio::task::yield_now().await;
        }
        // One after the other they all made do with the two that the first one needed, at most.
        assert!(spare().buffers <= 2);
    });
}
