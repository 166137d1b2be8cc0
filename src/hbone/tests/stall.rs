//! Applications that take nothing, and those beside them on the same tunnel, carried in place.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::http2::Code;

const STREAMS: usize = 100;
/// What waits for an application that reads nothing: more than its window and the sockets on the way hold.
const STUCK: usize = 3 * MIB;
/// What each application's socket may hold: they fill up soon, and all reads and writes are short.
const SOCKET: usize = 64 << 10;

/// Which of the two applications sends what gets stuck.
#[derive(Clone, Copy, Debug)]
enum From {
    Client,
    Server,
}

async fn exchange(line: &mut Line, n: u64) {
    let (there, back) = (payload(n, MIB), payload(n + 1000, MIB));
    let (mut heard_there, mut heard_back) = (vec![0; MIB], vec![0; MIB]);
    let (client, server) = (line.client.split(), line.server.split());
    let ((mut client_read, mut client_write), (mut server_read, mut server_write)) = (client, server);
    let (a, b, c, d) = tokio::join!(
        client_write.write_all(&there),
        server_write.write_all(&back),
        client_read.read_exact(&mut heard_back),
        server_read.read_exact(&mut heard_there),
    );
    a.and(b).and(c.map(drop)).and(d.map(drop)).unwrap();
    assert!(heard_there == there && heard_back == back, "stream {n} was changed on its way");
}

async fn stalled_beside_others(stalled: usize, from: From) {
    let mut pair = pair().await;
    let mut lines = Vec::new();
    for _ in 0..STREAMS {
        lines.push(pair.line_of(Some(SOCKET)).await);
    }
    let mut stuck = Vec::new();
    for n in 0..stalled {
        let Line { client, server, near, far } = lines.remove(0);
        let (mut sender, receiver) = match from {
            From::Client => (client, server),
            From::Server => (server, client),
        };
        let sending = spawn_local(async move {
            sender.write_all(&payload(n as u64, STUCK)).await.unwrap();
            sender
        });
        stuck.push((receiver, sending, near, far));
    }
    // Until all windows are full.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(stuck.iter().all(|(_, sending, ..)| !sending.is_finished()), "nothing is stuck");
    let (backlog, _) = in_place::held();
    assert!(backlog <= 64 << 20, "{backlog} bytes wait");
    // Each of the others, all at once and twice.
    for _ in 0..2 {
        let mut moving = Vec::new();
        for (n, mut line) in std::mem::take(&mut lines).into_iter().enumerate() {
            moving.push(spawn_local(async move {
                exchange(&mut line, n as u64).await;
                line
            }));
        }
        for moved in moving {
            lines.push(moved.await.unwrap());
        }
    }
    // Whoever reads late gets everything, in order.
    for (n, (mut receiver, sending, near, far)) in stuck.into_iter().enumerate() {
        let mut heard = vec![0; STUCK];
        receiver.read_exact(&mut heard).await.unwrap();
        assert!(heard == payload(n as u64, STUCK), "stream {n} was changed on its way");
        drop((receiver, sending.await.unwrap()));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
    }
    for Line { client, server, near, far } in lines {
        drop((client, server));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
    }
    assert_eq!(in_place::held(), (0, 0));
}

fn all(stalled: usize) {
    for from in [From::Client, From::Server] {
        println!("{stalled} stalled, {from:?} sends");
        once(stalled_beside_others(stalled, from));
    }
}

#[test]
fn one_stalled_stream_of_a_hundred_stops_no_other() {
    all(1);
}

#[test]
fn four_stalled_streams_of_a_hundred_stop_no_other() {
    all(4);
}

#[test]
fn sixty_four_stalled_streams_of_a_hundred_stop_no_other() {
    all(64);
}

/// More than their backlogs may hold: instead of being cut, they get no more credit, tunnel by tunnel.
#[test]
fn three_hundred_stalled_streams_on_three_tunnels_are_all_served_in_the_end() {
    const LONG: usize = 2 * MIB;
    once(async {
        let mut pairs = Vec::new();
        let mut stuck = Vec::new();
        for tunnel in 0..3 {
            let mut pair = pair().await;
            for n in 0..STREAMS {
                let Line { mut client, server, near, far } = pair.line_of(Some(SOCKET)).await;
                let seed = (tunnel * STREAMS + n) as u64;
                let sending = spawn_local(async move {
                    client.write_all(&payload(seed, LONG)).await.unwrap();
                    client
                });
                stuck.push((seed, server, sending, near, far));
            }
            pairs.push(pair);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(stuck.iter().all(|(_, _, sending, ..)| !sending.is_finished()), "nothing is stuck");
        let (backlog, _) = in_place::held();
        assert!(backlog > 36 << 20, "{backlog} bytes wait, which is no pressure");
        assert!(backlog < 48 << 20, "{backlog} bytes wait");
        // All at once: while they hold so much, one that is read may have to wait for another of its tunnel.
        let mut served = Vec::new();
        for (seed, mut server, sending, near, far) in stuck {
            served.push(spawn_local(async move {
                let mut heard = vec![0; LONG];
                server.read_exact(&mut heard).await.unwrap();
                assert!(heard == payload(seed, LONG), "stream {seed} was changed on its way");
                drop((server, sending.await.unwrap()));
                assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
            }));
        }
        for served in served {
            served.await.unwrap();
        }
        assert_eq!(in_place::held(), (0, 0));
    });
}

/// What was held back while others of the worker held much is not held back for ever: applications that take nothing may stay.
#[test]
fn credit_held_back_for_others_returns_when_they_have_their_bytes() {
    const OTHERS: usize = 40 << 20;
    once(async {
        let mut pair = pair().await;
        in_place::pretend(OTHERS, true);
        let mut stuck = Vec::new();
        for n in 0..8 {
            let Line { mut client, server, near, far } = pair.line_of(Some(SOCKET)).await;
            spawn_local(async move {
                // Ends as it may.
                let _ = client.write_all(&payload(n, STUCK)).await;
            });
            stuck.push((server, near, far));
        }
        let mut beside = pair.line_of(Some(SOCKET)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let moved = tokio::time::timeout(Duration::from_secs(1), exchange(&mut beside, 1)).await;
        assert!(moved.is_err(), "nothing is held back");
        in_place::pretend(OTHERS, false);
        let Line { mut client, mut server, .. } = beside;
        // What the exchange began has come by halves: the rest of it, and then more than the tunnel's window.
        let reading = spawn_local(async move {
            let mut heard = 0;
            let mut chunk = vec![0; 64 << 10];
            while heard < 4 * MIB {
                heard += server.read(&mut chunk).await.unwrap();
            }
            server
        });
        client.write_all(&payload(2, 4 * MIB)).await.unwrap();
        drop((reading.await.unwrap(), client, stuck));
    });
}

/// Also one that its client had said all on: what was thrown away must not look like the end.
#[test]
fn a_stream_whose_backlog_is_thrown_away_ends_as_a_reset_and_the_others_go_on() {
    const ALL_BUT_A_LITTLE: usize = (64 << 20) - (16 << 10);
    const SAID: usize = 240 << 10;
    once(async {
        let mut pair = pair().await;
        let Line { mut client, server, near, far } = pair.line_of(Some(SOCKET)).await;
        let mut other = pair.line_of(Some(SOCKET)).await;
        in_place::pretend(ALL_BUT_A_LITTLE, true);
        // All of it fits into the window of the stream and the sockets on the way, the end included.
        client.write_all(&payload(1, SAID)).await.unwrap();
        client.shutdown().await.unwrap();
        let calm = Ended::PeerReset(Code::ENHANCE_YOUR_CALM);
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (calm.clone(), calm));
        is_reset(client).await;
        is_reset(server).await;
        in_place::pretend(ALL_BUT_A_LITTLE, false);
        exchange(&mut other, 7).await;
        let Line { client, server, near, far } = other;
        drop((client, server));
        assert_eq!((near.await.unwrap().0, far.await.unwrap().0), (Ended::Complete, Ended::Complete));
        assert_eq!(in_place::held(), (0, 0));
    });
}
