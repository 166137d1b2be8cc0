//! The closed list of ways a connection can end once it has a record.

use std::io;

use crate::telemetry::{Fault, Reporter, ResponseFlag, Text};

/// One of the two applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Client,
    /// The one that was dialled.
    Server,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Send,
    /// From the server to the client.
    Receive,
}

/// How an abnormal end reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As a TCP reset on a socket of ours: an application gave up.
    Socket,
    /// As RST_STREAM with this error code (RFC 9113 §7) from the other proxy.
    Stream(u32),
}

/// How a connection ended.
///
/// | outcome                | flag                  | fault         | logged as |
/// |------------------------|-----------------------|---------------|-----------|
/// | Complete               | `-`                   |               | info      |
/// | Reset, on a socket     | `-`                   |               | info      |
/// | Reset, NO_ERROR        | `-`                   |               | info      |
/// | Reset, any other code  | CONNECT               | of that side  | error     |
/// | Denied, PolicyChanged  | DENY                  | peer          | error     |
/// | CertificateRevoked     | CERT_REVOKED          | peer          | error     |
/// | ConnectFailed          | CONNECT               | of the server | error     |
/// | NetworkPolicySuspected | NETWORK_POLICY        | control plane | error     |
/// | Refused, Handshake     | CONNECT               | peer          | error     |
/// | TlsConfig              | TLS_FAILURE           | ourselves     | error     |
/// | Http2Handshake, Http2  | H2_HANDSHAKE_FAILURE  | peer          | error     |
/// | Identity               | IDENTITY_ERROR        | control plane | error     |
/// | TunnelLost             | CONNECT               | peer          | error     |
/// | Broken                 | CONNECT               | of the writer's far side | error |
/// | PoolDraining           | CONNECT               | ourselves     | error     |
/// | Drained                | `-`                   | ourselves     | error     |
///
/// "Of that side" is the pod's fault if the side is on this node, else the peer's.
///
/// An application that resets (a health check, a client that has read enough) is no failure of the mesh, and
/// the reference counts it as success, also where the other proxy passes it on as a stream reset with
/// NO_ERROR. Such an end is still told apart from a clean one: the far application sees a reset, the log line
/// says `outcome`. A stream reset with any other code is the reference's `CONNECT`.
#[derive(Debug)]
pub enum Outcome {
    /// Both ends closed, in order.
    Complete,
    /// Policy refused it when it opened.
    Denied {
        /// Why, in the words of the policy room: `explicitly denied by: ns/name`, for instance.
        reason: String,
        /// The rule that refused it, as `namespace/name`; none when no rule allowed it.
        policy: Option<Text>,
    },
    /// Policy, or what it judges, changed while it was open.
    PolicyChanged {
        /// The rule that refuses it now.
        policy: Option<Text>,
    },
    /// The peer's certificate was revoked while it was open.
    CertificateRevoked,
    /// Nobody took the TCP connection towards upstream.
    ConnectFailed(io::Error),
    /// The tunnel port of the other proxy did not answer in time, which is what a NetworkPolicy that closes
    /// it looks like.
    NetworkPolicySuspected(io::Error),
    /// The other proxy answered the CONNECT with something other than 200.
    Refused(http::StatusCode),
    /// The TLS handshake towards upstream failed; the text says why.
    Handshake(String),
    /// Our side of TLS could not be set up.
    TlsConfig(String),
    /// The HTTP/2 preface failed.
    Http2Handshake(String),
    /// HTTP/2 failed between the preface and the answer to our CONNECT.
    Http2(String),
    /// No certificate for the workload.
    Identity(String),
    /// The tunnel under an open stream died.
    TunnelLost(String),
    /// One end was cut without a half-close.
    Reset {
        /// The application at that end.
        by: Side,
        /// Where we saw it.
        seen: Seen,
    },
    /// Bytes could not be passed on.
    Broken {
        /// Which way they went.
        direction: Direction,
        /// What the kernel said; none if the receiver had hung up.
        cause: Option<io::Error>,
    },
    /// The pool of tunnels was going away.
    PoolDraining,
    /// We cut it: a drain deadline, a pod that is gone, or a task that ended without saying how.
    Drained,
}

impl Outcome {
    /// How a connection ends whose server was dialled with this result: one that was up and reset at once has been seen by the
    /// server, and is no failure to connect.
    pub fn of_dial(cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::ConnectionReset => Self::Reset { by: Side::Server, seen: Seen::Socket },
            _ => Self::ConnectFailed(cause),
        }
    }

    /// One word for it, of a closed list.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Denied { .. } => "denied",
            Self::PolicyChanged { .. } => "policy changed",
            Self::CertificateRevoked => "certificate revoked",
            Self::ConnectFailed(_) => "connect failed",
            Self::NetworkPolicySuspected(_) => "network policy suspected",
            Self::Refused(_) => "refused",
            Self::Handshake(_) => "handshake failed",
            Self::TlsConfig(_) => "tls configuration",
            Self::Http2Handshake(_) | Self::Http2(_) => "http2 failed",
            Self::Identity(_) => "identity",
            Self::TunnelLost(_) => "tunnel lost",
            Self::Reset { by: Side::Client, .. } => "reset by client",
            Self::Reset { by: Side::Server, .. } => "reset by server",
            Self::Broken { .. } => "broken",
            Self::PoolDraining => "pool draining",
            Self::Drained => "drained",
        }
    }

    /// Its value of the label `response_flags`.
    pub fn response_flag(&self) -> ResponseFlag {
        match self {
            Self::Complete | Self::Drained => ResponseFlag::None,
            Self::Reset { seen: Seen::Socket | Seen::Stream(0), .. } => ResponseFlag::None,
            Self::Denied { .. } | Self::PolicyChanged { .. } => ResponseFlag::Deny,
            Self::CertificateRevoked => ResponseFlag::CertRevoked,
            Self::NetworkPolicySuspected(_) => ResponseFlag::NetworkPolicy,
            Self::TlsConfig(_) => ResponseFlag::TlsFailure,
            Self::Http2Handshake(_) | Self::Http2(_) => ResponseFlag::H2HandshakeFailure,
            Self::Identity(_) => ResponseFlag::IdentityError,
            Self::ConnectFailed(_)
            | Self::Refused(_)
            | Self::Handshake(_)
            | Self::TunnelLost(_)
            | Self::Reset { .. }
            | Self::Broken { .. }
            | Self::PoolDraining => ResponseFlag::Connect,
        }
    }

    /// Whose move it is, as the proxy at the side of `reporter` sees it; nobody's after an ordinary end.
    pub fn fault(&self, reporter: Reporter) -> Option<Fault> {
        let of = |side| match (side, reporter) {
            (Side::Client, Reporter::Source) | (Side::Server, Reporter::Destination) => Fault::Pod,
            (Side::Server, Reporter::Source) | (Side::Client, Reporter::Destination) => Fault::Peer,
        };
        match self {
            Self::Complete | Self::Reset { seen: Seen::Socket | Seen::Stream(0), .. } => None,
            Self::Reset { by, .. } => Some(of(*by)),
            Self::Broken { direction: Direction::Send, .. } | Self::ConnectFailed(_) => {
                Some(of(Side::Server))
            }
            Self::Broken { direction: Direction::Receive, .. } => Some(of(Side::Client)),
            Self::Denied { .. }
            | Self::PolicyChanged { .. }
            | Self::CertificateRevoked
            | Self::Refused(_)
            | Self::Handshake(_)
            | Self::Http2Handshake(_)
            | Self::Http2(_)
            | Self::TunnelLost(_) => Some(Fault::Peer),
            Self::NetworkPolicySuspected(_) | Self::Identity(_) => Some(Fault::ControlPlane),
            Self::TlsConfig(_) | Self::PoolDraining | Self::Drained => Some(Fault::Ourselves),
        }
    }

    /// The value of the log field `error`, in the words that operators of the reference search for; None if
    /// the line is no error.
    pub fn error(&self, reporter: Reporter) -> Option<String> {
        Some(match self {
            Self::Complete | Self::Reset { seen: Seen::Socket | Seen::Stream(0), .. } => return None,
            Self::Denied { reason, .. } => format!("connection closed due to policy rejection: {reason}"),
            Self::PolicyChanged { .. } => "connection closed due to policy change".into(),
            Self::CertificateRevoked => "connection closed: peer certificate revoked by CRL".into(),
            Self::ConnectFailed(cause) => match reporter {
                Reporter::Source => format!("io error: {cause}"),
                Reporter::Destination => format!("connection failed: {cause}"),
            },
            Self::NetworkPolicySuspected(cause) => {
                format!("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {cause}")
            }
            Self::Refused(status) => format!("http status: {status}"),
            Self::Handshake(cause) => format!("io error: {cause}"),
            Self::TlsConfig(cause) => format!("tls error: {cause}"),
            Self::Http2Handshake(cause) => format!("http2 handshake failed: {cause}"),
            Self::Http2(cause) => format!("h2 failed: {cause}"),
            Self::Identity(cause) => format!("identity error: {cause}"),
            Self::TunnelLost(cause) => format!("io error: tunnel lost: {cause}"),
            Self::Reset { by, seen: Seen::Stream(code) } => {
                let direction = match by {
                    Side::Client => "send",
                    Side::Server => "receive",
                };
                format!("{direction}: io error: stream reset: {:?}", h2::Reason::from(*code))
            }
            Self::Broken { direction, cause } => {
                let (direction, receiver) = match direction {
                    Direction::Send => ("send", "destination"),
                    Direction::Receive => ("receive", "client"),
                };
                match cause {
                    Some(cause) => format!("{direction}: io error: {cause}"),
                    None => format!("{direction}: {receiver} disconnected before all data was written"),
                }
            }
            Self::PoolDraining => "pool draining".into(),
            Self::Drained => "connection closed due to connection drain".into(),
        })
    }

    /// The rule that ended it, as `namespace/name`.
    pub fn policy(&self) -> Option<&Text> {
        match self {
            Self::Denied { policy, .. } | Self::PolicyChanged { policy } => policy.as_ref(),
            _ => None,
        }
    }
}
