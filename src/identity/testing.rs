//! An authority that signs what it is asked, as istiod does, or answers something else.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails right there"
)]

use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

pub use super::istiod::{IstioCertificateRequest, IstioCertificateResponse};

/// The path of the call.
pub const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Leaf, intermediate, and two roots in one element.
    Good,
    /// A leaf for somebody else.
    OtherIdentity,
    /// A leaf that is over.
    Expired,
    /// A leaf with another key.
    OtherKey,
    /// The intermediate before the leaf.
    WrongOrder,
    /// Far too many certificates.
    Long,
    /// A leaf alone.
    NoRoots,
    /// Nothing.
    Empty,
    /// Text that is no PEM.
    Garbage,
    /// A certificate that is none.
    NoCertificate,
}

/// Signs with an intermediate of its own.
pub struct Signer {
    root: String,
    other_root: String,
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Signer {
    fn default() -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            (params, KeyPair::generate().unwrap())
        };
        let ((root, root_key), (other, other_key)) = (authority("root"), authority("the next root"));
        let (intermediate, key) = authority("intermediate");
        let (root_pem, other_root) =
            (root.self_signed(&root_key).unwrap().pem(), other.self_signed(&other_key).unwrap().pem());
        let signed = intermediate.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        Self {
            root: root_pem,
            other_root,
            intermediate: signed.pem(),
            issuer: Issuer::new(intermediate, key),
        }
    }
}

impl Signer {
    /// What istiod would answer, or something else.
    pub fn answer(&self, asked: &IstioCertificateRequest, how: Answer) -> IstioCertificateResponse {
        let metadata = asked.metadata.as_ref().unwrap();
        let Some(Kind::StringValue(identity)) = &metadata.fields["ImpersonatedIdentity"].kind else {
            panic!("the identity is no text")
        };
        let mut csr = CertificateSigningRequestParams::from_pem(&asked.csr).unwrap();
        let identity = match how {
            Answer::OtherIdentity => "spiffe://cluster.local/ns/shop/sa/somebody-else",
            _ => identity,
        };
        let now = SystemTime::now();
        let lifetime = Duration::from_secs(u64::try_from(asked.validity_duration).unwrap());
        csr.params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        csr.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.not_before = (now - Duration::from_secs(120)).into();
        csr.params.not_after = match how {
            Answer::Expired => (now - Duration::from_secs(60)).into(),
            _ => (now + lifetime).into(),
        };
        let leaf = match how {
            Answer::OtherKey => {
                csr.params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().pem()
            }
            _ => csr.signed_by(&self.issuer).unwrap().pem(),
        };
        let roots = format!("{}{}", self.root, self.other_root);
        let cert_chain = match how {
            Answer::WrongOrder => vec![self.intermediate.clone(), leaf, roots],
            Answer::Long => {
                let many = std::iter::repeat_n(self.intermediate.clone(), 100);
                [leaf].into_iter().chain(many).chain([roots]).collect()
            }
            Answer::NoRoots => vec![leaf],
            Answer::Empty => Vec::new(),
            Answer::Garbage => vec!["garbage".into(), "more of it".into()],
            Answer::NoCertificate => {
                let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                vec![none.into(), roots]
            }
            Answer::Good | Answer::OtherIdentity | Answer::Expired | Answer::OtherKey => {
                vec![leaf, self.intermediate.clone(), roots]
            }
        };
        IstioCertificateResponse { cert_chain }
    }
}
