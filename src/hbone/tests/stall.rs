//! Applications that take nothing, and those beside them on the same tunnel, carried in place.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

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
