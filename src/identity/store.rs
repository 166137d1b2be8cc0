//! Lends certificates to connections.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::dump::CertificateDump;
use super::keeper::{Keeper, Standing};
use super::{Authority, CertificateError, Clock, Credentials, SpiffeId, TlsPolicy};

/// How long a connection waits for a certificate.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// By how much longer the handle waits, so that it is the keeper, who knows the cause, that ends the wait. Only a
/// keeper that cannot run lets this pass.
const GRACE: Duration = Duration::from_secs(1);

/// The certificates of this node's identities: a handle on the process's one store. Cloning copies pointers.
#[derive(Clone)]
pub struct Store {
    published: Arc<Published>,
    keeper: mpsc::UnboundedSender<Message>,
    clock: Clock,
}

/// What readers see, replaced whole.
pub(super) type Published = ArcSwap<HashMap<SpiffeId, Arc<Credentials>>>;

/// What the keeper answers to a waiting connection.
pub(super) type Answer = Result<Arc<Credentials>, CertificateError>;

/// What handles tell the keeper. The channel is unbounded so that nothing is lost; what it holds is bounded by
/// the connections and pods of the node, each of which has at most one message under way.
pub(super) enum Message {
    Want(SpiffeId),
    Release(SpiffeId),
    Await { identity: SpiffeId, reply: oneshot::Sender<Answer> },
    Report(oneshot::Sender<Vec<Standing>>),
}

impl Store {
    /// A store that asks `authority` for certificates of about `ttl`, and the [`Keeper`] that must run for it to
    /// give any.
    pub fn new(authority: Arc<dyn Authority>, ttl: Duration, policy: TlsPolicy) -> (Self, Keeper) {
        let (keeper, messages) = mpsc::unbounded_channel();
        let published = Arc::new(Published::default());
        let store = Self { published: published.clone(), keeper, clock: policy.clock().clone() };
        (store, Keeper::new(authority, ttl, policy, published, messages))
    }

    /// The certificate of `identity`, if there is a valid one now. Takes no lock and never waits.
    pub fn current(&self, identity: &SpiffeId) -> Option<Arc<Credentials>> {
        let now = self.clock.now();
        self.published.load().get(identity).filter(|credentials| !credentials.expired(now)).cloned()
    }

    /// The certificate of `identity`, asked for if there is none; a retry that was put off is advanced.
    ///
    /// - Waits: at most 10 s, during which the authority may be asked several times, once a second at most.
    /// - Errors: [`CertificateError`] with the identity, and the authority's last answer as its source.
    /// - Cancel: dropping the future gives the wait up; what was asked is still served to others.
    pub async fn credentials(&self, identity: &SpiffeId) -> Answer {
        if let Some(credentials) = self.current(identity) {
            return Ok(credentials);
        }
        let (reply, answer) = oneshot::channel();
        let stopped = || CertificateError::Stopped { identity: identity.clone() };
        self.keeper.send(Message::Await { identity: identity.clone(), reply }).map_err(|_| stopped())?;
        match tokio::time::timeout(PATIENCE + GRACE, answer).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(stopped())),
            Err(_) => {
                Err(CertificateError::TimedOut { identity: identity.clone(), waited: PATIENCE + GRACE })
            }
        }
    }

    /// Announces a pod of `identity`: its certificate is fetched ahead and kept fresh for as long as any
    /// [`Wanted`] of that identity lives, and for 60 s more.
    pub fn want(&self, identity: SpiffeId) -> Wanted {
        // A keeper that has ended keeps nothing fresh; connections are told so by `credentials`.
        let _ = self.keeper.send(Message::Want(identity.clone()));
        Wanted { identity, keeper: self.keeper.clone() }
    }

    /// Every identity known with its state, chain and roots, sorted by identity; nothing when the keeper has ended.
    pub async fn snapshot(&self) -> Vec<CertificateDump> {
        let (reply, standings) = oneshot::channel();
        if self.keeper.send(Message::Report(reply)).is_err() {
            return Vec::new();
        }
        let mut standings = standings.await.unwrap_or_default();
        standings.sort_by(|one, other| one.identity.cmp(&other.identity));
        standings.into_iter().map(CertificateDump::from).collect()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("identities", &self.published.load().len()).finish_non_exhaustive()
    }
}

/// One pod's claim on the certificate of its identity; dropping it releases the claim.
#[must_use = "dropping it releases the certificate"]
pub struct Wanted {
    identity: SpiffeId,
    keeper: mpsc::UnboundedSender<Message>,
}

impl Wanted {
    /// Whose certificate is claimed.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wanted({})", self.identity)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        // A keeper that has ended has released everything.
        let _ = self.keeper.send(Message::Release(self.identity.clone()));
    }
}
