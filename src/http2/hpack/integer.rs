//! Numbers that begin within a byte (RFC 7541 §5.1).

/// Why a number cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes end first.
    Truncated,
    /// More than 32 bits, or more than five continuation bytes.
    TooLong,
}

/// Reads the number whose first `prefix` bits are the low ones of `bytes[*at]`, and moves `at` behind it.
///
/// Zeros may pad it to five continuation bytes, which is what 32 bits need: the RFC asks for a bound on the length and
/// not for the shortest form.
#[inline]
pub(super) fn read(bytes: &[u8], at: &mut usize, prefix: u32) -> Result<u32, Fault> {
    let mask = u8::MAX >> (8 - prefix);
    let first = bytes.get(*at).ok_or(Fault::Truncated)? & mask;
    *at += 1;
    if first < mask {
        return Ok(first.into());
    }
    let mut value = u64::from(mask);
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at).ok_or(Fault::Truncated)?;
        *at += 1;
        value += u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return u32::try_from(value).map_err(|_| Fault::TooLong);
        }
    }
    Err(Fault::TooLong)
}

/// Appends `value` with the first bits of `pattern` in front, and `prefix` bits of it in that same byte.
#[inline]
pub(super) fn write(pattern: u8, prefix: u32, value: usize, out: &mut Vec<u8>) {
    let mask = u8::MAX >> (8 - prefix);
    match u8::try_from(value) {
        Ok(small) if small < mask => out.push(pattern | small),
        _ => {
            out.push(pattern | mask);
            let mut rest = value - usize::from(mask);
            while rest >= 0x80 {
                out.push(0x80 | low(rest));
                rest >>= 7;
            }
            out.push(low(rest));
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits are left")]
fn low(value: usize) -> u8 {
    (value & 0x7f) as u8
}
