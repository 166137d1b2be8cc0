//! What is a policy called?

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A policy's namespace and name, written `<namespace>/<name>`. Cloning copies a pointer.
///
/// Its order is that of the text; wherever several policies could be reported, the first in this order is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyKey(Arc<str>);

/// A text that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no policy: expected <namespace>/<name>, both with characters and without further slashes"
)]
pub struct KeyError(String);

impl PolicyKey {
    /// The key of the policy `name` in `namespace`.
    ///
    /// # Errors
    /// Either is empty or has a slash.
    pub fn new(namespace: &str, name: &str) -> Result<Self, KeyError> {
        Self::parse(&format!("{namespace}/{name}"))
    }

    /// Parses `<namespace>/<name>`, which is also the name of the policy's resource on the wire.
    ///
    /// # Errors
    /// There is not exactly one slash, or nothing on one side of it.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(text.into()))
            }
            _ => Err(KeyError(text.into())),
        }
    }

    /// The Kubernetes namespace the policy lives in.
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The policy's name within its namespace.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').expect("a key is only made by `parse`, which saw its slash")
    }
}

/// Lets a map of keys be searched by text; sound because equality, order and hash are those of the text.
impl Borrow<str> for PolicyKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for PolicyKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::parse(&text)
    }
}

impl From<PolicyKey> for String {
    fn from(key: PolicyKey) -> Self {
        key.as_str().into()
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
