//! The demo's story: who calls whom, and how that must end.

use super::stage::{GREET, RESPOND, SERVICE, SINK};
use crate::lab::{Behaviour, Membership, Side};

/// The policy on payments that refuses callers without identity.
pub(super) const STRICT: &str = "converted_peer_authentication_strict";
/// The policy on payments that names its callers.
pub(super) const CALLERS: &str = "payments-callers";

/// Who serves what.
pub(super) const SERVERS: [(Who, u16, Behaviour); 6] = [
    (Who::Storefront, RESPOND, Behaviour::Respond),
    (Who::Cart, RESPOND, Behaviour::Respond),
    (Who::Payments, RESPOND, Behaviour::Respond),
    (Who::Payments, GREET, Behaviour::Greet),
    (Who::Payments, SINK, Behaviour::Sink),
    (Who::Printer, RESPOND, Behaviour::Respond),
];

/// The pods of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A shop's front, allowed to call payments.
    Storefront,
    /// Its neighbour on the same node, which accepts plaintext too.
    Cart,
    /// The one with policies, on the other node.
    Payments,
    /// In the mesh, with an identity that payments does not want.
    Intruder,
    /// Not in the mesh.
    Printer,
}

impl Who {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Storefront, Self::Cart, Self::Payments, Self::Intruder, Self::Printer];

    /// Where it runs, its namespace, its name, whether it is in the mesh.
    pub(super) fn facts(self) -> (Side, &'static str, &'static str, Membership) {
        match self {
            Self::Storefront => (Side::One, "shop", "storefront", Membership::Mesh),
            Self::Cart => (Side::One, "shop", "cart", Membership::Mesh),
            Self::Payments => (Side::Two, "shop", "payments", Membership::Mesh),
            Self::Intruder => (Side::One, "outside", "intruder", Membership::Mesh),
            Self::Printer => (Side::Two, "legacy", "printer", Membership::Outside),
        }
    }
}

/// One line of the demo.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Who dials.
    pub(super) caller: Who,
    /// Whom.
    pub(super) called: Who,
    /// By which address.
    pub(super) by: By,
    /// What is special about it, in a few words.
    pub(super) what: &'static str,
    /// How it must be carried.
    pub(super) route: Route,
    /// How it must end.
    pub(super) end: End,
}

/// The address that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The pod's IPv4 address.
    Pod,
    /// The pod's IPv6 address.
    PodV6,
    /// The service in front of it.
    Service,
    /// The pod's IPv4 address, at the port where it speaks first.
    Greeting,
}

impl By {
    /// The port of the pod that is reached.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Greeting => GREET,
            Self::Pod | Self::PodV6 | Self::Service => RESPOND,
        }
    }

    /// The port that is dialled.
    pub(super) fn dialled(self) -> u16 {
        match self {
            Self::Service => SERVICE,
            Self::Pod | Self::PodV6 | Self::Greeting => self.port(),
        }
    }
}

/// How a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// In a tunnel between two proven identities.
    Hbone,
    /// As it is, with no identity.
    Plain,
    /// Not at all: it stays inside the pod.
    SamePod,
}

impl Route {
    /// As the table says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hbone => "HBONE",
            Self::Plain => "plain",
            Self::SamePod => "same pod",
        }
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With an answer.
    Answered,
    /// Refused at the called pod's node for this reason, before the application saw it.
    Refused(Reason),
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// This policy denies it.
    Denied(&'static str),
    /// There is this policy that allows others, and none that allows it.
    NotAllowed(&'static str),
}

/// The whole story in its order.
pub(super) fn all() -> [Row; 11] {
    use {By::*, End::*, Route::*, Who::*};
    let row = |caller, called, by, what, route, end| Row { caller, called, by, what, route, end };
    [
        row(Storefront, Payments, Pod, "pod address", Hbone, Answered),
        row(Storefront, Payments, Service, "service", Hbone, Answered),
        row(Storefront, Payments, PodV6, "IPv6", Hbone, Answered),
        row(Storefront, Cart, Pod, "same node", Hbone, Answered),
        row(Storefront, Payments, Greeting, "speaks first", Hbone, Answered),
        row(Cart, Payments, Service, "service", Hbone, Answered),
        row(Storefront, Printer, Pod, "not in the mesh", Plain, Answered),
        row(Printer, Cart, Pod, "permissive", Plain, Answered),
        row(Printer, Payments, Pod, "strict", Plain, Refused(Reason::Denied(STRICT))),
        row(Intruder, Payments, Pod, "policy", Hbone, Refused(Reason::NotAllowed(CALLERS))),
        row(Storefront, Storefront, Pod, "itself", SamePod, Answered),
    ]
}
