//! The certificates, rustls as a peer in memory, and a sealer that seals whatever it is told to.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::{Aad, LessSafeKey, UnboundKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};

use crate::tls::keys::RecordKeys;
use crate::tls::record::content;
use crate::tls::*;

/// One end's certificate.
pub struct Leaf {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key: KeyPair,
}

/// An authority, a client and a server. The server's certificate is also good for the name that rustls asks for.
pub struct Pki {
    pub root: CertificateDer<'static>,
    pub root_pem: String,
    pub web: Leaf,
    pub cart: Leaf,
}

pub static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params, root_key);
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![format!("{name}.test")]).unwrap();
        // With the root's own name, OpenSSL would look no further for an issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        params.subject_alt_names.push(SanType::URI(identity.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Leaf { der: certificate.der().clone(), pem: certificate.pem(), key }
    };
    Pki { root: root.der().clone(), root_pem: root.pem(), web: leaf("web"), cart: leaf("cart") }
});

impl Leaf {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(PKI.root.clone()).unwrap();
    roots.into()
}

pub fn rustls_suite(suite: Suite) -> SupportedCipherSuite {
    match suite {
        Suite::Aes128 => cipher_suite::TLS13_AES_128_GCM_SHA256,
        Suite::Aes256 => cipher_suite::TLS13_AES_256_GCM_SHA384,
    }
}

pub fn provider(suites: &[SupportedCipherSuite]) -> Arc<CryptoProvider> {
    CryptoProvider { cipher_suites: suites.to_vec(), ..default_provider() }.into()
}

pub fn client_config_of(provider: Arc<CryptoProvider>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots())
        .with_client_auth_cert(vec![PKI.web.der.clone()], PKI.web.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub fn client_config(suite: Suite) -> ClientConfig {
    client_config_of(provider(&[rustls_suite(suite)]))
}

pub fn server_config(suite: Suite) -> ServerConfig {
    server_config_of(provider(&[rustls_suite(suite)]))
}

pub fn server_config_of(provider: Arc<CryptoProvider>) -> ServerConfig {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(), provider.clone()).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![PKI.cart.der.clone()], PKI.cart.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub fn cart() -> ServerName<'static> {
    "cart.test".try_into().unwrap()
}

/// rustls's own buffered connection, at the other end of ours.
pub struct Peer(pub Connection, Vec<u8>);

impl Peer {
    pub fn client(config: ClientConfig) -> Self {
        Self::of(ClientConnection::new(config.into(), cart()).unwrap().into())
    }

    pub fn server(config: ServerConfig) -> Self {
        Self::of(ServerConnection::new(config.into()).unwrap().into())
    }

    fn of(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        Self(connection, Vec::new())
    }

    /// It receives `bytes`.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).unwrap();
            self.0.process_new_packets()?;
            self.drain();
        }
        Ok(())
    }

    /// What it wants sent.
    pub fn sends(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut sent).unwrap();
        }
        sent
    }

    pub fn write(&mut self, data: &[u8]) {
        self.0.writer().write_all(data).unwrap();
    }

    /// The data it has got and nobody took yet.
    pub fn read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.1)
    }

    fn drain(&mut self) {
        match self.0.reader().read_to_end(&mut self.1) {
            Err(other) if other.kind() != std::io::ErrorKind::WouldBlock => panic!("{other}"),
            _ => {}
        }
    }
}

/// Our handshake in `role` and its peer, nothing exchanged yet.
pub fn ends(role: Role, suite: Suite) -> (Handshake, Peer) {
    match role {
        Role::Client => {
            let ours = Handshake::client(&client_config(suite), cart()).unwrap();
            (ours, Peer::server(server_config(suite)))
        }
        Role::Server => {
            let mut config = server_config(suite);
            config.send_tls13_tickets = 0;
            (Handshake::server(&config).unwrap(), Peer::client(client_config(suite)))
        }
    }
}

/// Runs a handshake in memory, in pieces of at most `piece` bytes towards us.
pub fn shake(ours: &mut Handshake, peer: &mut Peer, piece: usize) -> Result<(), HandshakeError> {
    let mut send = Vec::new();
    ours.start(&mut send)?;
    loop {
        peer.receive(&std::mem::take(&mut send)).unwrap();
        let answer = peer.sends();
        if answer.is_empty() && send.is_empty() && ours.is_done() {
            return Ok(());
        }
        for piece in answer.chunks(piece) {
            ours.receive(piece, &mut send)?;
        }
    }
}

/// An established connection whose peer is rustls. A rustls server has sent its tickets by then: they are in
/// `received`.
pub fn established(role: Role, suite: Suite) -> (Established, Peer) {
    let (mut ours, mut peer) = ends(role, suite);
    shake(&mut ours, &mut peer, usize::MAX).unwrap();
    (ours.finish().unwrap(), peer)
}

/// Our receiving side: keeps bytes until they are whole records.
pub struct Inbox {
    pub opener: Opener,
    pub bytes: Vec<u8>,
}

/// What came out of an [`Inbox`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    pub data: Vec<u8>,
    pub keys_changed: usize,
    pub answers: usize,
    pub ignored: usize,
    pub closed: bool,
}

impl Inbox {
    pub fn new(opener: Opener, bytes: Vec<u8>) -> Self {
        Self { opener, bytes }
    }

    /// Receives `bytes` and opens every record that is whole, adding to `news`.
    pub fn receive(&mut self, bytes: &[u8], news: &mut News) -> Result<(), OpenError> {
        self.bytes.extend_from_slice(bytes);
        let mut at = 0;
        while let Opened::Record { taken, content } = self.opener.open(&mut self.bytes[at..])? {
            match content {
                Content::Data(data) => news.data.extend_from_slice(data),
                Content::KeysChanged { answer } => {
                    news.keys_changed += 1;
                    news.answers += usize::from(answer);
                }
                Content::Ignored => news.ignored += 1,
                Content::Closed => {
                    news.closed = true;
                    break;
                }
            }
            at += taken;
        }
        self.bytes.drain(..at);
        Ok(())
    }
}

/// Seals `data` as a sender would: in batches, KeyUpdates when they are due.
pub fn seal(sealer: &mut Sealer, data: &[u8], batch: usize) -> Vec<u8> {
    let mut sent = Vec::new();
    for piece in data.chunks(batch * MAX_BODY) {
        if sealer.key_update_due() {
            sent.extend_from_slice(&sealer.seal_key_update(PeerKeys::Stay).unwrap());
        }
        let mut slots = vec![0; batch_length(piece.len())];
        let mut rest = piece;
        for body in bodies(&mut slots) {
            let (now, later) = rest.split_at(body.len());
            body.copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty());
        sealer.seal_batch(&mut slots).unwrap();
        sent.extend_from_slice(&slots);
    }
    sent
}

/// Bytes that are the same nowhere.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

pub fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &vec![0x5a; suite.secret_length()]).unwrap()
}

/// A peer without scruples: what it seals authenticates, whatever it is.
pub struct ByHand {
    secret: TrafficSecret,
    key: LessSafeKey,
    keys: RecordKeys,
    pub sequence: u64,
}

impl ByHand {
    pub fn new(secret: TrafficSecret) -> Self {
        let keys = secret.keys();
        let key = LessSafeKey::new(UnboundKey::new(secret.suite().cipher(), keys.key()).unwrap());
        Self { secret, key, keys, sequence: 0 }
    }

    /// Goes on under the next keys.
    pub fn ratchet(&mut self) {
        let mut secret = TrafficSecret::new(self.secret.suite(), self.secret.expose()).unwrap();
        secret.ratchet();
        *self = Self::new(secret);
    }

    /// A record around `inner`, which ends with type and padding, behind a header that begins with `head`.
    pub fn raw(&mut self, head: [u8; 3], inner: &[u8]) -> Vec<u8> {
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [head[0], head[1], head[2], length[0], length[1]];
        let mut body = inner.to_vec();
        let nonce = self.keys.iv.nonce(self.sequence);
        self.sequence += 1;
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).unwrap();
        [&header[..], &body].concat()
    }

    /// A record of `kind` around `body`, without padding.
    pub fn record(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        self.raw([content::DATA, 3, 3], &[body, &[kind]].concat())
    }
}
