//! What holds for all fields, all blocks and all states.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::table::{STATIC_ENTRIES, fixed};
use super::super::{huffman, integer};
use super::*;

/// Bytes as a header may have them, or any.
fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "[a-z0-9:./=-]{0,40}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..200),
    ]
}

/// A name or a field of the static table, or neither.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let entry = || (1..=STATIC_ENTRIES).prop_map(|index| fixed(index).unwrap());
    prop_oneof![
        entry().prop_map(|(name, value)| (name.to_vec(), value.to_vec())),
        (entry(), text()).prop_map(|((name, _), value)| (name.to_vec(), value)),
        (text(), text()),
    ]
}

/// A choice that the encoder of a peer has.
#[derive(Clone, Debug)]
enum Step {
    Indexed(u32),
    Literal { pattern: u8, name: Result<u32, Vec<u8>>, value: Vec<u8>, huffman: (bool, bool) },
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![any::<u32>().prop_map(Ok), text().prop_map(Err)];
    let pattern = prop_oneof![4 => Just(0x40_u8), 1 => Just(0x00), 1 => Just(0x10)];
    prop_oneof![
        1 => any::<u32>().prop_map(Step::Indexed),
        2 => (pattern, name, text(), any::<(bool, bool)>())
            .prop_map(|(pattern, name, value, huffman)| Step::Literal { pattern, name, value, huffman }),
    ]
}

/// A block: the sizes it begins with, and its steps.
type Block = (Vec<u32>, Vec<Step>);

fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let sizes = prop_oneof![4 => Just(Vec::new()), 1 => vec(0..=LIMIT, 1..=2)];
    vec((sizes, vec(step(), 0..12)), 1..8)
}

const LIMIT: u32 = 700;

/// An encoder that does all the RFC allows, on the plainest table there is.
struct Model {
    entries: VecDeque<(Vec<u8>, Vec<u8>)>,
    max: u32,
}

impl Model {
    fn new() -> Self {
        Self { entries: VecDeque::new(), max: LIMIT }
    }

    fn size(&self) -> usize {
        self.entries.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
    }

    fn evict(&mut self) {
        while self.size() > self.max as usize {
            self.entries.pop_back();
        }
    }

    /// The index made one that exists, and its entry.
    fn entry(&self, any: u32) -> (u32, (Vec<u8>, Vec<u8>)) {
        let entries = u32::try_from(self.entries.len()).unwrap();
        let index = any % (STATIC_ENTRIES + entries) + 1;
        let lent = |(name, value): (&[u8], &[u8])| (name.to_vec(), value.to_vec());
        let entry =
            fixed(index).map_or_else(|| self.entries[(index - STATIC_ENTRIES - 1) as usize].clone(), lent);
        (index, entry)
    }

    fn encode(&mut self, (sizes, steps): &Block) -> (Vec<u8>, Fields) {
        let (mut block, mut fields) = (Vec::new(), Fields::new());
        for size in sizes {
            integer::write(0x20, 5, *size as usize, &mut block);
            self.max = *size;
            self.evict();
        }
        for step in steps {
            match step {
                Step::Indexed(any) => {
                    let (index, entry) = self.entry(*any);
                    integer::write(0x80, 7, index as usize, &mut block);
                    fields.push(entry);
                }
                Step::Literal { pattern, name, value, huffman } => {
                    let prefix = if *pattern == 0x40 { 6 } else { 4 };
                    let name = match name {
                        Ok(any) => {
                            let (index, (name, _)) = self.entry(*any);
                            integer::write(*pattern, prefix, index as usize, &mut block);
                            name
                        }
                        Err(name) => {
                            block.push(*pattern);
                            string(name, huffman.0, &mut block);
                            name.clone()
                        }
                    };
                    string(value, huffman.1, &mut block);
                    fields.push((name.clone(), value.clone()));
                    if *pattern == 0x40 {
                        self.entries.push_front((name, value.clone()));
                        self.evict();
                    }
                }
            }
        }
        (block, fields)
    }
}

fn string(bytes: &[u8], huffman: bool, block: &mut Vec<u8>) {
    if huffman {
        integer::write(0x80, 7, huffman::encoded_length(bytes), block);
        huffman::encode(bytes, block);
    } else {
        integer::write(0x00, 7, bytes.len(), block);
        block.extend_from_slice(bytes);
    }
}

/// What a decoder may hold between blocks, in bytes: the table's text, its entries and the scratch buffer.
fn bound(limit: u32) -> usize {
    2 * limit as usize + 4096 + 256
}

proptest! {
    #[test]
    fn what_we_encode_is_what_is_decoded(lists in vec(vec(field(), 0..12), 1..4)) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        for list in lists {
            let block = encode(&mut encoder, &list);
            prop_assert_eq!(decode(&mut decoder, &block), Ok(list));
            prop_assert_eq!(decoder.size(), 0);
        }
    }

    #[test]
    fn whatever_an_encoder_may_choose_is_decoded_and_the_tables_stay_the_same(blocks in blocks()) {
        let (mut model, mut decoder) = (Model::new(), Decoder::new(LIMIT));
        for block in &blocks {
            let (block, fields) = model.encode(block);
            prop_assert_eq!(decode(&mut decoder, &block), Ok(fields));
            let entries: VecDeque<_> = decoder.entries().map(|(name, value)| (name.into(), value.into())).collect();
            prop_assert_eq!(&entries, &model.entries);
            prop_assert_eq!(decoder.size() as usize, model.size());
            prop_assert!(decoder.memory() <= bound(LIMIT), "{} bytes", decoder.memory());
        }
    }

    #[test]
    fn a_decoder_that_moved_in_the_middle_decodes_as_if_it_had_not(blocks in blocks(), at in 0_usize..8) {
        let (mut model, mut decoder) = (Model::new(), Decoder::new(LIMIT));
        for (number, block) in blocks.iter().enumerate() {
            if number == at {
                decoder = moved(&decoder);
            }
            let (block, fields) = model.encode(block);
            prop_assert_eq!(decode(&mut decoder, &block), Ok(fields));
        }
        prop_assert_eq!(written(|to| moved(&decoder).write(to)), written(|to| decoder.write(to)));
    }

    #[test]
    fn huffman_gives_back_any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        let mut encoded = Vec::new();
        huffman::encode(&bytes, &mut encoded);
        prop_assert_eq!(encoded.len(), huffman::encoded_length(&bytes));
        let mut decoded = vec![0; huffman::room(encoded.len())];
        let length = huffman::decode(&encoded, &mut decoded).unwrap();
        prop_assert_eq!(&decoded[..length], &bytes);
    }

    /// A string has one encoding, so what is decoded from any bytes encodes to the same bytes.
    #[test]
    fn huffman_takes_no_second_encoding_of_a_string(bytes in vec(prop_oneof![any::<u8>(), Just(0xff), 0xf8_u8..], 0..24)) {
        let mut decoded = vec![0; huffman::room(bytes.len())];
        if let Ok(length) = huffman::decode(&bytes, &mut decoded) {
            let mut encoded = Vec::new();
            huffman::encode(&decoded[..length], &mut encoded);
            prop_assert_eq!(encoded, bytes);
        }
    }

    #[test]
    fn any_bytes_as_blocks_neither_panic_nor_outgrow_the_limit(
        blocks in vec(vec(prop_oneof![any::<u8>(), 0x40_u8..0x44, Just(0x82)], 0..100), 1..12),
        limit in prop_oneof![Just(0), 0_u32..200, Just(u32::MAX)],
    ) {
        let mut decoder = Decoder::new(limit.min(65_536));
        decoder.set_limit(limit);
        for block in blocks {
            let _ = decode(&mut decoder, &block);
            prop_assert!(decoder.size() <= limit);
            prop_assert!(decoder.memory() <= bound(limit.min(65_536)));
        }
    }

    #[test]
    fn any_bytes_as_a_state_neither_panic_nor_make_an_impossible_table(
        blocks in blocks(),
        noise in vec(any::<u8>(), 0..100),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        end in any::<proptest::sample::Index>(),
    ) {
        let _ = read(&[&written(|_| ())[..], &noise].concat(), Decoder::read);
        let _ = read(&[&written(|_| ())[..], &noise].concat(), Encoder::read);
        let (mut model, mut decoder) = (Model::new(), Decoder::new(LIMIT));
        for block in &blocks {
            decode(&mut decoder, &model.encode(block).0).unwrap();
        }
        let mut state = written(|to| decoder.write(to));
        let cut = read(&state[..end.index(state.len())], Decoder::read);
        prop_assert!(cut.is_err());
        for (at, value) in changes {
            let at = at.index(state.len());
            state[at] = value;
        }
        if let Ok(mut decoder) = read(&state, Decoder::read) {
            let entries: usize = decoder.entries().map(|(name, value)| name.len() + value.len() + 32).sum();
            prop_assert_eq!(entries, decoder.size() as usize);
            let _ = decode(&mut decoder, &noise);
        }
    }
}

#[test]
fn a_large_limit_costs_nothing_until_it_is_used_and_is_not_kept_when_it_is_given_up() {
    let mut decoder = Decoder::new(1 << 20);
    assert_eq!(decoder.memory(), 0);
    let field = [&b"\x40\x01a\x7f\x81\x07"[..], &[b'x'; 1024]].concat();
    for _ in 0..2048 {
        decode(&mut decoder, &field).unwrap();
    }
    assert!(decoder.memory() > 900_000 && decoder.memory() <= bound(1 << 20), "{} bytes", decoder.memory());
    decode(&mut decoder, &[0x20]).unwrap();
    assert_eq!(decoder.memory(), 0);
    // Entries without any text count too.
    decode(&mut decoder, &hex("3f e1 1f")).unwrap();
    for _ in 0..1000 {
        decode(&mut decoder, &[0x40, 0x00, 0x00]).unwrap();
    }
    assert_eq!((decoder.size(), decoder.entries().count()), (4096, 128));
    decode(&mut decoder, &[0x20]).unwrap();
    assert_eq!(decoder.memory(), 0);
}

#[test]
fn a_long_huffman_string_is_not_paid_for_after_its_block() {
    let mut decoder = Decoder::new(0);
    let mut block = vec![0x01];
    string(&[b'0'; 40_000], true, &mut block);
    assert_eq!(decode(&mut decoder, &block).unwrap()[0].1.len(), 40_000);
    assert_eq!(decoder.memory(), 0);
}

#[test]
fn every_static_field_is_one_byte() {
    for index in 1..=STATIC_ENTRIES {
        let (name, value) = fixed(index).unwrap();
        let mut block = Vec::new();
        Encoder::new().field(name, value, &mut block);
        assert_eq!(block, [0x80 | u8::try_from(index).unwrap()], "{name:?}");
    }
}

#[test]
fn a_known_name_is_an_index_and_an_unknown_field_is_not_to_be_kept() {
    let mut block = Vec::new();
    Encoder::new().field(b":method", b"CONNECT", &mut block);
    assert_eq!(block, b"\x02\x07CONNECT");
    block.clear();
    Encoder::new().field(b"www-authenticate", b"", &mut block);
    assert_eq!(block, [0x80 | 61]);
    block.clear();
    Encoder::new().field(b"via", b"x", &mut block);
    assert_eq!(block, b"\x0f\x2d\x01x");
    block.clear();
    Encoder::new().field(b"baggage", b"x", &mut block);
    assert_eq!(block, b"\x00\x07baggage\x01x");
}

#[test]
fn a_lowered_limit_of_the_peer_is_acknowledged_once_and_with_zero() {
    let first_byte = |limits: &[u32], blocks: usize| {
        let mut encoder = Encoder::new();
        for limit in limits {
            encoder.set_peer_limit(*limit);
        }
        let mut encoder = read(&written(|to| encoder.write(to)), Encoder::read).unwrap();
        let list = fields([(":method", "GET")]);
        (0..blocks).map(|_| encode(&mut encoder, &list)).collect::<Vec<_>>()
    };
    assert_eq!(first_byte(&[], 1), [[0x82]]);
    assert_eq!(first_byte(&[4096, 65_536], 1), [[0x82]]);
    assert_eq!(first_byte(&[4095], 2), [vec![0x20, 0x82], vec![0x82]]);
    assert_eq!(first_byte(&[0, 65_536], 2), [vec![0x20, 0x82], vec![0x82]]);
    // After the update the peer's table has no size that a limit could be below.
    let mut encoder = Encoder::new();
    encoder.set_peer_limit(0);
    encoder.begin(&mut Vec::new());
    let mut encoder = read(&written(|to| encoder.write(to)), Encoder::read).unwrap();
    encoder.set_peer_limit(4096);
    encoder.set_peer_limit(0);
    assert!(encode(&mut encoder, &Fields::new()).is_empty());
}
