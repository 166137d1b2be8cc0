//! The Huffman code (RFC 7541 §5.2, Appendix B).
//!
//! It is canonical: codes of one length are consecutive numbers in the order of their symbols, and the first of a length
//! follows the last of the shorter ones. So the lengths say all, and the rest is computed from them when this is
//! compiled.

/// The symbol that never stands in a string; the padding is the beginning of its code.
const END: u16 = 256;

/// The longest code.
const LONGEST: u32 = 30;

/// How many bits each symbol's code has; the last is [`END`]'s.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The code, by length.
struct Canon {
    /// The symbols in the order of their codes.
    symbols: [u16; 257],
    /// How many symbols have shorter codes than this many bits.
    before: [u16; LONGEST as usize + 1],
    /// The first code of this many bits.
    first: [u32; LONGEST as usize + 1],
    /// The end of the codes of this many bits or fewer, as the first of 32 bits.
    end: [u64; LONGEST as usize + 1],
}

static CANON: Canon = canon();

const fn canon() -> Canon {
    let mut canon = Canon {
        symbols: [0; 257],
        before: [0; LONGEST as usize + 1],
        first: [0; LONGEST as usize + 1],
        end: [0; LONGEST as usize + 1],
    };
    let (mut placed, mut code, mut length) = (0, 0, 1);
    while length <= LONGEST {
        let at = length as usize;
        code <<= 1;
        canon.first[at] = code;
        canon.before[at] = placed;
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol as usize] as u32 == length {
                canon.symbols[placed as usize] = symbol;
                placed += 1;
                code += 1;
            }
            symbol += 1;
        }
        canon.end[at] = (code as u64) << (32 - length);
        length += 1;
    }
    canon
}

/// How many bits one look-up takes: two characters of what headers mostly consist of, whose codes have five or six.
const WIDE: u32 = 12;

/// What any twelve bits begin with: in the low bytes the first symbol and the second, then how many bits they have, then
/// how many symbols there are. None when already the first is longer than twelve bits.
static PAIRS: [u32; 1 << WIDE] = pairs();

const fn pairs() -> [u32; 1 << WIDE] {
    let canon = canon();
    // Each place's first symbol, and behind it the length of its code.
    let mut firsts = [(0, WIDE + 1); 1 << WIDE];
    let (mut place, mut next) = (0, 0);
    while next <= END as usize {
        let symbol = canon.symbols[next] as u32;
        let length = LENGTHS[symbol as usize] as u32;
        if length > WIDE {
            break;
        }
        let until = place + (1 << (WIDE - length));
        while place < until {
            firsts[place] = (symbol, length);
            place += 1;
        }
        next += 1;
    }
    let mut pairs = [0; 1 << WIDE];
    let mut place = 0;
    while place < pairs.len() {
        let (first, length) = firsts[place];
        if length <= WIDE {
            let (second, more) = firsts[(place << length) & (pairs.len() - 1)];
            pairs[place] = if length + more <= WIDE {
                first | second << 8 | (length + more) << 16 | 2 << 24
            } else {
                first | length << 16 | 1 << 24
            };
        }
        place += 1;
    }
    pairs
}

/// Why bytes are no Huffman string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They contain the code for the end of a string.
    EndOfString,
    /// The last code is cut, or the padding is eight bits or more, or not all ones.
    Padding,
}

/// How much room [`decode`] needs for `length` bytes: the shortest code has five bits, and it writes in pairs.
pub const fn room(length: usize) -> usize {
    length.saturating_mul(8) / 5 + 2
}

/// Decodes all of `from` into the start of `to`, which has [`room`] for it, and tells how much that is.
///
/// # Errors
/// [`Fault`]; what stands in `to` then means nothing.
pub fn decode(from: &[u8], to: &mut [u8]) -> Result<usize, Fault> {
    // The next bits, first one highest; `count` of them are accounted for, and `at` is the byte behind those.
    let (mut window, mut count, mut at) = (0_u64, 0_u32, 0);
    let mut written = 0;
    'refill: loop {
        if let Some(next) = from.get(at..).and_then(<[u8]>::first_chunk) {
            // Bits that the window has, but that do not fill a byte of `count`, come again and are the same.
            window |= u64::from_be_bytes(*next) >> count;
            at += (63 - count as usize) / 8;
            count |= 56;
        } else {
            while count < 56 && at < from.len() {
                window |= u64::from(from[at]) << (56 - count);
                count += 8;
                at += 1;
            }
        }
        while count >= WIDE {
            let [first, second, bits, symbols] = PAIRS[(window >> (64 - WIDE)) as usize].to_le_bytes();
            if symbols == 0 {
                if count < LONGEST {
                    // The code may be longer than what is accounted for, unless this is the last of it.
                    if at < from.len() { continue 'refill } else { break 'refill }
                }
                let (symbol, length) = one(window);
                to[written] = u8::try_from(symbol).map_err(|_| Fault::EndOfString)?;
                (written, window, count) = (written + 1, window << length, count - length);
                continue;
            }
            to[written..written + 2].copy_from_slice(&[first, second]);
            written += usize::from(symbols);
            window <<= bits;
            count -= u32::from(bits);
        }
        if at == from.len() {
            break;
        }
    }
    loop {
        // With ones behind its end, a string that is well padded ends in the beginning of the code of the end.
        let padded = window | u64::MAX >> count;
        if count < 8 && padded == u64::MAX {
            return Ok(written);
        }
        let pair = PAIRS[(padded >> (64 - WIDE)) as usize];
        let [first, second, bits, symbols] = pair.to_le_bytes();
        if symbols == 2 && u32::from(bits) <= count {
            to[written..written + 2].copy_from_slice(&[first, second]);
            (written, window, count) = (written + 2, window << bits, count - u32::from(bits));
            continue;
        }
        let (symbol, length) = one(padded);
        if length > count {
            return Err(Fault::Padding);
        }
        to[written] = u8::try_from(symbol).map_err(|_| Fault::EndOfString)?;
        (written, window, count) = (written + 1, window << length, count - length);
    }
}

/// The symbol that `window` begins with and the length of its code.
fn one(window: u64) -> (u16, u32) {
    let bits = window >> 32;
    let length = (5..LONGEST).find(|&length| bits < CANON.end[length as usize]).unwrap_or(LONGEST);
    let code = (bits >> (32 - length)) as usize;
    let place = code - CANON.first[length as usize] as usize + usize::from(CANON.before[length as usize]);
    (CANON.symbols[place], length)
}

/// Each symbol's code, and how many bits it has.
#[cfg(feature = "testing")]
static CODES: [(u32, u8); 256] = codes();

#[cfg(feature = "testing")]
const fn codes() -> [(u32, u8); 256] {
    let canon = canon();
    let mut codes = [(0, 0); 256];
    let mut place = 0_u16;
    while place < 256 {
        let symbol = canon.symbols[place as usize] as usize;
        let length = LENGTHS[symbol];
        let nth = (place - canon.before[length as usize]) as u32;
        codes[symbol] = (canon.first[length as usize] + nth, length);
        place += 1;
    }
    codes
}

/// Appends `from` encoded. Only tests and benches do: [`Encoder`](super::Encoder) says why.
#[cfg(feature = "testing")]
pub fn encode(from: &[u8], to: &mut Vec<u8>) {
    // The bits that do not fill four bytes yet are the low `count` of `bits`.
    let (mut bits, mut count) = (0_u64, 0_u32);
    for byte in from {
        let (code, length) = CODES[usize::from(*byte)];
        bits = bits << length | u64::from(code);
        count += u32::from(length);
        if count >= 32 {
            count -= 32;
            let [.., a, b, c, d] = (bits >> count).to_be_bytes();
            to.extend_from_slice(&[a, b, c, d]);
        }
    }
    let padded = bits << (32 - count) | u64::from(u32::MAX >> count);
    let [.., a, b, c, d] = padded.to_be_bytes();
    to.extend_from_slice(&[a, b, c, d][..count.div_ceil(8) as usize]);
}

/// How many bytes [`encode`] would append.
#[cfg(feature = "testing")]
pub fn encoded_length(from: &[u8]) -> usize {
    from.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}
