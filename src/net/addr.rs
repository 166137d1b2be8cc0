//! Socket addresses with roles, so that a client's address cannot stand where a target's belongs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// IPv4-mapped IPv6 addresses (`::ffff:a.b.c.d`) as IPv4, all others unchanged (RFC 4291 §2.5.5.2).
///
/// One dual-stack listener serves both families, and every lookup, rule and log line speaks of the real one.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Gives `addr` this role; an IPv4-mapped IPv6 address becomes IPv4.
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address itself.
            pub fn addr(self) -> SocketAddr {
                self.0
            }

            /// Its IP address.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// Its port.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

role! {
    /// The address the application dialled, before capture rewrote it.
    OriginalDst
}
role! {
    /// The address a connection came from: an application's, or on the tunnel port the other proxy's.
    ClientAddr
}
role! {
    /// The address in the pod that is dialled for an admitted connection.
    TargetAddr
}
