//! What a peer must show: the verifiers of both roles, and the proof that one of them said yes.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};

use super::{PeerError, SpiffeId, x509};

/// Proof of who is at the other end of one TLS connection.
///
/// Only [`VerifiedPeer::of`] makes one, from a finished handshake; the configurations of
/// [`Credentials`](super::Credentials) finish none whose peer they did not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: SpiffeId,
}

impl VerifiedPeer {
    /// Reads the peer off a connection that was made with a configuration of [`Credentials`](super::Credentials).
    ///
    /// # Errors
    /// [`PeerError::Unfinished`] before the handshake is over, [`PeerError::NoCertificate`] and
    /// [`PeerError::San`] when the connection was made with another configuration.
    pub fn of(connection: &CommonState) -> Result<Self, PeerError> {
        if connection.is_handshaking() {
            return Err(PeerError::Unfinished);
        }
        let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
        Ok(Self { identity: x509::identity(leaf)? })
    }

    /// Who the peer is.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }
}

/// Puts our sentence into the error rustls carries to whoever drives the connection.
fn refused(why: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

/// Client role: the server must be one of the identities the route named.
#[derive(Debug)]
pub(super) struct ExpectServer {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) expected: Arc<[SpiffeId]>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExpectServer {
    /// Chain, validity and, if present, the key usage "server authentication"; then the identity. The name is not
    /// looked at: mesh peers are dialled by address.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let got = x509::identity(leaf).map_err(|why| refused(why.into()))?;
        if self.expected.contains(&got) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(PeerError::Unexpected { expected: self.expected.clone(), got }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Server role: the client must be a workload of our trust domain or of one of its aliases.
pub(super) struct AcceptClient {
    /// Chain, validity and, if present, the key usage "client authentication".
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domains: Arc<[String]>,
}

impl fmt::Debug for AcceptClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptClient").field("trust_domains", &self.trust_domains).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for AcceptClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let got = x509::identity(leaf).map_err(|why| refused(why.into()))?;
        if self.trust_domains.iter().any(|accepted| accepted == got.trust_domain()) {
            Ok(verified)
        } else {
            Err(refused(PeerError::ForeignTrustDomain { got, accepted: self.trust_domains.clone() }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
