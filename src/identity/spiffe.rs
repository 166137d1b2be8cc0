//! A workload's name: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// Longest id accepted (SPIFFE-ID §2.4).
const MAX_LEN: usize = 2048;

/// One workload identity, checked when it was parsed. Cloning copies a pointer; equality compares the text.
///
/// Source: SPIFFE-ID §2, with the path that Istio uses.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Ends, in bytes of `text`, of the trust domain and of the namespace. Both fit: `MAX_LEN` is below 65,536.
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Why a text is no workload identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Another scheme or none.
    #[error("it does not start with spiffe://")]
    Scheme,
    /// Not the path Istio uses.
    #[error("its path is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// A part between slashes has no characters.
    #[error("its {0} is empty")]
    Empty(&'static str),
    /// Outside SPIFFE-ID's character set.
    #[error("its {0} has a character that SPIFFE does not allow")]
    Character(&'static str),
    /// More than 2,048 bytes.
    #[error("it is longer than 2048 bytes")]
    TooLong,
}

impl SpiffeId {
    /// Parses a whole SPIFFE URI, scheme included.
    ///
    /// # Errors
    /// [`SpiffeError`] says which part is wrong. Nothing is folded, decoded or trimmed.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_LEN {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let mut parts = rest.split('/');
        let (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SpiffeError::Path);
        };
        // SPIFFE-ID §2.1: a trust domain is lower-case; §2.2: path segments may have capitals.
        let lower = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
        let any = |c: u8| lower(c) || c.is_ascii_uppercase();
        part("trust domain", td, lower)?;
        part("namespace", ns, any)?;
        part("service account", sa, any)?;
        let trust_domain_end = SCHEME.len() + td.len();
        let namespace_end = trust_domain_end + "/ns/".len() + ns.len();
        let offset = |end: usize| u16::try_from(end).map_err(|_| SpiffeError::TooLong);
        Ok(Self {
            text: text.into(),
            trust_domain_end: offset(trust_domain_end)?,
            namespace_end: offset(namespace_end)?,
        })
    }

    /// Builds an id from its three parts.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The URI without its scheme, which is how policies name principals.
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// The authority whose roots can prove this id.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

fn part(name: &'static str, text: &str, allowed: impl Fn(u8) -> bool) -> Result<(), SpiffeError> {
    if text.is_empty() {
        return Err(SpiffeError::Empty(name));
    }
    // SPIFFE-ID §2.2 forbids relative path segments.
    if !text.bytes().all(allowed) || text == "." || text == ".." {
        return Err(SpiffeError::Character(name));
    }
    Ok(())
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        Self::parse(text)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_three_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart-v1").unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "cart-v1")
        );
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart-v1");
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "cart-v1").unwrap());
    }

    #[test]
    fn what_is_no_workload_identity_is_refused() {
        for (text, why) in [
            ("https://td/ns/a/sa/b", SpiffeError::Scheme),
            ("SPIFFE://td/ns/a/sa/b", SpiffeError::Scheme),
            ("spiffe://td/ns/a/sa/b/", SpiffeError::Path),
            ("spiffe://td/ns/a/sa", SpiffeError::Path),
            ("spiffe://td/sa/a/ns/b", SpiffeError::Path),
            ("spiffe://td/ns/a/sa/b/c", SpiffeError::Path),
            ("spiffe:///ns/a/sa/b", SpiffeError::Empty("trust domain")),
            ("spiffe://td/ns//sa/b", SpiffeError::Empty("namespace")),
            ("spiffe://td/ns/a/sa/", SpiffeError::Empty("service account")),
            ("spiffe://TD/ns/a/sa/b", SpiffeError::Character("trust domain")),
            ("spiffe://td:80/ns/a/sa/b", SpiffeError::Character("trust domain")),
            ("spiffe://td/ns/a%2f/sa/b", SpiffeError::Character("namespace")),
            ("spiffe://td/ns/../sa/b", SpiffeError::Character("namespace")),
            ("spiffe://td/ns/a/sa/b?x", SpiffeError::Character("service account")),
            ("spiffe://td/ns/a/sa/b\0", SpiffeError::Character("service account")),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(why), "{text}");
        }
        assert_eq!(SpiffeId::new("td", "a", &"b".repeat(2048)), Err(SpiffeError::TooLong));
    }
}
