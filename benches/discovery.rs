//! What does it cost to take over the mesh from the control plane, and to keep it?
//!
//! Units: milliseconds of CPU to decode a whole state, put it together and make a snapshot of it; microseconds for one changed endpoint
//! with everything else in place; bytes that stay allocated. The state is 100,000 workloads behind 10,000 services, as istiod
//! would send it in one message: pods of 1,000 nodes and 500 namespaces, each behind one service.
//!
//! - `discovery/load`: the whole state, from the bytes of its message; 0 objects may be refused.
//! - `discovery/update`: the same workload with another port, by a message of its own.
//! - `discovery/decode`: the reference, prost alone over the same message without a look at its values.
//! - memory is printed first, by counting what is asked of the allocator: steady after the message is gone, and at its peak.

use std::hint::black_box;
use std::time::Instant;

use adit::discovery::xds::testing::{ADDRESS, DeltaDiscoveryResponse, Replica, response, workload};
use bytes::Bytes;
use cap::Cap;
use criterion::{BatchSize, Criterion};
use prost::Message as _;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Cap<Jemalloc> = Cap::new(Jemalloc, usize::MAX);

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 10_000;

type Resource = (String, String, Vec<u8>);

fn pod(nth: u32, port: u32) -> Resource {
    let service = nth % SERVICES;
    let namespace = format!("team-{}", service % 500);
    let [_, high, middle, low] = nth.to_be_bytes();
    let host = format!("svc-{service}.{namespace}.svc.cluster.local");
    let one = workload::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/svc-{service}-{nth:x}"),
        name: format!("svc-{service}-{nth:x}"),
        namespace: namespace.clone(),
        service_account: format!("svc-{service}"),
        addresses: vec![vec![10, high, middle, low].into()],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        node: format!("node-{}", nth % 1_000),
        canonical_name: format!("svc-{service}"),
        canonical_revision: "latest".into(),
        workload_type: workload::WorkloadType::Pod.into(),
        workload_name: format!("svc-{service}"),
        cluster_id: "Kubernetes".into(),
        locality: Some(workload::Locality {
            region: "region-1".into(),
            zone: format!("zone-{}", nth % 3),
            subzone: String::new(),
        }),
        services: std::iter::once((
            format!("{namespace}/{host}"),
            workload::PortList { ports: vec![workload::Port { service_port: 80, target_port: port }] },
        ))
        .collect(),
        ..Default::default()
    };
    let name = one.uid.clone();
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(one)) };
    (name, "0123456789abcdef".into(), address.encode_to_vec())
}

fn service(nth: u32) -> Resource {
    let namespace = format!("team-{}", nth % 500);
    let hostname = format!("svc-{nth}.{namespace}.svc.cluster.local");
    let [_, _, high, low] = nth.to_be_bytes();
    let one = workload::Service {
        name: format!("svc-{nth}"),
        namespace: namespace.clone(),
        hostname: hostname.clone(),
        addresses: vec![workload::NetworkAddress {
            network: String::new(),
            address: vec![172, 20, high, low].into(),
            length: None,
        }],
        ports: vec![workload::Port { service_port: 80, target_port: 8080 }],
        canonical: true,
        ..Default::default()
    };
    let address = workload::Address { r#type: Some(workload::address::Type::Service(one)) };
    (format!("{namespace}/{hostname}"), "0123456789abcdef".into(), address.encode_to_vec())
}

fn message(resources: impl IntoIterator<Item = Resource>) -> Bytes {
    response(ADDRESS, "nonce", resources, &[]).encode_to_vec().into()
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    // Each bench once needs no mesh of that size.
    let scale = if quick { 100 } else { 1 };
    let (workloads, services) = (WORKLOADS / scale, SERVICES / scale);
    let all = || (0..services).map(service).chain((0..workloads).map(|nth| pod(nth, 8080)));
    let whole = message(all());
    let size = whole.len();

    let before = ALLOCATOR.allocated();
    let mut replica = Replica::new();
    let since = Instant::now();
    let (snapshot, refused) = replica.take(whole.clone());
    let took = since.elapsed();
    assert_eq!((refused, snapshot.all_workloads().count()), (0, workloads as usize));
    let steady = ALLOCATOR.allocated() - before;
    println!(
        "{workloads} workloads and {services} services: a message of {:.1} MiB, taken in {took:?}; {:.1} MiB stay, {} bytes per workload",
        mib(size),
        mib(steady),
        steady / workloads as usize
    );
    println!("at the peak {:.1} MiB more than the message", mib(ALLOCATOR.max_allocated() - before));
    drop(snapshot);

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("discovery");
    group.sample_size(10);
    group.bench_function("load", |bench| {
        bench.iter_batched(
            Replica::new,
            |mut replica| (replica.take(whole.clone()), replica),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("decode", |bench| {
        bench.iter_with_large_drop(|| DeltaDiscoveryResponse::decode(black_box(whole.clone())));
    });
    let updates = [8081, 8082].map(|port| message([pod(7, port)]));
    let mut nth = 0;
    group.bench_function("update", |bench| {
        bench.iter_with_large_drop(|| {
            nth += 1;
            replica.take(updates[nth % 2].clone())
        });
    });
    group.finish();
    criterion.final_summary();
}
