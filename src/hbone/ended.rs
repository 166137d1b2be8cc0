//! How carrying a stream ended.

use std::io;

use crate::flow::{Outcome, Seen, Side};
use crate::http2::Code;

/// How carrying ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both directions were finished in order.
    Complete,
    /// The application reset its connection; the peer was told by RST_STREAM.
    AppReset(io::ErrorKind),
    /// The stream was reset, by the peer or because of it; the application was told by RST.
    PeerReset(Code),
    /// The tunnel died; the application was told by RST.
    TunnelLost(String),
}

impl Ended {
    /// The same, said of the two applications: `app` is the one on this node.
    pub fn outcome(self, app: Side) -> Outcome {
        match self {
            Self::Complete => Outcome::Complete,
            Self::AppReset(_) => Outcome::Reset { by: app, seen: Seen::Socket },
            Self::PeerReset(code) => Outcome::Reset { by: app.other(), seen: Seen::Stream(code.0) },
            Self::TunnelLost(cause) => Outcome::TunnelLost(cause),
        }
    }
}
