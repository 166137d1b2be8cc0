//! Which rules should be there? A decision, pure.

use std::fmt;

use super::{DnsCapture, InboundCapture, Rules};

/// An address family, with a set of rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one loopback address that is never captured.
    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1/32",
            Self::V6 => "::1/128",
        }
    }

    /// The address the host's health probes come from.
    fn probe(self) -> &'static str {
        match self {
            Self::V4 => "169.254.7.127/32",
            Self::V6 => "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Marks.
    Mangle,
    /// Redirections.
    Nat,
    /// Before conntrack.
    Raw,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Raw];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A chain our rules stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Chain {
    /// The kernel's: what arrives.
    Prerouting,
    /// The kernel's: what a process of the pod sends.
    Output,
    /// Ours, entered from `Prerouting`.
    OurPrerouting,
    /// Ours, entered from `Output`.
    OurOutput,
}

impl Chain {
    /// Our chains; the names are those of the node agent, so that each recognises the other's rules.
    pub(super) const OURS: [Self; 2] = [Self::OurPrerouting, Self::OurOutput];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
            Self::OurPrerouting => "ISTIO_PRERT",
            Self::OurOutput => "ISTIO_OUTPUT",
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One rule, in the spelling of iptables-save without the leading `-A CHAIN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The table it belongs to.
    pub table: Table,
    /// The chain it stands in.
    pub chain: Chain,
    /// Matches and target.
    pub spec: String,
}

/// What iptables-restore reads.
pub type RestoreText = String;

/// Every rule of a pod, in order within each chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    v4: Vec<Rule>,
    v6: Vec<Rule>,
}

impl Plan {
    /// The rules of `family`; none when it is not captured.
    pub fn rules(&self, family: Family) -> &[Rule] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The rules of `family` as they are installed where nothing of ours is yet; empty when it is not
    /// captured.
    pub fn text(&self, family: Family) -> RestoreText {
        super::compare::mend(family, self.rules(family), &super::state::Found::default())
    }
}

/// The proxy's own packets.
const OURS: &str = "-m mark --mark 0x539/0xfff";
const NOT_OURS: &str = "-m mark ! --mark 0x539/0xfff";

impl Rules {
    /// What should be in the pod's namespace. Pure.
    ///
    /// Source: the node agent's rules, row by row, so that both sides accept each other's work.
    pub fn plan(&self) -> Plan {
        let v6 = if self.ipv6 { self.rows(Family::V6) } else { Vec::new() };
        Plan { v4: self.rows(Family::V4), v6 }
    }

    fn rows(&self, family: Family) -> Vec<Rule> {
        use Chain::{OurOutput, OurPrerouting};
        use Table::{Mangle, Nat, Raw};

        let (lo, probe) = (family.loopback(), family.probe());
        let dns = self.dns == DnsCapture::Captured;
        let inbound = self.inbound == InboundCapture::Captured;
        let mut rows = Vec::new();
        let mut row = |table, chain, spec: String| rows.push(Rule { table, chain, spec });

        for table in Table::ALL {
            if table != Raw || dns {
                row(table, Chain::Prerouting, format!("-j {OurPrerouting}"));
                row(table, Chain::Output, format!("-j {OurOutput}"));
            }
        }

        // Connections of the proxy to the application get a connection mark, and the application's replies
        // take it over, so that they are routed to the proxy's transparent socket instead of out of the pod.
        row(Mangle, OurPrerouting, format!("{OURS} -j CONNMARK --set-xmark 0x111/0xfff"));
        let restore = "-m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
                       --nfmask 0xffffffff --ctmask 0xffffffff";
        row(Mangle, OurOutput, restore.to_owned());

        for interface in &self.virtual_interfaces {
            row(Nat, OurPrerouting, format!("-i {interface} -p tcp -j REDIRECT --to-ports 15001"));
            row(Nat, OurPrerouting, format!("-i {interface} -p tcp -j RETURN"));
        }
        if inbound {
            row(Nat, OurPrerouting, format!("-s {probe} -p tcp -m tcp -j ACCEPT"));
            let plaintext = format!("! -d {lo} -p tcp -m tcp ! --dport 15008 {NOT_OURS}");
            row(Nat, OurPrerouting, format!("{plaintext} -j REDIRECT --to-ports 15006"));
        }

        row(Nat, OurOutput, format!("-d {probe} -p tcp -m tcp -j ACCEPT"));
        if dns {
            let to_dns = format!("{NOT_OURS} -j REDIRECT --to-ports 15053");
            row(Nat, OurOutput, format!("! -o lo -p udp -m udp --dport 53 {to_dns}"));
            row(Nat, OurOutput, format!("! -d {lo} -p tcp -m tcp --dport 53 {to_dns}"));
        }
        row(Nat, OurOutput, "-p tcp -m mark --mark 0x111/0xfff -j ACCEPT".to_owned());
        row(Nat, OurOutput, format!("! -d {lo} -o lo -j ACCEPT"));
        row(Nat, OurOutput, format!("! -d {lo} -p tcp {NOT_OURS} -j REDIRECT --to-ports 15001"));

        if dns {
            // The proxy's queries live in a conntrack zone of their own: a client that uses the same source
            // port towards the same resolver would otherwise share their entry.
            row(Raw, OurOutput, format!("-p udp -m udp --dport 53 {OURS} -j CT --zone 1"));
            row(Raw, OurPrerouting, format!("-p udp -m udp --sport 53 {NOT_OURS} -j CT --zone 1"));
        }
        rows
    }
}
