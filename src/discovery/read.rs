//! Single values of a file: text in, a typed value out or a complaint with its place.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use serde_saphyr::Location;

use super::error::{Complaint, Error, Place};
use super::shape::{Gateway, Pairs, Text};
use crate::mesh::{Destination, GatewayAddress, NetworkAddress, Ports, ServiceKey};

/// Reads values of one file, remembers each complaint and reads on. What it returns after a complaint is worth
/// nothing; [`Reader::finish`] sees to it that nobody uses it.
pub(super) struct Reader<'a> {
    file: &'a str,
    complaints: Vec<Complaint>,
    /// Names repeat over and over: the same one is kept once.
    names: HashSet<Arc<str>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str) -> Self {
        Self { file, complaints: Vec::new(), names: HashSet::new() }
    }

    /// `value`, if there was nothing to complain about; else the complaints in the order of the text.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, Error> {
        self.complaints.sort_by_key(|complaint| complaint.at);
        Error::of(self.complaints).map_or(Ok(value), Err)
    }

    pub(super) fn complain(&mut self, at: Location, what: impl Display) {
        self.complaints.push(Complaint { file: self.file.into(), at: place(at), what: what.to_string() });
    }

    /// The one copy of `text`.
    pub(super) fn name(&mut self, text: &str) -> Arc<str> {
        match self.names.get(text) {
            Some(known) => Arc::clone(known),
            None => {
                let name: Arc<str> = text.into();
                self.names.insert(Arc::clone(&name));
                name
            }
        }
    }

    /// The one copy of a text that may be left out.
    pub(super) fn optional(&mut self, text: &Option<Text>) -> Arc<str> {
        self.name(text.as_ref().map_or("", |text| &text.value))
    }

    /// What `read` makes of `text`; a complaint if that is nothing.
    fn parse<T>(&mut self, text: &Text, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(&text.value);
        if value.is_none() {
            self.complain(
                text.referenced,
                format_args!("{:?} is not valid here; write {wanted}", text.value),
            );
        }
        value
    }

    pub(super) fn ip(&mut self, text: &Text) -> Option<IpAddr> {
        self.parse(text, "an IPv4 or IPv6 address without port, such as 10.0.0.1", parse_ip)
    }

    pub(super) fn cidr(&mut self, text: &Text) -> Option<ipnet::IpNet> {
        self.parse(text, "an address range such as 10.0.0.0/16", |text| text.parse().ok())
    }

    /// A number that fits; 0 is one.
    pub(super) fn number(&mut self, text: &Text) -> Option<u32> {
        self.parse(text, "a whole number from 0 to 4294967295", |text| {
            digits(text).and_then(|number| u32::try_from(number).ok())
        })
    }

    pub(super) fn port(&mut self, text: &Text) -> Option<u16> {
        self.parse(text, "a port from 1 to 65535", |text| parse_port(text).filter(|port| *port != 0))
    }

    /// The target port of a service, where 0 means that the port has a name.
    fn named_port(&mut self, text: &Text) -> Option<u16> {
        self.parse(text, "a port from 1 to 65535, or 0 for a named port", parse_port)
    }

    /// A map from service port to target port.
    pub(super) fn ports(&mut self, pairs: &Pairs<Text>, targets: Targets) -> Ports {
        let mut seen = HashMap::new();
        let mut ports = Vec::with_capacity(pairs.0.len());
        for (key, value) in &pairs.0 {
            let port = self.port(key);
            let target = match targets {
                Targets::Numbers => self.port(value),
                Targets::NumbersOrNamed => self.named_port(value),
            };
            if let Some(port) = port {
                self.unique(&mut seen, port, key.referenced, format_args!("port {port}"));
                ports.extend(target.map(|target| (port, target)));
            }
        }
        ports.into_iter().collect()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, text: &Text, words: &[(&str, T)]) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let wanted = format!("one of {}", known.join(", "));
        self.parse(text, &wanted, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        })
    }

    /// One of a few words, or `default` when left out.
    pub(super) fn word_or<T: Copy>(&mut self, text: &Option<Text>, words: &[(&str, T)], default: T) -> T {
        // After a complaint the default stands in, and is thrown away with the rest.
        text.as_ref().and_then(|text| self.word(text, words)).unwrap_or(default)
    }

    /// `namespace/hostname`.
    pub(super) fn service_key(&mut self, text: &Text) -> Option<ServiceKey> {
        let parts = self.parse(text, "\"<namespace>/<hostname>\"", |text| {
            split_key(text).map(|(namespace, hostname)| (namespace.to_owned(), hostname.to_owned()))
        });
        parts.map(|(namespace, hostname)| ServiceKey {
            namespace: self.name(&namespace),
            hostname: self.name(&hostname),
        })
    }

    /// `network/ip`.
    pub(super) fn network_address(&mut self, text: &Text) -> Option<NetworkAddress> {
        let wanted = "\"<network>/<ip>\" (\"/10.0.0.1\" on the network without a name)";
        let parts = self.parse(text, wanted, split_address);
        parts.map(|(network, ip)| NetworkAddress { network: self.name(&network), ip })
    }

    /// A waypoint or gateway: a destination, tried as `network/ip` first, and a port.
    pub(super) fn gateway(&mut self, gateway: &Gateway) -> Option<GatewayAddress> {
        let hbone_port = self.port(&gateway.hbone_mtls_port);
        let wanted = "\"<namespace>/<hostname>\" or \"<network>/<ip>\" (\"/10.0.0.1\" on the network without a \
                      name)";
        let text = &gateway.destination;
        let destination = match split_address(&text.value) {
            Some((network, ip)) => {
                Some(Destination::Address(NetworkAddress { network: self.name(&network), ip }))
            }
            None => self
                .parse(text, wanted, |text| split_key(text).map(|(a, b)| (a.to_owned(), b.to_owned())))
                .map(|(namespace, hostname)| {
                    let (namespace, hostname) = (self.name(&namespace), self.name(&hostname));
                    Destination::Hostname(ServiceKey { namespace, hostname })
                }),
        };
        Some(GatewayAddress { destination: destination?, hbone_port: hbone_port? })
    }

    /// A text that must not be empty.
    pub(super) fn filled(&mut self, text: &Text) -> Arc<str> {
        if text.value.is_empty() {
            self.complain(text.referenced, "this must not be empty; write a name");
        }
        self.name(&text.value)
    }

    /// Notes where `key` is first written, and complains when it is written again.
    pub(super) fn unique<K: Hash + Eq>(
        &mut self,
        seen: &mut HashMap<K, Location>,
        key: K,
        at: Location,
        called: impl Display,
    ) {
        match seen.get(&key) {
            Some(first) => {
                let first = place(*first).map(|place| format!(", first at {place}")).unwrap_or_default();
                self.complain(at, format_args!("{called} is here a second time{first}; keep one of them"));
            }
            None => {
                seen.insert(key, at);
            }
        }
    }
}

/// What a map's target ports may be.
#[derive(Clone, Copy)]
pub(super) enum Targets {
    /// Port numbers.
    Numbers,
    /// Port numbers, and 0 for a port that has a name.
    NumbersOrNamed,
}

pub(super) fn place(at: Location) -> Option<Place> {
    // The parser says line 0 when it does not know.
    (at.line() > 0).then(|| Place { line: at.line(), column: at.column() })
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Digits alone: no sign, no blanks.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn parse_port(text: &str) -> Option<u16> {
    digits(text).and_then(|number| u16::try_from(number).ok())
}

fn split_key(text: &str) -> Option<(&str, &str)> {
    let (namespace, hostname) = text.split_once('/')?;
    let good = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
    good.then_some((namespace, hostname))
}

fn split_address(text: &str) -> Option<(String, IpAddr)> {
    let (network, ip) = text.rsplit_once('/')?;
    Some((network.to_owned(), parse_ip(ip)?))
}
