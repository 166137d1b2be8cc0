//! What is known about the connection being judged?

use std::net::IpAddr;

use crate::identity::SpiffeId;
use crate::net::{ClientAddr, TargetAddr};

/// What is judged: everything a policy may ask about one inbound connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Who the peer proved to be: for traffic through a waypoint or gateway, that proxy. `None` for plaintext.
    pub source: Option<SpiffeId>,
    /// Where the connection, or the tunnel that carries it, came from; only the IP address is judged.
    pub client: ClientAddr,
    /// The pod's own IP address (never a service's) and the port that will be dialled in it.
    pub target: TargetAddr,
}

/// The facts in the form that conditions compare, taken apart once per verdict.
pub(super) struct Given<'a> {
    /// The identity without its scheme; `None` for plaintext.
    pub(super) principal: Option<&'a str>,
    /// `/ns/<namespace>/sa/<service account>`; `None` for plaintext. See [`account_path`].
    pub(super) account: Option<&'a str>,
    /// Empty for plaintext.
    pub(super) namespace: &'a str,
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    pub(super) port: u16,
}

impl<'a> Given<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let id = facts.source.as_ref();
        Self {
            principal: id.map(SpiffeId::principal),
            account: id.map(|id| &id.principal()[id.trust_domain().len()..]),
            namespace: id.map_or("", SpiffeId::namespace),
            source: facts.client.ip(),
            target: facts.target.ip(),
            port: facts.target.port(),
        }
    }
}

/// A service account as the path of its identities, whatever their trust domain: one text to compare, not two.
///
/// Parts that contain slashes make a path with more segments than an identity has, so they equal none.
pub(super) fn account_path(namespace: &str, service_account: &str) -> String {
    format!("/ns/{namespace}/sa/{service_account}")
}
