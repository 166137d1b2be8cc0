//! How is a policy written in files and state dumps?
//!
//! The keys of `istioctl ztunnel-config policies`, in JSON or YAML; a text matcher also as a YAML tag (`!Exact
//! text`). Everything that is not understood is an error, null included: YAML makes one of a key without value,
//! and read as "no entries" it would turn a condition somebody began to write into none at all.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::key::PolicyKey;
use super::rules::{Action, Policy, Rule, Scope};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Read {
    name: String,
    namespace: String,
    scope: Scope,
    action: Action,
    #[serde(deserialize_with = "list")]
    rules: Vec<Rule>,
    /// Without it the policy is enforced.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: Scope,
    action: Action,
    rules: &'a [Rule],
    dry_run: bool,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { name, namespace, scope, action, rules, dry_run } = Read::deserialize(deserializer)?;
        let key = PolicyKey::new(&namespace, &name).map_err(D::Error::custom)?;
        Ok(Self { key, scope, action, dry_run, rules })
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { key, scope, action, dry_run, rules } = self;
        let (name, namespace) = (key.name(), key.namespace());
        Written { name, namespace, scope: *scope, action: *action, rules, dry_run: *dry_run }
            .serialize(serializer)
    }
}

/// A list whose entries are all there. `[]` is the same as leaving the key out; null is an error.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let null =
        || D::Error::custom("expected a value, found nothing: write it, or leave out what it belongs to");
    let entries = Option::<Vec<Option<T>>>::deserialize(deserializer)?.ok_or_else(null)?;
    entries.into_iter().map(|entry| entry.ok_or_else(null)).collect()
}

/// Networks as CIDR text; an address without a length is that address alone.
pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts: Vec<String> = list(deserializer)?;
    let network = |text: &String| {
        text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            D::Error::custom(format_args!(
                "{text:?} is no network: expected 10.0.0.0/8, fd00::/8 or an address"
            ))
        })
    };
    texts.iter().map(network).collect()
}

/// Ports that a connection can have.
pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let numbers: Vec<u64> = list(deserializer)?;
    let port = |number: u64| {
        u16::try_from(number)
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| D::Error::custom(format_args!("{number} is no port: expected 1 to 65535")))
    };
    numbers.into_iter().map(port).collect()
}

/// `[]`, the payload of a matcher that needs none.
pub(super) mod empty_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        [(); 0].serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        <[(); 0]>::deserialize(deserializer).map(|[]| ())
    }
}
