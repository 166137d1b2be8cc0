//! What claims to be a machine's state, then a peer's bytes: the first two bytes are the state's length. What is taken up must be
//! what is written down again, and must not panic whatever the peer sends.
#![no_main]

use std::time::{Duration, Instant};

use adit::http2::Machine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (state, mut peer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let now = Instant::now();
    let Ok(machine) = Machine::from_state(state, now) else { return };
    let again = machine.into_state(now).expect("nothing is left to read");
    assert_eq!(&again[..], state);
    let mut machine = Machine::from_state(&again, now).expect("it was just written");
    while let Ok(Some(_)) = machine.read(&mut peer, now) {}
    let _ = machine.on_time(now + Duration::from_secs(10));
    let _ = machine.into_state(now);
});
