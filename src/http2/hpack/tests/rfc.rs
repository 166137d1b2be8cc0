//! RFC 7541 Appendix C, example by example.

use super::super::{huffman, integer};
use super::*;

#[test]
fn integers_are_those_of_appendix_c_1() {
    for (value, prefix, pattern, bytes) in [
        (10, 5, 0x00, &[0x0a][..]),
        (1337, 5, 0x00, &[0x1f, 0x9a, 0x0a]),
        (42, 8, 0x00, &[0x2a]),
        // The other bits of the first byte are not the number's.
        (10, 5, 0xe0, &[0xea]),
        (1337, 5, 0x40, &[0x5f, 0x9a, 0x0a]),
        // The edges of the prefix and of 32 bits.
        (30, 5, 0x00, &[0x1e]),
        (31, 5, 0x00, &[0x1f, 0x00]),
        (127, 7, 0x80, &[0xff, 0x00]),
        (255, 8, 0x00, &[0xff, 0x00]),
        (u32::MAX, 5, 0x20, &[0x3f, 0xe0, 0xff, 0xff, 0xff, 0x0f]),
    ] {
        let mut at = 0;
        assert_eq!(integer::read(bytes, &mut at, prefix), Ok(value), "{bytes:02x?}");
        assert_eq!(at, bytes.len());
        let mut written = Vec::new();
        integer::write(pattern, prefix, value as usize, &mut written);
        assert_eq!(written, bytes);
    }
}

/// One block of an example, what it says, and the dynamic table after it, newest first.
struct Step {
    block: &'static str,
    fields: Fields,
    table: Fields,
    size: u32,
}

fn follow<const N: usize>(limit: u32, steps: [Step; N]) {
    let mut decoder = Decoder::new(limit);
    for Step { block, fields, table, size } in steps {
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), fields);
        let entries: Fields = decoder.entries().map(|(name, value)| (name.into(), value.into())).collect();
        assert_eq!(entries, table, "after {block}");
        assert_eq!(decoder.size(), size, "after {block}");
    }
}

#[test]
fn each_representation_is_that_of_appendix_c_2() {
    let custom = || fields([("custom-key", "custom-header")]);
    follow(
        4096,
        [Step {
            block: "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            fields: custom(),
            table: custom(),
            size: 55,
        }],
    );
    for (block, field) in [
        ("040c 2f73 616d 706c 652f 7061 7468", (":path", "/sample/path")),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", ("password", "secret")),
        ("82", (":method", "GET")),
    ] {
        follow(4096, [Step { block, fields: fields([field]), table: Fields::new(), size: 0 }]);
    }
}

fn requests(first: &'static str, second: &'static str, third: &'static str) {
    let authority = (":authority", "www.example.com");
    let custom = ("custom-key", "custom-value");
    let cache = ("cache-control", "no-cache");
    let get = (":method", "GET");
    follow(
        4096,
        [
            Step {
                block: first,
                fields: fields([get, (":scheme", "http"), (":path", "/"), authority]),
                table: fields([authority]),
                size: 57,
            },
            Step {
                block: second,
                fields: fields([get, (":scheme", "http"), (":path", "/"), authority, cache]),
                table: fields([cache, authority]),
                size: 110,
            },
            Step {
                block: third,
                fields: fields([get, (":scheme", "https"), (":path", "/index.html"), authority, custom]),
                table: fields([custom, cache, authority]),
                size: 164,
            },
        ],
    );
}

#[test]
fn requests_without_huffman_are_those_of_appendix_c_3() {
    requests(
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    );
}

#[test]
fn requests_with_huffman_are_those_of_appendix_c_4() {
    requests(
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    );
}

fn responses(first: &'static str, second: &'static str, third: &'static str) {
    let [private, found, not_modified] =
        [("cache-control", "private"), (":status", "302"), (":status", "307")];
    let location = ("location", "https://www.example.com");
    let [date, later] =
        [("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("date", "Mon, 21 Oct 2013 20:13:22 GMT")];
    let gzip = ("content-encoding", "gzip");
    let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    follow(
        256,
        [
            Step {
                block: first,
                fields: fields([found, private, date, location]),
                table: fields([location, date, private, found]),
                size: 222,
            },
            Step {
                block: second,
                fields: fields([not_modified, private, date, location]),
                table: fields([not_modified, location, date, private]),
                size: 222,
            },
            Step {
                block: third,
                fields: fields([(":status", "200"), private, later, location, gzip, cookie]),
                table: fields([cookie, gzip, later]),
                size: 215,
            },
        ],
    );
}

#[test]
fn responses_without_huffman_and_evictions_are_those_of_appendix_c_5() {
    responses(
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
         3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
         7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 \
         6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    );
}

#[test]
fn responses_with_huffman_and_evictions_are_those_of_appendix_c_6() {
    responses(
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
         1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
         e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    );
}

#[test]
fn every_symbol_has_the_code_of_appendix_b() {
    // The codes that a slip in the lengths, the order or the carry would change: the first and last of a length.
    for (symbol, code) in [
        (b'0', "07"),        // 00000, padded with ones
        (b't', "4f"),        // 01001
        (b' ', "53"),        // 010100
        (b'u', "b7"),        // 101101
        (b':', "b9"),        // 1011100
        (b'z', "f7"),        // 1111011
        (b'&', "f8"),        // 11111000
        (b'Z', "fd"),        // 11111101
        (b'!', "fe3f"),      // 11111110 00
        (0x00, "ffc7"),      // 11111111 11000
        (b'\\', "fffe1f"),   // 11111111 11111110 000
        (0xff, "fffffbbf"),  // 11111111 11111111 11111011 10
        (0x16, "ffff fffb"), // 11111111 11111111 11111111 111110
        (0xf9, "ffff ffef"), // 11111111 11111111 11111111 1110, of 28 bits
    ] {
        let mut encoded = Vec::new();
        huffman::encode(&[symbol], &mut encoded);
        assert_eq!(encoded, hex(code), "{symbol:#x}");
    }
}
