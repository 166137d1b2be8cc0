//! One pod as the data path sees it: its namespace, its name, its listeners, and how its sockets are made.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spoof::Downstreams;
use super::{OUTBOUND_PORT, PLAINTEXT_PORT, TUNNEL_PORT};
use crate::net::socket::{self, Keepalive, Listen, Mark, SourceAddress, Transparent, default_congestion};
use crate::net::{Netns, TargetAddr};

/// Peers of one pod that may be in their handshake at a time.
const UNPROVEN: usize = 512;
/// Of these, from one address. Until a peer has proven who it is, its address is all there is to tell it from others; one that
/// stands for many (a gateway, SNAT) needs a place for milliseconds, and one that says nothing for 5 s.
const UNPROVEN_OF_SOURCE: usize = 64;

/// How sockets in pods are made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Packet mark that the capture rules exempt (`PACKET_MARK`).
    pub mark: Mark,
    /// Whether listeners share their port with another process (`INPOD_PORT_REUSE`).
    pub reuse_port: bool,
    /// Whether applications see the client's address (`ENABLE_ORIG_SRC`).
    pub transparent: Transparent,
    /// Whether listeners serve IPv6 (`IPV6_ENABLED`).
    pub ipv6: bool,
    /// Probes on connections of applications, accepted and dialled (`KEEPALIVE_*`). Tunnels have PINGs instead, which
    /// find out in 30 s at most whether the far proxy still runs; probes would only ask its kernel.
    pub keepalive: Option<Keepalive>,
}

/// One pod. Shared by the workers that carry its connections; the namespace lives as long as one of them.
#[derive(Debug)]
pub struct Pod {
    /// Kubernetes pod UID.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// The pod's network namespace.
    pub netns: Arc<Netns>,
    /// How its sockets are made.
    pub config: Config,
    /// Whether its applications see the client's address.
    pub source: SourceAddress,
    /// Congestion control for sockets towards the pod's own applications, where the system's is unfit for that.
    pub(super) congestion: Option<&'static str>,
    pub(super) downstreams: Downstreams,
    ended: AtomicBool,
    unproven: Mutex<Strangers>,
}

/// Tunnels to a pod whose peers have not proven who they are.
#[derive(Debug, Default)]
struct Strangers {
    all: usize,
    /// By address. One that has none is not in it.
    by_source: HashMap<IpAddr, usize, RandomState>,
}

/// Why a peer may not begin its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// The pod's places are taken.
    #[error("{UNPROVEN} peers of this pod are in their TLS handshake, which is the limit")]
    Pod,
    /// Those that one address may have are taken.
    #[error(
        "{UNPROVEN_OF_SOURCE} connections from {0} to this pod are in their TLS handshake, which is the limit"
    )]
    Source(IpAddr),
}

/// A pod's listeners, bound and listening, in no reactor.
#[derive(Debug)]
pub struct Listeners {
    /// Outgoing connections of the pod.
    pub outbound: TcpListener,
    /// Plaintext connections to the pod.
    pub plaintext: TcpListener,
    /// Tunnels to the pod.
    pub tunnel: TcpListener,
}

impl Pod {
    /// Makes the pod's listeners inside its namespace: all of them or none.
    ///
    /// # Errors
    /// The socket, the step and the kernel's answer.
    pub fn listen(
        uid: &str,
        (namespace, name, service_account): (&str, &str, &str),
        netns: Arc<Netns>,
        config: Config,
    ) -> io::Result<(Self, Listeners)> {
        let (listeners, source, congestion) = netns.run(|| {
            // Between proxy and application there is no network to be careful with, and bbr paces what could be
            // handed over at once.
            let congestion = match default_congestion() {
                Ok(name) if name.starts_with("bbr") => Some("cubic"),
                _ => None,
            };
            let one = |port, congestion, keepalive| {
                socket::listen(&Listen {
                    addr: socket::wildcard(port, config.ipv6),
                    mark: config.mark,
                    reuse_port: config.reuse_port,
                    congestion,
                    keepalive,
                })
            };
            let tunnel = one(TUNNEL_PORT, None, None)?;
            let plaintext = one(PLAINTEXT_PORT, None, config.keepalive)?;
            let outbound = one(OUTBOUND_PORT, congestion, config.keepalive)?;
            let source = socket::source_address(config.transparent)?;
            Ok((Listeners { outbound, plaintext, tunnel }, source, congestion))
        })?;
        let pod = Self {
            uid: uid.into(),
            name: name.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
            netns,
            config,
            source,
            congestion,
            downstreams: Downstreams::default(),
            ended: AtomicBool::new(false),
            unproven: Mutex::default(),
        };
        Ok((pod, listeners))
    }

    /// The pod is served no more. Comes before the workers are told to cut what they have of it: what reaches a
    /// worker after that looks at [`Pod::has_ended`].
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Takes one of the pod's places for peers that have not proven who they are. One pod's callers cannot use up what the
    /// handshakes of all pods share, and no address what the callers of a pod share.
    ///
    /// # Errors
    /// [`Crowded`]: which of the two has none left.
    pub fn admit_unproven(self: &Arc<Self>, source: IpAddr) -> Result<Unproven, Crowded> {
        let mut strangers = self.strangers();
        if strangers.all >= UNPROVEN {
            return Err(Crowded::Pod);
        }
        let of_source = strangers.by_source.entry(source).or_default();
        if *of_source >= UNPROVEN_OF_SOURCE {
            return Err(Crowded::Source(source));
        }
        *of_source += 1;
        strangers.all += 1;
        Ok(Unproven { pod: self.clone(), source })
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pod is served no more, so that nothing new may be begun for it.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A socket in the pod's namespace that will dial `to`, not yet bound.
    pub(super) fn dialer(&self, to: TargetAddr) -> io::Result<socket2::Socket> {
        let socket = socket::dialer(to.addr(), self.config.mark, self.config.keepalive)?;
        if let Some(name) = self.congestion {
            socket::prefer_congestion(&socket, name);
        }
        Ok(socket)
    }
}

/// One peer that has not proven who it is. Its place is free again when this is dropped.
#[derive(Debug)]
pub struct Unproven {
    pod: Arc<Pod>,
    source: IpAddr,
}

impl Drop for Unproven {
    fn drop(&mut self) {
        let mut strangers = self.pod.strangers();
        strangers.all -= 1;
        if let Entry::Occupied(mut of_source) = strangers.by_source.entry(self.source) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}
