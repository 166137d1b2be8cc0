//! The CONNECT head of a tunnel stream, parsed into a [`TunnelRequest`].

use std::net::SocketAddr;

use http::{HeaderMap, Method, Request, header};

use crate::hbone::TraceIds;
use crate::net::canonical;

/// What a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRequest {
    /// What it wants to reach.
    pub authority: Authority,
    /// The service its client addressed, from `forwarded: host=`. For telemetry, never for authorization.
    pub service: Option<String>,
    /// The network of a peer that came through a gateway.
    pub from_network: Option<String>,
    /// Trace ids: the peer's, or fresh ones.
    pub trace: TraceIds,
}

/// The `:authority` of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An address.
    Addr(SocketAddr),
    /// A service's hostname and service port.
    Host(String, u16),
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Why a head is no CONNECT that can be served. All are answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Another method.
    #[error("expected method CONNECT, got {0}")]
    Method(Method),
    /// No authority, or one without host or port.
    #[error("no valid authority pseudo header: {0}")]
    Authority(String),
}

impl TunnelRequest {
    /// Reads a head.
    pub fn parse<B>(head: &Request<B>) -> Result<Self, BadRequest> {
        if head.method() != Method::CONNECT {
            return Err(BadRequest::Method(head.method().clone()));
        }
        let text = head.uri().authority().map_or("", |authority| authority.as_str());
        let authority = authority(text).ok_or_else(|| BadRequest::Authority(text.to_owned()))?;
        let headers = head.headers();
        Ok(Self {
            authority,
            service: forwarded_host(headers),
            from_network: headers.get("x-forwarded-network").and_then(|v| v.to_str().ok()).map(str::to_owned),
            trace: headers
                .get("traceparent")
                .and_then(|value| value.to_str().ok())
                .and_then(trace)
                .unwrap_or_else(TraceIds::random),
        })
    }
}

fn authority(text: &str) -> Option<Authority> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return (addr.port() != 0).then(|| Authority::Addr(canonical(addr)));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    // User info and unbalanced brackets form no host name of a service.
    let plain = !host.is_empty() && !host.contains(['@', '[', ']', ':']);
    (plain && port != 0).then(|| Authority::Host(host.to_owned(), port))
}

/// The first part of `forwarded` that says `host=`, without its quotes (RFC 7239 §4).
fn forwarded_host(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::FORWARDED)?.to_str().ok()?;
    let host = value.split(';').find_map(|part| part.trim().strip_prefix("host="))?;
    let host = host.strip_prefix('"').unwrap_or(host);
    let host = host.strip_suffix('"').unwrap_or(host);
    (!host.is_empty()).then(|| host.to_owned())
}

/// W3C Trace Context §3.2: `version-traceid-parentid-flags`, each of fixed length, in lower-case hex.
fn trace(value: &str) -> Option<TraceIds> {
    let mut fields = value.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if (version.len(), trace.len(), parent.len(), flags.len()) != (2, 32, 16, 2) || version == "ff" {
        return None;
    }
    u8::from_str_radix(version, 16).ok()?;
    u8::from_str_radix(flags, 16).ok()?;
    let ids = TraceIds {
        trace: u128::from_str_radix(trace, 16).ok()?,
        parent: u64::from_str_radix(parent, 16).ok()?,
    };
    (ids.trace != 0 && ids.parent != 0).then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(authority: &str) -> http::request::Builder {
        Request::builder().method(Method::CONNECT).uri(authority)
    }

    #[test]
    fn an_authority_is_an_address_or_a_host_with_a_port() {
        for (text, expected) in [
            ("10.0.0.1:80", Authority::Addr("10.0.0.1:80".parse().unwrap())),
            ("[fd00::1]:80", Authority::Addr("[fd00::1]:80".parse().unwrap())),
            ("[::ffff:10.0.0.1]:80", Authority::Addr("10.0.0.1:80".parse().unwrap())),
            ("cart.shop.svc:8080", Authority::Host("cart.shop.svc".into(), 8080)),
        ] {
            let request = TunnelRequest::parse(&connect(text).body(()).unwrap()).unwrap();
            assert_eq!(request.authority, expected);
        }
        for text in ["10.0.0.1", "cart.shop.svc", "10.0.0.1:0", "cart:99999", "user@host:80"] {
            let refused = TunnelRequest::parse(&connect(text).body(()).unwrap());
            assert_eq!(refused, Err(BadRequest::Authority(text.into())));
        }
    }

    #[test]
    fn another_method_is_refused() {
        let get = Request::builder().uri("http://10.0.0.1:80/").body(()).unwrap();
        assert_eq!(TunnelRequest::parse(&get).unwrap_err().to_string(), "expected method CONNECT, got GET");
    }

    #[test]
    fn the_service_comes_from_forwarded() {
        for (value, host) in [
            ("for=\"10.0.0.5:40000\";host=cart.shop.svc", Some("cart.shop.svc")),
            ("for=\"[fd00::1]:1\"; host=\"cart\"", Some("cart")),
            ("for=10.0.0.5;host=", None),
            ("for=10.0.0.5", None),
            ("Host=cart", None),
        ] {
            let head = connect("10.0.0.1:80").header("forwarded", value).body(()).unwrap();
            assert_eq!(TunnelRequest::parse(&head).unwrap().service.as_deref(), host, "{value}");
        }
    }

    #[test]
    fn a_hostile_traceparent_is_replaced() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(trace(good).unwrap().traceparent(), good);
        let zeros = "0".repeat(55);
        for bad in [
            zeros.as_str(),
            "",
            "-",
            "---",
            "00-0-0-00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-00",
        ] {
            let head = connect("10.0.0.1:80").header("traceparent", bad).body(()).unwrap();
            let ids = TunnelRequest::parse(&head).unwrap().trace;
            assert!(ids.trace != 0 && ids.parent != 0, "{bad}");
        }
    }
}
