//! What a certificate says: its one identity, its validity, its names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::time::ASN1Time;

use super::{SanError, SpiffeId};

/// The tag of `uniformResourceIdentifier` in a GeneralName (RFC 5280 §4.2.1.6).
const URI_TAG: Tag = Tag(6);

/// One certificate and what is read off it, once.
#[derive(Clone)]
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    /// In decimal, as tools print it.
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// The distinguished names as DER.
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
}

/// Parses one certificate, all of it.
///
/// # Errors
/// What the parser stumbled over, bytes after the certificate, or a time this machine cannot represent.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!("{} bytes follow it", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

impl Certificate {
    /// Reads the facts off `der`.
    ///
    /// # Errors
    /// As [`parse`].
    pub(super) fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let parsed = parse(&der)?;
        let time = |at| wall(at).ok_or_else(|| "its validity cannot be represented".to_owned());
        let serial = parsed.tbs_certificate.serial.to_string();
        let not_before = time(parsed.validity().not_before)?;
        let not_after = time(parsed.validity().not_after)?;
        let subject = parsed.subject().as_raw().to_vec();
        let issuer = parsed.issuer().as_raw().to_vec();
        Ok(Self { der, serial, not_before, not_after, subject, issuer })
    }
}

fn wall(time: ASN1Time) -> Option<SystemTime> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// The one identity a certificate proves, provided that its chain has been verified.
///
/// # Errors
/// [`SanError`]: every shape but exactly one URI SAN that is a workload's SPIFFE ID.
pub(super) fn identity(der: &[u8]) -> Result<SpiffeId, SanError> {
    let certificate = parse(der).map_err(SanError::Unreadable)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| SanError::Unreadable(error.to_string()))?
        .map(|san| san.value.general_names.as_slice())
        .unwrap_or_default();
    // An undecodable URI counts too: skipping it would accept a certificate with a second, unread identity.
    let uris: Vec<Option<&str>> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Some(*uri)),
            GeneralName::Invalid(URI_TAG, _) => Some(None),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [] => Err(SanError::NoUri),
        [Some(uri)] => {
            SpiffeId::parse(uri).map_err(|cause| SanError::NotSpiffe { uri: (*uri).to_owned(), cause })
        }
        [None] => Err(SanError::Unreadable("its URI SAN is no text".to_owned())),
        several => Err(SanError::SeveralUris(several.len())),
    }
}
