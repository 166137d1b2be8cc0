//! Heads of requests and responses: put together field by field, and judged by the rules of RFC 9113 §8.

use http::uri::Authority;
use http::{Method, StatusCode};

use super::error::Malformed;
use super::hpack::FIELD_OVERHEAD;

/// The fields of a head, pseudo-headers apart, in the order they came. One buffer holds all of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields {
    bytes: Vec<u8>,
    /// Where each name and each value ends in `bytes`.
    ends: Vec<(u32, u32)>,
}

impl Fields {
    /// Names and values. Names are tokens in lower case; values have no control characters that could end a line.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, value)| {
            let (name, value) = (name as usize, value as usize);
            let field = (&self.bytes[start..name], &self.bytes[name..value]);
            start = value;
            (
                std::str::from_utf8(field.0).expect("only tokens, which are ASCII, were taken as names"),
                field.1,
            )
        })
    }

    /// The first value under `name`, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        let end = |at: usize| u32::try_from(at).expect("a head is as long as our SETTINGS allow, a u32");
        self.ends.push((end(name_end), end(self.bytes.len())));
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (name, String::from_utf8_lossy(value))))
            .finish()
    }
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Request {
    /// `:method`.
    pub method: Method,
    /// `:authority`. A CONNECT without one is malformed by RFC 9113 §8.5 and passed on all the same, so that it can be answered.
    pub authority: Option<Authority>,
    /// The other fields.
    pub fields: Fields,
}

/// A response's head.
#[derive(Clone, Debug)]
pub struct Response {
    /// `:status`.
    pub status: StatusCode,
    /// The other fields.
    pub fields: Fields,
}

/// Takes the fields of one header block as they are decoded.
///
/// A rule that is broken is remembered while the rest of the block is still decoded: the tables of both sides must stay in
/// step. So it is with a head that grows too large, of which nothing more is kept.
pub(super) struct Collector {
    fields: Fields,
    size: usize,
    limit: usize,
    malformed: Option<Malformed>,
    method: Option<Method>,
    authority: Option<Authority>,
    scheme: bool,
    path: bool,
    protocol: bool,
    status: Option<StatusCode>,
}

impl Collector {
    /// For a head of at most `limit` bytes.
    pub fn new(limit: u32) -> Self {
        Self {
            fields: Fields::default(),
            size: 0,
            limit: limit as usize,
            malformed: None,
            method: None,
            authority: None,
            scheme: false,
            path: false,
            protocol: false,
            status: None,
        }
    }

    /// Whether the head was larger than the limit.
    pub fn is_too_long(&self) -> bool {
        self.size > self.limit
    }

    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        self.size = self.size.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
        if self.malformed.is_some() || self.is_too_long() {
            return;
        }
        self.malformed = self.take(name, value).err();
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if !is_value(value) {
            return Err(Malformed::Value);
        }
        if let Some(pseudo) = name.strip_prefix(b":") {
            return self.pseudo(pseudo, value);
        }
        if !is_name(name) {
            return Err(Malformed::Name);
        }
        if is_of_http1(name, value) {
            return Err(Malformed::ConnectionHeader);
        }
        if self.fields.is_empty() {
            // One growth instead of several: heads here have a handful of fields and some hundred bytes.
            self.fields.bytes.reserve(256);
            self.fields.ends.reserve(4);
        }
        self.fields.push(name, value);
        Ok(())
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if !self.fields.is_empty() {
            return Err(Malformed::Pseudo);
        }
        let was_there = match name {
            b"method" => {
                let method = Method::from_bytes(value).map_err(|_| Malformed::Request)?;
                self.method.replace(method).is_some()
            }
            b"authority" => {
                let authority = Authority::try_from(value).map_err(|_| Malformed::Authority)?;
                self.authority.replace(authority).is_some()
            }
            b"scheme" => std::mem::replace(&mut self.scheme, true),
            b"path" => {
                if value.is_empty() {
                    return Err(Malformed::Request);
                }
                std::mem::replace(&mut self.path, true)
            }
            b"protocol" => std::mem::replace(&mut self.protocol, true),
            b"status" => {
                let status = StatusCode::from_bytes(value).map_err(|_| Malformed::Status)?;
                self.status.replace(status).is_some()
            }
            _ => true,
        };
        if was_there { Err(Malformed::Pseudo) } else { Ok(()) }
    }

    /// The head as that of a request (§8.3.1, §8.5).
    pub fn request(self) -> Result<Request, Malformed> {
        if let Some(malformed) = self.malformed {
            return Err(malformed);
        }
        let method = self.method.ok_or(Malformed::Request)?;
        // `:protocol` would be extended CONNECT (RFC 8441), which our SETTINGS do not offer.
        let fits =
            if method == Method::CONNECT { !self.scheme && !self.path } else { self.scheme && self.path };
        if !fits || self.protocol {
            return Err(Malformed::Request);
        }
        if self.status.is_some() {
            return Err(Malformed::Pseudo);
        }
        Ok(Request { method, authority: self.authority, fields: self.fields })
    }

    /// The head as that of a response (§8.3.2).
    pub fn response(self) -> Result<Response, Malformed> {
        if let Some(malformed) = self.malformed {
            return Err(malformed);
        }
        if self.has_request_pseudo() {
            return Err(Malformed::Pseudo);
        }
        match self.status {
            Some(status) if status != StatusCode::SWITCHING_PROTOCOLS => {
                Ok(Response { status, fields: self.fields })
            }
            _ => Err(Malformed::Status),
        }
    }

    /// The head as trailers (§8.1), whose fields nobody here asks for.
    pub fn trailers(self) -> Result<(), Malformed> {
        match self.malformed {
            Some(malformed) => Err(malformed),
            None if self.has_request_pseudo() || self.status.is_some() => Err(Malformed::Pseudo),
            None => Ok(()),
        }
    }

    fn has_request_pseudo(&self) -> bool {
        self.method.is_some() || self.authority.is_some() || self.scheme || self.path || self.protocol
    }
}

/// A token in lower case (RFC 9110 §5.6.2, RFC 9113 §8.2.1).
fn is_name(name: &[u8]) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let symbols = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
        let mut n = 0;
        while n < symbols.len() {
            table[symbols[n] as usize] = true;
            n += 1;
        }
        table
    };
    !name.is_empty() && name.iter().all(|&byte| TOKEN[usize::from(byte)])
}

/// No NUL, CR or LF, and no space or tab around it (RFC 9113 §8.2.1).
fn is_value(value: &[u8]) -> bool {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        && !value.first().is_some_and(is_space)
        && !value.last().is_some_and(is_space)
}

/// RFC 9113 §8.2.2.
fn is_of_http1(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => true,
        b"te" => value != b"trailers",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(fields: &[(&str, &str)]) -> Collector {
        let mut collector = Collector::new(1_000);
        for (name, value) in fields {
            collector.field(name.as_bytes(), value.as_bytes());
        }
        collector
    }

    const CONNECT: (&str, &str) = (":method", "CONNECT");
    const TO: (&str, &str) = (":authority", "10.0.0.1:80");

    #[test]
    fn a_connect_has_a_method_and_an_authority() {
        let request = collect(&[CONNECT, TO, ("baggage", "a=b"), ("x-empty", "")]).request().unwrap();
        assert_eq!(request.method, Method::CONNECT);
        assert_eq!(request.authority.unwrap().as_str(), "10.0.0.1:80");
        let fields: Vec<_> = request.fields.iter().collect();
        assert_eq!(fields, [("baggage", &b"a=b"[..]), ("x-empty", b"")]);
        assert_eq!(request.fields.get("baggage"), Some(&b"a=b"[..]));
        assert_eq!(request.fields.get("forwarded"), None);
        assert!(collect(&[CONNECT]).request().unwrap().authority.is_none());
    }

    #[test]
    fn another_method_has_scheme_and_path() {
        let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "shop")];
        assert_eq!(collect(&get).request().unwrap().method, Method::GET);
        for left_out in 0..3 {
            let mut fields = get.to_vec();
            fields.remove(left_out);
            assert_eq!(collect(&fields).request().unwrap_err(), Malformed::Request, "{left_out}");
        }
    }

    #[test]
    fn each_broken_rule_of_a_request_is_named() {
        for (more, malformed) in [
            ((":scheme", "https"), Malformed::Request),
            ((":path", "/"), Malformed::Request),
            ((":protocol", "websocket"), Malformed::Request),
            ((":path", ""), Malformed::Request),
            ((":status", "200"), Malformed::Pseudo),
            ((":authority", "10.0.0.2:80"), Malformed::Pseudo),
            ((":method", "CONNECT"), Malformed::Pseudo),
            ((":host", "a"), Malformed::Pseudo),
            (("", "a"), Malformed::Name),
            (("Baggage", "a"), Malformed::Name),
            (("bag gage", "a"), Malformed::Name),
            (("bag:gage", "a"), Malformed::Name),
            (("baggage\0", "a"), Malformed::Name),
            (("b\u{e4}ggage", "a"), Malformed::Name),
            (("baggage", "a\nb"), Malformed::Value),
            (("baggage", "a\rb"), Malformed::Value),
            (("baggage", "a\0b"), Malformed::Value),
            (("baggage", " a"), Malformed::Value),
            (("baggage", "a\t"), Malformed::Value),
            (("connection", "close"), Malformed::ConnectionHeader),
            (("transfer-encoding", "chunked"), Malformed::ConnectionHeader),
            (("te", "gzip"), Malformed::ConnectionHeader),
        ] {
            assert_eq!(collect(&[CONNECT, TO, more]).request().unwrap_err(), malformed, "{more:?}");
        }
        assert!(collect(&[CONNECT, TO, ("te", "trailers")]).request().is_ok());
        assert_eq!(collect(&[CONNECT, ("a", "b"), TO]).request().unwrap_err(), Malformed::Pseudo);
        assert_eq!(collect(&[TO]).request().unwrap_err(), Malformed::Request);
        let spaced = (":authority", "10.0.0.1 :80");
        assert_eq!(collect(&[CONNECT, spaced]).request().unwrap_err(), Malformed::Authority);
    }

    #[test]
    fn a_response_has_one_status_and_nothing_of_a_request() {
        let response = collect(&[(":status", "200"), ("baggage", "a=b")]).response().unwrap();
        assert_eq!((response.status, response.fields.len()), (StatusCode::OK, 1));
        for (fields, malformed) in [
            (&[][..], Malformed::Status),
            (&[(":status", "20")], Malformed::Status),
            (&[(":status", "abc")], Malformed::Status),
            (&[(":status", "101")], Malformed::Status),
            (&[(":status", "200"), (":status", "200")], Malformed::Pseudo),
            (&[(":status", "200"), (":path", "/")], Malformed::Pseudo),
        ] {
            assert_eq!(collect(fields).response().unwrap_err(), malformed, "{fields:?}");
        }
    }

    #[test]
    fn trailers_have_no_pseudo_headers() {
        assert_eq!(collect(&[("a", "b")]).trailers(), Ok(()));
        assert_eq!(collect(&[(":status", "200")]).trailers(), Err(Malformed::Pseudo));
        assert_eq!(collect(&[CONNECT]).trailers(), Err(Malformed::Pseudo));
        assert_eq!(collect(&[("A", "b")]).trailers(), Err(Malformed::Name));
    }

    #[test]
    fn nothing_is_kept_of_what_is_beyond_the_limit() {
        let mut collector = Collector::new(100);
        collector.field(b"a", &[b'x'; 67]);
        assert!(!collector.is_too_long());
        for _ in 0..1_000 {
            collector.field(b"b", &[b'y'; 1_000]);
        }
        assert!(collector.is_too_long());
        assert_eq!(collector.fields.bytes.len(), 68);
    }
}
