//! Small messages there and back, on one connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Measured, Pace, Window};
use crate::figures::{Figure, Mark, quantile};
use crate::machine::{End, pin};
use crate::stage::{Called, Stage};

const MESSAGE: [u8; 64] = [0x70; 64];

/// The next message when the answer to the last one is there.
pub fn closed(stage: &Stage, window: &Window) -> io::Result<Measured> {
    let latencies = with_echo(stage, |mut client| {
        let mut latencies = Vec::with_capacity(1 << 20);
        let begin = Instant::now() + window.ramp;
        let end = begin + window.length;
        let mut sent = Instant::now();
        while sent < end {
            client.write_all(&MESSAGE)?;
            client.read_exact(&mut [0; MESSAGE.len()])?;
            let back = Instant::now();
            if sent >= begin {
                latencies.push(back - sent);
            }
            sent = back;
        }
        Ok(latencies)
    })?;
    Ok(measured(Pace::Closed, latencies))
}

/// A message whenever one is due. Latency counts from when it was due, so that a stall costs all messages that were due
/// meanwhile, and so does a sender that wakes late.
pub fn open(stage: &Stage, window: &Window, rate: u32) -> io::Result<Measured> {
    let interval = Duration::from_secs(1) / rate;
    let messages = |during: Duration| {
        let count = during.as_nanos() / interval.as_nanos().max(1);
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let (unmeasured, measure) = (messages(window.ramp), messages(window.length).max(1));
    let all = unmeasured.saturating_add(measure);
    let latencies = with_echo(stage, |mut client| {
        let first = Instant::now() + Duration::from_millis(1);
        let due = |nth: u32| first + interval * nth;
        thread::scope(|scope| {
            let sender = scope.spawn(move || {
                // Otherwise the kernel may wake us 50 µs late on purpose. Refused, it only costs precision.
                let _ = nix::sys::prctl::set_timerslack(1);
                for nth in 0..all {
                    thread::sleep(due(nth).saturating_duration_since(Instant::now()));
                    client.write_all(&MESSAGE)?;
                }
                Ok(())
            });
            let mut latencies = Vec::with_capacity(usize::try_from(measure).unwrap_or(0));
            let mut answers = || {
                for nth in 0..all {
                    client.read_exact(&mut [0; MESSAGE.len()])?;
                    if nth >= unmeasured {
                        latencies.push(Instant::now().saturating_duration_since(due(nth)));
                    }
                }
                Ok(())
            };
            let answered: io::Result<()> = answers();
            if answered.is_err() {
                // Lets the sender fail as well.
                let _ = client.shutdown(std::net::Shutdown::Both);
            }
            let sent: io::Result<()> = sender.join().expect("the sender returns its errors");
            answered.and(sent).map(|()| latencies)
        })
    })?;
    Ok(measured(Pace::Rate(rate), latencies))
}

/// Lends `client` a connection whose server sends back what it gets. The two never share a core.
fn with_echo<T: Send>(
    stage: &Stage,
    client: impl FnOnce(&TcpStream) -> io::Result<T> + Send,
) -> io::Result<T> {
    let (listener, to) = stage.listen(Called::Server)?;
    let pair = stage.connect(&listener, to)?;
    drop(listener);
    thread::scope(|scope| {
        // It ends with the connection; what broke it shows at the client.
        let _ = scope.spawn(|| pin(End::Server).and_then(|()| echo(&pair.server)));
        let client = scope.spawn(|| pin(End::Client).and_then(|()| client(&pair.client)));
        let result = client.join().expect("the client returns its errors");
        pair.cut();
        result
    })
}

fn echo(mut server: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match server.read(&mut buffer)? {
            0 => return Ok(()),
            len => server.write_all(&buffer[..len])?,
        }
    }
}

fn measured(pace: Pace, mut latencies: Vec<Duration>) -> Measured {
    latencies.sort_unstable();
    let marks = [(Mark::P50, 500), (Mark::P99, 990), (Mark::P999, 999)];
    let values = marks.into_iter().filter_map(|(mark, per_mille)| {
        let latency = quantile(&latencies, per_mille)?;
        Some((Figure::Latency(pace, mark), latency.as_secs_f64() * 1e6))
    });
    Measured::of(values.collect())
}
