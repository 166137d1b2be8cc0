//! Many bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use adit::lab::Side;
use aws_lc_rs::digest::{Context, Digest, SHA256};

use crate::stage::{SOON, Stage, Way};

/// Bytes written at once.
const CHUNK: usize = 256 << 10;
const GIB: usize = 1 << 30;
/// What is asked for in one read, in turn: never what records, frames or chunks are made of.
const ODD: [usize; 8] = [CHUNK - 1, 1, 65_537, 262_139, 7, 100_003, 16_383, 250_007];

/// Bytes each way through a tunnel. The 655,360 records of 10 GiB are less than a tenth of the 2^23 after which adit
/// changes its key, so no such change is among them (`tls` tries those).
fn through_a_tunnel() -> usize {
    match std::env::var("TUNNEL").as_deref() {
        Ok("classic") => GIB,
        _ => 10 * GIB,
    }
}

/// Sends `length` bytes, no two chunks alike, then FIN.
fn pour(mut to: &TcpStream, length: usize) -> Digest {
    let mut hash = Context::new(&SHA256);
    let mut chunk: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(CHUNK).collect();
    for nth in 0..length / CHUNK {
        // A chunk that is lost, doubled or moved changes the hash.
        chunk[..8].copy_from_slice(&nth.to_be_bytes());
        to.write_all(&chunk).unwrap_or_else(|cause| panic!("sending chunk {nth}: {cause}"));
        hash.update(&chunk);
    }
    to.shutdown(Shutdown::Write).unwrap();
    hash.finish()
}

/// Reads to FIN: how many bytes, and their hash.
fn drink(mut from: &TcpStream) -> (usize, Digest) {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; CHUNK];
    let mut length = 0;
    for odd in ODD.iter().cycle() {
        let read =
            from.read(&mut buffer[..*odd]).unwrap_or_else(|cause| panic!("after {length} bytes: {cause}"));
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        length += read;
    }
    (length, hash.finish())
}

/// Sends `length` bytes from one end to the other, to FIN.
fn carry(from: &TcpStream, to: &TcpStream, length: usize, what: &str) {
    let since = Instant::now();
    let (sent, (arrived, hash)) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| pour(from, length));
        let arrived = drink(to);
        (sender.join().unwrap(), arrived)
    });
    println!("{what}: {} MiB in {:?}", length >> 20, since.elapsed());
    assert_eq!(arrived, length, "{what}: bytes that arrived");
    assert_eq!(sent.as_ref(), hash.as_ref(), "{what}: SHA-256 of what was sent, and of what arrived");
}

#[test]
fn gibibytes_each_way_arrive_whole_and_are_counted() {
    let length = through_a_tunnel();
    let stage = Stage::new();
    let (client, server) = stage.connect(Way::Tunnel);
    let from = client.local_addr().unwrap().to_string();
    carry(&client, &server, length, "through the tunnel, to the server");
    carry(&server, &client, length, "through the tunnel, to the client");
    drop((client, server));
    for side in Side::BOTH {
        let line = stage
            .proxy(side)
            .access_log()
            .wait_for(|line| line.bytes_sent.is_some_and(|sent| sent > 0), SOON)
            .unwrap_or_else(|cause| panic!("{side}: {}", cause.story()));
        assert_eq!(
            (line.bytes_sent, line.bytes_recv),
            (Some(length as u64), Some(length as u64)),
            "{side}: {line:?}"
        );
        assert_eq!(line.error, None, "{side}: {line:?}");
        if side == Side::One {
            assert_eq!(line.src_addr.as_deref(), Some(&*from), "{line:?}");
        }
    }

    for way in [Way::PlainIn, Way::PlainOut] {
        let (client, server) = stage.connect(way);
        // Both directions at once.
        std::thread::scope(|scope| {
            scope.spawn(|| carry(&client, &server, GIB / 8, "in plaintext, to the server"));
            carry(&server, &client, GIB / 8, "in plaintext, to the client");
        });
    }
}
