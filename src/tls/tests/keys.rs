//! Key derivation and records against the trace of RFC 8448 §3.

use super::support::{Inbox, News};
use crate::tls::*;

const CLIENT_SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER_SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
const CLIENT_DATA: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a\
                           20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
const SERVER_DATA: &str = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb\
                           501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d";
const CLIENT_CLOSES: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
const SERVER_CLOSES: &str = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn secret(text: &str) -> TrafficSecret {
    TrafficSecret::new(Suite::Aes128, &hex(text)).unwrap()
}

fn payload() -> Vec<u8> {
    (0..50).collect()
}

#[test]
fn the_keys_of_the_trace_follow_from_its_secrets() {
    let client = secret(CLIENT_SECRET).keys();
    assert_eq!(client.key(), hex("17422dda596ed5d9acd890e3c63f5051"));
    assert_eq!(client.iv.0.to_vec(), hex("5b78923dee08579033e523d9"));
    let server = secret(SERVER_SECRET).keys();
    assert_eq!(server.key(), hex("9f02283b6c9c07efc26bb9f2ac92e356"));
    assert_eq!(server.iv.0.to_vec(), hex("cf782b88dd83549aadf1e984"));
}

#[test]
fn our_records_are_those_of_the_trace() {
    // The server's first record under this key was a ticket, so its data is record 1.
    for (whose, sequence, data, closes) in
        [(CLIENT_SECRET, 0, CLIENT_DATA, CLIENT_CLOSES), (SERVER_SECRET, 1, SERVER_DATA, SERVER_CLOSES)]
    {
        let mut sealer = Sealer::new(secret(whose), sequence);
        let mut slot = vec![0; batch_length(50)];
        bodies(&mut slot).next().unwrap().copy_from_slice(&payload());
        sealer.seal(&mut slot).unwrap();
        assert_eq!(slot, hex(data));
        assert_eq!(sealer.seal_close_notify().unwrap().to_vec(), hex(closes));
    }
}

#[test]
fn the_records_of_the_trace_open() {
    for (role, whose, sequence, data, closes) in [
        (Role::Server, CLIENT_SECRET, 0, CLIENT_DATA, CLIENT_CLOSES),
        (Role::Client, SERVER_SECRET, 1, SERVER_DATA, SERVER_CLOSES),
    ] {
        let mut inbox = Inbox::new(Opener::new(role, secret(whose), sequence), Vec::new());
        let mut news = News::default();
        inbox.receive(&[hex(data), hex(closes)].concat(), &mut news).unwrap();
        assert_eq!(news, News { data: payload(), closed: true, ..News::default() });
        assert_eq!(inbox.opener.eof(0), Ok(()));
    }
}
