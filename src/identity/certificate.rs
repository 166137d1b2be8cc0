//! What was issued, checked: the [`Credentials`] of one identity.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use zeroize::Zeroizing;

use super::x509::{self, Certificate};
use super::{CredentialError, SpiffeId, TlsPolicy};

/// Longest chain we present, in certificates and in bytes. Peers read at most 64 KiB of such a message, and a
/// real chain has two or three certificates of under 1 KiB.
const MAX_CERTIFICATES: usize = 8;
const MAX_BYTES: usize = 16 * 1024;

/// A private key as PKCS#8 DER, wiped when dropped and never printed.
pub struct PrivateKey(pub(super) Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// Takes the key over. The caller keeps no copy, or wipes it.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// What an authority handed out for one request, unchecked.
#[derive(Debug)]
pub struct Issued {
    /// The leaf's key, made for this request alone.
    pub key: PrivateKey,
    /// The leaf, then the intermediates towards the root, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The trust anchors to verify peers with, as long as this leaf is in use.
    pub roots: Vec<CertificateDer<'static>>,
}

/// One identity's certificate, key and trust roots, checked when they were put together. Immutable; a renewal
/// makes another one.
pub struct Credentials {
    identity: SpiffeId,
    /// Never empty: the leaf is its first.
    chain: Vec<Certificate>,
    roots: Vec<Certificate>,
    anchors: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
    policy: TlsPolicy,
    server: Arc<ServerConfig>,
    /// What was built for tunnels, by whom they expect. A renewal, or other roots, make other credentials, and so an empty one.
    clients: Mutex<HashMap<Arc<[SpiffeId]>, Arc<ClientConfig>>>,
}

/// Sets of expected peers that are remembered. A workload calls a few; what is beyond this starts over.
const CLIENTS: usize = 1024;

impl Credentials {
    /// Checks what was issued for `identity` and builds the server's configuration.
    ///
    /// The chain must be short and in order, the leaf must name `identity` and nobody else, belong to the key and
    /// not be over. A leaf that is not valid *yet* is taken: when clocks differ it may be our clock that is late,
    /// and peers judge for themselves.
    ///
    /// # Errors
    /// [`CredentialError`]: the first check that failed.
    pub fn new(identity: &SpiffeId, issued: Issued, policy: &TlsPolicy) -> Result<Self, CredentialError> {
        let chain = read_chain(issued.chain)?;
        let leaf = chain.first().ok_or(CredentialError::EmptyChain)?;
        let got = x509::identity(&leaf.der)?;
        if got != *identity {
            return Err(CredentialError::WrongIdentity { wanted: identity.clone(), got });
        }
        if leaf.not_after <= policy.clock().now() {
            return Err(CredentialError::Expired);
        }
        let ders = chain.iter().map(|certificate| certificate.der.clone()).collect();
        let key = Arc::new(pair(ders, &issued.key)?);
        let (roots, anchors) = read_roots(issued.roots)?;
        let server = policy.server(identity, &key, &anchors).map_err(|_| CredentialError::NoRoots)?;
        Ok(Self {
            identity: identity.clone(),
            chain,
            roots,
            anchors,
            key,
            policy: policy.clone(),
            server: Arc::new(server),
            clients: Mutex::default(),
        })
    }

    /// Whom these prove.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// From when the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf().not_before
    }

    /// When the leaf expires.
    pub fn not_after(&self) -> SystemTime {
        self.leaf().not_after
    }

    /// Whether the leaf is over at `now`, and presenting it would only fail.
    pub fn expired(&self, now: SystemTime) -> bool {
        self.not_after() <= now
    }

    /// The configuration for accepting tunnels to this identity's workloads: client certificate mandatory, of
    /// our trust domain; built once, shared by all connections.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The configuration for tunnels towards one of `expected`; built once, shared by all connections. With nobody expected, no
    /// handshake succeeds.
    pub fn client_config(&self, expected: Arc<[SpiffeId]>) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(&expected) {
            return known.clone();
        }
        let config = Arc::new(self.policy.client(expected.clone(), &self.key, &self.anchors));
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(expected, config.clone());
        config
    }

    fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// Leaf first.
    pub(super) fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    pub(super) fn roots(&self) -> &[Certificate] {
        &self.roots
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.leaf().serial)
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

/// Reads the chain and checks its size, order and validities.
fn read_chain(ders: Vec<CertificateDer<'static>>) -> Result<Vec<Certificate>, CredentialError> {
    let bytes = ders.iter().map(|der| der.len()).sum();
    if ders.len() > MAX_CERTIFICATES || bytes > MAX_BYTES {
        return Err(CredentialError::TooLong { certificates: ders.len(), bytes });
    }
    let chain = read_all("certificate", ders)?;
    for (index, pair) in chain.windows(2).enumerate() {
        if pair[0].issuer != pair[1].subject {
            return Err(CredentialError::Order { index });
        }
    }
    match chain.iter().position(|certificate| certificate.not_after <= certificate.not_before) {
        Some(index) => Err(CredentialError::Validity { index }),
        None => Ok(chain),
    }
}

fn read_all(
    which: &'static str,
    ders: Vec<CertificateDer<'static>>,
) -> Result<Vec<Certificate>, CredentialError> {
    let read = |(index, der)| {
        Certificate::read(der).map_err(|cause| CredentialError::Unreadable { which, index, cause })
    };
    ders.into_iter().enumerate().map(read).collect()
}

/// Keeps the roots that can serve as trust anchors. One that cannot verifies nobody, so it is left out.
fn read_roots(
    ders: Vec<CertificateDer<'static>>,
) -> Result<(Vec<Certificate>, Arc<RootCertStore>), CredentialError> {
    let mut anchors = RootCertStore::empty();
    let mut roots = read_all("root", ders)?;
    roots.retain(|root| match anchors.add(root.der.clone()) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(serial = root.serial, %error, "leaving out a root that cannot be a trust anchor");
            false
        }
    });
    if roots.is_empty() { Err(CredentialError::NoRoots) } else { Ok((roots, Arc::new(anchors))) }
}

/// Joins chain and key, which must belong together.
fn pair(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<CertifiedKey, CredentialError> {
    // A borrowed encoding: aws-lc keeps its own copy and wipes it, so no other one is left behind.
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.0.as_slice()));
    let signing = any_supported_type(&der).map_err(CredentialError::Key)?;
    let pair = CertifiedKey::new(chain, signing);
    pair.keys_match().map_err(CredentialError::Key)?;
    Ok(pair)
}
