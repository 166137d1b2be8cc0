use std::io;
use std::time::{Duration, Instant};

use super::*;
use crate::identity::SpiffeId;
use crate::net::ClientAddr;
use crate::telemetry::tests::{logged, registry, sample};
use crate::telemetry::{
    Fault, Format, Refusal, Registry, Reporter, ResponseFlag, Security, ServiceLabels, Shard, Text,
    WorkloadLabels,
};

fn text(value: &str) -> Option<Text> {
    Some(value.into())
}

fn peer(name: &str) -> Peer {
    let labels = WorkloadLabels {
        workload: text(name),
        canonical_service: text(name),
        namespace: text("shop"),
        cluster: text("Kubernetes"),
        ..WorkloadLabels::default()
    };
    Peer {
        name: text(&format!("{name}-7f")),
        labels: labels.share(),
        identity: Some(SpiffeId::new("cluster.local", "shop", name).unwrap()),
    }
}

fn parties(reporter: Reporter) -> Parties {
    let service = ServiceLabels {
        hostname: text("cart.shop.svc.cluster.local"),
        name: text("cart"),
        namespace: text("shop"),
    };
    Parties {
        reporter,
        client: ClientAddr::new("10.0.0.5:40000".parse().unwrap()),
        source: peer("web"),
        destination: peer("cart"),
        dst_addr: "10.0.1.9:15008".parse().unwrap(),
        hbone_addr: text("10.0.1.9:8080"),
        service: Some(service.share()),
        security: Security::MutualTls,
    }
}

fn plaintext(reporter: Reporter) -> Parties {
    Parties {
        hbone_addr: None,
        service: None,
        security: Security::Unknown,
        dst_addr: "192.0.2.1:80".parse().unwrap(),
        destination: Peer::unknown(),
        ..parties(reporter)
    }
}

fn record(shard: &Shard, parties: Parties) -> Record {
    Record::open(shard, Timeline::new(Instant::now()), parties)
}

/// Access-log lines without their time, and with every duration as `0ms`.
fn access(f: impl FnOnce(&Shard)) -> Vec<String> {
    let registry = registry();
    let text = logged(Format::Plain, "off,access=debug", |_| f(&registry.shard()));
    text.lines().map(|line| without_duration(line.split_once('\t').unwrap().1)).collect()
}

fn without_duration(line: &str) -> String {
    let Some((before, after)) = line.split_once("duration=\"") else { return line.to_owned() };
    let (number, rest) = after.split_once("ms\"").unwrap();
    number.parse::<u64>().unwrap();
    format!("{before}duration=\"0ms\"{rest}")
}

const SHARED: &str = concat!(
    r#"src.addr=10.0.0.5:40000 src.workload="web-7f" src.namespace="shop" "#,
    r#"src.identity="spiffe://cluster.local/ns/shop/sa/web" src.cluster="Kubernetes" dst.addr=10.0.1.9:15008 "#,
    r#"dst.hbone_addr=10.0.1.9:8080 dst.service="cart.shop.svc.cluster.local" dst.workload="cart-7f" "#,
    r#"dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="Kubernetes""#,
);

#[test]
fn both_directions_log_the_bytes_from_their_workloads_view() {
    let lines = access(|shard| {
        for reporter in [Reporter::Source, Reporter::Destination] {
            let record = record(shard, parties(reporter));
            record.meter().received(11);
            record.meter().sent(22);
            record.close(&Outcome::Complete);
        }
    });
    let expected = [
        format!("debug\taccess\tconnection opened\t{SHARED} direction=\"outbound\""),
        format!(
            "info\taccess\tconnection complete\t{SHARED} direction=\"outbound\" bytes_sent=11 bytes_recv=22 duration=\"0ms\""
        ),
        format!("debug\taccess\tconnection opened\t{SHARED} direction=\"inbound\""),
        format!(
            "info\taccess\tconnection complete\t{SHARED} direction=\"inbound\" bytes_sent=22 bytes_recv=11 duration=\"0ms\""
        ),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_is_not_known_is_not_in_the_line() {
    let lines = access(|shard| {
        record(shard, plaintext(Reporter::Source)).close(&Outcome::Complete);
    });
    let expected = concat!(
        "info\taccess\tconnection complete\t",
        r#"src.addr=10.0.0.5:40000 src.workload="web-7f" src.namespace="shop" src.cluster="Kubernetes" "#,
        r#"dst.addr=192.0.2.1:80 direction="outbound" bytes_sent=0 bytes_recv=0 duration="0ms""#
    );
    assert_eq!(lines[1], expected);
}

#[test]
fn a_failure_is_an_error_line_that_ends_in_its_error() {
    let lines = access(|shard| {
        let denied =
            Outcome::Denied { reason: "explicitly denied by: shop/no".into(), policy: text("shop/no") };
        record(shard, parties(Reporter::Destination)).close(&denied);
        let allowed = record(shard, parties(Reporter::Destination));
        allowed.allowed_by("shop/yes".into());
        allowed.close(&Outcome::ConnectFailed(io::ErrorKind::ConnectionRefused.into()));
    });
    let head = format!(
        "error\taccess\tconnection complete\t{SHARED} direction=\"inbound\" bytes_sent=0 bytes_recv=0"
    );
    let tail = concat!(
        r#"duration="0ms" policy="shop/no" outcome="denied" "#,
        r#"error="connection closed due to policy rejection: explicitly denied by: shop/no""#
    );
    assert_eq!(lines[1], format!("{head} {tail}"));
    let tail = r#"duration="0ms" policy="shop/yes" outcome="connect failed" error="connection failed: connection refused""#;
    assert_eq!(lines[3], format!("{head} {tail}"));
}

#[test]
fn an_applications_reset_is_an_ordinary_end_that_says_so() {
    let lines = access(|shard| {
        record(shard, parties(Reporter::Source))
            .close(&Outcome::Reset { by: Side::Client, seen: Seen::Socket });
    });
    assert!(lines[1].starts_with("info\t"));
    assert!(lines[1].ends_with(r#"duration="0ms" outcome="reset by client""#), "{}", lines[1]);
}

#[test]
fn json_lines_have_flat_keys_and_numbers() {
    let registry = registry();
    let line = logged(Format::Json, "info", |_| {
        let record = record(&registry.shard(), parties(Reporter::Source));
        record.meter().received(11);
        record.close(&Outcome::Complete);
    });
    let (_, fields) = line.split_once(r#","message":"#).unwrap();
    let expected = concat!(
        r#""connection complete","src.addr":"10.0.0.5:40000","src.workload":"web-7f","src.namespace":"shop","#,
        r#""src.identity":"spiffe://cluster.local/ns/shop/sa/web","src.cluster":"Kubernetes","#,
        r#""dst.addr":"10.0.1.9:15008","dst.hbone_addr":"10.0.1.9:8080","#,
        r#""dst.service":"cart.shop.svc.cluster.local","dst.workload":"cart-7f","dst.namespace":"shop","#,
        r#""dst.identity":"spiffe://cluster.local/ns/shop/sa/cart","dst.cluster":"Kubernetes","#,
        r#""direction":"outbound","bytes_sent":11,"bytes_recv":0,"duration":""#
    );
    assert!(fields.starts_with(expected), "{fields}");
}

#[test]
fn the_line_is_free_of_the_spans_around_it() {
    let lines = access(|shard| {
        let _span = tracing::info_span!(target: "access", "outbound", id = 7).entered();
        record(shard, plaintext(Reporter::Source)).close(&Outcome::Complete);
    });
    assert!(lines.iter().all(|line| line.split('\t').nth(1) == Some("access")), "{lines:?}");
}

#[test]
fn an_early_deny_is_one_warning_and_one_count() {
    let registry = registry();
    let text = logged(Format::Plain, "info", |_| {
        let client = ClientAddr::new("10.0.0.5:40000".parse().unwrap());
        let dst = "10.96.0.9:80".parse().unwrap();
        let error = "no healthy upstream: 10.96.0.9:80";
        early_deny(&registry.shard(), Reporter::Source, client, dst, Refusal::NoHealthyUpstream, &error);
    });
    let expected = concat!(
        "\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.5:40000 dst.addr=10.96.0.9:80 direction=\"outbound\" ",
        "error=\"no healthy upstream: 10.96.0.9:80\"\n"
    );
    assert!(text.ends_with(expected), "{text}");
    let page = registry.page();
    assert_eq!(sample(&page, &[r#"adit_connections_refused_total{reason="no_healthy_upstream"}"#]), "1");
    assert!(!page.contains("istio_tcp_connections"));
}

fn counted(registry: &Registry, family: &str, flag: &str) -> String {
    sample(&registry.page(), &[family, &format!(r#"response_flags="{flag}""#)])
}

#[test]
fn a_record_counts_once_at_each_end() {
    let registry = registry();
    let record = record(&registry.shard(), parties(Reporter::Source));
    assert_eq!(counted(&registry, "istio_tcp_connections_opened_total", "-"), "1");
    assert_eq!(counted(&registry, "istio_tcp_received_bytes_total", "-"), "0");
    assert!(!registry.page().contains("istio_tcp_connections_closed"));
    record.meter().received(11);
    record.meter().sent(22);
    assert_eq!(counted(&registry, "istio_tcp_received_bytes_total", "-"), "11");
    assert_eq!(counted(&registry, "istio_tcp_sent_bytes_total", "-"), "22");
    record.close(&Outcome::Complete);
    assert_eq!(counted(&registry, "istio_tcp_connections_opened_total", "-"), "1");
    assert_eq!(counted(&registry, "istio_tcp_connections_closed_total", "-"), "1");
    assert!(!registry.page().contains("istio_tcp_connections_failed"));
    assert!(!registry.page().contains("adit_connection_faults"));
}

#[test]
fn a_record_that_is_dropped_ends_as_drained() {
    let registry = registry();
    let text = logged(Format::Plain, "info", |_| drop(record(&registry.shard(), parties(Reporter::Source))));
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("\terror\taccess\tconnection complete\t"));
    assert!(
        text.ends_with("outcome=\"drained\" error=\"connection closed due to connection drain\"\n"),
        "{text}"
    );
    assert_eq!(counted(&registry, "istio_tcp_connections_closed_total", "-"), "1");
    assert_eq!(sample(&registry.page(), &[r#"adit_connection_faults_total{fault="ourselves"}"#]), "1");
}

#[test]
fn a_failure_is_opened_without_a_flag_and_closed_and_failed_with_it() {
    let registry = registry();
    let text = logged(Format::Plain, "info", |_| {
        let outcome = Outcome::PolicyChanged { policy: None };
        record(&registry.shard(), parties(Reporter::Destination)).close(&outcome);
    });
    assert_eq!(text.lines().count(), 1);
    assert_eq!(counted(&registry, "istio_tcp_connections_opened_total", "-"), "1");
    assert_eq!(counted(&registry, "istio_tcp_connections_closed_total", "DENY"), "1");
    assert_eq!(counted(&registry, "istio_tcp_connections_failed_total", "DENY"), "1");
    assert_eq!(sample(&registry.page(), &[r#"adit_connection_faults_total{fault="peer"}"#]), "1");
}

#[test]
fn a_plaintext_client_has_no_principal_and_its_server_the_one_the_mesh_says() {
    let registry = registry();
    let shard = registry.shard();
    let to_known = Parties { destination: peer("cart"), ..plaintext(Reporter::Source) };
    record(&shard, to_known).close(&Outcome::Complete);
    let page = registry.page();
    let opened = ["istio_tcp_connections_opened_total", r#"source_principal="unknown""#];
    assert_eq!(sample(&page, &opened), "1");
    let server = r#"destination_principal="spiffe://cluster.local/ns/shop/sa/cart""#;
    assert_eq!(sample(&page, &[opened[0], server, r#"connection_security_policy="unknown""#]), "1");
}

#[test]
fn a_server_behind_a_gateway_is_named_by_its_answer() {
    let header: &[u8] =
        b"k8s.cluster.name=far,k8s.namespace.name=shop,k8s.deployment.name=cart-v2,service.name=cart";
    let baggage = Baggage::decode([header]).unwrap().unwrap();
    let identity = SpiffeId::new("cluster.local", "shop", "cart").unwrap();
    let registry = registry();
    let text = logged(Format::Plain, "info", |_| {
        let mut parties = parties(Reporter::Source);
        parties.destination = Peer::destination_from_baggage(&baggage, Some(identity));
        record(&registry.shard(), parties).close(&Outcome::Complete);
    });
    let said = r#"dst.workload="cart-v2" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="far""#;
    assert!(text.contains(said), "{text}");
    let page = registry.page();
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(
        sample(&page, &[opened, r#"destination_workload="cart-v2""#, r#"destination_app="cart-v2""#]),
        "1"
    );
    assert_eq!(sample(&page, &[opened, r#"destination_canonical_service="cart","#]), "1");
}

#[test]
fn a_client_known_by_baggage_only_is_logged_by_its_service() {
    let baggage = Baggage { service: text("web"), workload: text("web-v1"), ..Baggage::default() };
    let peer = Peer::source_from_baggage(&baggage, None);
    assert_eq!(peer.name, text("web"));
    assert_eq!(peer.labels.workload, text("web-v1"));
}

#[test]
fn the_timeline_keeps_the_first_stamp_of_each_stage() {
    let registry = registry();
    let accepted = Instant::now() - Duration::from_secs(5);
    let mut timeline = Timeline::new(accepted);
    timeline.stamp(Stage::Resolved, accepted + Duration::from_millis(3));
    timeline.stamp(Stage::Resolved, accepted + Duration::from_millis(9));
    let record = Record::open(&registry.shard(), timeline, parties(Reporter::Source));
    record.meter().received(0);
    let before = Instant::now();
    record.meter().sent(1);
    record.stamp(Stage::Tcp);
    let kept = record.close(&Outcome::Complete);
    assert_eq!(kept.accepted(), accepted);
    assert_eq!(kept.at(Stage::Accepted), Some(Duration::ZERO));
    assert_eq!(kept.at(Stage::Resolved), Some(Duration::from_millis(3)));
    assert_eq!(kept.at(Stage::Tls), None);
    assert!(kept.at(Stage::FirstByte).unwrap() >= before - accepted);
    assert!(kept.at(Stage::Tcp) >= kept.at(Stage::FirstByte));
    assert!(kept.at(Stage::Closed) >= kept.at(Stage::Tcp));
}

#[test]
fn a_record_stays_small() {
    assert!(size_of::<Record>() <= 512, "{}", size_of::<Record>());
}

fn refused() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

#[test]
fn every_outcome_has_its_flag_fault_and_text() {
    use Fault::{ControlPlane, Ourselves, Peer, Pod};
    use ResponseFlag as Flag;
    let (send, receive) = (Direction::Send, Direction::Receive);
    for (outcome, flag, fault, error) in [
        (Outcome::Complete, Flag::None, None, None),
        (Outcome::Reset { by: Side::Server, seen: Seen::Socket }, Flag::None, None, None),
        (Outcome::Reset { by: Side::Server, seen: Seen::Stream(0) }, Flag::None, None, None),
        (
            Outcome::Reset { by: Side::Server, seen: Seen::Stream(8) },
            Flag::Connect,
            Some(Peer),
            Some("receive: io error: stream reset: CANCEL"),
        ),
        (
            Outcome::Reset { by: Side::Client, seen: Seen::Stream(2) },
            Flag::Connect,
            Some(Pod),
            Some("send: io error: stream reset: INTERNAL_ERROR"),
        ),
        (
            Outcome::Denied { reason: "allow policies exist, but none allowed".into(), policy: None },
            Flag::Deny,
            Some(Peer),
            Some("connection closed due to policy rejection: allow policies exist, but none allowed"),
        ),
        (
            Outcome::PolicyChanged { policy: None },
            Flag::Deny,
            Some(Peer),
            Some("connection closed due to policy change"),
        ),
        (
            Outcome::CertificateRevoked,
            Flag::CertRevoked,
            Some(Peer),
            Some("connection closed: peer certificate revoked by CRL"),
        ),
        (Outcome::ConnectFailed(refused()), Flag::Connect, Some(Peer), Some("io error: connection refused")),
        (
            Outcome::NetworkPolicySuspected(io::ErrorKind::TimedOut.into()),
            Flag::NetworkPolicy,
            Some(ControlPlane),
            Some("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: timed out"),
        ),
        (
            Outcome::Refused(http::StatusCode::UNAUTHORIZED),
            Flag::Connect,
            Some(Peer),
            Some("http status: 401 Unauthorized"),
        ),
        (
            Outcome::Handshake("invalid peer certificate: Expired".into()),
            Flag::Connect,
            Some(Peer),
            Some("io error: invalid peer certificate: Expired"),
        ),
        (Outcome::TlsConfig("no key".into()), Flag::TlsFailure, Some(Ourselves), Some("tls error: no key")),
        (
            Outcome::Http2Handshake("no SETTINGS".into()),
            Flag::H2HandshakeFailure,
            Some(Peer),
            Some("http2 handshake failed: no SETTINGS"),
        ),
        (Outcome::Http2("GOAWAY".into()), Flag::H2HandshakeFailure, Some(Peer), Some("h2 failed: GOAWAY")),
        (
            Outcome::Identity("signing failed".into()),
            Flag::IdentityError,
            Some(ControlPlane),
            Some("identity error: signing failed"),
        ),
        (
            Outcome::TunnelLost("no PING answer".into()),
            Flag::Connect,
            Some(Peer),
            Some("io error: tunnel lost: no PING answer"),
        ),
        (
            Outcome::Broken { direction: send, cause: None },
            Flag::Connect,
            Some(Peer),
            Some("send: destination disconnected before all data was written"),
        ),
        (
            Outcome::Broken { direction: receive, cause: None },
            Flag::Connect,
            Some(Pod),
            Some("receive: client disconnected before all data was written"),
        ),
        (
            Outcome::Broken { direction: receive, cause: Some(refused()) },
            Flag::Connect,
            Some(Pod),
            Some("receive: io error: connection refused"),
        ),
        (Outcome::PoolDraining, Flag::Connect, Some(Ourselves), Some("pool draining")),
        (Outcome::Drained, Flag::None, Some(Ourselves), Some("connection closed due to connection drain")),
    ] {
        assert_eq!(outcome.response_flag(), flag, "{outcome:?}");
        assert_eq!(outcome.fault(Reporter::Source), fault, "{outcome:?}");
        assert_eq!(outcome.error(Reporter::Source).as_deref(), error, "{outcome:?}");
    }
    let dial = Outcome::ConnectFailed(refused());
    assert_eq!(dial.error(Reporter::Destination).unwrap(), "connection failed: connection refused");
    assert_eq!(dial.fault(Reporter::Destination), Some(Pod));
}
