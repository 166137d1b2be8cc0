//! The bounded queue between those who log and the one thread that writes.

use std::io::{self, ErrorKind, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::telemetry::metrics::Counter;

/// Lines that may wait for the writer.
const LINES: usize = 10_000;
/// Lines written by one call at most.
const BATCH: usize = 64;
/// How long the writer rests when a non-blocking output is full, and a flush when the queue is.
const PAUSE: Duration = Duration::from_millis(5);

enum Message {
    Line(Vec<u8>),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
pub(super) struct Queue {
    lines: SyncSender<Message>,
    dropped: Counter,
}

impl Queue {
    /// Starts the writer thread. It ends when the queue is dropped and everything in it is written.
    pub(super) fn start(output: impl Write + Send + 'static, dropped: Counter) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES);
        let lost = dropped.clone();
        thread::Builder::new().name("log".into()).spawn(move || write(output, &waiting, &lost))?;
        Ok(Self { lines, dropped })
    }

    /// Takes one line, newline included, or drops and counts it. Never waits.
    pub(super) fn push(&self, line: Vec<u8>) {
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.increment();
        }
    }

    /// Waits until every line pushed before is written, at most for `limit`; false if it was not in time.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (answer, written) = sync_channel(1);
        let mut request = Message::Flush(answer);
        // The queue may be full; there is no `send` with a deadline, hence asking again.
        loop {
            match self.lines.try_send(request) {
                Ok(()) => {
                    return written.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok();
                }
                Err(TrySendError::Full(again)) if Instant::now() < deadline => request = again,
                Err(_) => return false,
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Writes lines in batches until every sender is gone.
fn write(mut output: impl Write, waiting: &Receiver<Message>, dropped: &Counter) {
    let mut batch = Vec::new();
    while let Ok(first) = waiting.recv() {
        let (mut lines, mut flush) = (0_u64, None);
        for message in std::iter::once(first).chain(waiting.try_iter().take(BATCH - 1)) {
            match message {
                Message::Line(line) => {
                    batch.extend_from_slice(&line);
                    lines += 1;
                }
                Message::Flush(answer) => {
                    flush = Some(answer);
                    break;
                }
            }
        }
        if write_all(&mut output, &batch).and_then(|()| output.flush()).is_err() {
            dropped.add(lines);
        }
        batch.clear();
        // Nobody waits any more if the flush ran out of time.
        let _ = flush.map(|answer| answer.try_send(()));
    }
}

/// `Write::write_all`, but waits for a non-blocking output: the pipe is shared with whoever made it so.
fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
