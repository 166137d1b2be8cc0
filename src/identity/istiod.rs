//! Certificates from istiod, or whoever else speaks its `CreateCertificate`.
//!
//! Each request has a key of its own, which never leaves this process, and asks in the name of a workload on this node; istiod
//! checks that it is one. What comes back is unchecked but for its form: the [`Keeper`](super::Keeper) compares it with what was
//! asked, and keeps what there is until then.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Mutex;
use tonic::Request;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;
use zeroize::Zeroize as _;

use super::{Authority, AuthorityError, Issued, Issuing, PrivateKey, SpiffeId};
use crate::control::{self, Connection, connect};

mod wire {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        reason = "generated; the document is proto/ca.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

pub use wire::{IstioCertificateRequest, IstioCertificateResponse};

const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Longest answer that is looked at, in bytes: some certificates, and a bundle of roots.
const LARGEST: usize = 1 << 20;

/// Why istiod issued nothing.
#[derive(Debug, thiserror::Error)]
pub enum IstiodError {
    /// It was not reached.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// It said no.
    #[error("istiod refuses: {code:?}{}", match message.as_str() { "" => String::new(), text => format!(": {text}") })]
    Refused {
        /// The status.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// Our request could not be made.
    #[error("making the request")]
    Request(#[from] rcgen::Error),
    /// It answered with something that is no chain.
    #[error("the answer is no chain of certificates: {0}")]
    Answer(String),
}

/// istiod as an authority.
pub struct IstiodCa {
    config: Arc<control::Config>,
    /// Shared by all requests, and made anew when it has ended or failed.
    connection: Arc<Mutex<Option<Connection>>>,
}

impl IstiodCa {
    /// The authority that is reached by `config`.
    pub fn new(config: control::Config) -> Self {
        Self { config: Arc::new(config), connection: Arc::default() }
    }
}

impl Authority for IstiodCa {
    fn issue(&self, identity: SpiffeId, ttl: Duration) -> Issuing {
        let (config, connection) = (self.config.clone(), self.connection.clone());
        Box::pin(async move {
            let asked = ask(&config, &connection, &identity, ttl).await;
            asked.map_err(|cause| AuthorityError::Failed(Box::new(cause)))
        })
    }
}

async fn ask(
    config: &control::Config,
    shared: &Mutex<Option<Connection>>,
    identity: &SpiffeId,
    ttl: Duration,
) -> Result<Issued, IstiodError> {
    let (key, csr) = request(identity)?;
    let name = Value { kind: Some(Kind::StringValue(identity.as_str().to_owned())) };
    let message = IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), name)].into() }),
    };
    let connection = {
        let mut shared = shared.lock().await;
        match shared.as_ref().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection.clone(),
            None => shared.insert(connect(config).await?).clone(),
        }
    };
    let mut grpc = Grpc::with_origin(connection, config.address.origin()).max_decoding_message_size(LARGEST);
    let mut request = Request::new(message);
    *request.metadata_mut() = config.credentials()?;
    let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
    let answered = match grpc.ready().await {
        Ok(()) => grpc.unary(request, PathAndQuery::from_static(PATH), codec).await,
        Err(cause) => Err(tonic::Status::unavailable(cause.to_string())),
    };
    match answered {
        Ok(answer) => {
            let (chain, roots) = read(&answer.into_inner().cert_chain)?;
            Ok(Issued { key, chain, roots })
        }
        Err(status) => {
            // Whatever is wrong with it, or with its server, the next request finds out anew.
            *shared.lock().await = None;
            Err(IstiodError::Refused { code: status.code(), message: status.message().to_owned() })
        }
    }
}

/// A fresh key, and a request for it: no subject, and one critical extension with one URI.
fn request(identity: &SpiffeId) -> Result<(PrivateKey, String), IstiodError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem());
    let private = PrivateKey::from_pkcs8(key.serialize_der());
    key.zeroize();
    Ok((private, csr?))
}

type Certificates = Vec<CertificateDer<'static>>;

/// The chain, leaf first and without the roots; and the roots, which are the last element.
fn read(elements: &[String]) -> Result<(Certificates, Certificates), IstiodError> {
    let [chain @ .., roots] = elements else { return Err(IstiodError::Answer("it is empty".into())) };
    if chain.is_empty() {
        return Err(IstiodError::Answer(
            "there is a single element, so either the leaf or the roots are missing".into(),
        ));
    }
    let all = |nth: usize, text: &String| {
        let read: Result<Certificates, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        match read {
            Ok(some) if some.is_empty() => {
                Err(IstiodError::Answer(format!("element {nth} has no certificate")))
            }
            Ok(some) => Ok(some),
            Err(cause) => Err(IstiodError::Answer(format!("element {nth} is no PEM: {cause}"))),
        }
    };
    let chain: Result<Vec<_>, _> = chain.iter().enumerate().map(|(nth, text)| all(nth, text)).collect();
    Ok((chain?.concat(), all(elements.len() - 1, roots)?))
}
