//! What a peer finds in the records that are sent, and in which order.

use std::io::Read;
use std::net::TcpStream as StdStream;

use tokio::net::TcpStream;

use super::transmit::Transmit;
use crate::hbone::handshake::Session;
use crate::hbone::tests::secured;
use crate::tls::{Content, MAX_BODY, Opened, Opener};

/// The sending half of one end of a tunnel, and all of the other end.
async fn halves() -> (Transmit, TcpStream, Opener, StdStream) {
    let (client, server) = secured().await;
    let (
        Session::InPlace { socket: near, established: client },
        Session::InPlace { socket: far, established: server },
    ) = (client.session, server.session)
    else {
        panic!("the default is another")
    };
    far.set_nonblocking(false).unwrap();
    let near = TcpStream::from_std(near).unwrap();
    near.writable().await.unwrap();
    (Transmit::new(client.sealer), near, server.opener, far)
}

/// Everything up to the peer's end: data with one letter for each record's, `K` for new keys, `.` for the end.
fn records(mut opener: Opener, mut far: StdStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap();
    let (mut order, mut data) = (String::new(), Vec::new());
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let Opened::Record { taken, content } = opener.open(rest).unwrap() else { panic!("cut short") };
        match content {
            Content::Data(opened) => {
                order.push('D');
                data.extend_from_slice(opened);
            }
            Content::KeysChanged { answer } => order.push(if answer { '?' } else { 'K' }),
            Content::Closed => order.push('.'),
            Content::Ignored => order.push('-'),
        }
        rest = &mut rest[taken..];
    }
    (order, data)
}

fn told(story: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(story());
}

#[test]
fn an_answer_about_keys_comes_before_data_that_has_gathered() {
    told(async || {
        let (mut transmit, near, opener, far) = halves().await;
        assert_eq!(transmit.add(b"before, "), Ok(8));
        transmit.send(&near).unwrap();
        assert_eq!(transmit.add(b"gathered, "), Ok(10));
        transmit.owe_key_update();
        transmit.owe_key_update();
        assert_eq!(transmit.add(b"added"), Ok(5));
        transmit.send(&near).unwrap();
        assert_eq!(transmit.add(b", after"), Ok(7));
        transmit.close(None).unwrap();
        transmit.send(&near).unwrap();
        drop(near);
        let (order, data) = records(opener, far);
        assert_eq!((order.as_str(), &*data), ("DKDD.", &b"before, gathered, added, after"[..]));
    });
}

#[test]
fn an_answer_about_keys_finds_its_place_whatever_has_gathered() {
    for gathered in [1, 100, MAX_BODY - 200, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1] {
        told(async || {
            let (mut transmit, near, opener, far) = halves().await;
            let frames: Vec<u8> = (0..=250).cycle().take(gathered).collect();
            // What does not fit is added when the rest has gone.
            let mut added = transmit.add(&frames).unwrap();
            transmit.owe_key_update();
            while added < frames.len() {
                transmit.send(&near).unwrap();
                added += transmit.add(&frames[added..]).unwrap();
            }
            transmit.send(&near).unwrap();
            assert_eq!(transmit.add(b"!"), Ok(1));
            transmit.close(None).unwrap();
            transmit.send(&near).unwrap();
            drop(near);
            let (order, data) = records(opener, far);
            assert!(data[..gathered] == frames[..] && data[gathered..] == *b"!", "{gathered}: other bytes");
            assert_eq!(order.matches('K').count(), 1, "{gathered}: {order}");
            assert!(order.ends_with("D."), "{gathered}: {order}");
        });
    }
}

#[test]
fn the_end_is_said_also_where_no_room_is_left_for_it() {
    told(async || {
        let (mut transmit, near, opener, far) = halves().await;
        // All of a small buffer but its headroom, and that filled with new keys.
        let mut frames = vec![7; MAX_BODY];
        assert_eq!(transmit.add(&frames).unwrap(), frames.len());
        while transmit.fill_headroom() {}
        transmit.close(None).unwrap();
        transmit.send(&near).unwrap();
        assert!(!transmit.is_pending());
        drop(near);
        let (order, data) = records(opener, far);
        assert!(data == std::mem::take(&mut frames));
        assert!(order.starts_with("DK") && order.ends_with("K."), "{order}");
    });
}
