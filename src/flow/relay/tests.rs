//! Two applications, each with a socket of ours, over loopback.

use std::cell::Cell;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::pool::BUFFER;
use super::*;
use crate::net::socket::unacknowledged;

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
    counted: Rc<Counted>,
    relaying: JoinHandle<Result<(), Broken>>,
}

async fn line() -> Line {
    let (client, downstream) = socket_pair().await;
    let (server, upstream) = socket_pair().await;
    let counted = Rc::new(Counted::default());
    let count = counted.clone();
    let relaying = spawn_local(async move { relay(downstream, upstream, count, Share::alone()).await });
    Line { client, server, counted, relaying }
}

impl Line {
    /// The client has said so much that what it says next goes through a pipe.
    async fn with_much_said() -> Self {
        let mut line = line().await;
        let said = payload(9, MIB);
        let mut heard = vec![0; MIB];
        let (wrote, read) = tokio::join!(line.client.write_all(&said), line.server.read_exact(&mut heard));
        wrote.unwrap();
        read.unwrap();
        assert!(heard == said);
        line
    }

    /// The client talks until nobody takes any more. Returns how much it has said.
    async fn stuff(&mut self) -> usize {
        let chunk = payload(2, MIB);
        let mut said = 0;
        while let Ok(written) = timeout(Duration::from_millis(500), self.client.write(&chunk)).await {
            said += written.unwrap();
        }
        said
    }
}

/// Pipes that this process has open, of all threads.
fn open_pipes() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:")))
        .count()
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
        timeout(Duration::from_secs(120), story).await.expect("the story hangs");
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
            let Line { client, server, counted, relaying } = line().await;
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
            assert_eq!(relaying.await.unwrap(), Ok(()));
            assert_eq!((counted.up.get(), counted.down.get()), (length, length / 2));
        }
    });
}

#[test]
fn a_client_that_stops_sending_still_hears_the_answer() {
    story(async {
        let Line { mut client, mut server, relaying, .. } = line().await;
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
        assert_eq!(relaying.await.unwrap(), Ok(()));
    });
}

#[test]
fn a_server_that_stops_sending_still_hears_the_client() {
    story(async {
        let Line { mut client, mut server, relaying, .. } = line().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        client.write_all(b"more").await.unwrap();
        drop(client);
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "more");
        assert_eq!(relaying.await.unwrap(), Ok(()));
    });
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    story(async {
        let Line { client, server, relaying, .. } = line().await;
        reset(client);
        is_reset(server).await;
        assert_eq!(relaying.await.unwrap(), Err(Broken::Downstream(ErrorKind::ConnectionReset)));
        let Line { client, server, relaying, .. } = line().await;
        reset(server);
        is_reset(client).await;
        assert_eq!(relaying.await.unwrap(), Err(Broken::Upstream(ErrorKind::ConnectionReset)));
    });
}

#[test]
fn a_reset_after_a_half_close_reaches_the_other_end() {
    story(async {
        let Line { mut client, mut server, relaying, .. } = line().await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        reset(client);
        assert!(matches!(relaying.await.unwrap(), Err(Broken::Downstream(_))));
        server.ready(Interest::ERROR).await.unwrap();

        let Line { mut client, mut server, relaying, .. } = line().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        reset(server);
        assert!(matches!(relaying.await.unwrap(), Err(Broken::Upstream(_))));
        client.ready(Interest::ERROR).await.unwrap();
    });
}

#[test]
fn a_reset_is_seen_while_the_other_end_takes_nothing() {
    story(async {
        let mut line = line().await;
        let said = line.stuff().await;
        // What waits in the pipe is not delivered, and never will be.
        assert!(line.counted.up.get() < said);
        assert_eq!(spare().pipes, 0, "a pipe with bytes in it stays with its connection");
        reset(line.client);
        assert_eq!(line.relaying.await.unwrap(), Err(Broken::Downstream(ErrorKind::ConnectionReset)));
        assert_eq!(spare().pipes, 0, "nobody else gets those bytes");
        is_reset(line.server).await;
    });
}

#[test]
fn a_target_that_resets_with_bytes_in_the_pipe_is_passed_on() {
    story(async {
        let mut line = line().await;
        line.stuff().await;
        reset(line.server);
        assert!(matches!(line.relaying.await.unwrap(), Err(Broken::Upstream(_))));
        is_reset(line.client).await;
        assert_eq!(spare().pipes, 0);
    });
}

#[test]
fn counters_say_what_was_delivered_at_every_moment() {
    story(async {
        let mut line = line().await;
        let said = line.stuff().await;
        line.client.shutdown().await.unwrap();
        let (mut heard, mut chunk) = (0, vec![0; 100_000]);
        loop {
            match line.server.read(&mut chunk).await.unwrap() {
                0 => break,
                read => heard += read,
            }
            let counted = line.counted.up.get();
            assert!(heard <= counted && counted <= said, "{heard} heard, {counted} counted, {said} said");
        }
        assert_eq!((heard, line.counted.up.get()), (said, said));
    });
}

#[test]
fn an_end_comes_behind_what_waits_in_the_pipe() {
    story(async {
        let mut line = line().await;
        let said = line.stuff().await;
        line.client.shutdown().await.unwrap();
        // Long enough to overtake, if it could.
        sleep(Duration::from_millis(50)).await;
        let mut heard = Vec::new();
        line.server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), said);
        line.server.write_all(b"thanks").await.unwrap();
        drop(line.server);
        let mut answer = String::new();
        line.client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((answer.as_str(), line.relaying.await.unwrap()), ("thanks", Ok(())));
    });
}

#[test]
fn what_follows_urgent_data_arrives_without_a_further_word() {
    story(async {
        for mut line in [line().await, Line::with_much_said().await] {
            for chunk in [b"first ".to_vec(), payload(5, 40_000), payload(6, 200_000)] {
                // Before the relay has its turn, so that it finds all of it at once.
                let socket = socket2::SockRef::from(&line.client);
                assert_eq!(socket.send(&chunk).unwrap(), chunk.len());
                socket.send_out_of_band(b"!").unwrap();
                socket.send(b"second").unwrap();
                let mut heard = vec![0; chunk.len() + 6];
                line.server.read_exact(&mut heard).await.unwrap();
                assert!(heard == [&chunk[..], b"second"].concat());
            }
        }
    });
}

#[test]
fn urgent_data_is_no_end() {
    story(async {
        let mut line = Line::with_much_said().await;
        let socket = socket2::SockRef::from(&line.client);
        socket.send(&payload(7, 100_000)).unwrap();
        socket.send_out_of_band(b"!").unwrap();
        socket.send(b"the end").unwrap();
        line.client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        line.server.read_to_end(&mut heard).await.unwrap();
        assert!(heard.ends_with(b"the end") && heard.len() == 100_007);
    });
}

#[test]
fn a_half_closed_connection_is_probed_at_both_ends() {
    story(async {
        let (mut client, downstream) = socket_pair().await;
        let (mut server, upstream) = socket_pair().await;
        let ours = [&downstream, &upstream].map(|socket| socket.as_fd().try_clone_to_owned().unwrap());
        let relaying =
            spawn_local(async move { relay(downstream, upstream, Counted::default(), Share::alone()).await });
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        for socket in &ours {
            assert!(!socket2::SockRef::from(socket).keepalive().unwrap());
        }
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        for socket in &ours {
            let socket = socket2::SockRef::from(socket);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        }
        relaying.abort();
    });
}

#[test]
fn dropping_the_relaying_resets_both_ends() {
    story(async {
        let Line { client, server, relaying, .. } = line().await;
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

#[test]
fn an_idle_connection_owns_no_pipe() {
    story(async {
        let mut lines = Vec::new();
        for _ in 0..8 {
            lines.push(Line::with_much_said().await);
        }
        sleep(Duration::from_millis(50)).await;
        // One after the other they all made do with the one that the first one needed.
        assert_eq!(spare().pipes, 1);
        assert!(open_pipes() > 0);
    });
}

#[test]
fn a_busy_connection_lets_others_have_their_turn() {
    story(async {
        let busy = Line::with_much_said().await;
        let [mut client, mut server] = [busy.client, busy.server].map(|app| {
            let app = app.into_std().unwrap();
            app.set_nonblocking(false).unwrap();
            app
        });
        // Each on a thread of its own, and never at a loss.
        let talks = std::thread::spawn(move || while io::Write::write(&mut client, &[1; MIB]).is_ok() {});
        let hears = std::thread::spawn(move || {
            while io::Read::read(&mut server, &mut vec![0; MIB]).is_ok_and(|read| read > 0) {}
        });
        let mut quiet = line().await;
        let (before, rounds) = (busy.counted.up.get(), 200);
        for _ in 0..rounds {
            quiet.client.write_all(b"ping").await.unwrap();
            quiet.server.read_exact(&mut [0; 4]).await.unwrap();
        }
        let moved = (busy.counted.up.get() - before) / rounds;
        assert!(moved <= 16 * TURN, "{moved} bytes of the busy one for each word of the quiet one");
        busy.relaying.abort();
        let _ = busy.relaying.await;
        talks.join().unwrap();
        hears.join().unwrap();
    });
}

#[test]
fn what_was_said_before_a_fin_arrives_although_a_reset_came_behind_it() {
    story(async {
        let mut line = line().await;
        let said = payload(2, MIB).repeat(64);
        let mut written = 0;
        while timeout(Duration::from_millis(500), line.client.writable()).await.is_ok() {
            written += line.client.try_write(&said[written..][..16 << 10]).unwrap_or(0);
        }
        let mut heard = Vec::new();
        let mut piece = vec![0; 16 << 10];
        while unacknowledged(&line.client) > 0 {
            line.server.read_exact(&mut piece).await.unwrap();
            heard.extend_from_slice(&piece);
            sleep(Duration::from_millis(20)).await;
        }
        assert!(heard.len() < written, "nothing waits any more");
        let Line { client, mut server, relaying, counted } = line;
        drop(client);
        // Nobody is there for this, which the kernel says by a reset.
        sleep(Duration::from_millis(50)).await;
        server.write_all(b"too late").await.unwrap();
        sleep(Duration::from_millis(200)).await;
        server.read_to_end(&mut heard).await.unwrap();
        assert!(heard == said[..written], "{} bytes of {written} arrived", heard.len());
        server.ready(Interest::ERROR).await.unwrap();
        assert_eq!(relaying.await.unwrap(), Err(Broken::Downstream(ErrorKind::BrokenPipe)));
        assert_eq!(counted.up.get(), written);
    });
}
