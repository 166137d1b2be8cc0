//! Who issues certificates: the seam, and an authority of our own behind it.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroize;

use super::root::{self, Root};
use super::{AuthorityError, Clock, Issued, PrivateKey, RootError, SpiffeId};

/// How far certificates reach back, so that a peer whose clock is a little late accepts them. As istiod does.
pub(super) const BACKDATED: Duration = Duration::from_secs(120);

/// A request for a certificate under way. Dropping it gives the request up.
pub type Issuing = Pin<Box<dyn Future<Output = Result<Issued, AuthorityError>> + Send>>;

/// Something that issues certificates for the identities of this node.
///
/// An implementation makes a fresh key per request, keeps no deadline and retries nothing: the
/// [`Keeper`](super::Keeper) does both, and checks what comes back.
pub trait Authority: Send + Sync {
    /// Asks for one certificate for `identity`, valid for about `ttl` from now.
    fn issue(&self, identity: SpiffeId, ttl: Duration) -> Issuing;
}

/// An authority inside this process, for one trust domain, with a root that nodes may share as a file.
///
/// Its leaves look as istiod's do: P-256, empty subject, one critical URI SAN, both key usages of TLS.
pub struct EmbeddedCa {
    root: Arc<Root>,
    trust_domain: String,
    clock: Clock,
}

impl EmbeddedCa {
    /// Opens the root in `dir`, or makes one there: the file `root.pem` (0600) with key and certificate.
    ///
    /// Processes that start together in one directory end up with one root. Nodes share a root by sharing the
    /// directory or a copy of it, which may be read-only.
    ///
    /// # Errors
    /// [`RootError`]: the file is not safe, not whole or not valid any more, or none can be made.
    pub fn open(dir: &Path, trust_domain: &str, clock: Clock) -> Result<Self, RootError> {
        let root = Arc::new(root::open(dir, trust_domain, &clock)?);
        Ok(Self { root, trust_domain: trust_domain.to_owned(), clock })
    }
}

impl Authority for EmbeddedCa {
    fn issue(&self, identity: SpiffeId, ttl: Duration) -> Issuing {
        let root = self.root.clone();
        let now = self.clock.now();
        let foreign = identity.trust_domain() != self.trust_domain;
        let domain = self.trust_domain.clone();
        Box::pin(async move {
            if foreign {
                return Err(AuthorityError::ForeignTrustDomain { domain });
            }
            sign(&root, &identity, ttl, now)
        })
    }
}

fn sign(root: &Root, identity: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<Issued, AuthorityError> {
    if root.certificate.not_after <= now {
        return Err(AuthorityError::RootExpired);
    }
    // A time beyond what the clock can show is beyond the root's end too.
    let end = now.checked_add(ttl).unwrap_or(root.certificate.not_after).min(root.certificate.not_after);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).into();
    params.not_after = end.into();
    params.serial_number = Some(random_serial().map_err(failed)?);
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(failed)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let signed = Issuer::from_ca_cert_der(&root.certificate.der, &root.key)
        .and_then(|issuer| params.signed_by(&key, &issuer));
    let private = PrivateKey::from_pkcs8(key.serialize_der());
    key.zeroize();
    let leaf: CertificateDer<'static> = signed.map_err(failed)?.into();
    Ok(Issued { key: private, chain: vec![leaf], roots: vec![root.certificate.der.clone()] })
}

fn failed(cause: impl std::error::Error + Send + Sync + 'static) -> AuthorityError {
    AuthorityError::Failed(Box::new(cause))
}

/// Sixteen random bytes, positive and without a leading zero, as RFC 5280 §4.1.2.2 wants serial numbers.
pub(super) fn random_serial() -> Result<SerialNumber, rustls::Error> {
    let mut bytes = [0_u8; 16];
    default_provider().secure_random.fill(&mut bytes)?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
