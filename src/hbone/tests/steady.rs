//! What the steady state of a tunnel carried in place takes: no memory, and few system calls.

use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::thread;

use tokio::runtime::Runtime;

use super::raw::{self, Raw};
use super::*;

const WARM_UP: usize = 32 * MIB;
const MEASURED: usize = 64 * MIB;

/// Both proxies on this thread, the applications on threads of their own.
struct Bench {
    runtime: Runtime,
    tasks: LocalSet,
    orders: std::sync::mpsc::Sender<usize>,
    arrived: UnboundedReceiver<()>,
    _pair: Pair,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = LocalSet::new();
        let (pair, mut client, mut server) = tasks.block_on(&runtime, async {
            let mut pair = pair().await;
            let Line { client, server, .. } = pair.line().await;
            let blocking = |app: TcpStream| -> StdStream {
                let app = app.into_std().unwrap();
                app.set_nonblocking(false).unwrap();
                app
            };
            (pair, blocking(client), blocking(server))
        });
        let (orders, ordered) = std::sync::mpsc::channel::<usize>();
        let (told, arrived) = unbounded_channel();
        let (amounts, expected) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let chunk = vec![7; MIB];
            for bytes in ordered {
                amounts.send(bytes).unwrap();
                for _ in 0..bytes / MIB {
                    client.write_all(&chunk).unwrap();
                }
            }
        });
        thread::spawn(move || {
            let mut chunk = vec![0; MIB];
            for mut left in expected {
                while left > 0 {
                    let read = server.read(&mut chunk).unwrap();
                    assert_ne!(read, 0, "the connection ended early");
                    left -= read;
                }
                if told.send(()).is_err() {
                    return;
                }
            }
        });
        Self { runtime, tasks, orders, arrived, _pair: pair }
    }

    fn carry(&mut self, bytes: usize) {
        self.orders.send(bytes).unwrap();
        let arrived = &mut self.arrived;
        self.tasks.block_on(&self.runtime, async {
            tokio::time::timeout(Duration::from_secs(120), arrived.recv()).await.expect("it hangs").unwrap();
        });
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    let mut bench = Bench::new();
    bench.carry(WARM_UP);
    let counted = allocation_counter::measure(|| bench.carry(MEASURED));
    // None per piece of 16 KiB, of which there are 4,096. Now and then the application is held up by the machine and its
    // socket fills: then a backlog may grow. The waiting of this test allocates as well.
    assert!(counted.count_total <= 256, "{counted:?} for {} MiB", MEASURED / MIB);
}

#[test]
fn a_mebibyte_takes_few_system_calls_on_each_side() {
    let mut bench = Bench::new();
    bench.carry(WARM_UP);
    in_place::calls::take();
    bench.carry(MEASURED);
    let calls = in_place::calls::take();
    // Both sides are on this thread.
    let each = calls / 2 / (MEASURED / MIB);
    println!("{calls} data system calls of both sides for {} MiB", MEASURED / MIB);
    assert!(each <= 10, "{each} data system calls per MiB and side");
}

/// CPU time that this thread has used.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_tunnel_whose_peer_takes_nothing_waits_for_it_without_work() {
    story(async || {
        let (listener, addr) = listen();
        let (lives, ended) = std::sync::mpsc::channel::<()>();
        let peer = thread::spawn(move || {
            let mut peer = Raw::serve(&listener);
            assert_eq!(peer.until(raw::HEADERS).stream, 1);
            // Windows that never shut: what stops the tunnel is its socket.
            let wide = (1_u32 << 30).to_be_bytes();
            let widened = [0, 1].map(|stream| raw::frame(raw::WINDOW_UPDATE, 0, stream, &wide)).concat();
            peer.write(&[raw::frame(raw::HEADERS, raw::END_HEADERS, 1, raw::OK), widened].concat());
            // Reads nothing more.
            ended.recv().unwrap_err();
        });
        let secured = PLACE.handshakes.connect(plan(addr)).await.unwrap();
        let tunnel = Tunnel::start(secured, &config(), Share::alone()).await.unwrap();
        let (mut app, carrying) = carried(tunnel.open(&request()).await.unwrap()).await;
        let writing = spawn_local(async move {
            let chunk = vec![7; MIB];
            while tokio::io::AsyncWriteExt::write_all(&mut app, &chunk).await.is_ok() {}
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = cpu();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = cpu() - before;
        assert!(!writing.is_finished(), "nothing is stuck");
        assert!(used < Duration::from_millis(500), "{used:?} of CPU in 2 s of waiting");
        carrying.abort();
        drop(lives);
        peer.join().unwrap();
    });
}
