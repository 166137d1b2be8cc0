//! The certificates as operators see them in the state dump, in the shape Istio's tools read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::keeper::{Standing, chain};
use super::x509::Certificate;

/// Characters in a line of PEM (RFC 7468 §2).
const LINE: usize = 64;

/// One identity: an element of `certificates` in `/config_dump`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    /// SPIFFE URI.
    pub identity: String,
    /// `Available`, `Initializing`, or `Unavailable: <reason>`.
    pub state: String,
    /// Leaf first.
    pub cert_chain: Vec<CertificateText>,
    /// The trust anchors that came with it.
    pub root_certs: Vec<CertificateText>,
}

/// One certificate; never a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateText {
    /// The PEM text, base64-encoded once more, which is what istioctl decodes.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339, UTC, seconds.
    pub valid_from: String,
    /// RFC 3339, UTC, seconds.
    pub expiration_time: String,
}

impl From<Standing> for CertificateDump {
    fn from(standing: Standing) -> Self {
        let state = match (&standing.credentials, &standing.last_refusal) {
            (Some(_), _) => "Available".to_owned(),
            (None, None) => "Initializing".to_owned(),
            (None, Some(refusal)) => format!("Unavailable: {}", chain(refusal)),
        };
        let texts = |certificates: &[Certificate]| certificates.iter().map(CertificateText::from).collect();
        let (cert_chain, root_certs) = match &standing.credentials {
            Some(credentials) => (texts(credentials.chain()), texts(credentials.roots())),
            None => (Vec::new(), Vec::new()),
        };
        Self { identity: standing.identity.to_string(), state, cert_chain, root_certs }
    }
}

impl From<&Certificate> for CertificateText {
    fn from(certificate: &Certificate) -> Self {
        let time = |at| {
            OffsetDateTime::from(at)
                .format(&Rfc3339)
                .expect("X.509 writes years with four digits, and so does RFC 3339")
        };
        Self {
            pem: STANDARD.encode(pem(&certificate.der)),
            serial_number: certificate.serial.clone(),
            valid_from: time(certificate.not_before),
            expiration_time: time(certificate.not_after),
        }
    }
}

fn pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in body.char_indices() {
        if index > 0 && index % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}
