//! Envoy as the far proxy. Its statistics say what frames it has seen.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use adit::identity::SpiffeId;
use adit::lab;

use super::checks;
use super::stage::{APPLICATION, ENTRANCE, Role, SOON, Stage};

const ADMIN: u16 = 9901;

/// Of itself Envoy promises its streams more than the tunnel's window holds: two that stop would stop all.
const WINDOWS: &str = "initial_stream_window_size: 1048576, initial_connection_window_size: 16777216";

/// One Envoy process in `far`; ended when dropped.
struct Envoy<'a> {
    child: Child,
    stage: &'a Stage,
}

/// How it is to behave.
struct Manner {
    role: Role,
    /// The identity that it shows.
    shows: SpiffeId,
    /// The identity that it insists on.
    expects: SpiffeId,
    /// After how many streams it leaves a tunnel.
    streams: u32,
}

impl Manner {
    fn honest(stage: &Stage, role: Role) -> Self {
        let (shows, expects) = (stage.far.identity().clone(), stage.near.identity().clone());
        Self { role, shows, expects, streams: 1_000_000 }
    }
}

impl<'a> Envoy<'a> {
    /// Starts it and waits until it takes connections.
    fn start(stage: &'a Stage, manner: &Manner) -> Self {
        let papers = stage.papers(&manner.shows);
        let tls = format!(
            "common_tls_context:
            alpn_protocols: [h2]
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            tls_certificates:
            - certificate_chain: {{filename: {}}}
              private_key: {{filename: {}}}
            validation_context:
              trusted_ca: {{filename: {}}}
              match_typed_subject_alt_names:
              - san_type: URI
                matcher: {{exact: '{}'}}",
            papers.chain.display(),
            papers.key.display(),
            papers.root.display(),
            manner.expects.as_str()
        );
        let text = match manner.role {
            Role::Serves => serves(stage, &tls, manner.streams),
            Role::Calls => calls(stage, &tls, manner.streams),
        };
        let (file, log) = (stage.place().join("envoy.yaml"), stage.place().join("envoy.log"));
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"));
        command
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let mut envoy = Self { child: stage.spawn(&mut command), stage };
        let started = Instant::now();
        while envoy.ask("/ready").is_none() {
            let ended = envoy.child.try_wait().unwrap();
            if ended.is_some() || started.elapsed() > SOON {
                panic!("Envoy is not ready: {}", std::fs::read_to_string(log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        envoy
    }

    /// What its admin page says, if it is there and says 200. In HTTP/1.1, because it speaks no older one.
    fn ask(&self, path: &str) -> Option<String> {
        let mut socket = lab::dial(self.stage.far.netns(), at(ADMIN), SOON).ok()?;
        write!(socket, "GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let (head, mut rest) = answer.split_once("\r\n\r\n")?;
        if !head.starts_with("HTTP/1.1 200") {
            return None;
        }
        if !head.contains("chunked") {
            return Some(rest.to_owned());
        }
        let mut body = String::new();
        while let Some((length, more)) = rest.split_once("\r\n") {
            let length = usize::from_str_radix(length, 16).ok()?;
            body.push_str(more.get(..length)?);
            rest = more.get(length + 2..)?;
        }
        Some(body)
    }

    /// The sum of all its statistics with a name that ends so.
    fn count(&self, name: &str) -> u64 {
        let page = self.ask("/stats").expect("Envoy answers");
        let values: Vec<u64> = page
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(key, _)| key.ends_with(name))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        values.iter().sum()
    }

    /// RST_STREAM frames received and sent.
    fn resets(&self) -> (u64, u64) {
        (self.count("http2.rx_reset"), self.count("http2.tx_reset"))
    }

    /// Tunnels so far.
    fn tunnels(&self, role: Role) -> u64 {
        match role {
            Role::Serves => self.count("http.hbone.downstream_cx_http2_total"),
            Role::Calls => self.count("cluster.adit.upstream_cx_http2_total"),
        }
    }

    /// CONNECTs so far.
    fn streams(&self, role: Role) -> u64 {
        match role {
            Role::Serves => self.count("http.hbone.downstream_rq_total"),
            Role::Calls => self.count("cluster.adit.upstream_rq_total"),
        }
    }
}

impl Drop for Envoy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Ends tunnels on 15008 and hands what it carries to the application at its loopback.
fn serves(stage: &Stage, tls: &str, streams: u32) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ADMIN}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 0.0.0.0, port_value: 15008}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          {tls}
      filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          drain_timeout: 0.5s
          http2_protocol_options: {{allow_connect: true, {WINDOWS}}}
          common_http_protocol_options: {{max_requests_per_connection: {streams}}}
          upgrade_configs: [{{upgrade_type: CONNECT}}]
          http_filters:
          - name: router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: far
              domains: ['{authority}']
              routes:
              - match: {{connect_matcher: {{}}}}
                route:
                  cluster: application
                  timeout: 0s
                  upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]
  clusters:
  - name: application
    type: STATIC
    load_assignment:
      cluster_name: application
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {APPLICATION}}}}}}}
",
        authority = stage.far.at(APPLICATION),
    )
}

/// Takes connections at its loopback and carries each through a tunnel to `near`.
fn calls(stage: &Stage, tls: &str, streams: u32) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ADMIN}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {ENTRANCE}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: adit
          tunneling_config: {{hostname: '{authority}'}}
  clusters:
  - name: adit
    type: STATIC
    load_assignment:
      cluster_name: adit
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {near}, port_value: 15008}}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{max_requests_per_connection: {streams}}}
        explicit_http_config: {{http2_protocol_options: {{{WINDOWS}}}}}
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        {tls}
",
        authority = stage.near.at(APPLICATION),
        near = stage.near.ipv4(),
    )
}

fn everything(role: Role) {
    let stage = Stage::new();
    let envoy = Envoy::start(&stage, &Manner::honest(&stage, role));
    // Of itself Envoy resets a CONNECT whose server says its FIN first, and loses what is under way; the switch that should
    // change it leaves the connection to the application open instead.
    let server_last = role == Role::Serves;
    let way = stage.way(role, server_last);
    checks::all(&way, || envoy.resets());
    // Streams were carried side by side.
    let (tunnels, streams) = (envoy.tunnels(role), envoy.streams(role));
    assert!(tunnels > 0 && tunnels <= 4, "{tunnels} tunnels");
    assert!(streams >= 40, "{streams} streams");
    assert_eq!(envoy.count("ssl.connection_error"), 0);
    let far = stage.far.identity().as_str();
    let named = |line: &lab::AccessLine| match role {
        Role::Serves => line.dst_identity.as_deref() == Some(far),
        Role::Calls => line.src_identity.as_deref() == Some(far),
    };
    let line = stage.proxy.access_log().wait_for(named, SOON).unwrap();
    assert!(line.bytes_sent.is_some_and(|sent| sent >= 64 << 20), "{line:?}");
}

/// The peer leaves its tunnels every few streams, while all of them live on.
fn leaving(role: Role) {
    let stage = Stage::new();
    let envoy = Envoy::start(&stage, &Manner { streams: 5, ..Manner::honest(&stage, role) });
    // An Envoy that leaves a tunnel closes it when both sides of its last stream are done, without what it has not sent yet.
    let way = stage.way(role, true);
    let pairs: Vec<_> = (0..24).map(|_| way.connect()).collect();
    std::thread::sleep(Duration::from_secs(2));
    for pair in &pairs {
        pair.talks();
    }
    std::thread::scope(|scope| {
        for (seed, pair) in (50..).zip(&pairs) {
            scope.spawn(move || pair.carries(seed, 1 << 20));
        }
    });
    let tunnels = envoy.tunnels(role);
    assert!(tunnels >= 4, "{tunnels} tunnels only");
    assert_eq!(envoy.resets(), (0, 0));
    // Those that it left are closed when they have nothing more to carry.
    let active = match role {
        Role::Serves => "http.hbone.downstream_cx_active",
        Role::Calls => "cluster.adit.upstream_cx_active",
    };
    let deadline = Instant::now() + SOON;
    while envoy.count(active) > 1 {
        assert!(Instant::now() < deadline, "{} of {tunnels} tunnels are still open", envoy.count(active));
        std::thread::sleep(Duration::from_millis(50));
    }
    way.connect().talks();
}

#[test]
fn envoy_ends_tunnels_of_adit() {
    everything(Role::Serves);
}

#[test]
fn envoy_opens_tunnels_to_adit() {
    everything(Role::Calls);
}

#[test]
fn envoy_leaves_the_tunnels_that_adit_opened() {
    leaving(Role::Serves);
}

#[test]
fn envoy_leaves_the_tunnels_that_it_opened() {
    leaving(Role::Calls);
}

#[test]
fn nobody_is_carried_to_an_envoy_with_another_identity_or_by_one_that_expects_another() {
    for role in [Role::Serves, Role::Calls] {
        for wrong_side in ["shows", "expects"] {
            let stage = Stage::new();
            let other = SpiffeId::new("cluster.local", "shop", "other").unwrap();
            let honest = Manner::honest(&stage, role);
            let manner = match wrong_side {
                // As a caller it may be anybody: then the near application knows it by that name.
                "shows" if role == Role::Calls => continue,
                "shows" => Manner { shows: other, ..honest },
                _ => Manner { expects: other, ..honest },
            };
            let envoy = Envoy::start(&stage, &manner);
            let way = stage.way(role, false);
            let client = way.dial();
            let mut byte = [0];
            let end = (&client).read(&mut byte);
            assert!(!matches!(end, Ok(1..)), "{role:?} {wrong_side}: {end:?}");
            if role == Role::Serves {
                assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            }
            assert_eq!(envoy.streams(role), 0, "{role:?}: no stream with the wrong peer");
        }
    }
}
