//! What both ends of a mesh handshake insist on, and the rustls configurations that say so.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, CommonState, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::verify::{AcceptClient, ExpectServer};
use super::{Clock, PeerError, SpiffeId};

const H2: &[u8] = b"h2";

/// TLS 1.3 first; ChaCha20 is left out as Istio leaves it out. The 1.2 suites serve only where 1.2 is on.
const SUITES: [SupportedCipherSuite; 6] = [
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// The hybrid first: traffic recorded today stays secret once X25519 falls, and a peer without it takes the next.
const GROUPS: [&dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

static ONLY_TLS13: [&SupportedProtocolVersion; 1] = [&TLS13];
static WITH_TLS12: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// What the operator may choose about mesh TLS. The default is TLS 1.3, hybrid key exchange preferred, our own
/// trust domain only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Also TLS 1.2 (`TLS12_ENABLED`). Without effect beside `pqc_only`, as no hybrid exists in TLS 1.2.
    pub tls12: bool,
    /// No key exchange but X25519MLKEM768 (`COMPLIANCE_POLICY=pqc`); peers without it cannot connect.
    pub pqc_only: bool,
    /// Trust domains whose workloads may call ours, beside our own. Only what our roots verify is looked at.
    pub trust_domain_aliases: Vec<String>,
}

/// The choices of [`Tls`] made concrete, one per process. Cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct TlsPolicy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    aliases: Vec<String>,
    clock: Clock,
}

impl TlsPolicy {
    /// Picks suites, key exchange and versions for `tls`; validity is judged by `clock`.
    pub fn new(tls: Tls, clock: Clock) -> Self {
        let groups = if tls.pqc_only { &GROUPS[..1] } else { &GROUPS[..] };
        let tls12 = tls.tls12 && !tls.pqc_only;
        let suites = if tls12 { &SUITES[..] } else { &SUITES[..2] };
        let provider = CryptoProvider {
            cipher_suites: suites.to_vec(),
            kx_groups: groups.to_vec(),
            ..default_provider()
        };
        Self(Arc::new(Inner {
            provider: Arc::new(provider),
            versions: if tls12 { &WITH_TLS12 } else { &ONLY_TLS13 },
            aliases: tls.trust_domain_aliases,
            clock,
        }))
    }

    /// Suites, key exchange and versions, for TLS with others than the mesh.
    pub fn parameters(&self) -> (Arc<CryptoProvider>, &'static [&'static SupportedProtocolVersion]) {
        (self.0.provider.clone(), self.0.versions)
    }

    /// The clock by which validity is judged.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The server side for the workload `own`, whose certificate is `key`.
    ///
    /// # Errors
    /// When `roots` is empty.
    pub(super) fn server(
        &self,
        own: &SpiffeId,
        key: &Arc<CertifiedKey>,
        roots: &Arc<RootCertStore>,
    ) -> Result<ServerConfig, VerifierBuilderError> {
        // No list of authorities is sent: every mesh client has one certificate, and the list costs bytes.
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), self.0.provider.clone())
            .clear_root_hint_subjects()
            .build()?;
        let trust_domains = [own.trust_domain().to_owned()].into_iter().chain(self.0.aliases.iter().cloned());
        let verifier = AcceptClient { chain, trust_domains: trust_domains.collect() };
        let mut config =
            ServerConfig::builder_with_details(self.0.provider.clone(), Arc::new(self.0.clock.clone()))
                .with_protocol_versions(self.0.versions)
                .expect("SUITES and GROUPS serve every version that new() chooses")
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![H2.to_vec()];
        // Every handshake proves both ends anew; a ticket would carry an old proof past a renewal.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// The client side for whoever holds `key`, towards one of `expected`.
    pub(super) fn client(
        &self,
        expected: Arc<[SpiffeId]>,
        key: &Arc<CertifiedKey>,
        roots: &Arc<RootCertStore>,
    ) -> ClientConfig {
        let algorithms = self.0.provider.signature_verification_algorithms;
        let mut config =
            ClientConfig::builder_with_details(self.0.provider.clone(), Arc::new(self.0.clock.clone()))
                .with_protocol_versions(self.0.versions)
                .expect("SUITES and GROUPS serve every version that new() chooses")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ExpectServer {
                    roots: roots.clone(),
                    expected,
                    algorithms,
                }))
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config
    }
}

/// Client role, after the handshake: the server selected HTTP/2. (As server, rustls itself refuses a client that
/// offers protocols without h2; one that offers none is served.)
///
/// # Errors
/// [`PeerError::NotH2`].
pub fn require_h2(connection: &CommonState) -> Result<(), PeerError> {
    if connection.alpn_protocol() == Some(H2) { Ok(()) } else { Err(PeerError::NotH2) }
}
