//! What does a tunnel's handshake cost each side, and how much of that is its cryptography?
//!
//! Unit: µs of one thread that does nothing else, for a full mutual handshake in memory, from nothing to keys taken over: the
//! code that both proxies run around their sockets (`hbone/handshake.rs`), with certificates (P-256) and verifiers of `identity`.
//! Bytes are handed over in pieces of 4 KiB, as they are read there.
//!
//! - `handshake/client/KX`, `handshake/server/KX`: our half, the peer's left out; `handshake/both/KX` is their sum. With
//!   `X25519MLKEM768` both are ours, as between two adits. With `X25519` the peer is one that has nothing else: our client still
//!   offers the hybrid then, and pays for its key.
//! - `handshake/p256/sign`, `…/verify`: one of the signatures. Each side makes one, and verifies the peer's and one certificate.
//! - `handshake/kx/KX/client`, `…/server`: the key exchange alone.
//! - `handshake/floor/KX`: both sides' signatures and key exchange in one loop, which is what no code around them could save.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::identity::{
    Authority, Clock, Credentials, EmbeddedCa, SpiffeId, Tls, TlsPolicy, VerifiedPeer, require_h2,
};
use adit::tls::Handshake;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::{X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore, ServerConfig, SignatureScheme,
};

/// What the carrier reads at a time.
const PIECE: usize = 4096;
const GROUPS: [(&str, &dyn SupportedKxGroup); 2] = [("X25519MLKEM768", X25519MLKEM768), ("X25519", X25519)];

/// Configurations of both sides.
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Ends {
    /// As between two adits.
    fn ours() -> (Self, RootCertStore) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca = EmbeddedCa::open(dir.path(), "cluster.local", Clock::system()).expect("a fresh directory");
        let policy = TlsPolicy::new(Tls::default(), Clock::system());
        let mut roots = RootCertStore::empty();
        let mut issue = |account| {
            let issued = runtime.block_on(ca.issue(id(account), Duration::from_secs(86_400)));
            let issued = issued.expect("its own trust domain");
            roots.add_parsable_certificates(issued.roots.iter().cloned());
            Credentials::new(&id(account), issued, &policy).expect("just issued")
        };
        let (web, cart) = (issue("web"), issue("cart"));
        (Self { client: web.client_config([id("cart")].into()), server: cart.server_config() }, roots)
    }

    /// The same certificates, at peers that exchange keys by `group` only: a client for our server and a server for our client.
    fn peers(&self, group: &'static dyn SupportedKxGroup, roots: RootCertStore) -> Self {
        let ours = self.client.crypto_provider();
        let provider = Arc::new(CryptoProvider { kx_groups: vec![group], ..ours.as_ref().clone() });
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suites are those of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_cert_resolver(self.client.client_auth_cert_resolver.clone());
        client.alpn_protocols = self.client.alpn_protocols.clone();
        client.enable_sni = false;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suites are those of TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("the roots of our authority"))
            .with_cert_resolver(self.server.cert_resolver.clone());
        server.alpn_protocols = self.server.alpn_protocols.clone();
        Self { client: client.into(), server: server.into() }
    }
}

/// A peer's verifier: what it costs is not measured.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).expect("plain words")
}

/// One side of a handshake, and the time it has taken.
struct Half {
    handshake: Handshake,
    took: Duration,
}

impl Half {
    fn begin(make: impl FnOnce() -> Handshake, send: &mut Vec<u8>) -> Self {
        let from = Instant::now();
        let mut handshake = make();
        handshake.start(send).expect("a fresh handshake");
        Self { handshake, took: from.elapsed() }
    }

    /// Takes what the other side sent and answers it.
    fn turn(&mut self, received: &mut Vec<u8>, send: &mut Vec<u8>) {
        let from = Instant::now();
        for piece in received.chunks(PIECE) {
            self.handshake.receive(piece, send).expect("both keep to the rules");
        }
        self.took += from.elapsed();
        received.clear();
    }

    /// Takes the keys over. Returns the time of all, and the group that was agreed on.
    fn end(self, peer: &SpiffeId) -> (Duration, NamedGroup) {
        let from = Instant::now();
        let common = self.handshake.connection();
        require_h2(common).expect("both want it");
        assert_eq!(VerifiedPeer::of(common).expect("it was verified").identity(), peer);
        let group = common.negotiated_key_exchange_group().expect("it is done").name();
        black_box(self.handshake.finish().expect("it is done"));
        (self.took + from.elapsed(), group)
    }
}

/// One handshake: what it took client and server.
fn shake(client: &ClientConfig, server: &ServerConfig, group: NamedGroup) -> [Duration; 2] {
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut near =
        Half::begin(|| Handshake::client(client, name).expect("a configuration of ours"), &mut to_server);
    let mut far = Half::begin(|| Handshake::server(server).expect("a configuration of ours"), &mut to_client);
    while !(near.handshake.is_done() && far.handshake.is_done()) {
        far.turn(&mut to_server, &mut to_client);
        near.turn(&mut to_client, &mut to_server);
    }
    let (near, agreed) = near.end(&id("cart"));
    let (far, _) = far.end(&id("web"));
    assert_eq!(agreed, group);
    [near, far]
}

fn handshakes(criterion: &mut Criterion) {
    let (ours, roots) = Ends::ours();
    let peers = ours.peers(X25519, roots);
    let mut group = criterion.benchmark_group("handshake");
    for (name, kx) in GROUPS {
        // Whom our client and our server talk to.
        let far = if kx.name() == NamedGroup::X25519 { &peers } else { &ours };
        let client = || shake(&ours.client, &far.server, kx.name())[0];
        let server = || shake(&far.client, &ours.server, kx.name())[1];
        group.bench_function(BenchmarkId::new("client", name), |bench| {
            bench.iter_custom(|times| (0..times).map(|_| client()).sum());
        });
        group.bench_function(BenchmarkId::new("server", name), |bench| {
            bench.iter_custom(|times| (0..times).map(|_| server()).sum());
        });
        group.bench_function(BenchmarkId::new("both", name), |bench| {
            bench.iter_custom(|times| (0..times).map(|_| client() + server()).sum());
        });
    }
}

/// A P-256 key, and a message of the length that is signed in a handshake.
struct Signing {
    key: EcdsaKeyPair,
    random: SystemRandom,
    message: [u8; 146],
}

impl Signing {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("random numbers");
        Self { key, random: SystemRandom::new(), message: [0x20; 146] }
    }

    fn sign(&self) -> aws_lc_rs::signature::Signature {
        self.key.sign(&self.random, black_box(&self.message)).expect("random numbers")
    }

    fn verify(&self, signature: &[u8]) {
        // Parsed anew each time, as a peer's key is.
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.key.public_key());
        key.verify(black_box(&self.message), signature).expect("just signed");
    }
}

/// Client and server of a key exchange, and how long each took.
fn exchange(kx: &dyn SupportedKxGroup) -> [Duration; 2] {
    let begun = Instant::now();
    let client = kx.start().expect("random numbers");
    let offered = begun.elapsed();
    let server = kx.start_and_complete(client.pub_key()).expect("a fresh key");
    let answered = begun.elapsed();
    black_box(client.complete(&server.pub_key).expect("a fresh key"));
    [begun.elapsed() - (answered - offered), answered - offered]
}

fn references(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("handshake");
    let signing = Signing::new();
    let signature = signing.sign();
    group.bench_function("p256/sign", |bench| bench.iter(|| signing.sign()));
    group.bench_function("p256/verify", |bench| bench.iter(|| signing.verify(signature.as_ref())));
    for (name, kx) in GROUPS {
        for (nth, side) in ["client", "server"].into_iter().enumerate() {
            group.bench_function(format!("kx/{name}/{side}"), |bench| {
                bench.iter_custom(|times| (0..times).map(|_| exchange(kx)[nth]).sum());
            });
        }
        group.bench_function(BenchmarkId::new("floor", name), |bench| {
            bench.iter(|| {
                exchange(kx);
                for _side in 0..2 {
                    black_box(signing.sign());
                    // The peer's signature, and that of the authority under its certificate.
                    signing.verify(signature.as_ref());
                    signing.verify(signature.as_ref());
                }
            });
        });
    }
}

criterion_group!(benches, handshakes, references);
criterion_main!(benches);
