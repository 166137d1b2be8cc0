//! How the mesh is written in a file: the keys and their nesting, each value with its place.
//!
//! Values stay text here, whatever they mean, so that one wrong value does not hide the next. An unknown key, a
//! missing one or a list where a map belongs ends the reading, because nothing after it can be trusted to be
//! what it seems. So does a key without a value, where it would read as "none": a `waypoint:` that somebody began
//! to write is not the absence of one.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::policy::Policy;

/// A scalar as it is written, quoted or not.
pub(super) type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) workloads: List<Spanned<Workload>>,
    #[serde(default)]
    pub(super) policies: List<Spanned<Policy>>,
    #[serde(default)]
    pub(super) services: List<Spanned<Service>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    #[serde(deserialize_with = "written")]
    pub(super) workload_ips: List<Text>,
    pub(super) namespace: Text,
    #[serde(deserialize_with = "written")]
    pub(super) services: Pairs<Pairs<Text>>,
    pub(super) uid: Option<Text>,
    pub(super) name: Option<Text>,
    pub(super) trust_domain: Option<Text>,
    pub(super) service_account: Option<Text>,
    pub(super) network: Option<Text>,
    pub(super) workload_name: Option<Text>,
    pub(super) workload_type: Option<Text>,
    pub(super) canonical_name: Option<Text>,
    pub(super) canonical_revision: Option<Text>,
    pub(super) hostname: Option<Text>,
    pub(super) node: Option<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) protocol: Option<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) network_mode: Option<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default, deserialize_with = "given")]
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    #[serde(default, deserialize_with = "given")]
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: List<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) status: Option<Text>,
    pub(super) cluster_id: Option<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) locality: Option<Locality>,
    #[serde(default, deserialize_with = "given")]
    pub(super) capacity: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Text,
    pub(super) namespace: Text,
    pub(super) hostname: Text,
    #[serde(deserialize_with = "written")]
    pub(super) vips: List<Text>,
    #[serde(default)]
    pub(super) cidr_vips: List<Cidr>,
    #[serde(deserialize_with = "written")]
    pub(super) ports: Pairs<Text>,
    #[serde(default)]
    pub(super) endpoints: Pairs<Endpoint>,
    #[serde(default)]
    pub(super) subject_alt_names: List<Text>,
    #[serde(default, deserialize_with = "given")]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: List<WeightedWaypoint>,
    #[serde(default, deserialize_with = "given")]
    pub(super) load_balancer: Option<LoadBalancer>,
    #[serde(default, deserialize_with = "given")]
    pub(super) ip_families: Option<Text>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default, deserialize_with = "given")]
    pub(super) visibility: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) destination: Text,
    pub(super) hbone_mtls_port: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WeightedWaypoint {
    pub(super) destination: Gateway,
    pub(super) weight: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: Text,
    pub(super) port: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Locality {
    pub(super) region: Text,
    pub(super) zone: Text,
    pub(super) subzone: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Cidr {
    pub(super) network: Text,
    pub(super) cidr: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) workload_uid: Text,
    #[serde(deserialize_with = "written")]
    pub(super) port: Pairs<Text>,
    pub(super) status: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancer {
    #[serde(deserialize_with = "written")]
    pub(super) routing_preferences: List<Text>,
    pub(super) mode: Text,
    pub(super) health_policy: Text,
}

const NOTHING: &str = "this key has no value; write one (`[]` for an empty list, `{}` for an empty map), or \
                       leave the key out if it is optional";

/// A value that must be there when its key is.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<T>::deserialize(deserializer)?.map(Some).ok_or_else(|| D::Error::custom(NOTHING))
}

/// A value whose key must be there. Without this a missing key would read as one without a value, and the complaint
/// would not name it.
fn written<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(deserializer)
}

/// A list that is written out.
pub(super) struct List<T>(pub(super) Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Vec<T>>::deserialize(deserializer)?.map(Self).ok_or_else(|| D::Error::custom(NOTHING))
    }
}

/// A map as it is written: in its order, each key with its place.
pub(super) struct Pairs<T>(pub(super) Vec<(Text, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Written<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Pairs<T>, D::Error> {
                deserializer.deserialize_map(self)
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Pairs<T>, E> {
                Err(E::custom(NOTHING))
            }

            fn visit_none<E: serde::de::Error>(self) -> Result<Pairs<T>, E> {
                Err(E::custom(NOTHING))
            }
        }

        deserializer.deserialize_option(Written(PhantomData))
    }
}
