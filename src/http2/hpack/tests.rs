//! The RFC's examples, malformed blocks, properties, and the h2 crate as a peer in both roles.

mod malformed;
mod peer;
mod properties;
mod rfc;

use std::time::Instant;

use super::*;
use crate::plain::{Kind, PlainError, Reader, Writer};

/// A field list, as owned bytes.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn fields<const N: usize>(fields: [(&str, &str); N]) -> Fields {
    fields.map(|(name, value)| (name.into(), value.into())).into()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, DecodeError> {
    let mut seen = Fields::new();
    decoder.decode(block, usize::MAX, |name, value| seen.push((name.into(), value.into())))?;
    Ok(seen)
}

fn encode(encoder: &mut Encoder, fields: &Fields) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}

/// Bytes from the hexadecimal dumps that RFCs have.
fn hex(dump: &str) -> Vec<u8> {
    let digits: Vec<u8> = dump.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

const STATE: Kind = Kind { name: "test of HPACK", mark: *b"hpak", version: 1 };

/// The state as bytes, and what reads such bytes back.
fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new(STATE, Instant::now());
    write(&mut writer);
    writer.finish().to_vec()
}

fn read<T>(bytes: &[u8], read: impl FnOnce(&mut Reader) -> Result<T, PlainError>) -> Result<T, PlainError> {
    let mut reader = Reader::new(STATE, bytes, Instant::now())?;
    let state = read(&mut reader)?;
    reader.finish()?;
    Ok(state)
}

/// The decoder as another process would take it up.
fn moved(decoder: &Decoder) -> Decoder {
    read(&written(|to| decoder.write(to)), Decoder::read).unwrap()
}
