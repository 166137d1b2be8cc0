//! Who asks: the node of the first request.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::wire::ads;

/// Who this process is, as the control plane is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The pod this process runs in (`POD_NAME`).
    pub name: String,
    /// Its namespace (`POD_NAMESPACE`). istiod compares it with that of the token.
    pub namespace: String,
    /// Its address (`INSTANCE_IP`).
    pub ip: String,
    /// The node it serves (`NODE_NAME`).
    pub node: Option<String>,
    /// The cluster (`ISTIO_META_CLUSTER_ID`).
    pub cluster: Option<String>,
    /// Whatever else (`ISTIO_META_*`, and `ISTIO_METAJSON_*` as JSON); it goes over the above.
    pub more: BTreeMap<String, serde_json::Value>,
}

impl Node {
    /// The message. Source: reference of discovery, node.
    pub(super) fn message(&self) -> ads::Node {
        let Self { name, namespace, ip, node, cluster, more } = self;
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
        let mut fields = BTreeMap::from([
            ("NAME".to_owned(), text(name)),
            ("NAMESPACE".to_owned(), text(namespace)),
            ("INSTANCE_IPS".to_owned(), text(ip)),
        ]);
        for (key, value) in [("NODE_NAME", node), ("CLUSTER_ID", cluster)] {
            if let Some(value) = value {
                fields.insert(key.into(), text(value));
            }
        }
        fields.extend(more.iter().map(|(key, json)| (key.clone(), value(json))));
        ads::Node {
            // The last part is a constant, whatever the cluster's domain.
            id: format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields }),
        }
    }
}

fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(*flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(all) => {
            Kind::ListValue(ListValue { values: all.iter().map(value).collect() })
        }
        serde_json::Value::Object(all) => Kind::StructValue(Struct {
            fields: all.iter().map(|(key, json)| (key.clone(), value(json))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
