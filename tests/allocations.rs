//! What is done for every record in the steady state asks for no memory.
//!
//! The counter stands in for the system's allocator in this binary. It counts what Rust code asks for on the calling
//! thread; the cipher's own C code is not seen by it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

use adit::tls::{
    Content, KEY_UPDATE_DUE, MAX_BODY, OVERHEAD, Opened, Opener, PeerKeys, Role, SLOT, Sealer, Suite,
    TrafficSecret, batch_length, bodies,
};
use allocation_counter::{AllocationInfo, measure};

const TURNS: usize = 1000;

fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &vec![7; suite.secret_length()]).unwrap()
}

#[test]
fn the_counter_counts_in_this_binary() {
    let seen = measure(|| drop(std::hint::black_box(vec![0_u8; 100])));
    assert_eq!(seen.count_total, 1);
}

#[test]
fn records_are_sealed_and_opened_without_allocating() {
    for suite in Suite::ALL {
        for body in [1, 1000, MAX_BODY, 3 * MAX_BODY + 9] {
            let mut sealer = Sealer::new(secret(suite), 0);
            let mut opener = Opener::new(Role::Server, secret(suite), 0);
            let mut batch = vec![0; batch_length(body)];
            let mut opened = 0;
            let seen: AllocationInfo = measure(|| {
                for turn in 0..TURNS {
                    for body in bodies(&mut batch) {
                        body[0] = turn.to_le_bytes()[0];
                    }
                    sealer.seal_batch(&mut batch).unwrap();
                    let mut rest = &mut batch[..];
                    while !rest.is_empty() {
                        let Ok(Opened::Record { taken, content: Content::Data(data) }) = opener.open(rest)
                        else {
                            panic!("a record of data was sealed")
                        };
                        assert_eq!(data[0], turn.to_le_bytes()[0]);
                        opened += data.len();
                        rest = &mut rest[taken..];
                    }
                }
            });
            assert_eq!(seen.count_total, 0, "{suite:?}, {body} bytes: {seen:?}");
            assert_eq!(opened, TURNS * body);
        }
    }
}

#[test]
fn refusals_and_small_records_do_not_allocate_either() {
    let mut sealer = Sealer::new(secret(Suite::Aes256), KEY_UPDATE_DUE);
    let mut opener = Opener::new(Role::Client, secret(Suite::Aes256), 0);
    let mut slot = [23; SLOT];
    let seen = measure(|| {
        sealer.owe_key_update();
        assert!(sealer.key_update_due());
        assert!(sealer.seal(&mut slot).is_err());
        assert!(matches!(opener.open(&mut slot[..4]), Ok(Opened::Incomplete { .. })));
        assert!(opener.open(&mut slot).is_err());
        let end = sealer.seal_alert(rustls::AlertDescription::UnexpectedMessage).unwrap();
        assert_eq!(end.len(), OVERHEAD + 2);
        assert!(sealer.seal_key_update(PeerKeys::Stay).is_err());
    });
    assert_eq!(seen.count_total, 0, "{seen:?}");
}
