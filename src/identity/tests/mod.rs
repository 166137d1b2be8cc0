//! Certificates good and hostile, made with the same library the embedded authority uses, and a clock to turn.

mod credentials;
mod handshake;
mod istiod;
mod keeper;
mod machine;
mod root;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

use super::{Clock, Credentials, Issued, PrivateKey, SpiffeId, Tls, TlsPolicy};

/// 2026-01-01T00:00:00Z.
fn new_year() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A clock that stands until it is set.
#[derive(Clone)]
struct Dial(Arc<Mutex<SystemTime>>);

impl Dial {
    fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(time)))
    }

    fn set(&self, time: SystemTime) {
        *self.0.lock().unwrap() = time;
    }

    fn clock(&self) -> Clock {
        let dial = self.0.clone();
        Clock::new(move || *dial.lock().unwrap())
    }
}

fn standing_clock() -> Clock {
    Dial::at(new_year()).clock()
}

fn policy() -> TlsPolicy {
    TlsPolicy::new(Tls::default(), standing_clock())
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).unwrap()
}

fn only(id: SpiffeId) -> Arc<[SpiffeId]> {
    Arc::new([id])
}

/// An authority that issues whatever a test asks of it.
struct Mint {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Mint {
    fn new() -> Self {
        Self::named("mint")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name);
        let certificate = params.self_signed(&key).unwrap().into();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A leaf with these names, as the embedded authority would shape it.
    fn leaf(names: Vec<SanType>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (new_year() - seconds(120)).into();
        params.not_after = (new_year() + hours(24)).into();
        params.subject_alt_names = names;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            key: PrivateKey::from_pkcs8(key.serialize_der()),
            chain: vec![leaf.into()],
            roots: vec![self.certificate.clone()],
        }
    }

    fn issue_for(&self, id: &SpiffeId) -> Issued {
        self.issue(&Self::leaf(vec![uri(id.as_str())]))
    }

    fn credentials(&self, id: &SpiffeId) -> Credentials {
        Credentials::new(id, self.issue_for(id), &policy()).unwrap()
    }

    /// An authority below this one.
    fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().into();
        Self { issuer: Issuer::new(params, key), certificate }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.not_before = (new_year() - hours(24)).into();
    params.not_after = (new_year() + hours(24 * 365)).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}
