//! HPACK (RFC 7541): header fields as the bytes of HTTP/2's header blocks, and back.
//!
//! What comes in is one whole header block, HEADERS and its CONTINUATIONs already joined; what goes out is its fields in
//! order, borrowed. The other way, fields are appended to a buffer as a block that refers to nothing but the static
//! table. A peer may use everything the RFC has, so the [`Decoder`] is complete; what we send is our own choice, so the
//! [`Encoder`] has no table and next to no state. How long a block or its fields may be, whether names and values are
//! fit for HTTP, and what becomes of the connection after an error is for the frame machine to say.
//!
//! One decoder and one encoder per tunnel. Both are plain data that another process may take up in the middle of a
//! connection. Why this is not one of the crates that exist: `docs/decisions/0011-own-hpack-codec.md`; what of the RFC
//! is done and what is not, section by section: `docs/wire/rfc7541.md`.

mod decode;
mod encode;
mod error;
#[cfg(feature = "testing")]
pub mod huffman;
#[cfg(not(feature = "testing"))]
mod huffman;
mod integer;
mod table;
#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use encode::Encoder;
pub use error::DecodeError;

/// What a field counts beside its bytes: in a dynamic table (§4.1), and in a list of fields (RFC 9113 §6.5.2).
pub const FIELD_OVERHEAD: usize = 32;
/// The dynamic table's size on a connection whose SETTINGS say nothing else (RFC 9113 §6.5.2).
pub const DEFAULT_TABLE_SIZE: u32 = 4096;
