//! What records and peers are told of the mesh's objects.

use super::baggage::{Baggage, WorkloadKind};
use super::record::Peer;
use crate::mesh::{Service, Workload};
use crate::telemetry::{ServiceLabels, Shared, Text, WorkloadLabels};

fn text(value: &std::sync::Arc<str>) -> Option<Text> {
    (!value.is_empty()).then(|| value.clone())
}

/// A workload of the mesh as one end of a connection, with the identity that the mesh gives it.
pub fn peer_of(workload: &Workload) -> Peer {
    let labels = WorkloadLabels {
        workload: text(&workload.workload_name),
        canonical_service: text(&workload.canonical_name),
        canonical_revision: text(&workload.canonical_revision),
        namespace: text(&workload.namespace),
        app: text(&workload.canonical_name),
        version: text(&workload.canonical_revision),
        cluster: text(&workload.cluster_id),
        region: text(&workload.locality.region),
        zone: text(&workload.locality.zone),
    };
    Peer { name: text(&workload.name), labels: labels.share(), identity: workload.identity().ok().cloned() }
}

/// The labels of a service that was addressed.
pub fn labels_of_service(service: &Service) -> Shared<ServiceLabels> {
    let labels = ServiceLabels {
        hostname: text(&service.key.hostname),
        name: text(&service.name),
        namespace: text(&service.key.namespace),
    };
    labels.share()
}

/// A workload as its peers are told of it; `cluster` is this proxy's own, for workloads that name none.
pub fn baggage_of(workload: &Workload, cluster: &str) -> Option<String> {
    let kind = match &*workload.workload_type {
        "deployment" => WorkloadKind::Deployment,
        "cronjob" => WorkloadKind::CronJob,
        "job" => WorkloadKind::Job,
        _ => WorkloadKind::Pod,
    };
    let baggage = Baggage {
        cluster: text(&workload.cluster_id).or_else(|| Some(cluster.into())),
        namespace: text(&workload.namespace),
        kind,
        workload: text(&workload.workload_name),
        service: text(&workload.canonical_name),
        revision: text(&workload.canonical_revision),
        region: text(&workload.locality.region),
        zone: text(&workload.locality.zone),
    };
    baggage.encode()
}
