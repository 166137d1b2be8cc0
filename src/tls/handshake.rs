//! The handshake, by rustls and without I/O, up to the first byte of data.

use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, ProducesTickets, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ConnectionTrafficSecrets, KeyLog, ProtocolVersion, ServerConfig};

use super::Role;
use super::error::HandshakeError;
use super::keys::{Suite, TrafficSecret};
use super::open::Opener;
use super::record::{HEADER, MAX_BODY};
use super::seal::Sealer;

/// The most that a peer's part of a handshake may have. rustls takes messages of up to 64 KiB, of which a certificate
/// chain is the only long one; records and a second ClientHello come on top.
const MAX_FLIGHTS: usize = 128 << 10;
/// The longest record that rustls waits for: that of TLS 1.2, since before the ServerHello there is no version. One
/// that is too long for TLS 1.3 it refuses when it is there.
const MAX_RECORD: usize = MAX_BODY + 2048;

/// One handshake, in either role.
///
/// ```text
///   start or receive ─→ bytes to send ─→ … ─→ is_done ─→ connection: who is it? ─→ finish
/// ```
///
/// rustls is given one record at a time and none once it is done. So it never decrypts data, and what came together
/// with the peer's last flight leaves as it came, in [`Established::received`].
///
/// As client it is done when the server's Finished is verified. The server has not seen our certificate by then: if it
/// refuses it, that is the first thing the [`Opener`] reports.
pub struct Handshake {
    connection: Connection,
    secrets: Arc<Secrets>,
    /// What was received and rustls has not used up.
    received: Vec<u8>,
    /// How much of it rustls has been shown: never a part of a record, unless that is to be refused.
    shown: usize,
    /// How much it has been shown since the beginning.
    total: usize,
    done: bool,
    failed: bool,
}

enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Established {
    /// Seals what we send.
    pub sealer: Sealer,
    /// Opens what the peer sends.
    pub opener: Opener,
    /// The suite of both.
    pub suite: Suite,
    /// The peer's certificates, leaf first; verified.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// The protocol that was agreed on, if any.
    pub alpn: Option<Vec<u8>>,
    /// What came behind the peer's last flight: the beginning of its records for the opener, perhaps in the middle of one.
    pub received: Vec<u8>,
}

/// What rustls wants next.
enum Step {
    Again,
    More,
    Done,
    Failed(HandshakeError),
}

impl Handshake {
    /// As client of the server `name`. The configuration's own key log is not written to.
    ///
    /// # Errors
    /// [`HandshakeError::Offers`], or what rustls finds wrong with the configuration.
    pub fn client(config: &ClientConfig, name: ServerName<'static>) -> Result<Self, HandshakeError> {
        refuse_other_suites(config.crypto_provider())?;
        let secrets = Arc::new(Secrets::default());
        let mut config = config.clone();
        config.key_log = secrets.clone();
        config.enable_secret_extraction = true;
        // Every handshake proves both ends anew, and no data is sent before it has.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        let connection = UnbufferedClientConnection::new(config.into(), name)?;
        Ok(Self::new(Connection::Client(connection.into()), secrets))
    }

    /// As server. The configuration's own key log is not written to.
    ///
    /// # Errors
    /// [`HandshakeError::Offers`], or what rustls finds wrong with the configuration.
    pub fn server(config: &ServerConfig) -> Result<Self, HandshakeError> {
        refuse_other_suites(config.crypto_provider())?;
        let secrets = Arc::new(Secrets::default());
        let mut config = config.clone();
        config.key_log = secrets.clone();
        config.enable_secret_extraction = true;
        // As for the client.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(NoTickets);
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let connection = UnbufferedServerConnection::new(config.into())?;
        Ok(Self::new(Connection::Server(connection.into()), secrets))
    }

    fn new(connection: Connection, secrets: Arc<Secrets>) -> Self {
        Self { connection, secrets, received: Vec::new(), shown: 0, total: 0, done: false, failed: false }
    }

    /// The client's first bytes are appended to `send`; of a server, none.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn start(&mut self, send: &mut Vec<u8>) -> Result<(), HandshakeError> {
        self.receive(&[], send)
    }

    /// Takes what the peer sent, and appends what it is to be sent to `send`, also when this is an error: then it ends
    /// with the alert. Bytes behind the end of the handshake are only kept.
    ///
    /// # Errors
    /// The handshake failed and is of no more use.
    pub fn receive(&mut self, bytes: &[u8], send: &mut Vec<u8>) -> Result<(), HandshakeError> {
        if self.failed {
            return Err(HandshakeError::Over);
        }
        self.received.extend_from_slice(bytes);
        let went_on = self.go_on(send);
        if went_on.is_err() {
            self.failed = true;
            // rustls has queued the alert, and gives it before it looks at any more input.
            while self.connection().wants_write() && matches!(self.step(send), Step::Again) {}
        }
        went_on
    }

    fn go_on(&mut self, send: &mut Vec<u8>) -> Result<(), HandshakeError> {
        while !self.done {
            match self.step(send) {
                Step::Again => {}
                Step::Done => self.done = true,
                Step::Failed(error) => return Err(error),
                Step::More => match next_record(&self.received[self.shown..]) {
                    Some(length) if self.total + length > MAX_FLIGHTS => {
                        return Err(HandshakeError::Long { limit: MAX_FLIGHTS });
                    }
                    Some(length) => {
                        self.shown += length;
                        self.total += length;
                    }
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }

    /// Whether the handshake is over. What `receive` gave last must still be sent.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// What rustls knows about the connection, for [`VerifiedPeer::of`](crate::identity::VerifiedPeer::of) and
    /// [`require_h2`](crate::identity::require_h2): to be asked when the handshake is done, before
    /// [`finish`](Self::finish).
    pub fn connection(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(client) => client,
            Connection::Server(server) => server,
        }
    }

    /// The connection ended before the handshake was done: how to say so.
    pub fn eof(&self) -> HandshakeError {
        HandshakeError::Eof { received: self.total + self.received.len() - self.shown }
    }

    /// Takes the keys over.
    ///
    /// # Errors
    /// [`HandshakeError::Unfinished`] before [`is_done`](Self::is_done). All others mean that rustls and this room do
    /// not agree on what was agreed, and that the connection is not to be used.
    pub fn finish(self) -> Result<Established, HandshakeError> {
        if !self.done {
            return Err(HandshakeError::Unfinished);
        }
        if self.shown > 0 {
            return Err(HandshakeError::Left { left: self.shown });
        }
        let common = self.connection();
        let version = common.protocol_version();
        let agreed = common.negotiated_cipher_suite().map(|suite| suite.suite());
        let suite = agreed
            .and_then(Suite::of)
            .filter(|_| version == Some(ProtocolVersion::TLSv1_3))
            .ok_or(HandshakeError::Agreed { suite: agreed, version })?;
        let peer_certificates = common.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let alpn = common.alpn_protocol().map(<[u8]>::to_vec);
        let (extracted, role) = match self.connection {
            Connection::Client(client) => (client.dangerous_into_kernel_connection()?.0, Role::Client),
            Connection::Server(server) => (server.dangerous_into_kernel_connection()?.0, Role::Server),
        };
        // Borrowed, so that the keys are not moved about on the stack.
        let (of_client, of_server) = match role {
            Role::Client => (&extracted.tx, &extracted.rx),
            Role::Server => (&extracted.rx, &extracted.tx),
        };
        let (sent_by_client, sent_by_server) = (of_client.0, of_server.0);
        let client = checked(suite, &self.secrets.client, &of_client.1, "client's")?;
        let server = checked(suite, &self.secrets.server, &of_server.1, "server's")?;
        let (sealer, opener) = match role {
            Role::Client => (Sealer::new(client, sent_by_client), Opener::new(role, server, sent_by_server)),
            Role::Server => (Sealer::new(server, sent_by_server), Opener::new(role, client, sent_by_client)),
        };
        Ok(Established { sealer, opener, suite, peer_certificates, alpn, received: self.received })
    }

    /// Lets rustls go on with what it has been shown.
    fn step(&mut self, send: &mut Vec<u8>) -> Step {
        let shown = &mut self.received[..self.shown];
        let (discard, step, handshaking) = match &mut self.connection {
            Connection::Client(client) => {
                let (discard, step) = step(client.process_tls_records(shown), send);
                (discard, step, client.is_handshaking())
            }
            Connection::Server(server) => {
                let (discard, step) = step(server.process_tls_records(shown), send);
                (discard, step, server.is_handshaking())
            }
        };
        let discard = discard.min(self.shown);
        self.received.drain(..discard);
        self.shown -= discard;
        // A server that asks for no certificate may send before the client's Finished came.
        if handshaking && matches!(step, Step::Done) { Step::More } else { step }
    }
}

fn step<D>(status: UnbufferedStatus<'_, '_, D>, send: &mut Vec<u8>) -> (usize, Step) {
    let step = match status.state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = send.len();
            if let Err(EncodeError::InsufficientSize(short)) = data.encode(&mut []) {
                send.resize(at + short.required_size, 0);
                if data.encode(&mut send[at..]).is_err() {
                    send.truncate(at);
                }
            }
            Step::Again
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Again
        }
        Ok(ConnectionState::BlockedHandshake) => Step::More,
        Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
        // Data or an end before the handshake is over: rustls refuses both by itself, and early data is off.
        Ok(_) => Step::Failed(HandshakeError::Tls(rustls::Error::HandshakeNotComplete)),
        Err(error) => Step::Failed(error.into()),
    };
    (status.discard, step)
}

/// How much of `bytes` is to be shown to rustls: one whole record, or everything if that cannot become one, which
/// rustls then refuses with the right alert.
fn next_record(bytes: &[u8]) -> Option<usize> {
    // Told by its first byte: whoever does not speak TLS is not waited for.
    if !(20..=23).contains(bytes.first()?) {
        return Some(bytes.len());
    }
    let &[_, _, _, high, low] = bytes.first_chunk::<HEADER>()?;
    let body = usize::from(u16::from_be_bytes([high, low]));
    if body >= MAX_RECORD {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + body).then_some(HEADER + body)
}

fn refuse_other_suites(provider: &CryptoProvider) -> Result<(), HandshakeError> {
    match provider.cipher_suites.iter().find(|suite| Suite::offered(suite).is_none()) {
        Some(other) => Err(HandshakeError::Offers { suite: other.suite() }),
        None => Ok(()),
    }
}

/// The secret that was captured, if the keys that follow from it are those that rustls uses.
fn checked(
    suite: Suite,
    captured: &OnceLock<TrafficSecret>,
    rustls: &ConnectionTrafficSecrets,
    direction: &'static str,
) -> Result<TrafficSecret, HandshakeError> {
    let missing = HandshakeError::NoSecret { direction, length: suite.secret_length() };
    let secret =
        captured.get().and_then(|secret| TrafficSecret::new(suite, secret.expose())).ok_or(missing)?;
    let (key, iv) = match (suite, rustls) {
        (Suite::Aes128, ConnectionTrafficSecrets::Aes128Gcm { key, iv })
        | (Suite::Aes256, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) => (key, iv),
        _ => return Err(HandshakeError::Keys { direction }),
    };
    let ours = secret.keys();
    verify_slices_are_equal(ours.key(), key.as_ref())
        .and_then(|()| verify_slices_are_equal(&ours.iv.0, iv.as_ref()))
        .map_err(|_| HandshakeError::Keys { direction })?;
    Ok(secret)
}

/// A ticketer that is off, whatever the configuration brought.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// The key log of one handshake: the first traffic secret of each side, and nothing else.
#[derive(Debug, Default)]
struct Secrets {
    client: OnceLock<TrafficSecret>,
    server: OnceLock<TrafficSecret>,
}

impl Secrets {
    fn place(&self, label: &str) -> Option<&OnceLock<TrafficSecret>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }
}

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let suite = Suite::ALL.into_iter().find(|suite| suite.secret_length() == secret.len());
        let secret = suite.and_then(|suite| TrafficSecret::new(suite, secret));
        // A secret that is not taken is found missing at the end.
        if let (Some(place), Some(secret)) = (self.place(label), secret) {
            let _ = place.set(secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.place(label).is_some()
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("received", &self.received.len())
            .field("total", &self.total)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
