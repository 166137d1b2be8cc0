//! Bytes that come and go in pieces: sockets give less than they are asked for, take less than they are given, and nothing arrives
//! in the sizes it was sent in. Also between the two carriers, and so between us and whoever uses the h2 crate.

use std::io::{Read, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::handshake::Session;
use super::*;

/// What makes the pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Sockets that hold little, at every place.
    SmallSockets,
    /// Somebody between both proxies who passes on a few bytes at a time.
    Pieces,
}

/// Streams at a time.
const STREAMS: u64 = 8;
/// Smaller than one record.
const SOCKET: usize = 8 << 10;

/// What one application says, and how.
struct Role {
    say: Vec<u8>,
    random: fastrand::Rng,
    /// It says its FIN only after it has heard the other's.
    last: bool,
}

impl Role {
    fn new(way: Way, seed: u64, last: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let most = if way == Way::Pieces { 4 << 10 } else { 256 << 10 };
        let length = random.usize(0..most);
        Self { say: payload(seed, length), random, last }
    }

    /// Plays it; what was heard to the other's FIN.
    async fn play(mut self, mut app: TcpStream) -> Vec<u8> {
        let (mut read, mut write) = app.split();
        let (ended, other_ended) = tokio::sync::oneshot::channel::<()>();
        let mut random = self.random.fork();
        let speak = async {
            let mut rest = &self.say[..];
            while !rest.is_empty() {
                let most = if random.bool() { 100 } else { 64 << 10 };
                let (now, later) = rest.split_at(random.usize(1..=most).min(rest.len()));
                write.write_all(now).await.unwrap();
                rest = later;
                if random.u8(..) < 16 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            if self.last {
                other_ended.await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let hear = async {
            let mut heard = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                let most = if self.random.bool() { 100 } else { buffer.len() };
                let place = self.random.usize(1..=most);
                let read = read.read(&mut buffer[..place]).await.unwrap();
                if read == 0 {
                    let _ = ended.send(());
                    return heard;
                }
                heard.extend_from_slice(&buffer[..read]);
                if self.random.u8(..) < 4 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        tokio::join!(speak, hear).1
    }
}

/// Listens in front of `to` and passes on what comes, either way, in pieces that no border of a record or a frame is safe from.
fn chopper(to: SocketAddr, seed: u64) -> SocketAddr {
    let (listener, addr) = listen();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = PLACE.pod.netns.run(|| StdStream::connect(to)).unwrap();
        let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || chop(back.0, back.1, seed + 1));
        chop(client, server, seed);
    });
    addr
}

fn chop(mut from: StdStream, mut to: StdStream, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    to.set_nodelay(true).unwrap();
    let mut buffer = [0; 7];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.usize(1..=rest.len()));
            if to.write_all(now).is_err() {
                return;
            }
            rest = later;
            // Time for the other side to read this piece alone.
            if random.u8(..) < 64 {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// Both ends of a tunnel that `way` is in.
async fn tunnel_in(way: Way, carriers: (Carrier, Carrier), seed: u64) -> Pair {
    let (listener, addr) = listen();
    let to = match way {
        Way::Pieces => chopper(addr, seed),
        Way::SmallSockets => addr,
    };
    if way == Way::SmallSockets {
        // Segments as on a real network: small buffers hold none of loopback's.
        socket2::SockRef::from(&listener).set_tcp_mss(1400).unwrap();
    }
    let secured = secured_at(listener, to, carriers).await;
    if way == Way::SmallSockets {
        // The handshake keeps those of the classic carrier to itself.
        for end in [&secured.0, &secured.1] {
            if let Session::InPlace { socket, .. } = &end.session {
                shrink(socket, SOCKET);
            }
        }
    }
    pair_of(secured).await
}

async fn everything_arrives(way: Way, carriers: (Carrier, Carrier), seed: u64) {
    println!("client {:?}, server {:?}, {way:?}, seed {seed}", carriers.0, carriers.1);
    let mut pair = tunnel_in(way, carriers, seed).await;
    let mut playing = Vec::new();
    for n in 0..STREAMS {
        let line = pair.line_of(Some(SOCKET)).await;
        playing.push(spawn_local(async move {
            let seed = seed * 1000 + n * 2;
            // Neither waits, the client does, the server does.
            let (client, server) = (Role::new(way, seed, n % 3 == 1), Role::new(way, seed + 1, n % 3 == 2));
            let (there, back) = (client.say.clone(), server.say.clone());
            let (heard_back, heard_there) = tokio::join!(client.play(line.client), server.play(line.server));
            assert!(heard_there == there, "stream {n}: what the client said changed on its way");
            assert!(heard_back == back, "stream {n}: what the server said changed on its way");
            for (ended, counted) in [line.near.await.unwrap(), line.far.await.unwrap()] {
                assert_eq!(ended, Ended::Complete);
                let counts = (counted.upstream.get(), counted.downstream.get());
                assert_eq!(counts, (there.len(), back.len()));
            }
        }));
    }
    for played in playing {
        played.await.unwrap();
    }
    assert_eq!(pair.tunnel.streams(), 0);
    let held = in_place::held();
    assert_eq!(held, (0, 0), "bytes of backlog, and bytes borrowed, when all is over");
}

fn whole(carriers: (Carrier, Carrier)) {
    for seed in 1..=3 {
        once(everything_arrives(Way::SmallSockets, carriers, seed));
        once(everything_arrives(Way::Pieces, carriers, seed));
    }
}

#[test]
fn in_place_everything_arrives_whole_in_small_pieces() {
    whole((Carrier::InPlace, Carrier::InPlace));
}

#[test]
fn a_client_in_place_and_a_classic_server_understand_each_other_in_small_pieces() {
    whole((Carrier::InPlace, Carrier::Classic));
}

#[test]
fn a_classic_client_and_a_server_in_place_understand_each_other_in_small_pieces() {
    whole((Carrier::Classic, Carrier::InPlace));
}

async fn between(client: Carrier, server: Carrier) -> Pair {
    let (listener, addr) = listen();
    pair_of(secured_at(listener, addr, (client, server)).await).await
}

#[test]
fn a_client_that_stops_is_still_answered_between_the_carriers() {
    for (client, server) in [(Carrier::InPlace, Carrier::Classic), (Carrier::Classic, Carrier::InPlace)] {
        once(async move {
            let mut pair = between(client, server).await;
            for length in [1, 16_384 - 9, 20 * MIB] {
                let Line { mut client, mut server, near, far } = pair.line().await;
                client.write_all(b"question").await.unwrap();
                client.shutdown().await.unwrap();
                let mut heard = String::new();
                server.read_to_string(&mut heard).await.unwrap();
                assert_eq!(heard, "question");
                let answer = payload(3, length);
                let say = async {
                    server.write_all(&answer).await.unwrap();
                    server.shutdown().await.unwrap();
                };
                let mut heard = Vec::new();
                let (_, got) = tokio::join!(say, client.read_to_end(&mut heard));
                got.unwrap();
                assert!(heard == answer, "{length} bytes changed on their way");
                assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
            }
        });
    }
}

#[test]
fn a_reset_between_the_carriers_is_a_reset() {
    for (client, server) in [(Carrier::InPlace, Carrier::Classic), (Carrier::Classic, Carrier::InPlace)] {
        for client_resets in [true, false] {
            once(async move {
                let mut pair = between(client, server).await;
                let Line { client, server, near, far } = pair.line().await;
                let (resetting, mut other) = if client_resets { (client, server) } else { (server, client) };
                reset(resetting);
                let seen = other.read_to_end(&mut Vec::new()).await;
                assert_eq!(seen.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
                let ends = (near.await.unwrap().0, far.await.unwrap().0);
                let reset = Ended::PeerReset(crate::http2::Code::CANCEL);
                assert!(
                    matches!(&ends, (Ended::AppReset(_), other) | (other, Ended::AppReset(_)) if *other == reset),
                    "{ends:?}"
                );
            });
        }
    }
}
