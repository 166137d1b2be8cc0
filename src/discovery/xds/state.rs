//! What has been told of one type of resource, what is asked for, and what is held back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::ads::{DeltaDiscoveryRequest, Status};

/// A removal of more objects than this, and of more than half of all, is held back.
const MANY: usize = 100;
/// For so long. What an object that is added or changed in that time loses is its removal.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Reasons that a refusal tells, at most.
const REASONS: usize = 20;

/// One type of resource on the stream, from its first request on.
///
/// | from | event | to | and |
/// |---|---|---|---|
/// | closed | a stream opens | asked | everything is asked for, with the versions that are held |
/// | closed | a stream opens, and the last one was too large for the server | asked | without versions: what is not told now is gone |
/// | asked | a response | told | the state counts; ACK, or NACK with what was refused |
/// | told | a response | told | what is new, changed and gone; ACK or NACK |
/// | any | the stream ends | closed | everything stays |
#[derive(Debug)]
pub(super) struct Subscription {
    type_url: &'static str,
    /// Every object there is, with its version.
    held: HashMap<Arc<str>, Arc<str>>,
    /// What the server has not named since it was asked without versions; `None` where it need not.
    unnamed: Option<HashSet<Arc<str>>>,
    /// Objects that were removed together with too many others, and when they go.
    leaving: HashMap<Arc<str>, Instant>,
    /// A response has come, on this stream or an earlier one.
    told: bool,
}

/// What a response says of names, in its order.
pub(super) struct Told<'a> {
    /// Name, version, and why it is refused, if it is.
    pub resources: Vec<(&'a str, &'a str, Option<String>)>,
    /// Names of what is gone.
    pub removed: &'a [String],
    /// To be named in the answer.
    pub nonce: &'a str,
}

impl Subscription {
    pub fn new(type_url: &'static str) -> Self {
        Self { type_url, held: HashMap::new(), unnamed: None, leaving: HashMap::new(), told: false }
    }

    /// Whether a response has ever come.
    pub fn is_told(&self) -> bool {
        self.told
    }

    /// Objects that are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// The first request on a new stream, its node aside. Without versions the server tells everything anew.
    pub fn open(&mut self, with_versions: bool) -> DeltaDiscoveryRequest {
        let versions = self.held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        self.unnamed = (!with_versions).then(|| self.held.keys().cloned().collect());
        DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            initial_resource_versions: if with_versions { versions.collect() } else { HashMap::new() },
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a response. Returns the names to be removed now, and the answer.
    pub fn take(&mut self, told: Told<'_>, now: Instant) -> (Vec<Arc<str>>, DeltaDiscoveryRequest) {
        self.told = true;
        let before = self.held.len();
        let mut refused = Vec::new();
        for (name, version, why) in told.resources {
            // Whatever it says, the object is there.
            self.leaving.remove(name);
            if let Some(unnamed) = &mut self.unnamed {
                unnamed.remove(name);
            }
            match why {
                Some(why) => {
                    refused.push(format!("{name}: {why}"));
                    // Not with this version, so that it is told again on the next stream. That it is there is known all the same, or nobody
                    // would say that it is gone.
                    self.held.entry(name.into()).or_default();
                }
                None => drop(self.held.insert(name.into(), version.into())),
            }
        }
        let mut gone: HashSet<Arc<str>> = told.removed.iter().map(|name| name.as_str().into()).collect();
        // The first response after a request without versions is the whole state.
        gone.extend(self.unnamed.take().into_iter().flatten());
        gone.retain(|name| self.held.contains_key(name));
        let removed = if gone.len() > MANY && gone.len() * 2 > before {
            tracing::warn!(
                kind = self.type_url,
                removed = gone.len(),
                of = before,
                "discovery removes most of what there is; held back for {}s, in case it is a mistake",
                HOLD.as_secs()
            );
            for name in gone {
                self.leaving.entry(name).or_insert(now + HOLD);
            }
            Vec::new()
        } else {
            for name in &gone {
                self.held.remove(name);
                self.leaving.remove(name);
            }
            gone.into_iter().collect()
        };
        let error_detail = (!refused.is_empty()).then(|| Status { code: 0, message: reasons(&refused) });
        let answer = DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            response_nonce: told.nonce.into(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        (removed, answer)
    }

    /// When the next held removal is due.
    pub fn due(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }

    /// The held removals that are due.
    pub fn on_time(&mut self, now: Instant) -> Vec<Arc<str>> {
        let due: Vec<Arc<str>> =
            self.leaving.iter().filter(|(_, at)| **at <= now).map(|(name, _)| Arc::clone(name)).collect();
        for name in &due {
            self.leaving.remove(name);
            self.held.remove(name);
        }
        due
    }
}

fn reasons(refused: &[String]) -> String {
    let mut text = refused.iter().take(REASONS).map(String::as_str).collect::<Vec<_>>().join("; ");
    if refused.len() > REASONS {
        text += &format!("; and {} more", refused.len() - REASONS);
    }
    text
}

/// How long to wait before the next stream: twice as long as last time, from 50 ms to 15 s, by chance a quarter more or less.
///
/// A stream on which something was told begins anew.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(15);

impl Default for Backoff {
    fn default() -> Self {
        Self { next: SHORTEST }
    }
}

impl Backoff {
    /// The next wait; `chance` is between 0 and 1.
    pub fn wait(&mut self, chance: f64) -> Duration {
        let wait = self.next.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }

    /// Something was told.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}
