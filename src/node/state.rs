//! Which pods this process serves and where it stands with the agent: decisions only, no I/O.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::error::{Refusal, Violation};
use super::{PodInfo, Wait};
use crate::net::{Netns, NetnsId};

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A session with the agent began.
    Opened,
    /// It is over.
    Closed,
    /// The agent asks to serve a pod, in the namespace its descriptor names if it names one.
    Add(PodInfo, io::Result<Arc<Netns>>),
    Keep(Arc<str>),
    Del(Arc<str>),
    SnapshotSent,
    Unknown,
    /// The retry time of a waiting pod has come.
    Due(Arc<str>),
    /// A start ended.
    Started(Arc<str>),
    Failed(Arc<str>),
}

/// What to do about it.
#[derive(Debug)]
pub(super) enum Action {
    Nothing,
    /// Answer with success.
    Ack,
    /// Answer with this error.
    Refuse(Refusal),
    /// Start this pod, after cutting what ran or was starting under its uid. Then report `Started` or
    /// `Failed`, and answer accordingly if the agent asked.
    Start(PodInfo, Arc<Netns>, Option<Cut>),
    /// Cut these, then answer with success.
    Cut(Vec<Cut>),
    /// Answer with this error and drop the session.
    End(Violation),
}

/// A pod to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) uid: Arc<str>,
    /// Whether its listeners were up, as opposed to a start under way.
    pub(super) ran: bool,
}

/// One pod. A pod is absent, or:
///
/// | from     | event                    | to       | and                                         |
/// |----------|--------------------------|----------|---------------------------------------------|
/// | absent   | Add                      | Starting | start                                       |
/// | Starting | Started                  | Active   |                                             |
/// | Starting | Failed                   | Waiting  | try again after 1 s, 2 s, ... 15 s          |
/// | Starting | Add                      | Starting | drop that start, cut what it made, start    |
/// | Waiting  | Due                      | Starting | start                                       |
/// | Waiting  | Add                      | Starting | start, in the namespace that came now       |
/// | Active   | Add, same namespace      | Active   | nothing: this is how a snapshot disturbs no |
/// |          |                          |          | traffic                                     |
/// | Active   | Add, other namespace     | Starting | cut, start: the sandbox was made anew       |
/// | any      | Add, unusable descriptor | the same | refuse                                      |
/// | Active   | Del in the snapshot      | Active   | it is named no more, so SnapshotSent ends it|
/// | Active   | Del, unnamed at its end  | absent   | cut                                         |
/// | Starting | Del, unnamed at its end  | absent   | drop that start, cut what it made           |
/// | Waiting  | Del, unnamed at its end  | absent   |                                             |
#[derive(Debug)]
enum Pod {
    Starting {
        info: PodInfo,
        netns: Arc<Netns>,
        failures: u32,
    },
    /// Holding the namespace keeps its inode from naming another one.
    Active {
        netns: Arc<Netns>,
    },
    Waiting {
        info: PodInfo,
        netns: Arc<Netns>,
        failures: u32,
        retry_at: Instant,
    },
}

/// Where the session stands.
///
/// | from     | event             | to       | and                                                   |
/// |----------|-------------------|----------|-------------------------------------------------------|
/// | Away     | Opened            | Snapshot | nothing is named yet                                  |
/// | Snapshot | Add               | Snapshot | name it, even if it cannot start                      |
/// | Snapshot | Keep, pod held    | Snapshot | name it                                               |
/// | Snapshot | Keep, not held    | Snapshot | refuse, so that somebody notices                      |
/// | Snapshot | Del               | Snapshot | unname it                                             |
/// | Snapshot | SnapshotSent      | Live     | end every pod that was not named                      |
/// | Live     | Add, Del          | Live     | see [`Pod`]; Del of an unknown pod succeeds           |
/// | Live     | Keep, SnapshotSent| Live     | a violation: the session must be dropped              |
/// | any      | unknown request   | the same | refuse                                                |
/// | any      | Closed            | Away     | pods run on, waiting ones are tried on                |
#[derive(Debug)]
enum Session {
    Away,
    Snapshot(HashSet<Arc<str>>),
    Live,
}

/// All pods, and the session. Survives sessions.
///
/// Other than in the reference, waiting pods survive too: a Keep would otherwise leave such a pod without a
/// proxy and unnoticed.
#[derive(Debug)]
pub(super) struct State {
    home: NetnsId,
    retry: Wait,
    session: Session,
    pods: HashMap<Arc<str>, Pod>,
}

impl State {
    pub(super) fn new(home: NetnsId, retry: Wait) -> Self {
        Self { home, retry, session: Session::Away, pods: HashMap::new() }
    }

    /// Moves both machines; the tables are above [`Pod`] and [`Session`].
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Opened => {
                self.session = Session::Snapshot(HashSet::new());
                Action::Nothing
            }
            Event::Closed => {
                self.session = Session::Away;
                Action::Nothing
            }
            Event::Add(pod, netns) => {
                self.name(&pod.uid);
                self.add(pod, netns)
            }
            Event::Keep(uid) => self.keep(uid),
            Event::Del(uid) => self.del(&uid),
            Event::SnapshotSent => self.snapshot_sent(),
            Event::Unknown => Action::Refuse(Refusal::UnknownRequest),
            Event::Due(uid) => self.due(&uid),
            Event::Started(uid) => self.started(&uid),
            Event::Failed(uid) => self.failed(&uid, now),
        }
    }

    fn name(&mut self, uid: &Arc<str>) {
        if let Session::Snapshot(named) = &mut self.session {
            named.insert(Arc::clone(uid));
        }
    }

    fn add(&mut self, pod: PodInfo, netns: io::Result<Arc<Netns>>) -> Action {
        let netns = match netns {
            Ok(netns) if netns.id() == self.home => return Action::Refuse(Refusal::OwnNamespace),
            Ok(netns) => netns,
            Err(cause) => return Action::Refuse(Refusal::NoNamespace(cause)),
        };
        let (failures, cut) = match self.pods.get(&pod.uid) {
            None => (0, None),
            Some(Pod::Active { netns: running }) if running.id() == netns.id() => return Action::Ack,
            Some(Pod::Active { .. }) => (0, Some(Cut { uid: Arc::clone(&pod.uid), ran: true })),
            Some(Pod::Starting { failures, .. }) => {
                (*failures, Some(Cut { uid: Arc::clone(&pod.uid), ran: false }))
            }
            Some(Pod::Waiting { failures, .. }) => (*failures, None),
        };
        self.pods.insert(
            Arc::clone(&pod.uid),
            Pod::Starting { info: pod.clone(), netns: Arc::clone(&netns), failures },
        );
        Action::Start(pod, netns, cut)
    }

    fn keep(&mut self, uid: Arc<str>) -> Action {
        match &mut self.session {
            Session::Snapshot(named) if self.pods.contains_key(&uid) => {
                named.insert(uid);
                Action::Ack
            }
            Session::Snapshot(_) => Action::Refuse(Refusal::NotHeld(uid)),
            Session::Live | Session::Away => Action::End(Violation::KeepAfterSnapshot(uid)),
        }
    }

    fn del(&mut self, uid: &Arc<str>) -> Action {
        if let Session::Snapshot(named) = &mut self.session {
            named.remove(uid);
            if matches!(self.pods.get(uid), Some(Pod::Active { .. })) {
                return Action::Ack;
            }
        }
        self.end(uid).map_or(Action::Ack, |cut| Action::Cut(vec![cut]))
    }

    fn snapshot_sent(&mut self) -> Action {
        let Session::Snapshot(named) = std::mem::replace(&mut self.session, Session::Live) else {
            return Action::End(Violation::SecondSnapshot);
        };
        let gone: Vec<_> = self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        Action::Cut(gone.iter().filter_map(|uid| self.end(uid)).collect())
    }

    /// Forgets a pod; says whether something of it must be cut.
    fn end(&mut self, uid: &Arc<str>) -> Option<Cut> {
        let ran = match self.pods.remove(uid)? {
            Pod::Active { .. } => true,
            Pod::Starting { .. } => false,
            Pod::Waiting { .. } => return None,
        };
        Some(Cut { uid: Arc::clone(uid), ran })
    }

    fn due(&mut self, uid: &Arc<str>) -> Action {
        match self.pods.remove(uid) {
            Some(Pod::Waiting { info, netns, failures, .. }) => {
                let start = Action::Start(info.clone(), Arc::clone(&netns), None);
                self.pods.insert(Arc::clone(uid), Pod::Starting { info, netns, failures });
                start
            }
            other => self.unchanged(uid, other),
        }
    }

    fn started(&mut self, uid: &Arc<str>) -> Action {
        match self.pods.remove(uid) {
            Some(Pod::Starting { netns, .. }) => {
                self.pods.insert(Arc::clone(uid), Pod::Active { netns });
                Action::Nothing
            }
            other => self.unchanged(uid, other),
        }
    }

    fn failed(&mut self, uid: &Arc<str>, now: Instant) -> Action {
        match self.pods.remove(uid) {
            Some(Pod::Starting { info, netns, failures }) => {
                let failures = failures.saturating_add(1);
                let retry_at = now + self.retry.after(failures);
                self.pods.insert(Arc::clone(uid), Pod::Waiting { info, netns, failures, retry_at });
                Action::Nothing
            }
            other => self.unchanged(uid, other),
        }
    }

    fn unchanged(&mut self, uid: &Arc<str>, pod: Option<Pod>) -> Action {
        if let Some(pod) = pod {
            self.pods.insert(Arc::clone(uid), pod);
        }
        Action::Nothing
    }

    /// Forgets every pod, for the end of the process, and says what of them must be ended.
    pub(super) fn end_all(&mut self) -> Vec<Cut> {
        let uids: Vec<_> = self.pods.keys().cloned().collect();
        uids.iter().filter_map(|uid| self.end(uid)).collect()
    }

    /// The waiting pod that is tried next.
    pub(super) fn next_retry(&self) -> Option<(Instant, Arc<str>)> {
        let waiting = self.pods.iter().filter_map(|(uid, pod)| match pod {
            Pod::Waiting { retry_at, .. } => Some((*retry_at, uid)),
            Pod::Starting { .. } | Pod::Active { .. } => None,
        });
        waiting.min_by_key(|(at, _)| *at).map(|(at, uid)| (at, Arc::clone(uid)))
    }

    /// Pods whose listeners are up.
    pub(super) fn active(&self) -> usize {
        self.pods.values().filter(|pod| matches!(pod, Pod::Active { .. })).count()
    }

    /// Pods whose last start failed.
    pub(super) fn pending(&self) -> usize {
        let failed = |pod: &&Pod| match pod {
            Pod::Starting { failures, .. } | Pod::Waiting { failures, .. } => *failures > 0,
            Pod::Active { .. } => false,
        };
        self.pods.values().filter(failed).count()
    }

    /// Whether the snapshot of this session is complete.
    pub(super) fn synced(&self) -> bool {
        matches!(self.session, Session::Live)
    }

    /// Whether this process serves all pods the agent named: a replacement may count on it.
    pub(super) fn ready(&self) -> bool {
        self.synced() && self.pending() == 0
    }
}
