//! May this connection reach its pod? Makes [`Admitted`], and takes it back when the rules change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::capture::Pod;
use crate::flow::live::{Live, Ticket};
use crate::mesh::{Snapshot, Workload};
use crate::net::{ClientAddr, TargetAddr};
use crate::policy::{Allowance, Denial, Facts, PolicyKey, PolicySet, Verdict};

/// Everything that is live on this worker towards its pods: what a change of policy judges again.
pub type Judged = Live<Subject, Cut>;

/// One live connection.
#[derive(Debug)]
pub struct Subject {
    /// The pod it belongs to.
    pub pod: Arc<Pod>,
    /// The pod's workload when the connection was admitted.
    pub local: Arc<Workload>,
    /// What policy judges.
    pub facts: Facts,
    /// The host it was dialled as, for operators.
    pub asked: Option<String>,
}

/// Why a live connection is cut.
#[derive(Clone, Debug)]
pub enum Cut {
    /// Policy no longer allows it.
    Policy(Denial),
    /// Its pod is gone, or the drain deadline has passed.
    Drained,
}

/// Proof that policy allowed this connection. Only [`admit`] makes one, and dialling an application asks for one,
/// so dialling what nobody judged does not compile.
pub struct Admitted {
    ticket: Ticket<Subject, Cut>,
    allowance: Allowance,
}

/// Judges `subject` for its workload, and keeps watch over it if it is allowed.
///
/// `mesh` must be the latest snapshot: the connection is entered into `judged` here, and whoever publishes a later
/// one has all that is entered judged again.
pub fn admit(judged: &Judged, subject: Subject, mesh: &Snapshot) -> Result<Admitted, Denial> {
    let ticket = judged.enter(subject);
    let Subject { local, facts, .. } = ticket.facts();
    let policies = mesh.policies(local);
    if let Some(pending) = policies.pending() {
        // Waited for in vain, by a process that hardly runs.
        return Err(Denial::Missing(pending.clone()));
    }
    let verdict = policies.explain(facts, |note| {
        let policy = note.policy().map(tracing::field::display);
        tracing::debug!(target: "adit::policy", policy, "{note}");
    });
    match verdict {
        Verdict::Allowed(allowance) => Ok(Admitted { ticket, allowance }),
        Verdict::Denied(denial) => Err(denial),
    }
}

/// Judges all that is live again, after the mesh changed. Returns how many are told to end.
///
/// A pod whose workload is not in the new snapshot is judged as the workload it was: its namespace's policies and
/// the mesh's bind it still.
pub fn judge_again(judged: &Judged, mesh: &Snapshot) -> usize {
    let compiled: RefCell<HashMap<*const Workload, Arc<PolicySet>>> = RefCell::default();
    judged.cut(|subject| {
        let pod = &subject.pod;
        let now = mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account);
        let local = now.unwrap_or(&subject.local);
        let mut compiled = compiled.borrow_mut();
        let policies = compiled.entry(Arc::as_ptr(local)).or_insert_with(|| mesh.policies(local));
        match policies.judge(&subject.facts) {
            Verdict::Allowed(_) => None,
            Verdict::Denied(denial) => {
                let facts = &subject.facts;
                tracing::info!(
                    src = %facts.client,
                    dst = %facts.target,
                    %denial,
                    "connection closed because it's no longer allowed after a policy update"
                );
                Some(Cut::Policy(denial))
            }
        }
    })
}

impl Admitted {
    /// The one address this proof is for.
    pub fn target(&self) -> TargetAddr {
        self.ticket.facts().facts.target
    }

    /// Whose connection it is.
    pub fn client(&self) -> ClientAddr {
        self.ticket.facts().facts.client
    }

    /// Its pod.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.ticket.facts().pod
    }

    /// The policy that allowed it; `None` when none had to.
    pub fn by(&self) -> Option<&PolicyKey> {
        self.allowance.by.as_ref()
    }

    /// Ready when the connection must end.
    pub async fn revoked(&self) -> Cut {
        self.ticket.cut().await
    }

    /// As [`Admitted::revoked`], for those who poll.
    pub fn poll_revoked(&self, cx: &Context<'_>) -> Poll<Cut> {
        self.ticket.poll_cut(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::capture::{Config, Crowded};
    use crate::mesh::testing::{Mesh, identity, mesh, uid};
    use crate::net::Netns;
    use crate::net::socket::Transparent;
    use crate::policy::{Action, Clause, Match, Policy, Rule, Scope};

    fn pod(name: &str) -> Arc<Pod> {
        let netns =
            Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN");
        let config = Config {
            mark: None,
            reuse_port: false,
            transparent: Transparent::Off,
            ipv6: false,
            keepalive: None,
        };
        let uid = format!("uid-of-{name}");
        Arc::new(Pod::listen(&uid, ("default", name, name), Arc::new(netns), config).unwrap().0)
    }

    /// `web`, from an address ending in `last`, towards `pod`.
    fn subject(pod: &Arc<Pod>, last: u8, local: &Arc<Workload>) -> Subject {
        let facts = Facts {
            source: Some(identity("web")),
            client: ClientAddr::new(([10, 0, 0, last], 40_000).into()),
            target: TargetAddr::new(([10, 0, 1, 9], 8080).into()),
        };
        Subject { pod: pod.clone(), local: local.clone(), facts, asked: None }
    }

    fn key() -> PolicyKey {
        PolicyKey::new("default", "no-seven").unwrap()
    }

    /// Denies the client address ending in 7, to the workloads that name it.
    fn no_seven() -> Policy {
        let seven = Match { source_ips: vec![IpAddr::from([10, 0, 0, 7]).into()], ..Match::default() };
        Policy {
            key: key(),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![seven] }] }],
        }
    }

    fn open() -> Mesh {
        mesh().workload("db", "10.0.1.8").workload("cart", "10.0.1.9")
    }

    fn closed() -> Mesh {
        open().bound_by(&key()).policy(no_seven())
    }

    fn ask(judged: &Judged, pod: &Arc<Pod>, last: u8, mesh: &Snapshot) -> Result<Admitted, Denial> {
        let local = mesh.workload(&uid(&pod.name)).expect("described above");
        admit(judged, subject(pod, last, local), mesh)
    }

    async fn told(admitted: &Admitted) -> Option<Cut> {
        tokio::select! {
            biased;
            cut = admitted.revoked() => Some(cut),
            () = std::future::ready(()) => None,
        }
    }

    #[test]
    fn one_pods_unproven_peers_have_places_that_run_out_and_come_back() {
        let (full, other) = (&pod("cart"), pod("db"));
        let all_of = |source: IpAddr| std::iter::from_fn(move || full.admit_unproven(source).ok());
        let [first, second] = [1, 2].map(|last| IpAddr::from([10, 9, 0, last]));
        let mut places: Vec<_> = all_of(first).take(10_000).collect();
        let of_one = places.len();
        assert!((1..1_000).contains(&of_one), "{of_one} places for one address");
        // Another address, and another pod, have as many all the same.
        assert_eq!(full.admit_unproven(first).err(), Some(Crowded::Source(first)));
        places.extend(all_of(second).take(10_000));
        assert_eq!(places.len(), 2 * of_one);
        assert!(other.admit_unproven(first).is_ok());
        // Many addresses together cannot have more than the pod has.
        places.extend((0..=255).flat_map(|last| all_of([10, 9, 1, last].into())));
        assert!((2 * of_one..10_000).contains(&places.len()), "{} places", places.len());
        assert_eq!(full.admit_unproven([10, 9, 2, 1].into()).err(), Some(Crowded::Pod));
        // What is given back can be taken again, by whoever has less than its part.
        places.pop();
        assert_eq!(full.admit_unproven(first).err(), Some(Crowded::Source(first)));
        places.push(full.admit_unproven([10, 9, 2, 1].into()).expect("one place is free"));
        drop(places);
        assert_eq!(all_of(first).take(10_000).collect::<Vec<_>>().len(), of_one);
    }

    #[test]
    fn a_denied_connection_gets_no_proof_and_leaves_no_trace() {
        let (judged, cart) = (Judged::default(), pod("cart"));
        let denial = ask(&judged, &cart, 7, &closed().snapshot()).err().expect("the address is denied");
        assert_eq!(denial, Denial::Explicit(key()));
        assert!(judged.is_empty());
    }

    #[test]
    fn the_proof_is_for_the_one_connection_that_was_judged() {
        let (judged, cart) = (Judged::default(), pod("cart"));
        let admitted = ask(&judged, &cart, 5, &closed().snapshot()).expect("only seven is denied");
        assert_eq!(admitted.target().addr(), "10.0.1.9:8080".parse().unwrap());
        assert_eq!(admitted.client().addr(), "10.0.0.5:40000".parse().unwrap());
        assert!(Arc::ptr_eq(admitted.pod(), &cart));
        assert_eq!(admitted.by(), None);
        assert_eq!(judged.len(), 1);
        drop(admitted);
        assert!(judged.is_empty());
    }

    #[tokio::test]
    async fn a_change_of_policy_cuts_exactly_those_it_denies() {
        let (judged, cart, db) = (Judged::default(), pod("cart"), pod("db"));
        let before = open().snapshot();
        let [kept, lost, beside] = [(&cart, 5), (&cart, 7), (&db, 7)]
            .map(|(pod, last)| ask(&judged, pod, last, &before).expect("nothing is denied yet"));
        assert_eq!(judge_again(&judged, &before), 0);
        assert_eq!(judge_again(&judged, &closed().snapshot()), 1);
        assert!(matches!(told(&lost).await, Some(Cut::Policy(Denial::Explicit(by))) if by == key()));
        assert!(told(&kept).await.is_none() && told(&beside).await.is_none());
    }

    #[tokio::test]
    async fn a_connection_judged_by_an_old_snapshot_is_cut_by_the_judging_that_follows_the_new_one() {
        let (judged, cart) = (Judged::default(), pod("cart"));
        let (before, after) = (open().snapshot(), closed().snapshot());
        // It was loaded before the publication and used after it: what is entered is judged again all the same.
        let late = ask(&judged, &cart, 7, &before).expect("nothing is denied yet");
        assert_eq!(judge_again(&judged, &after), 1);
        assert!(told(&late).await.is_some());
    }

    #[tokio::test]
    async fn connections_outlive_the_news_that_their_workload_is_gone() {
        let (judged, cart) = (Judged::default(), pod("cart"));
        let admitted = ask(&judged, &cart, 7, &open().snapshot()).expect("nothing is denied yet");
        assert_eq!(judge_again(&judged, &mesh().policy(no_seven()).snapshot()), 0);
        assert!(told(&admitted).await.is_none());
    }

    #[tokio::test]
    async fn a_workload_that_is_gone_is_still_bound_by_the_policies_of_its_namespace() {
        let (judged, cart) = (Judged::default(), pod("cart"));
        let [kept, lost] =
            [5, 7].map(|last| ask(&judged, &cart, last, &open().snapshot()).expect("nothing is denied yet"));
        let everywhere = Policy { scope: Scope::Namespace, ..no_seven() };
        assert_eq!(judge_again(&judged, &mesh().policy(everywhere).snapshot()), 1);
        assert!(told(&lost).await.is_some() && told(&kept).await.is_none());
    }
}
