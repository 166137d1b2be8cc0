//! Somebody who means it: connections through the mesh at fixed times, whether the last one is done or not.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use adit::lab;
use adit::net::Netns;

use super::hostile::{Hostile, Manner};
use super::stage::{ECHO, Stage};
use super::{Running, frames};

/// One may take so long, from its time to its end.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two connections through the tunnel that is there.
const EVERY: Duration = Duration::from_millis(25);
/// Between two tunnels of their own.
const EVERY_TUNNEL: Duration = Duration::from_millis(200);
/// What each asks for.
const BYTES: usize = 16 << 10;

/// What came of the connections since the last look.
#[derive(Default)]
pub struct Served {
    /// How long those through the mesh took.
    pub pooled: Vec<Duration>,
    pub failed: Vec<String>,
    /// How long those took that began with a handshake.
    pub fresh: Vec<Duration>,
    pub failed_fresh: Vec<String>,
}

/// Goes on until it is stopped.
pub struct Lawful {
    served: Arc<Mutex<Served>>,
    running: Running,
    loops: Vec<JoinHandle<()>>,
}

impl Lawful {
    pub fn start(stage: &Stage) -> Self {
        let (served, running) = (Arc::new(Mutex::new(Served::default())), Running::new());
        let client = Arc::new(Netns::from_fd(stage.client_netns()).unwrap());
        let to = stage.server_at(ECHO);
        let pooled = open_loop(EVERY, running.clone(), {
            let (served, client) = (served.clone(), client.clone());
            move |due| {
                let ended = exchange(&client, to);
                let mut served = served.lock().unwrap();
                match ended {
                    Ok(()) if due.elapsed() <= DEADLINE => served.pooled.push(due.elapsed()),
                    Ok(()) => served.failed.push(format!("it took {:?}", due.elapsed())),
                    Err(cause) => served.failed.push(format!("{cause} after {:?}", due.elapsed())),
                }
            }
        });
        let door = stage.neighbours_door();
        let fresh = open_loop(EVERY_TUNNEL, running.clone(), {
            let served = served.clone();
            move |due| {
                let ended =
                    Hostile::through(&door, Manner::default(), due + DEADLINE).and_then(|mut tunnel| {
                        tunnel.send(&frames::connect(1, ECHO), due + DEADLINE)?;
                        tunnel.send(&frames::frame(frames::DATA, 0, 1, b"it comes back"), due + DEADLINE)?;
                        tunnel.hear(b"it comes back", due + DEADLINE)
                    });
                let mut served = served.lock().unwrap();
                match ended {
                    Ok(()) => served.fresh.push(due.elapsed()),
                    Err(cause) => served.failed_fresh.push(format!("{cause} after {:?}", due.elapsed())),
                }
            }
        });
        Self { served, running, loops: vec![pooled, fresh] }
    }

    /// What came of them since this was asked last.
    pub fn take(&self) -> Served {
        std::mem::take(&mut *self.served.lock().unwrap())
    }

    pub fn stop(self) {
        self.running.stop();
        for one in self.loops {
            one.join().unwrap();
        }
    }
}

/// Begins `one` at its times, each on a thread of its own.
fn open_loop(
    every: Duration,
    running: Running,
    one: impl Fn(Instant) + Clone + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut due = Instant::now();
        while running.goes_on() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let one = one.clone();
            thread::spawn(move || one(due));
            due += every;
        }
    })
}

/// Asks an echo and compares what comes back.
fn exchange(from: &Netns, to: SocketAddr) -> std::io::Result<()> {
    let mut socket = lab::dial(from, to, DEADLINE)?;
    let said: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(BYTES).collect();
    socket.write_all(&said)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard)?;
    if heard == said { Ok(()) } else { Err(std::io::Error::other("other bytes came back")) }
}

/// How long things took.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn of(times: &[Duration]) -> Self {
        let mut times = times.to_vec();
        times.sort_unstable();
        Self(times)
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at =
            |percent: usize| self.0.get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1)));
        match (at(50), at(99)) {
            (Some(median), Some(late)) => {
                write!(f, "{:.1} / {:.1} ms", median.as_secs_f64() * 1e3, late.as_secs_f64() * 1e3)
            }
            _ => f.write_str("none"),
        }
    }
}
