//! The CONNECT request a client sends: where to, on whose behalf.

use std::net::SocketAddr;

use http::{HeaderValue, Method, Request, Uri};

/// One CONNECT. Only `:method` and `:authority` are pseudo-headers (RFC 9113 §8.5).
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// What the far proxy shall reach: the address inside the pod.
    pub authority: SocketAddr,
    /// The client application's address, sent as `forwarded: for=`.
    pub client: SocketAddr,
    /// The service the application addressed, sent as `forwarded: host=`.
    pub service: Option<String>,
    /// The source workload in baggage form; empty for none.
    pub baggage: String,
    /// 128-bit trace id and 64-bit parent id of this connection.
    pub trace: TraceIds,
}

/// W3C trace context of one connection: the same ids appear in both proxies' logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIds {
    /// Trace id.
    pub trace: u128,
    /// Parent id.
    pub parent: u64,
}

impl TraceIds {
    /// Fresh random ids; never zero, which W3C Trace Context calls invalid.
    pub fn random() -> Self {
        Self { trace: fastrand::u128(1..), parent: fastrand::u64(1..) }
    }

    /// The header's value: version 00, not sampled.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-00", self.trace, self.parent)
    }
}

impl ConnectRequest {
    /// The header fields, in the order they are sent.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let host = self.service.as_deref().map(|host| format!(";host={host}")).unwrap_or_default();
        let mut fields = Vec::with_capacity(3);
        if !self.baggage.is_empty() {
            fields.push(("baggage", self.baggage.clone()));
        }
        fields.push(("forwarded", format!("for=\"{}\"{host}", self.client)));
        fields.push(("traceparent", self.trace.traceparent()));
        // What would be no value is not sent: the peer would have to refuse the request.
        fields.retain(|(_, value)| HeaderValue::from_str(value).is_ok());
        fields
    }

    /// The HTTP head. `None` only when the authority does not form a URI, which a socket address always does.
    pub(super) fn head(&self) -> Option<Request<()>> {
        let uri = Uri::builder().authority(self.authority.to_string()).build().ok()?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(()).ok()?;
        for (name, value) in self.fields() {
            request.headers_mut().insert(name, HeaderValue::from_str(&value).ok()?);
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_carries_the_headers_of_the_reference() {
        let request = ConnectRequest {
            authority: "[fd77::5]:8080".parse().unwrap(),
            client: "[fd77::9]:40000".parse().unwrap(),
            service: Some("cart.shop.svc.cluster.local".into()),
            baggage: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop".into(),
            trace: TraceIds { trace: 0xab, parent: 0xcd },
        };
        let head = request.head().unwrap();
        assert_eq!(head.method(), Method::CONNECT);
        assert_eq!(head.uri().to_string(), "[fd77::5]:8080");
        let header = |name: &str| head.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("forwarded"), "for=\"[fd77::9]:40000\";host=cart.shop.svc.cluster.local");
        assert_eq!(header("traceparent"), "00-000000000000000000000000000000ab-00000000000000cd-00");
        assert_eq!(header("baggage"), "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop");
        assert_eq!(head.headers().len(), 3);
    }
}
