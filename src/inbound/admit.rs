//! May this connection reach its pod? Makes [`Admitted`], and takes it back when the rules change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture;
    use crate::mesh::testing::{Mesh, mesh};
    use crate::net::socket::Transparent;
    use crate::net::{Netns, canonical};
    use crate::policy::{Action, Policy, Scope};

    fn pod() -> Arc<Pod> {
        let config = capture::Config {
            mark: None,
            reuse_port: false,
            transparent: Transparent::Off,
            ipv6: false,
            keepalive: None,
        };
        let netns =
            Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN");
        Arc::new(Pod::listen("uid-1", ("default", "web", "web"), netns.into(), config).unwrap().0)
    }

    fn web() -> Mesh {
        mesh().workload("web", "10.0.0.9")
    }

    fn nobody() -> Policy {
        let key = PolicyKey::parse("default/nobody").unwrap();
        Policy::not_understood(key, Scope::Namespace, Action::Deny, false)
    }

    fn admitted(judged: &Judged, mesh: &Snapshot) -> Admitted {
        let facts = Facts {
            source: None,
            client: ClientAddr::new(canonical("10.0.0.5:40000".parse().unwrap())),
            target: TargetAddr::new("10.0.0.9:80".parse().unwrap()),
        };
        let local = mesh.local_workload("web", "default", "web").unwrap().clone();
        let subject = Subject { pod: pod(), local, facts, asked: None };
        admit(judged, subject, mesh).unwrap_or_else(|denial| panic!("{denial}"))
    }

    #[tokio::test]
    async fn a_policy_that_comes_later_cuts_who_it_refuses() {
        let judged = Judged::default();
        let open = admitted(&judged, &web().snapshot());
        assert_eq!(judge_again(&judged, &web().snapshot()), 0);
        assert_eq!(judge_again(&judged, &web().policy(nobody()).snapshot()), 1);
        assert!(matches!(open.revoked().await, Cut::Policy(Denial::Explicit(_))));
    }

    #[tokio::test]
    async fn a_workload_that_left_the_mesh_is_still_bound_by_its_namespaces_policies() {
        let judged = Judged::default();
        let _open = admitted(&judged, &web().snapshot());
        assert_eq!(judge_again(&judged, &mesh().snapshot()), 0);
        assert_eq!(judge_again(&judged, &mesh().policy(nobody()).snapshot()), 1);
    }
}
