//! What do the header blocks of one tunnelled connection cost?
//!
//! Unit: ns per block. The request is a typical CONNECT, the response what answers it.
//!
//! - `decode/first`: as an h2 peer sends it first, Huffman-coded and kept in the dynamic table, into a new decoder.
//! - `decode/inserts`: the same block again and again, so that each field is kept in a table that is full.
//! - `decode/repeated`: as the same peer sends it again, every field an index.
//! - `decode/ours`: as we send it, literals without Huffman.
//! - `encode`, `encode/huffman`: as we send it, and what its values would cost Huffman-coded, with how much they shrink.
//! - `reference`: its names and values copied once into a buffer, and nothing else.

use std::hint::black_box;

use adit::http2::hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder, huffman};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

type Fields = &'static [(&'static str, &'static str)];

const BAGGAGE: (&str, &str) = (
    "baggage",
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=storefront,\
     service.name=storefront,service.version=v1",
);

const REQUEST: Fields = &[
    (":method", "CONNECT"),
    (":authority", "10.77.2.1:8080"),
    BAGGAGE,
    ("forwarded", "for=\"10.77.1.1:41234\";host=payments.shop.svc.cluster.local"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
];

const RESPONSE: Fields = &[(":status", "200"), BAGGAGE];

fn ours(fields: Fields) -> Vec<u8> {
    let (mut encoder, mut block) = (Encoder::new(), Vec::new());
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
    }
    block
}

/// What an h2 peer sends: every string Huffman-coded, every field kept that the static table does not have.
fn first(fields: Fields) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |text: &str, block: &mut Vec<u8>| {
        let length = u8::try_from(huffman::encoded_length(text.as_bytes())).expect("shorter than 256");
        match length {
            0..0x7f => block.push(0x80 | length),
            _ => block.extend_from_slice(&[0xff, length - 0x7f]),
        }
        huffman::encode(text.as_bytes(), block);
    };
    for (name, value) in fields {
        match *name {
            ":status" => {
                block.push(0x88);
                continue;
            }
            ":method" => block.push(0x42),
            ":authority" => block.push(0x41),
            _ => {
                block.push(0x40);
                string(name, &mut block);
            }
        }
        string(value, &mut block);
    }
    block
}

/// What it sends afterwards.
fn repeated(fields: Fields) -> Vec<u8> {
    let kept = fields.iter().filter(|(name, _)| *name != ":status").count();
    let indices = (0..kept).rev().map(|newer| 0x80 + 62 + u8::try_from(newer).expect("a few"));
    [&[0x88][usize::from(kept == fields.len())..], &indices.collect::<Vec<_>>()].concat()
}

/// Takes each field as a user must: it looks at both its ends.
fn take(decoder: &mut Decoder, block: &[u8]) -> usize {
    let mut bytes = 0;
    let result = decoder.decode(black_box(block), 64 << 10, |name, value| {
        bytes += black_box(name).len() + black_box(value).len();
    });
    result.expect("a block that is well formed");
    bytes
}

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hpack");
    for (which, fields) in [("request", REQUEST), ("response", RESPONSE)] {
        let all: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let (first, repeated, ours) = (first(fields), repeated(fields), ours(fields));
        println!(
            "{which}: {all} bytes of fields, first {}, repeated {}, ours {}",
            first.len(),
            repeated.len(),
            ours.len()
        );
        let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE);
        for block in [&first, &repeated, &ours] {
            assert_eq!(take(&mut decoder, block), all);
        }
        group.bench_function(BenchmarkId::new("decode/first", which), |bench| {
            bench.iter(|| take(&mut Decoder::new(DEFAULT_TABLE_SIZE), &first));
        });
        group.bench_function(BenchmarkId::new("decode/repeated", which), |bench| {
            bench.iter(|| take(&mut decoder, &repeated));
        });
        group.bench_function(BenchmarkId::new("decode/ours", which), |bench| {
            bench.iter(|| take(&mut decoder, &ours));
        });
        group.bench_function(BenchmarkId::new("decode/inserts", which), |bench| {
            bench.iter(|| take(&mut decoder, &first));
        });
        let mut block = Vec::with_capacity(1024);
        let mut encoder = Encoder::new();
        group.bench_function(BenchmarkId::new("encode", which), |bench| {
            bench.iter(|| {
                block.clear();
                encoder.begin(&mut block);
                for (name, value) in black_box(fields) {
                    encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
                }
                black_box(&block).len()
            });
        });
        group.bench_function(BenchmarkId::new("encode/huffman", which), |bench| {
            bench.iter(|| {
                block.clear();
                for (_, value) in black_box(fields) {
                    block.push(u8::try_from(huffman::encoded_length(value.as_bytes())).unwrap_or(0));
                    huffman::encode(value.as_bytes(), &mut block);
                }
                black_box(&block).len()
            });
        });
        group.bench_function(BenchmarkId::new("reference", which), |bench| {
            bench.iter(|| {
                block.clear();
                for (name, value) in black_box(fields) {
                    block.extend_from_slice(name.as_bytes());
                    block.extend_from_slice(value.as_bytes());
                }
                black_box(&block).len()
            });
        });
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
