//! The RFC's examples, malformed blocks, properties, and the h2 crate as a peer in both roles.

mod rfc;

use super::*;

/// A field list, as owned bytes.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn fields<const N: usize>(fields: [(&str, &str); N]) -> Fields {
    fields.map(|(name, value)| (name.into(), value.into())).into()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, DecodeError> {
    let mut seen = Fields::new();
    decoder.decode(block, |name, value| seen.push((name.into(), value.into())))?;
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
