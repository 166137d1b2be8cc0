//! Which services claim an address by a range that holds it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::service::Service;

/// The ranges of one network. A look-up costs one hash look-up per prefix length in use.
#[derive(Debug, Default)]
pub(super) struct CidrIndex {
    v4: BTreeMap<u8, HashMap<IpNet, Vec<Arc<Service>>>>,
    v6: BTreeMap<u8, HashMap<IpNet, Vec<Arc<Service>>>>,
}

impl CidrIndex {
    pub(super) fn add(&mut self, cidr: IpNet, service: Arc<Service>) {
        let lengths = if cidr.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        lengths.entry(cidr.prefix_len()).or_default().entry(cidr.trunc()).or_default().push(service);
    }

    /// The services whose ranges hold `ip`, grouped by range, narrowest first; in a group, in order of arrival.
    pub(super) fn claims(&self, ip: IpAddr) -> impl Iterator<Item = &[Arc<Service>]> {
        let lengths = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().rev().filter_map(move |(length, ranges)| {
            let range = IpNet::new(ip, *length).ok()?.trunc();
            ranges.get(&range).map(Vec::as_slice)
        })
    }
}
