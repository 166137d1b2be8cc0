//! Why a header block cannot be decoded.

/// What is wrong with a header block, and at which byte of it the wrong thing begins.
///
/// Each of these ends the connection (RFC 9113 §4.3): the dynamic table may have missed an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The block ends before the field does.
    #[error("the block is cut off in what begins at byte {at}")]
    Truncated {
        /// Where the number or string begins that is cut.
        at: usize,
    },
    /// A number of more than 32 bits, or one written in more than five continuation bytes (RFC 7541 §5.1).
    #[error("the number at byte {at} has more than 32 bits")]
    Integer {
        /// Where the number begins.
        at: usize,
    },
    /// An index that neither table has; zero is no entry's (§2.3.3, §6.1).
    #[error("byte {at} refers to entry {index}, and the last one is {last}")]
    Index {
        /// Where the field begins.
        at: usize,
        /// The index.
        index: u32,
        /// The oldest entry's index.
        last: u32,
    },
    /// A Huffman string that contains the code for its own end (§5.2).
    #[error("the Huffman string at byte {at} contains the end-of-string code")]
    EndOfString {
        /// Where the string begins, behind its length.
        at: usize,
    },
    /// A Huffman string that ends in a cut code, in a padding of a byte or more, or in one that is not all ones (§5.2).
    #[error("the Huffman string at byte {at} ends in no valid padding")]
    Padding {
        /// Where the string begins, behind its length.
        at: usize,
    },
    /// More than the caller has any use for. It is no fault of the block, but decoding has not gone through all of it.
    #[error("with the field at byte {at}, all fields come to more than {most} bytes")]
    TooMuch {
        /// Where the field begins.
        at: usize,
        /// What they may come to.
        most: usize,
    },
    /// A table size update behind a field (§4.2).
    #[error("the table size update at byte {at} does not stand at the start of the block")]
    LateUpdate {
        /// Where the update begins.
        at: usize,
    },
    /// A third table size update (§4.2).
    #[error("the table size update at byte {at} is the third, and two say all")]
    SpareUpdate {
        /// Where the update begins.
        at: usize,
    },
    /// A table size that we did not allow (§6.3).
    #[error("the table size update at byte {at} asks for {size} bytes, and {limit} are allowed")]
    Size {
        /// Where the update begins.
        at: usize,
        /// The size it asks for.
        size: u32,
        /// The largest size that is allowed.
        limit: u32,
    },
    /// We lowered the limit below the size in use, and the block after that does not begin with an update (§4.2).
    #[error("the block does not begin with the table size update to {limit} bytes or less that is due")]
    MissingUpdate {
        /// The largest size that the update may ask for.
        limit: u32,
    },
}
