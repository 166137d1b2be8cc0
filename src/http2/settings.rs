//! What each side tells the other of itself (RFC 9113 §6.5).

use super::error::Error;
use super::frame::{FIRST_FRAME_SIZE, FIRST_WINDOW, LARGEST_FRAME_SIZE, LARGEST_WINDOW};
use super::hpack::DEFAULT_TABLE_SIZE;
use crate::plain::{PlainError, Reader, Writer};

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
/// RFC 8441 §3.
const ENABLE_CONNECT_PROTOCOL: u16 = 8;
/// RFC 9218 §2.1.
const NO_RFC7540_PRIORITIES: u16 = 9;

/// The receive window that each stream starts with, in bytes, where the configured one is not smaller still. It grows for streams
/// whose application takes what arrives.
pub const FIRST_STREAM_WINDOW: u32 = 256 << 10;
/// What the receive window of every tunnel begins with, unless the configured size is smaller, in bytes. It grows with what is
/// taken: what a peer may send, applications that take nothing can make us hold.
pub const FIRST_CONNECTION_WINDOW: u32 = 1 << 20;

/// What a header block may have in bytes beside what our SETTINGS allow uncompressed.
const BLOCK_OVERHEAD: usize = 4 << 10;

/// Which end of the tunnel we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// What a machine allows its peer. Values that SETTINGS cannot express are brought to the nearest they can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The largest receive window of a stream, in bytes.
    pub stream_window: u32,
    /// The largest receive window of the tunnel, in bytes; at least 65,535.
    pub connection_window: u32,
    /// The largest frame that the peer may send, in bytes of payload; 16,384 to 2^24 - 1.
    pub frame_size: u32,
    /// The largest head, in bytes as RFC 9113 §10.5.1 counts them (32 more for each field).
    pub header_list: u32,
    /// The largest dynamic table that the peer's encoder may use, in bytes as RFC 7541 §4.1 counts them.
    pub header_table: u32,
    /// As server, how many streams the peer may have open. As client, how many are taken to be allowed until the
    /// peer's SETTINGS say.
    pub streams: u32,
}

impl Config {
    pub(super) fn within_range(self) -> Self {
        Self {
            stream_window: self.stream_window.clamp(1, LARGEST_WINDOW),
            connection_window: self.connection_window.clamp(FIRST_WINDOW, LARGEST_WINDOW),
            frame_size: self.frame_size.clamp(FIRST_FRAME_SIZE, LARGEST_FRAME_SIZE),
            ..self
        }
    }

    /// The longest header block that can hold a head we take, in bytes.
    pub(super) fn block_limit(&self) -> usize {
        self.header_list as usize + BLOCK_OVERHEAD
    }

    /// How large a head is decoded at most, to keep both sides' tables in step although it is refused. No honest one comes near.
    pub(super) fn decode_limit(&self) -> usize {
        4 * self.header_list as usize + BLOCK_OVERHEAD
    }

    /// The largest dynamic table that the peer may use: until it has read our SETTINGS, at least the one that everybody starts
    /// with.
    pub(super) fn table_limit(&self, acked: bool) -> u32 {
        if acked { self.header_table } else { self.header_table.max(DEFAULT_TABLE_SIZE) }
    }

    /// What SETTINGS_INITIAL_WINDOW_SIZE says.
    pub(super) fn first_stream_window(&self) -> u32 {
        self.stream_window.min(FIRST_STREAM_WINDOW)
    }

    /// How much the peer may send at first on all streams together.
    pub(super) fn first_connection_window(&self) -> u32 {
        self.connection_window.min(FIRST_CONNECTION_WINDOW)
    }

    /// The entries of our SETTINGS frame.
    pub(super) fn entries(&self, role: Role) -> impl Iterator<Item = (u16, u32)> {
        let client = role == Role::Client;
        [
            Some((ENABLE_PUSH, 0)).filter(|_| client),
            Some((MAX_CONCURRENT_STREAMS, self.streams)).filter(|_| !client),
            Some((HEADER_TABLE_SIZE, self.header_table)).filter(|(_, size)| *size != DEFAULT_TABLE_SIZE),
            Some((INITIAL_WINDOW_SIZE, self.first_stream_window())),
            Some((MAX_FRAME_SIZE, self.frame_size)),
            Some((MAX_HEADER_LIST_SIZE, self.header_list)),
        ]
        .into_iter()
        .flatten()
    }

    pub(super) fn write(&self, to: &mut Writer) {
        to.u32(self.stream_window);
        to.u32(self.connection_window);
        to.u32(self.frame_size);
        to.u32(self.header_list);
        to.u32(self.header_table);
        to.u32(self.streams);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let config = Self {
            stream_window: from.u32("the largest stream window")?,
            connection_window: from.u32("the tunnel's window")?,
            frame_size: from.u32("the largest frame")?,
            header_list: from.u32("the largest head")?,
            header_table: from.u32("the largest header table")?,
            streams: from.u32("the number of streams")?,
        };
        if config == config.within_range() {
            Ok(config)
        } else {
            Err(from.wrong("a limit", config.frame_size))
        }
    }
}

/// What the peer's SETTINGS said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerSettings {
    pub header_table: u32,
    /// How many streams we may have open; `None` until the peer says.
    pub streams: Option<u32>,
    pub stream_window: u32,
    pub frame_size: u32,
    pub header_list: Option<u32>,
}

impl PeerSettings {
    pub const FIRST: Self = Self {
        header_table: DEFAULT_TABLE_SIZE,
        streams: None,
        stream_window: FIRST_WINDOW,
        frame_size: FIRST_FRAME_SIZE,
        header_list: None,
    };

    /// Takes one entry. Settings that are not known are ignored, as §6.5.2 demands.
    pub fn take(&mut self, id: u16, value: u32, role: Role) -> Result<(), Error> {
        let in_range = match id {
            // Only a client may allow push, and a server that says so is broken.
            ENABLE_PUSH => value == 0 || (value == 1 && role == Role::Server),
            INITIAL_WINDOW_SIZE => value <= LARGEST_WINDOW,
            MAX_FRAME_SIZE => (FIRST_FRAME_SIZE..=LARGEST_FRAME_SIZE).contains(&value),
            ENABLE_CONNECT_PROTOCOL | NO_RFC7540_PRIORITIES => value <= 1,
            _ => true,
        };
        if !in_range {
            return Err(Error::Setting { id, value });
        }
        match id {
            HEADER_TABLE_SIZE => self.header_table = value,
            MAX_CONCURRENT_STREAMS => self.streams = Some(value),
            INITIAL_WINDOW_SIZE => self.stream_window = value,
            MAX_FRAME_SIZE => self.frame_size = value,
            MAX_HEADER_LIST_SIZE => self.header_list = Some(value),
            _ => {}
        }
        Ok(())
    }

    pub fn write(&self, to: &mut Writer) {
        to.u32(self.header_table);
        to.option(self.streams, Writer::u32);
        to.u32(self.stream_window);
        to.u32(self.frame_size);
        to.option(self.header_list, Writer::u32);
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, PlainError> {
        let settings = Self {
            header_table: from.u32("the peer's header table")?,
            streams: from
                .option("the peer's number of streams", |from| from.u32("the peer's number of streams"))?,
            stream_window: from.u32("the peer's stream window")?,
            frame_size: from.u32("the peer's largest frame")?,
            header_list: from
                .option("the peer's largest head", |from| from.u32("the peer's largest head"))?,
        };
        let frame_size = FIRST_FRAME_SIZE..=LARGEST_FRAME_SIZE;
        if settings.stream_window > LARGEST_WINDOW || !frame_size.contains(&settings.frame_size) {
            return Err(from.wrong("a setting of the peer", settings.stream_window));
        }
        Ok(settings)
    }
}
