//! Packets as bytes.

use proptest::prelude::*;

use super::super::error::{Violation, chain};
use super::super::socket::Packet;
use super::super::wire::{Request, answer, hello};
use super::*;

fn read(bytes: &[u8], descriptors: usize) -> Result<Request, Violation> {
    let open = || std::fs::File::open("/dev/null").unwrap().into();
    Request::read(Packet { bytes: bytes.to_vec(), descriptors: (0..descriptors).map(|_| open()).collect() })
}

#[test]
fn what_we_send_is_spelled_as_the_protocol_spells_it() {
    assert_eq!(hello(), [0x08, 0x01]);
    assert_eq!(answer(String::new()), [0x0a, 0x00]);
    assert_eq!(answer("x".to_owned()), [0x0a, 0x03, 0x0a, 0x01, 0x78]);
}

#[test]
fn what_the_agent_sends_is_read_as_the_protocol_spells_it() {
    assert!(matches!(read(&[0x1a, 0x00], 0), Ok(Request::SnapshotSent)));
    let del = read(&[0x12, 0x03, 0x12, 0x01, 0x61], 0).unwrap();
    assert!(matches!(del, Request::Del(uid) if &*uid == "a"));
    let keep = read(&[0x2a, 0x03, 0x0a, 0x01, 0x61], 0).unwrap();
    assert!(matches!(keep, Request::Keep(uid) if &*uid == "a"));
    let add =
        [0x0a, 0x0e, 0x0a, 0x01, 0x61, 0x12, 0x09, 0x0a, 0x01, 0x6e, 0x12, 0x01, 0x6d, 0x1a, 0x01, 0x73];
    let Request::Add(pod, _) = read(&add, 1).unwrap() else { panic!("an Add") };
    let expected = PodInfo {
        uid: "a".into(),
        name: "n".to_owned(),
        namespace: "m".to_owned(),
        service_account: "s".to_owned(),
    };
    assert_eq!(pod, expected);
}

#[test]
fn a_request_of_a_newer_agent_is_unknown_and_not_a_violation() {
    for bytes in [&[0x22, 0x00][..], &[0x32, 0x00], &[0x3a, 0x02, 0x08, 0x01]] {
        assert!(matches!(read(bytes, 0), Ok(Request::Unknown)));
        assert!(matches!(read(bytes, 2), Ok(Request::Unknown)));
    }
}

#[test]
fn a_packet_that_breaks_the_protocol_says_how() {
    let add_with = |info| {
        let payload = Payload::Add(proto::AddWorkload { workload_info: info, ..add("a") });
        proto::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    };
    let whole = add_with(add("a").workload_info);
    let says = |bytes: &[u8], descriptors, text: &str| {
        let said = chain(&read(bytes, descriptors).unwrap_err());
        assert!(said.contains(text), "{said:?} does not contain {text:?}");
    };
    says(&[0xff], 0, "failure to read message: not a WorkloadRequest: ");
    says(&[0x12, 0x03, 0x12, 0x01, 0xff], 0, "failure to read message: not a WorkloadRequest: ");
    says(&whole, 0, "an added pod comes with one descriptor, this one with none");
    says(&whole, 2, "2 descriptors with a message that takes 1");
    says(&[0x1a, 0x00], 1, "1 descriptors with a message that takes 0");
    says(&add_with(None), 1, "failure to process message: pod a was added without workload_info");
}

#[test]
fn a_long_error_text_fits_the_agents_buffer_and_stays_text() {
    for letter in ["x", "é", "語", "🙂"] {
        for shift in 0..4 {
            let packet = answer("-".repeat(shift) + &letter.repeat(3000));
            assert!((900..1000).contains(&packet.len()), "{} bytes", packet.len());
            let read = proto::WorkloadResponse::decode(packet.as_slice()).unwrap();
            let Some(proto::workload_response::Payload::Ack(ack)) = read.payload else { panic!("an ack") };
            assert!(ack.error.ends_with(" [cut]"));
        }
    }
    assert!(!String::from_utf8_lossy(&answer("x".repeat(990))).contains("cut"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..1024),
        descriptors in 0_usize..3,
    ) {
        let _ = read(&bytes, descriptors);
    }
}
