//! Connections that do nothing, and what they hold.

use std::io;
use std::thread;
use std::time::Duration;

use adit::lab::Side;

use super::Measured;
use crate::figures::{Figure, Kind, Whose};
use crate::machine::Memory;
use crate::stage::{Called, Pair, Stage};

/// Memory per connection of all variants at once, because most of the time goes into waiting.
///
/// The first connection of each is open before: what it makes, makes no other.
pub fn measure(stages: &[Stage], connections: usize, settle: Duration) -> Vec<Measured> {
    let mut opened: Vec<_> = stages.iter().map(|stage| open(stage, 1)).collect();
    thread::sleep(settle);
    let before: Vec<_> = stages.iter().map(read).collect();
    for (stage, pairs) in stages.iter().zip(&mut opened) {
        if let Ok(first) = pairs {
            match open(stage, connections) {
                Ok(more) => first.extend(more),
                Err(cause) => *pairs = Err(cause),
            }
        }
    }
    thread::sleep(settle);
    let after: Vec<_> = stages.iter().map(read).collect();
    let mut all = Vec::new();
    for (((stage, pairs), before), after) in stages.iter().zip(&opened).zip(before).zip(after) {
        all.push(match (pairs, before, after) {
            (Ok(_), Ok(before), Ok(after)) => Measured::of(per_connection(&before, &after, connections)),
            (Err(cause), ..) => Measured::failed(stage, cause),
            (_, Err(cause), _) | (.., Err(cause)) => Measured::failed(stage, &cause),
        });
    }
    drop(opened);
    // Thousands of ends that shall not disturb what is measured next.
    thread::sleep(settle / 3);
    all
}

/// Opens so many connections; bare pods need none, because there is nobody whose memory could grow.
fn open(stage: &Stage, count: usize) -> io::Result<Vec<Pair>> {
    if stage.proxy(Side::One).is_none() {
        return Ok(Vec::new());
    }
    let (listener, to) = stage.listen(Called::Server)?;
    (0..count).map(|_| stage.connect(&listener, to)).collect()
}

/// Of the client's proxy and of the server's.
fn read(stage: &Stage) -> io::Result<Vec<Memory>> {
    Side::BOTH.iter().filter_map(|&side| stage.proxy(side)).map(|proxy| Memory::of(proxy.pid())).collect()
}

fn per_connection(before: &[Memory], after: &[Memory], connections: usize) -> Vec<(Figure, f64)> {
    let each = [Whose::Client, Whose::Server].into_iter().zip(before.iter().zip(after));
    let mut values = Vec::new();
    for (whose, (before, after)) in each {
        let per = |kind, grown: f64| (Figure::Memory(kind, whose), grown / connections as f64);
        values.push(per(Kind::Resident, after.resident - before.resident));
        values.push(per(Kind::PrivateDirty, after.private_dirty - before.private_dirty));
    }
    values
}
