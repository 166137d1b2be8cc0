//! Is there anything in a policy that this version does not know?
//!
//! A decoder passes over fields it does not know, as protobuf wants it. In a policy that would drop a condition of a newer
//! control plane: an ALLOW without it lets more in. So the bytes are walked once more, by number alone.

/// What a message may have: the number of each field, and what it is.
struct Shape(&'static [(u32, Field)]);

#[derive(Clone, Copy)]
enum Field {
    /// Something that has no part we would have to know.
    Plain,
    /// A message.
    Of(&'static Shape),
}

use Field::{Of, Plain};

const STRING_MATCH: Shape = Shape(&[(1, Plain), (2, Plain), (3, Plain), (4, Plain)]);
const ADDRESS: Shape = Shape(&[(1, Plain), (2, Plain)]);
const ACCOUNT: Shape = Shape(&[(1, Plain), (2, Plain)]);
const MATCH: Shape = Shape(&[
    (1, Of(&STRING_MATCH)),
    (2, Of(&STRING_MATCH)),
    (3, Of(&STRING_MATCH)),
    (4, Of(&STRING_MATCH)),
    (5, Of(&ADDRESS)),
    (6, Of(&ADDRESS)),
    (7, Of(&ADDRESS)),
    (8, Of(&ADDRESS)),
    (9, Plain),
    (10, Plain),
    (11, Of(&ACCOUNT)),
    (12, Of(&ACCOUNT)),
    // Extensions, of which no data plane of today makes anything.
    (13, Plain),
]);
const CLAUSE: Shape = Shape(&[(2, Of(&MATCH))]);
const RULE: Shape = Shape(&[(1, Of(&CLAUSE))]);

/// The number of the rules in a policy.
const RULES: u32 = 5;

/// The first field that is not known within the rules of the policy that `bytes` are, as the numbers that lead to it. `bytes` is a
/// message that was decoded, so what cannot be walked is something unknown too.
pub(super) fn in_rules(bytes: &[u8]) -> Option<String> {
    let mut left = bytes;
    while !left.is_empty() {
        let Some((number, inner)) = next(&mut left) else {
            return Some("a field that cannot be read".into());
        };
        if number == RULES
            && let Some(found) = inner.and_then(|inner| unknown(inner, &RULE))
        {
            return Some(format!("field {RULES}.{found}"));
        }
    }
    None
}

fn unknown(bytes: &[u8], shape: &Shape) -> Option<String> {
    let mut left = bytes;
    while !left.is_empty() {
        let Some((number, inner)) = next(&mut left) else { return Some("?".into()) };
        let known = shape.0.iter().find(|(known, _)| *known == number);
        match (known, inner) {
            (None, _) => return Some(number.to_string()),
            (Some((_, Of(shape))), Some(inner)) => {
                if let Some(found) = unknown(inner, shape) {
                    return Some(format!("{number}.{found}"));
                }
            }
            (Some(_), _) => {}
        }
    }
    None
}

/// Takes the next field: its number, and its bytes where it is delimited. `None` where the bytes are none.
fn next<'a>(left: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let key = varint(left)?;
    let number = u32::try_from(key >> 3).ok()?;
    match key & 7 {
        0 => varint(left).map(|_| (number, None)),
        1 => skip(left, 8).map(|_| (number, None)),
        2 => {
            let length = usize::try_from(varint(left)?).ok()?;
            skip(left, length).map(|inner| (number, Some(inner)))
        }
        5 => skip(left, 4).map(|_| (number, None)),
        _ => None,
    }
}

fn skip<'a>(left: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (inner, rest) = left.split_at_checked(length)?;
    *left = rest;
    Some(inner)
}

fn varint(left: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = left.split_first()?;
        *left = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
