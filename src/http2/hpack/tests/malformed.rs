//! Blocks that break a rule, and what is said about each.

use super::*;

/// Decodes with a table of 256 bytes, in which `custom: value` is entry 62.
fn refusal(block: &str) -> DecodeError {
    let mut decoder = Decoder::new(256);
    decode(&mut decoder, b"\x40\x06custom\x05value").unwrap();
    decode(&mut decoder, &hex(block)).unwrap_err()
}

#[test]
fn a_malformed_block_is_refused_for_what_is_wrong_with_it() {
    use DecodeError::*;
    let last = 62;
    for (block, error, what) in [
        ("80", Index { at: 0, index: 0, last }, "an indexed field without index"),
        ("82 bf", Index { at: 1, index: 63, last }, "a field behind the last entry"),
        ("7f 00 00", Index { at: 0, index: 63, last }, "the name of an entry behind the last, kept"),
        ("0f 30 00", Index { at: 0, index: 63, last }, "the name of an entry behind the last"),
        ("1f 30 00", Index { at: 0, index: 63, last }, "the name of an entry behind the last, never indexed"),
        ("ff ff ff ff ff 07", Index { at: 0, index: 0x8000_007e, last }, "a far index"),
        ("ff ff ff ff ff 0f", Integer { at: 0 }, "an index of more than 32 bits"),
        ("ff 80 80 80 80 10", Integer { at: 0 }, "an index of 33 bits"),
        ("82 ff 80 80 80 80 80 80 00", Integer { at: 1 }, "an index padded with zeros without end"),
        ("01 7f 80 80 80 80 80", Integer { at: 1 }, "a length without end"),
        ("ff", Truncated { at: 0 }, "an index without its second byte"),
        ("ff ff ff ff ff", Truncated { at: 0 }, "an index without its last byte"),
        ("01", Truncated { at: 1 }, "no value"),
        ("40", Truncated { at: 1 }, "no name"),
        ("40 01 61", Truncated { at: 3 }, "a name and no value"),
        ("01 05 61 61 61 61", Truncated { at: 1 }, "a value of four bytes where five are announced"),
        ("01 ff ff ff ff ff 0e 61", Truncated { at: 1 }, "a value of 4 GiB"),
        ("01 85 1f 1f 1f 1f", Truncated { at: 1 }, "a Huffman string that is cut off"),
        ("01 84 ff ff ff ff", EndOfString { at: 2 }, "the code for the end"),
        ("01 85 1f ff ff ff ff", EndOfString { at: 2 }, "the code for the end behind an a"),
        (
            "01 8a ff ff ff ff ff ff ff ff ff ff",
            EndOfString { at: 2 },
            "the code for the end, long before it",
        ),
        ("01 81 ff", Padding { at: 2 }, "eight bits of padding alone"),
        ("01 82 1f ff", Padding { at: 2 }, "eleven bits of padding"),
        ("01 83 ff ff ff", Padding { at: 2 }, "three bytes of padding"),
        ("01 81 18", Padding { at: 2 }, "padding of zeros"),
        ("01 81 1e", Padding { at: 2 }, "padding that is not all ones"),
        ("01 81 fe", Padding { at: 2 }, "a code that is cut off"),
        ("01 82 ff fe", Padding { at: 2 }, "a long code that is cut off"),
        ("82 20", LateUpdate { at: 1 }, "an update behind a field"),
        ("20 20 20", SpareUpdate { at: 2 }, "three updates"),
        ("3f e2 01", Size { at: 0, size: 257, limit: 256 }, "an update above the limit"),
        ("20 3f e2 01", Size { at: 1, size: 257, limit: 256 }, "a second update above the limit"),
        ("3f ff ff ff ff 0f", Integer { at: 0 }, "an update of more than 32 bits"),
        ("20 be", Index { at: 1, index: 62, last: 61 }, "an entry that the update evicts"),
    ] {
        assert_eq!(refusal(block), error, "{what}");
    }
}

#[test]
fn an_error_says_what_is_wrong_and_where() {
    assert_eq!(refusal("82 bf").to_string(), "byte 1 refers to entry 63, and the last one is 62");
    assert_eq!(
        refusal("3f e2 01").to_string(),
        "the table size update at byte 0 asks for 257 bytes, and 256 are allowed"
    );
}

#[test]
fn the_fields_before_the_error_are_handed_on() {
    let mut seen = 0;
    let result = Decoder::new(4096).decode(&[0x82, 0x84, 0x80], usize::MAX, |_, _| seen += 1);
    assert_eq!((result, seen), (Err(DecodeError::Index { at: 2, index: 0, last: 61 }), 2));
}

#[test]
fn a_lowered_limit_must_be_answered_by_an_update_at_the_start_of_the_next_block() {
    let lowered = || {
        let mut decoder = Decoder::new(4096);
        decoder.set_limit(100);
        decoder
    };
    for mut decoder in [lowered(), moved(&lowered())] {
        let missing = Err(DecodeError::MissingUpdate { limit: 100 });
        assert_eq!(decode(&mut decoder, &[0x82]), missing);
        assert_eq!(decode(&mut decoder, &[]), missing);
        let above = Err(DecodeError::Size { at: 0, size: 101, limit: 100 });
        assert_eq!(decode(&mut decoder, &hex("3f 46")), above);
        assert_eq!(decode(&mut decoder, &hex("3f 45 82")), Ok(fields([(":method", "GET")])));
        // It has been answered.
        assert_eq!(decode(&mut decoder, &[0x82]), Ok(fields([(":method", "GET")])));
    }
}

#[test]
fn a_limit_that_was_lowered_and_raised_again_is_answered_with_the_lowest_first() {
    let changed = || {
        let mut decoder = Decoder::new(4096);
        decode(&mut decoder, b"\x40\x06custom\x05value").unwrap();
        decoder.set_limit(0);
        decoder.set_limit(200);
        moved(&decoder)
    };
    assert_eq!(decode(&mut changed(), &[0x82]), Err(DecodeError::MissingUpdate { limit: 0 }));
    let above = Err(DecodeError::Size { at: 0, size: 200, limit: 0 });
    assert_eq!(decode(&mut changed(), &hex("3f a9 01")), above);
    let mut decoder = changed();
    assert_eq!(decode(&mut decoder, &hex("20 3f a9 01 82")), Ok(fields([(":method", "GET")])));
    assert_eq!(decoder.size(), 0);
    decode(&mut decoder, b"\x40\x06custom\x05value").unwrap();
    assert_eq!(decoder.size(), 43);
}

#[test]
fn a_raised_limit_or_one_above_what_the_peer_chose_needs_no_answer() {
    let mut decoder = Decoder::new(4096);
    decoder.set_limit(65_536);
    assert_eq!(decode(&mut decoder, &[0x82]), Ok(fields([(":method", "GET")])));
    // The peer chooses 100; a limit of 200 is below the old limit, and above that.
    decode(&mut decoder, &hex("3f 45")).unwrap();
    decoder.set_limit(200);
    assert_eq!(decode(&mut decoder, &[0x82]), Ok(fields([(":method", "GET")])));
}

#[test]
fn an_entry_larger_than_the_table_empties_it_and_is_no_error() {
    let mut decoder = Decoder::new(64);
    decode(&mut decoder, b"\x40\x01a\x01b").unwrap();
    assert_eq!(decoder.size(), 34);
    let value = "x".repeat(32);
    let block = [b"\x40\x01a\x20", value.as_bytes()].concat();
    assert_eq!(decode(&mut decoder, &block), Ok(fields([("a", &value)])));
    assert_eq!((decoder.size(), decoder.entries().count()), (0, 0));
}

#[test]
fn a_field_may_take_its_name_from_the_entry_that_it_evicts() {
    let mut decoder = Decoder::new(64);
    decode(&mut decoder, b"\x40\x06custom\x05value").unwrap();
    let block = b"\x7e\x05other";
    assert_eq!(decode(&mut decoder, block), Ok(fields([("custom", "other")])));
    assert_eq!(decoder.entries().collect::<Vec<_>>(), [(&b"custom"[..], &b"other"[..])]);
}
