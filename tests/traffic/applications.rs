//! Applications as people run them, unaware of any mesh: nginx and curl, redis, iperf3.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use adit::lab::{Pod, Side};

use super::evidence::Before;
use super::program::{Daemon, run, succeed};
use super::stage::{Part, STRICT, Stage, service, strict};

const CLIENT: &str = "shop/client";
const NEAR: &str = "shop/near";
const FAR: &str = "shop/far";
const PLAIN: &str = "legacy/plain";
const CALLER: &str = "legacy/caller";
const GUARDED: &str = "shop/guarded";

/// Pods in and out of the mesh on both nodes; a service in front of far, on the application's port.
fn stage(port: u16) -> Stage {
    let cast = [
        (Side::One, CLIENT, Part::Mesh),
        (Side::One, NEAR, Part::Mesh),
        (Side::Two, FAR, Part::Mesh),
        (Side::Two, PLAIN, Part::Outside),
        (Side::One, CALLER, Part::Outside),
        (Side::Two, GUARDED, Part::Mesh),
    ];
    Stage::of(&cast, |mesh| {
        mesh.service(service("shop/front", 1, (port, port), &[FAR])).policy(strict(&[GUARDED]))
    })
}

/// Who calls whom at which address: within the mesh, out of it and into it, near and far, in both families.
fn ways(stage: &Stage) -> Vec<(Pod, Pod, IpAddr)> {
    let pods =
        [(CLIENT, NEAR), (CLIENT, FAR), (CLIENT, PLAIN), (CLIENT, GUARDED), (CALLER, NEAR), (CALLER, FAR)];
    let mut ways = Vec::new();
    for (from, to) in pods {
        let (from, to) = (stage.pod(from), stage.pod(to));
        ways.push((from.clone(), to.clone(), to.ipv4().into()));
        ways.push((from, to.clone(), to.ipv6().into()));
    }
    for vip in service("shop/front", 1, (1, 1), &[]).addresses {
        ways.push((stage.pod(CLIENT), stage.pod(FAR), vip));
    }
    ways
}

/// The bytes that the proxies counted for the only connection since `before`, client to server and back: as told
/// at every side that has a proxy in its way.
fn counted(stage: &Stage, before: &Before, from: &Pod, to: &Pod, at: IpAddr) -> Vec<(u64, u64)> {
    let client = from.ip_like(at);
    let mut counted = Vec::new();
    let bytes = |line: adit::lab::AccessLine| {
        assert_eq!(line.error, None, "{line:#?}");
        (line.bytes_sent.unwrap_or_default(), line.bytes_recv.unwrap_or_default())
    };
    if from.full_name() == CLIENT {
        counted.push(bytes(before.line(stage, from.side(), "outbound", client)));
    }
    if to.full_name() != PLAIN {
        let (sent, received) = bytes(before.line(stage, to.side(), "inbound", client));
        counted.push((received, sent));
    }
    counted
}

/// A web server that serves `place` on 8080 and writes one line per request.
fn nginx(pod: &Pod, place: &Path) -> Daemon {
    let dir = place.join(pod.name());
    std::fs::create_dir_all(&dir).expect("the test's directory is ours");
    let (config, dir, root) = (dir.join("nginx.conf"), dir.display(), place.display());
    let text = format!(
        "daemon off; master_process off; user root; pid {dir}/pid; error_log {dir}/error.log;\n\
         events {{}}\n\
         http {{\n\
           log_format bytes '$remote_addr $status $request_length $bytes_sent';\n\
           access_log {dir}/access.log bytes;\n\
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
           uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
           client_max_body_size 64m;\n\
           server {{\n\
             listen 8080; listen [::]:8080;\n\
             root {root}/pages;\n\
             location /whoami {{ return 200 $remote_addr; }}\n\
             location /put {{ dav_methods PUT; alias {dir}; client_body_in_file_only off; }}\n\
           }}\n\
         }}\n"
    );
    std::fs::write(&config, text).expect("the test's directory is ours");
    Daemon::start(pod, "nginx", &["-c", &config.to_string_lossy()], 8080)
}

/// The last line of a web server's log, once it has `count` lines.
fn nginx_log(place: &Path, pod: &Pod, count: usize) -> Vec<String> {
    let path = place.join(pod.name()).join("access.log");
    let deadline = std::time::Instant::now() + super::stage::SOON;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(std::time::Instant::now() < deadline, "nginx logged {lines:?} instead of {count} lines");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn curl_reaches_nginx_and_nginx_sees_the_caller_and_counts_the_bytes_that_the_proxies_count() {
    let stage = stage(8080);
    let place = stage.place();
    std::fs::create_dir(place.join("pages")).unwrap();
    // More than any window or buffer on the way, and different at every offset.
    let page: Vec<u8> =
        (0_u32..1_500_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(place.join("pages/page"), &page).unwrap();
    let servers = [NEAR, FAR, PLAIN, GUARDED].map(|pod| (stage.pod(pod), nginx(&stage.pod(pod), place)));
    let upload = place.join("pages/page").display().to_string();

    let requests = AtomicU64::new(0);
    for (from, to, at) in ways(&stage) {
        let base = format!("http://{}", SocketAddr::new(at, 8080));
        let what = format!("{} to {base} of {}", from.full_name(), to.full_name());
        let curl = |arguments: &[&str]| {
            requests.fetch_add(1, Ordering::Relaxed);
            let common =
                ["--silent", "--show-error", "--fail", "--max-time", "20", "-H", "connection: close"];
            succeed(&from, "curl", &[&common[..], arguments].concat())
        };
        let lines = nginx_log(place, &to, 0).len();
        let seen = curl(&[&format!("{base}/whoami")]);
        assert_eq!(String::from_utf8_lossy(&seen), from.ip_like(at).to_string(), "{what}: whom nginx saw");

        let before = settled(&stage, place, &to, lines + 1);
        let got = curl(&[&format!("{base}/page")]);
        assert!(got == page, "{what}: {} of {} bytes arrived, or others", got.len(), page.len());
        check(&stage, &before, place, (&from, &to, at), lines + 2, page.len() as u64, &what);

        let before = settled(&stage, place, &to, lines + 2);
        curl(&["--upload-file", &upload, "--output", "/dev/null", &format!("{base}/put/uploaded")]);
        let uploaded = std::fs::read(place.join(to.name()).join("uploaded")).unwrap_or_default();
        assert!(
            uploaded == page,
            "{what}: {} of {} bytes were uploaded, or others",
            uploaded.len(),
            page.len()
        );
        check(&stage, &before, place, (&from, &to, at), lines + 3, page.len() as u64, &what);
        std::fs::remove_file(place.join(to.name()).join("uploaded")).unwrap();
    }
    assert_eq!(requests.into_inner(), 14 * 3, "no way was left out");

    // The one that plaintext callers may not reach: curl is told, and nginx is not.
    let (caller, guarded) = (stage.pod(CALLER), stage.pod(GUARDED));
    let lines = nginx_log(place, &guarded, 0).len();
    for to in [guarded.at(8080), guarded.at_v6(8080)] {
        let before = Before::now(&stage);
        let refused = run(&caller, "curl", &["--silent", "--show-error", &format!("http://{to}/page")]);
        // A reset, during connect (7) or after it (56); an orderly close would be an empty answer (52).
        let code = refused.status.code();
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(matches!(code, Some(7 | 56)), "curl was told {code:?}: {words}");
        assert!(refused.stdout.is_empty(), "curl was answered");
        let line = before.line(&stage, Side::Two, "inbound", caller.ip_like(to.ip()));
        assert_eq!(line.policy, Some(format!("shop/{STRICT}")), "{line:#?}");
    }
    assert_eq!(nginx_log(place, &guarded, 0).len(), lines, "nginx was visited");
    drop(servers);
}

/// Now, once the connection that made the last line of nginx is told by the proxies too.
fn settled(stage: &Stage, place: &Path, to: &Pod, lines: usize) -> Before {
    nginx_log(place, to, lines);
    Before::when_idle(stage)
}

/// Compares what nginx counted of the last request with what the proxies counted.
fn check(
    stage: &Stage,
    before: &Before,
    place: &Path,
    (from, to, at): (&Pod, &Pod, IpAddr),
    lines: usize,
    at_least: u64,
    what: &str,
) {
    let line = nginx_log(place, to, lines).pop().expect("there are lines");
    let words: Vec<_> = line.split(' ').collect();
    assert_eq!(words[0], from.ip_like(at).to_string(), "{what}: nginx wrote {line}");
    let bytes: (u64, u64) = (words[2].parse().unwrap(), words[3].parse().unwrap());
    assert!(bytes.0 + bytes.1 > at_least, "{what}: nginx wrote {line}");
    for counted in counted(stage, before, from, to, at) {
        assert_eq!(counted, bytes, "{what}: the proxies' bytes are not nginx's: {line}");
    }
}

#[test]
fn redis_serves_its_clients_and_knows_them_by_their_own_addresses() {
    let stage = stage(6379);
    let servers = [NEAR, FAR, PLAIN, GUARDED].map(|pod| {
        let arguments = [
            "--port",
            "6379",
            "--bind",
            "*",
            "-::*",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        Daemon::start(&stage.pod(pod), "redis-server", &arguments, 6379)
    });
    for (n, (from, to, at)) in ways(&stage).into_iter().enumerate() {
        let what = format!("{} to {at} of {}", from.full_name(), to.full_name());
        let host = at.to_string();
        let redis = |arguments: &[&str]| {
            let all = [&["-h", &host, "-p", "6379"][..], arguments].concat();
            String::from_utf8(succeed(&from, "redis-cli", &all))
                .expect("redis speaks UTF-8 here")
                .trim()
                .to_owned()
        };
        let (key, value) = (format!("key-{n}"), "v".repeat(100_000));
        assert_eq!(redis(&["SET", &key, &value]), "OK", "{what}");
        assert_eq!(redis(&["GET", &key]), value, "{what}");
        // A hundred answers over one connection.
        let counted = redis(&["-r", "100", "INCR", &format!("count-{n}")]);
        let expected: Vec<_> = (1..=100).map(|n| n.to_string()).collect();
        assert_eq!(counted.lines().collect::<Vec<_>>(), expected, "{what}");
        let info = redis(&["CLIENT", "INFO"]);
        let seen = info.split(' ').find_map(|word| word.strip_prefix("addr=")).unwrap_or_default();
        let seen: SocketAddr = seen.parse().unwrap_or_else(|_| panic!("{what}: redis said {info}"));
        assert_eq!(seen.ip(), from.ip_like(at), "{what}: whom redis saw");
    }
    drop(servers);
}

#[test]
fn iperf_runs_both_ways_over_several_connections_and_every_one_is_told() {
    const BYTES: u64 = 32 << 20;
    let stage = stage(5201);
    let servers =
        [NEAR, FAR, PLAIN, GUARDED].map(|pod| Daemon::start(&stage.pod(pod), "iperf3", &["-s"], 5201));
    for (from, to, at) in ways(&stage) {
        for direction in [&[][..], &["--reverse"]] {
            let what = format!("{} to {at} of {} {direction:?}", from.full_name(), to.full_name());
            let (host, bytes) = (at.to_string(), BYTES.to_string());
            let arguments = ["--client", &host, "--json", "--parallel", "2", "--bytes", &bytes];
            let before = Before::when_idle(&stage);
            let report = succeed(&from, "iperf3", &[&arguments[..], direction].concat());
            let report: serde_json::Value = serde_json::from_slice(&report).expect("iperf3 writes JSON");
            assert!(report["error"].is_null(), "{what}: {report:#}");
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
            assert!(received > 0, "{what}: {report:#}");
            let remote = report["start"]["connected"].as_array().map_or(0, Vec::len);
            assert_eq!(remote, 2, "{what}: {report:#}");
            // A control connection and two for data.
            if to.full_name() != PLAIN {
                let lines = before.lines_of(&stage, to.side(), "inbound", from.ip_like(at), 3);
                let carried: u64 = lines.iter().filter_map(|it| it.bytes_sent.max(it.bytes_recv)).sum();
                // What iperf3 has not read when its time is over it does not count, and the proxy does.
                assert!(carried >= received, "{what}: {carried} of {received} bytes were told: {lines:#?}");
                assert!(lines.iter().all(|it| it.error.is_none()), "{what}: {lines:#?}");
            }
        }
    }
    drop(servers);
}
