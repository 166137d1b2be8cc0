//! What ends a tunnel, and what ends one stream of it.

use std::time::Duration;

use super::budget::Nuisance;
use super::frame::{Code, FrameKind};
use super::hpack::DecodeError;

/// Why a tunnel cannot go on. The GOAWAY that says so is in the machine's output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The client's first bytes are not those of RFC 9113 §3.4.
    #[error("the peer does not speak HTTP/2: no client preface")]
    Preface,
    /// The first frame of each side is SETTINGS.
    #[error("the peer's first frame is {0}, not SETTINGS")]
    FirstFrame(FrameKind),
    /// Larger than our SETTINGS_MAX_FRAME_SIZE.
    #[error("a {kind} frame of {length} bytes, and {limit} are allowed")]
    FrameTooLong {
        /// What kind of frame.
        kind: FrameKind,
        /// Its payload in bytes.
        length: u32,
        /// What we allow.
        limit: u32,
    },
    /// A length that this kind of frame cannot have.
    #[error("a {kind} frame of {length} bytes")]
    FrameLength {
        /// What kind of frame.
        kind: FrameKind,
        /// Its payload in bytes.
        length: u32,
    },
    /// More padding than payload.
    #[error("a {kind} frame with more padding than payload")]
    Padding {
        /// What kind of frame.
        kind: FrameKind,
    },
    /// A frame of the tunnel on a stream, or of a stream on none.
    #[error("a {kind} frame on stream {stream}")]
    WrongStream {
        /// What kind of frame.
        kind: FrameKind,
        /// Where it was sent.
        stream: u32,
    },
    /// A stream that nobody opened.
    #[error("a {kind} frame on stream {stream}, which is not open yet")]
    Idle {
        /// What kind of frame.
        kind: FrameKind,
        /// Where it was sent.
        stream: u32,
    },
    /// A stream that has ended on the peer's own word.
    #[error("a {kind} frame on stream {stream}, which the peer has ended")]
    Ended {
        /// What kind of frame.
        kind: FrameKind,
        /// Where it was sent.
        stream: u32,
    },
    /// A stream id that is even or not above the last one.
    #[error("a request on stream {stream} after stream {last}")]
    StreamOrder {
        /// The new stream.
        stream: u32,
        /// The last one that was opened.
        last: u32,
    },
    /// Something between the frames of one header block.
    #[error("a {kind} frame on stream {stream} inside the header block of stream {block}")]
    Interleaved {
        /// What kind of frame.
        kind: FrameKind,
        /// Where it was sent.
        stream: u32,
        /// Whose header block is unfinished.
        block: u32,
    },
    /// CONTINUATION with no header block to continue.
    #[error("a CONTINUATION frame on stream {stream} that continues nothing")]
    Continuation {
        /// Where it was sent.
        stream: u32,
    },
    /// A header block that is longer than any we could want, or in more pieces.
    #[error("a header block of more than {bytes} bytes or {frames} frames")]
    HeaderBlock {
        /// The limit in bytes, compressed.
        bytes: usize,
        /// The limit in frames.
        frames: u32,
    },
    /// A header block that was not decoded to its end; the tables of both sides are out of step from here on.
    #[error("a header block that cannot be decoded: {0}")]
    Compression(DecodeError),
    /// A setting out of its range.
    #[error("setting {id:#x} with value {value}")]
    Setting {
        /// Which (RFC 9113 §6.5.2).
        id: u16,
        /// The value.
        value: u32,
    },
    /// A SETTINGS frame with more entries than there are settings, many times over.
    #[error("a SETTINGS frame of {length} bytes, and {limit} are allowed")]
    SettingsLength {
        /// Its payload in bytes.
        length: u32,
        /// What we allow.
        limit: u32,
    },
    /// An acknowledgement of SETTINGS that we did not send.
    #[error("an acknowledgement of SETTINGS that were not sent")]
    UnaskedAck,
    /// More bytes than the tunnel's window.
    #[error("{length} bytes of DATA, and the tunnel's window has {left} left")]
    Window {
        /// Bytes of the frame.
        length: u32,
        /// Bytes that were allowed.
        left: i64,
    },
    /// A window of ours that the peer raised above 2^31 - 1, or by nothing.
    #[error("the tunnel's window raised by {increment} to above what is possible, or by nothing")]
    Increment {
        /// By how much.
        increment: u32,
    },
    /// PUSH_PROMISE: clients cannot push, and we as client do not allow it.
    #[error("a PUSH_PROMISE frame, and push is off")]
    Push,
    /// Too much of something that costs us and carries nothing.
    #[error("too many {}", .0.name())]
    Flood(Nuisance),
    /// The peer makes us answer and does not read what we answer.
    #[error("{0} bytes of answers that the peer does not read")]
    Unread(usize),
    /// We ended it: [`Machine::abort`](super::Machine::abort).
    #[error("ended by us with {0}")]
    Aborted(Code),
    /// The peer's preface and SETTINGS did not arrive in time.
    #[error("no preface and SETTINGS within {}s", .0.as_secs())]
    Silent(Duration),
    /// Our SETTINGS were not acknowledged in time.
    #[error("no acknowledgement of our SETTINGS within {}s", .0.as_secs())]
    SettingsTimeout(Duration),
    /// Nothing was heard of the peer after a PING.
    #[error("no sign of life for {}s, and none after a PING", .0.as_secs())]
    PingTimeout(Duration),
}

impl Error {
    /// What GOAWAY says of it.
    pub fn code(&self) -> Code {
        match self {
            Self::Preface
            | Self::FirstFrame(_)
            | Self::Padding { .. }
            | Self::WrongStream { .. }
            | Self::Idle { .. }
            | Self::StreamOrder { .. }
            | Self::Interleaved { .. }
            | Self::Continuation { .. }
            | Self::UnaskedAck
            | Self::Increment { increment: 0 }
            | Self::Push
            | Self::Silent(_) => Code::PROTOCOL_ERROR,
            // §6.5.2 gives the initial window's range a code of its own.
            Self::Setting { id: 4, .. } | Self::Window { .. } | Self::Increment { .. } => {
                Code::FLOW_CONTROL_ERROR
            }
            Self::Setting { .. } => Code::PROTOCOL_ERROR,
            Self::Ended { .. } => Code::STREAM_CLOSED,
            Self::FrameTooLong { .. } | Self::FrameLength { .. } => Code::FRAME_SIZE_ERROR,
            Self::Compression(DecodeError::TooMuch { .. }) => Code::ENHANCE_YOUR_CALM,
            Self::Compression(_) => Code::COMPRESSION_ERROR,
            Self::HeaderBlock { .. } | Self::SettingsLength { .. } | Self::Flood(_) | Self::Unread(_) => {
                Code::ENHANCE_YOUR_CALM
            }
            Self::SettingsTimeout(_) => Code::SETTINGS_TIMEOUT,
            Self::Aborted(code) => *code,
            Self::PingTimeout(_) => Code::NO_ERROR,
        }
    }
}

/// Why we reset a stream of a peer that broke a rule of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A head that breaks a rule of RFC 9113 §8.
    #[error("a malformed head: {0}")]
    Malformed(Malformed),
    /// A response head larger than our SETTINGS_MAX_HEADER_LIST_SIZE.
    #[error("a head of more than {0} bytes")]
    HeadTooLong(u32),
    /// More bytes than the stream's window.
    #[error("more DATA than the stream's window allows")]
    Window,
    /// A window of ours that the peer raised above 2^31 - 1, or by nothing.
    #[error("the stream's window raised by {0} to above what is possible, or by nothing")]
    Increment(u32),
    /// DATA before the response's head.
    #[error("DATA before the response")]
    EarlyData,
    /// DATA or a head after END_STREAM.
    #[error("a {0} frame after the end of the stream")]
    AfterEnd(FrameKind),
    /// A head in the middle of a connected stream (RFC 9113 §8.5).
    #[error("a HEADERS frame on a stream that carries a connection")]
    HeadersOnConnected,
}

impl StreamError {
    /// What RST_STREAM says of it.
    pub fn code(self) -> Code {
        match self {
            Self::Malformed(_) | Self::EarlyData | Self::Increment(0) | Self::HeadersOnConnected => {
                Code::PROTOCOL_ERROR
            }
            Self::HeadTooLong(_) => Code::ENHANCE_YOUR_CALM,
            Self::Window | Self::Increment(_) => Code::FLOW_CONTROL_ERROR,
            Self::AfterEnd(_) => Code::STREAM_CLOSED,
        }
    }
}

/// Which rule of RFC 9113 §8 a head breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An empty name, or one with characters that no name has; upper case among them.
    #[error("a name that is none")]
    Name,
    /// A value with NUL, CR or LF, or with space around it.
    #[error("a value that is none")]
    Value,
    /// A header of HTTP/1's connections (§8.2.2).
    #[error("a header of HTTP/1")]
    ConnectionHeader,
    /// A pseudo-header behind a header, twice, unknown, or of the other direction (§8.3).
    #[error("a pseudo-header where none may be")]
    Pseudo,
    /// Without what it needs, or CONNECT with what it must not have (§8.3.1, §8.5).
    #[error("pseudo-headers that make no request")]
    Request,
    /// `:authority` is no authority (RFC 3986 §3.2).
    #[error("an :authority that is none")]
    Authority,
    /// `:status` is missing or no status (§8.3.2), or 101, which HTTP/2 does not have.
    #[error("a :status that is none")]
    Status,
    /// Trailers that do not end the stream (§8.1), or an interim response that does.
    #[error("a head that does not end the stream where it must, or ends it where it must not")]
    End,
}

/// Why no stream was opened. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many streams as the peer allows are open.
    #[error("all {0} streams of the tunnel are taken")]
    Full(u32),
    /// One side is ending the tunnel.
    #[error("the tunnel is closing")]
    Closing,
    /// Stream ids are used up; the tunnel can only run out.
    #[error("the tunnel has used up its stream ids")]
    IdsUsedUp,
    /// The head is larger than the peer takes.
    #[error("a head of {size} bytes, and the peer takes {limit}")]
    HeadTooLong {
        /// Size as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
        size: usize,
        /// What the peer said.
        limit: u32,
    },
}

/// Why nothing was sent on a stream. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream is over, was never there, or our side of it is finished.
    #[error("the stream takes nothing more")]
    Gone,
    /// A client's stream that is not answered, or a server's that was answered already.
    #[error("it is not the moment for this on the stream")]
    Turn,
    /// More than the windows and the peer's frame limit allow.
    #[error("{length} bytes, and there is room for {room}")]
    Room {
        /// What was to be sent.
        length: usize,
        /// What [`Machine::room`](super::Machine::room) says.
        room: usize,
    },
    /// No byte and no end: peers count such frames as an attack.
    #[error("a DATA frame of nothing")]
    Nothing,
}
