//! States of machines, damaged. The input is a number of damages (position, value), then a peer's bytes, of which the first half come before
//! the state is written down and the rest after it was taken up. Damage must be an error or a state like any other; what is taken up must be
//! what is written down again.
#![no_main]

use std::time::{Duration, Instant};

use adit::http2::{Config, Machine, Role};
use libfuzzer_sys::fuzz_target;

const CONFIG: Config = Config {
    stream_window: 1 << 20,
    connection_window: 1 << 20,
    frame_size: 16_384,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 10,
};

const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn feed(machine: &mut Machine, mut bytes: &[u8], now: Instant) {
    while let Ok(Some(_)) = machine.read(&mut bytes, now) {}
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let Some((damages, peer)) = rest.split_at_checked(usize::from(how & 7) * 3) else { return };
    let now = Instant::now();
    let role = if how & 8 == 0 { Role::Server } else { Role::Client };
    let mut machine = Machine::new(role, CONFIG, now);
    feed(&mut machine, if role == Role::Server { GREETING } else { &GREETING[24..] }, now);
    if role == Role::Client {
        for _ in 0..3 {
            machine.open("10.0.0.1:80", []).expect("there is room");
        }
    }
    let (before, after) = peer.split_at(peer.len() / 2);
    feed(&mut machine, before, now);
    let Ok(mut state) = machine.into_state(now) else { return };
    for damage in damages.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([damage[0], damage[1]])) % state.len();
        state[at] ^= damage[2];
    }
    let Ok(machine) = Machine::from_state(&state, now) else { return };
    let again = machine.into_state(now).expect("nothing is left to read");
    assert_eq!(again, state);
    let mut machine = Machine::from_state(&again, now).expect("it was just written");
    feed(&mut machine, after, now);
    let _ = machine.on_time(now + Duration::from_secs(10));
    let _ = machine.into_state(now);
});
