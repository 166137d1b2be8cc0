//! A hostile peer's bytes. The first says which role we have, whether the greeting is done, and how the rest is cut. The machine must not
//! panic, must keep its output within its limit, and must mean the same when it moves between two pieces.
#![no_main]

use std::time::{Duration, Instant};

use adit::http2::{Action, Config, Machine, Role, StreamId};
use libfuzzer_sys::fuzz_target;

const CONFIG: Config = Config {
    stream_window: 1 << 20,
    connection_window: 1 << 20,
    frame_size: 16_384,
    header_list: 16 << 10,
    header_table: 4_096,
    streams: 10,
};

const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

/// Takes `bytes` as a caller would that answers, echoes and takes; what it was told.
fn drive(machine: &mut Machine, mut bytes: &[u8], now: Instant) -> Result<Vec<String>, String> {
    let mut told = Vec::new();
    loop {
        let action = match machine.read(&mut bytes, now) {
            Ok(Some(action)) => action,
            Ok(None) => break,
            Err(error) => return Err(error.to_string()),
        };
        told.push(format!("{action:?}"));
        match action {
            Action::Request { stream, .. } => drop(machine.respond(stream, [])),
            Action::Data { stream, bytes, end } => {
                machine.left_arena(bytes.len());
                machine.taken(stream, bytes.len());
                let length = machine.room(stream).min(bytes.len());
                let _ = machine.send(stream, length, end);
            }
            _ => {}
        }
    }
    assert!(bytes.is_empty());
    assert!(machine.output().len() < 1 << 20);
    Ok(told)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, mut rest)) = bytes.split_first() else { return };
    let mut now = Instant::now();
    let role = if how & 1 == 0 { Role::Server } else { Role::Client };
    let mut machine = Machine::new(role, CONFIG, now);
    if how & 2 == 0 {
        let greeting = if role == Role::Server { GREETING } else { &GREETING[24..] };
        drive(&mut machine, greeting, now).expect("a greeting as it must be");
    }
    if role == Role::Client {
        for _ in 0..3 {
            machine.open("10.0.0.1:80", []).expect("there is room");
        }
    }
    let piece = usize::from(how >> 2).max(1) * 16;
    while !rest.is_empty() {
        let (now_read, later) = rest.split_at(piece.min(rest.len()));
        rest = later;
        let mut moved = None;
        machine = match machine.into_state(now) {
            Ok(state) => {
                moved = Some(Machine::from_state(&state, now).expect("it was just written"));
                Machine::from_state(&state, now).expect("it was just written")
            }
            Err(stays) => *stays,
        };
        let here = drive(&mut machine, now_read, now);
        if let Some(mut moved) = moved {
            assert_eq!(drive(&mut moved, now_read, now), here);
            assert_eq!(moved.output(), machine.output());
        }
        machine.reset(StreamId::try_from(5).expect("an odd number"), adit::http2::Code::CANCEL);
        now += Duration::from_millis(100);
        if machine.on_time(now).is_err() || here.is_err() {
            return;
        }
    }
});
