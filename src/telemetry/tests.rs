use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::*;

/// What a writer wrote, kept by its clones.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The lines that the real log writes while `f` runs on this thread.
pub(crate) fn logged(format: Format, filter: &str, f: impl FnOnce(&Logs)) -> String {
    let output = Buffer::default();
    let dropped = log_lines_dropped(&registry());
    let (subscriber, logs) = subscriber(format, filter, output.clone(), dropped).unwrap();
    tracing::subscriber::with_default(subscriber, || f(&logs));
    assert!(logs.flush(Duration::from_secs(30)));
    output.text()
}

pub(crate) fn registry() -> Registry {
    Registry::new("1.2.3", 100)
}

fn workload(name: &str) -> Shared<WorkloadLabels> {
    let text = |suffix: &str| Some(Text::from(format!("{name}{suffix}")));
    WorkloadLabels {
        workload: text(""),
        canonical_service: text("-service"),
        canonical_revision: text("-revision"),
        namespace: text("-ns"),
        app: text("-app"),
        version: text("-version"),
        cluster: text("-cluster"),
        region: text("-region"),
        zone: text("-zone"),
    }
    .share()
}

fn labels(source: &str) -> TrafficLabels {
    TrafficLabels {
        reporter: Reporter::Source,
        source: workload(source),
        source_principal: Some("spiffe://td/ns/a/sa/b".into()),
        destination: workload("server"),
        destination_principal: None,
        service: None,
        response_flag: ResponseFlag::None,
        security: Security::MutualTls,
    }
}

/// The value of the only sample that has all of `parts`.
pub(crate) fn sample(page: &str, parts: &[&str]) -> String {
    let fits = |line: &&str| !line.starts_with('#') && parts.iter().all(|part| line.contains(part));
    let found: Vec<&str> = page.lines().filter(fits).collect();
    assert_eq!(found.len(), 1, "{parts:?} on {page}");
    found[0].rsplit_once(' ').unwrap().1.to_owned()
}

#[test]
fn the_numbers_of_two_workers_are_summed() {
    let registry = registry();
    thread::scope(|scope| {
        for (connections, bytes) in [(2, 11), (3, 22)] {
            let registry = &registry;
            scope.spawn(move || {
                let shard = registry.shard();
                for _ in 0..connections {
                    let series = shard.series(&labels("client"));
                    series.opened();
                    series.received(bytes);
                    series.sent(1);
                    series.closed();
                }
            });
        }
    });
    let page = registry.page();
    assert_eq!(sample(&page, &["istio_tcp_connections_opened_total"]), "5");
    assert_eq!(sample(&page, &["istio_tcp_connections_closed_total"]), "5");
    assert_eq!(sample(&page, &["istio_tcp_received_bytes_total"]), (2 * 11 + 3 * 22).to_string());
    assert_eq!(sample(&page, &["istio_tcp_sent_bytes_total"]), "5");
    assert!(!page.contains("connections_failed"));
}

#[test]
fn a_page_read_while_a_worker_counts_never_goes_back() {
    let registry = registry();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let shard = registry.shard();
            for n in 0..2_000 {
                shard.series(&labels(&format!("client-{}", n % 50))).opened();
            }
        });
        let mut last = 0;
        while !worker.is_finished() {
            let page = registry.page();
            let lines = page.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total"));
            let sum = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
            assert!(last <= sum, "{sum} after {last}");
            last = sum;
        }
    });
    assert_eq!(registry.page().matches("\nistio_tcp_connections_opened_total{").count(), 50);
}

#[test]
fn traffic_has_istios_labels_in_istios_order() {
    let registry = registry();
    let shard = registry.shard();
    let service = ServiceLabels {
        hostname: Some("web.shop.svc.cluster.local".into()),
        name: Some("web".into()),
        namespace: Some("shop".into()),
    };
    shard.series(&TrafficLabels { service: Some(service.share()), ..labels("client") }).opened();
    let page = registry.page();
    let line = page.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    let expected = concat!(
        r#"istio_tcp_connections_opened_total{reporter="source","#,
        r#"source_workload="client",source_canonical_service="client-service","#,
        r#"source_canonical_revision="client-revision",source_workload_namespace="client-ns","#,
        r#"source_principal="spiffe://td/ns/a/sa/b",source_app="client-app",source_version="client-version","#,
        r#"source_cluster="client-cluster",destination_service="web.shop.svc.cluster.local","#,
        r#"destination_service_namespace="shop",destination_service_name="web","#,
        r#"destination_workload="server",destination_canonical_service="server-service","#,
        r#"destination_canonical_revision="server-revision",destination_workload_namespace="server-ns","#,
        r#"destination_principal="unknown",destination_app="server-app",destination_version="server-version","#,
        r#"destination_cluster="server-cluster",request_protocol="tcp",response_flags="-","#,
        r#"connection_security_policy="mutual_tls",source_region="client-region",source_zone="client-zone","#,
        r#"destination_region="server-region",destination_zone="server-zone"} 1"#,
    );
    assert_eq!(line, expected);
}

#[test]
fn sets_that_are_spelled_alike_are_one() {
    let registry = registry();
    let shard = registry.shard();
    for missing in [None, Some(Text::from("")), Some(Text::from("unknown"))] {
        let destination = WorkloadLabels { workload: missing, ..WorkloadLabels::default() }.share();
        shard.series(&TrafficLabels { destination, ..labels("client") }).opened();
    }
    assert_eq!(sample(&registry.page(), &["istio_tcp_connections_opened_total"]), "3");
}

#[test]
fn a_label_value_cannot_end_its_quotes_or_its_line() {
    let registry = registry();
    registry.counter("asked", "Questions (unstable)", &[("by", "a\"} 1\nb\\")]).increment();
    assert!(registry.page().contains("\nasked_total{by=\"a\\\"} 1\\nb\\\\\"} 1\n"));
}

#[test]
fn label_sets_beyond_the_budget_are_counted_as_unknown() {
    let registry = Registry::new("1.2.3", 2);
    let shard = registry.shard();
    for n in 0..100 {
        shard.series(&labels(&format!("client-{n}"))).opened();
    }
    shard.series(&labels("client-0")).opened();
    let page = registry.page();
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(sample(&page, &[opened, r#"source_workload="client-0""#]), "2");
    assert_eq!(sample(&page, &[opened, r#"source_workload="client-1""#]), "1");
    assert_eq!(sample(&page, &[opened, r#"source_workload="unknown""#, r#"reporter="source""#]), "98");
    assert_eq!(sample(&page, &["adit_label_sets_folded_total"]), "98");
}

#[test]
fn a_socket_is_open_until_its_guard_is_dropped() {
    let registry = registry();
    let shard = registry.shard();
    let open = r#"istio_tcp_sockets_open{reporter="source"}"#;
    assert!(!registry.page().contains("istio_tcp_sockets_open"));
    let sockets = (shard.socket(Reporter::Source), shard.socket(Reporter::Source));
    assert_eq!(sample(&registry.page(), &[open]), "2");
    drop(sockets.0);
    assert_eq!(sample(&registry.page(), &[open]), "1");
    drop(sockets.1);
    assert_eq!(sample(&registry.page(), &[open]), "0");
}

#[test]
fn refusals_and_faults_are_counted_by_their_closed_lists() {
    let registry = registry();
    let shard = registry.shard();
    for (n, why) in Refusal::ALL.into_iter().enumerate() {
        (0..=n).for_each(|_| shard.refused(why));
    }
    for (n, whose) in Fault::ALL.into_iter().enumerate() {
        (0..=n).for_each(|_| shard.fault(whose));
    }
    let page = registry.page();
    for (n, why) in Refusal::ALL.into_iter().enumerate() {
        let line = format!(r#"adit_connections_refused_total{{reason="{}"}}"#, why.as_str());
        assert_eq!(sample(&page, &[&line]), (n + 1).to_string());
    }
    for (n, whose) in Fault::ALL.into_iter().enumerate() {
        let line = format!(r#"adit_connection_faults_total{{fault="{}"}}"#, whose.as_str());
        assert_eq!(sample(&page, &[&line]), (n + 1).to_string());
    }
}

#[test]
fn handles_of_one_name_count_together() {
    let registry = registry();
    let proxies = Proxies::new(&registry);
    let again = Proxies::new(&registry);
    proxies.started.increment();
    again.started.add(2);
    proxies.pending.set(7);
    proxies.pending.add(-9);
    let held = (proxies.active.hold(), again.active.hold());
    drop(held.0);
    source_address_replaced(&registry).increment();
    certificate_requests(&registry, "issued").increment();
    certificate_requests(&registry, "refused").increment();
    let page = registry.page();
    assert_eq!(sample(&page, &["workload_manager_proxies_started_total"]), "3");
    assert_eq!(sample(&page, &["workload_manager_proxies_stopped_total"]), "0");
    assert_eq!(sample(&page, &["workload_manager_pending_proxy_count"]), "-2");
    assert_eq!(sample(&page, &["workload_manager_active_proxy_count"]), "1");
    assert_eq!(sample(&page, &["adit_source_address_replaced_total"]), "1");
    assert_eq!(sample(&page, &[r#"adit_certificates_requests_total{result="issued"}"#]), "1");
    assert_eq!(sample(&page, &[r#"adit_certificates_requests_total{result="refused"}"#]), "1");
    drop(held.1);
    assert_eq!(sample(&registry.page(), &["workload_manager_active_proxy_count"]), "0");
}

#[test]
fn a_family_of_handles_has_a_bound() {
    let registry = registry();
    for n in 0..2_000 {
        registry.counter("asked", "Questions (unstable)", &[("by", &n.to_string())]).increment();
    }
    let page = registry.page();
    assert_eq!(page.matches("\nasked_total{").count(), 1_001);
    assert_eq!(sample(&page, &[r#"asked_total{by="unknown"}"#]), "1000");
}

#[test]
fn a_name_ending_in_a_unit_says_it() {
    let registry = registry();
    registry.counter("istio_xds_message_bytes_total", "Size (unstable)", &[("url", "a")]).add(7);
    assert!(registry.page().contains(
        "# HELP istio_xds_message_bytes Size (unstable).\n# TYPE istio_xds_message_bytes counter\n\
         # UNIT istio_xds_message_bytes bytes\nistio_xds_message_bytes_total{url=\"a\"} 7\n"
    ));
}

#[test]
#[should_panic(expected = "metric asked is asked for as a counter and as a gauge")]
fn one_name_is_not_two_kinds() {
    let registry = registry();
    registry.counter("asked", "Questions (unstable)", &[]);
    registry.gauge("asked", "Questions (unstable)", &[]);
}

#[test]
fn the_workers_runtimes_are_shown_as_one_with_many_workers() {
    let registry = registry();
    let runtimes =
        [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap());
    for runtime in &runtimes {
        registry.runtime(runtime.handle().clone());
        runtime.spawn(std::future::pending::<()>());
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }
    let page = registry.page();
    assert_eq!(sample(&page, &["tokio_num_workers"]), "2");
    assert_eq!(sample(&page, &["tokio_num_alive_tasks"]), "2");
    assert_eq!(sample(&page, &["tokio_global_queue_depth"]), "0");
    for worker in [r#"{worker="0"}"#, r#"{worker="1"}"#] {
        let counter = |name: &str| sample(&page, &[&format!("{name}_total{worker}")]).parse::<f64>().unwrap();
        assert!(counter("tokio_worker_park_count") >= 1.0);
        assert!(counter("tokio_worker_park_unpark_count") >= 1.0);
        assert!(counter("tokio_worker_total_busy_duration_seconds") > 0.0);
    }
}

#[test]
fn the_process_shows_its_descriptors() {
    use nix::sys::resource::{Resource, getrlimit};
    let page = registry().page();
    assert!(sample(&page, &["process_open_fds"]).parse::<u64>().unwrap() >= 3);
    let limit = getrlimit(Resource::RLIMIT_NOFILE).unwrap().0;
    assert_eq!(sample(&page, &["process_max_fds"]), limit.to_string());
}

/// What Istio's own test calls stable; anything else must say `unstable`.
const STABLE: [&str; 13] = [
    "istio_build",
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_received_bytes",
    "istio_tcp_sent_bytes",
    "process_max_fds",
    "process_open_fds",
    "tokio_num_workers",
    "tokio_global_queue_depth",
    "tokio_num_alive_tasks",
    "tokio_worker_park_count",
    "tokio_worker_park_unpark_count",
    "tokio_worker_total_busy_duration_seconds",
];

#[test]
fn the_page_is_open_metrics_line_by_line() {
    let registry = registry();
    let shard = registry.shard();
    let series = shard.series(&labels("client"));
    series.opened();
    series.closed();
    series.failed();
    let _socket = shard.socket(Reporter::Destination);
    shard.refused(Refusal::Draining);
    shard.fault(Fault::Peer);
    let _proxies = Proxies::new(&registry);
    let _dropped = log_lines_dropped(&registry);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    registry.runtime(runtime.handle().clone());

    let page = registry.page();
    let body = page.strip_suffix("# EOF\n").unwrap();
    let mut names = BTreeSet::new();
    let mut lines = body.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        assert!(names.insert(name), "{name} is there twice");
        let collected = name.starts_with("process_") || name.starts_with("tokio_");
        assert_eq!(help.ends_with('.'), !collected, "{help}");
        assert_eq!(!help.contains("(unstable)"), STABLE.contains(&name), "{name} {help}");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert!(!name.ends_with("_total"));
        if lines.peek().is_some_and(|line| line.starts_with("# UNIT ")) {
            let unit = lines.next().unwrap().strip_prefix(&format!("# UNIT {name} ")).unwrap();
            assert!(name.ends_with(unit), "{name} in {unit}");
        }
        let mut samples = 0;
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (set, value) =
                sample.strip_prefix(&format!("{name}{suffix}")).unwrap().rsplit_once(' ').unwrap();
            assert!(set.is_empty() || (set.starts_with('{') && set.ends_with("\"}")), "{sample}");
            assert!(value.parse::<f64>().unwrap() >= 0.0);
            samples += 1;
        }
        assert!(samples > 0, "{name} has no sample");
    }
    assert!(STABLE.iter().all(|name| names.contains(name)), "{names:?}");
    assert!(page.contains("\nistio_build{component=\"ztunnel\",tag=\"1.2.3\"} 1\n"));
}

#[test]
fn readiness_waits_for_every_task() {
    let readiness = Readiness::default();
    assert!(readiness.pending().is_empty());
    let (state, proxy, again) =
        (readiness.task("state manager"), readiness.task("proxy"), readiness.task("proxy"));
    assert_eq!(readiness.pending(), ["proxy".into(), "state manager".into()] as [Text; 2]);
    proxy.done();
    proxy.done();
    state.done();
    assert_eq!(readiness.pending(), ["proxy".into()] as [Text; 1]);
    again.done();
    assert!(readiness.pending().is_empty());
    state.pending();
    drop(state);
    assert_eq!(readiness.pending(), ["state manager".into()] as [Text; 1]);
}
