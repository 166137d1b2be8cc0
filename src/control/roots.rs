//! Whose word for the control plane's name counts.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Error;

/// Where the trust roots are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// In this PEM file, read for each connection.
    File(PathBuf),
    /// This PEM text.
    Text(String),
    /// Those of the operating system.
    System,
}

impl Roots {
    /// Reads what `XDS_ROOT_CA` and `CA_ROOT_CA` may say: an existing path, `SYSTEM`, or the PEM text itself.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "SYSTEM" {
            return Ok(Self::System);
        }
        if std::path::Path::new(text).exists() {
            return Ok(Self::File(text.into()));
        }
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return Ok(Self::Text(text.to_owned()));
        }
        Err("there is no such file; write a path, SYSTEM, or certificates as PEM".into())
    }

    /// The anchors as they are now. Every certificate must be one that can be an anchor.
    pub(super) fn load(&self) -> Result<Arc<RootCertStore>, Error> {
        let file = match self {
            Self::File(file) => Some(file.clone()),
            Self::Text(_) | Self::System => None,
        };
        let wrong = |why: String| Error::Roots { file: file.clone(), why };
        let mut store = RootCertStore::empty();
        match self {
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                // What a system collects over the years is not always well formed.
                store.add_parsable_certificates(found.certs);
            }
            Self::File(_) | Self::Text(_) => {
                let text = match self {
                    Self::File(file) => std::fs::read(file).map_err(|cause| wrong(cause.to_string()))?,
                    Self::Text(text) => text.as_bytes().to_vec(),
                    Self::System => Vec::new(),
                };
                for one in CertificateDer::pem_slice_iter(&text) {
                    let one = one.map_err(|cause| wrong(format!("it is no PEM: {cause}")))?;
                    store.add(one).map_err(|cause| wrong(format!("a certificate of it: {cause}")))?;
                }
            }
        }
        if store.is_empty() {
            return Err(wrong("there is no certificate in it".into()));
        }
        Ok(Arc::new(store))
    }
}
