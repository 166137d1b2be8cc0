//! What claims to be the state of a sealer or an opener: an error, or what is written down again.
#![no_main]

use std::time::Instant;

use adit::tls::{OpenerState, SealerState};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    if let Ok(state) = SealerState::decode(bytes, now) {
        assert_eq!(&state.encode(now)[..], bytes);
    }
    if let Ok(state) = OpenerState::decode(bytes, now) {
        assert_eq!(&state.encode(now)[..], bytes);
    }
});
