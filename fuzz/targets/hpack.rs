//! Header blocks of a hostile peer: each begins with its length in two bytes. The decoder must not panic, must keep its table
//! within its limit, and must go on the same when it is written down and taken up between two blocks.
#![no_main]

use std::time::Instant;

use adit::http2::hpack::Decoder;
use adit::plain::{Kind, Reader, Writer};
use libfuzzer_sys::fuzz_target;

const LIMIT: u32 = 4_096;
const KIND: Kind = Kind { name: "decoder", mark: *b"fuzz", version: 1 };

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, String> {
    let mut fields = Vec::new();
    let done = decoder.decode(block, 1 << 20, |name, value| fields.push((name.to_vec(), value.to_vec())));
    assert!(decoder.size() <= LIMIT);
    done.map(|()| fields).map_err(|error| error.to_string())
}

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(LIMIT);
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (block, after) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        rest = after;
        let now = Instant::now();
        let mut writer = Writer::new(KIND, now);
        decoder.write(&mut writer);
        let state = writer.finish();
        let mut reader = Reader::new(KIND, &state, now).expect("it was just written");
        let mut moved = Decoder::read(&mut reader).expect("it was just written");
        let (here, there) = (decode(&mut decoder, block), decode(&mut moved, block));
        assert_eq!(here, there);
        if here.is_err() {
            return;
        }
    }
});
