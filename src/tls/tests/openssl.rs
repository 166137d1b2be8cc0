//! Against OpenSSL's own client and server, as processes over loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::support::*;
use crate::tls::*;

const SOON: Duration = Duration::from_secs(30);

/// One `openssl s_client` or `s_server`; ended with its owner.
struct OpenSsl {
    child: Child,
    /// A letter of its own in front of a line is a command; digits are data.
    stdin: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
    complained: Arc<Mutex<Vec<u8>>>,
    _files: TempDir,
}

impl OpenSsl {
    fn start(program: &str, leaf: &Leaf, suite: Suite, more: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (cert, key, root) = (
            file("cert.pem", &leaf.pem),
            file("key.pem", &leaf.key.serialize_pem()),
            file("root.pem", &PKI.root_pem),
        );
        let suite = match suite {
            Suite::Aes128 => "TLS_AES_128_GCM_SHA256",
            Suite::Aes256 => "TLS_AES_256_GCM_SHA384",
        };
        let paths: [(&str, &Path); 3] = [("-cert", &cert), ("-key", &key), ("-CAfile", &root)];
        let mut command = Command::new("openssl");
        command.args([program, "-tls1_3", "-alpn", "h2", "-verify_return_error", "-ciphersuites", suite]);
        for (flag, path) in paths {
            command.arg(flag).arg(path);
        }
        let mut child = command
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed; tools/setup.sh test installs it");
        let said = collect(child.stdout.take().unwrap());
        let complained = collect(child.stderr.take().unwrap());
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, said, complained, _files: files }
    }

    /// What it printed, without its remarks about sockets that have nothing for it.
    fn said(&self) -> String {
        let text = String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned();
        text.replace("read R BLOCK\n", "").replace("Read BLOCK\n", "")
    }

    fn wait_for(&self, what: &str) -> String {
        let until = Instant::now() + SOON;
        loop {
            let said = self.said();
            if said.contains(what) {
                return said;
            }
            let complaints = String::from_utf8_lossy(&self.complained.lock().unwrap()).into_owned();
            assert!(Instant::now() < until, "openssl never said {what:.80}, but {said:.2000}\n{complaints}");
            sleep(Duration::from_millis(5));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }
}

/// Reads `from` to its end, on a thread of its own.
fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
    });
    all
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our end of the connection.
struct Wire {
    tcp: TcpStream,
    sealer: Sealer,
    inbox: Inbox,
    news: News,
}

impl Wire {
    fn establish(mut tcp: TcpStream, mut handshake: Handshake) -> Self {
        tcp.set_read_timeout(Some(SOON)).unwrap();
        let mut send = Vec::new();
        handshake.start(&mut send).unwrap();
        let mut buffer = [0; 1 << 14];
        loop {
            tcp.write_all(&send).unwrap();
            send.clear();
            if handshake.is_done() {
                break;
            }
            let n = tcp.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "{}", handshake.eof());
            handshake.receive(&buffer[..n], &mut send).unwrap();
        }
        let done = handshake.finish().unwrap();
        assert_eq!(done.alpn.as_deref(), Some(&b"h2"[..]));
        Self {
            tcp,
            sealer: done.sealer,
            inbox: Inbox::new(done.opener, done.received),
            news: News::default(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).unwrap();
    }

    /// Answers what is asked for at once, since OpenSSL's next line waits for it.
    fn receive(&mut self, done: impl Fn(&News) -> bool) {
        let mut buffer = [0; 1 << 14];
        self.inbox.receive(&[], &mut self.news).unwrap();
        while !done(&self.news) {
            let n = self.tcp.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "{:?}", self.inbox.opener.eof(self.inbox.bytes.len()));
            self.inbox.receive(&buffer[..n], &mut self.news).unwrap();
        }
        if self.news.answers > 0 {
            self.news.answers = 0;
            self.sealer.owe_key_update();
            let answer = self.sealer.seal_key_update(PeerKeys::Stay).unwrap();
            self.send(&answer);
        }
    }
}

/// Another text for each length, none of which contains another: what is waited for must not have been said before.
fn digits(length: usize) -> String {
    pattern(2 * length)[length..].iter().map(|byte| char::from(b'0' + byte % 10)).collect()
}

fn pair(role: Role, suite: Suite, more: &[&str]) -> (OpenSsl, Wire) {
    match role {
        Role::Client => {
            let args = [&["-accept", "127.0.0.1:0", "-naccept", "1", "-Verify", "2"], more].concat();
            let openssl = OpenSsl::start("s_server", &PKI.cart, suite, &args);
            let said = openssl.wait_for("ACCEPT 127.0.0.1:");
            let port = said.split("ACCEPT 127.0.0.1:").nth(1).unwrap();
            let port: u16 = port.lines().next().unwrap().trim().parse().unwrap();
            let tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let handshake = Handshake::client(&client_config(suite), cart()).unwrap();
            (openssl, Wire::establish(tcp, handshake))
        }
        Role::Server => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let args = [&["-connect", &address, "-servername", "cart.test", "-verify", "2"], more].concat();
            let openssl = OpenSsl::start("s_client", &PKI.web, suite, &args);
            let (tcp, _) = listener.accept().unwrap();
            let handshake = Handshake::server(&server_config(suite)).unwrap();
            (openssl, Wire::establish(tcp, handshake))
        }
    }
}

/// The whole life of a connection: data, KeyUpdates from each end with and without a request, data under each key,
/// and OpenSSL's end.
fn life(role: Role, suite: Suite, more: &[&str]) {
    let (mut openssl, mut wire) = pair(role, suite, more);
    let exchange = |openssl: &mut OpenSsl, wire: &mut Wire, size: usize| {
        let data = digits(size);
        let sealed = seal(&mut wire.sealer, data.as_bytes(), 4);
        wire.send(&sealed);
        openssl.wait_for(&data);
        openssl.said.lock().unwrap().clear();
        openssl.type_in(&data);
        wire.receive(|news| news.data.len() >= size);
        assert!(std::mem::take(&mut wire.news.data) == data.as_bytes());
    };
    exchange(&mut openssl, &mut wire, 17);
    exchange(&mut openssl, &mut wire, 100_003);

    openssl.type_in("k\n");
    wire.receive(|news| news.keys_changed == 1);
    exchange(&mut openssl, &mut wire, 1001);

    openssl.type_in("K\n");
    wire.receive(|news| news.keys_changed == 2);
    assert_eq!(wire.sealer.sequence(), 0, "answered");
    exchange(&mut openssl, &mut wire, 1002);

    let update = wire.sealer.seal_key_update(PeerKeys::Stay).unwrap();
    wire.send(&update);
    exchange(&mut openssl, &mut wire, 1003);
    assert_eq!(wire.news.keys_changed, 2);

    let update = wire.sealer.seal_key_update(PeerKeys::Change).unwrap();
    wire.send(&update);
    exchange(&mut openssl, &mut wire, 1004);
    assert_eq!(wire.news.keys_changed, 3, "its answer came before its data");

    openssl.type_in("Q\n");
    match role {
        Role::Server => {
            wire.receive(|news| news.closed);
            assert_eq!(wire.inbox.opener.eof(0), Ok(()));
        }
        Role::Client => {
            // s_server closes its socket first, so its close_notify goes nowhere.
            assert_eq!(wire.tcp.read(&mut [0; 100]).unwrap(), 0);
            let end = wire.inbox.opener.eof(wire.inbox.bytes.len());
            assert!(matches!(end, Err(OpenError::Truncated { at: At { key: 3, .. }, rest: 0 })), "{end:?}");
        }
    }
}

#[test]
fn a_connection_lives_as_client_and_as_server_of_openssl_with_each_suite() {
    for suite in Suite::ALL {
        life(Role::Client, suite, &[]);
        life(Role::Server, suite, &[]);
    }
}

#[test]
fn openssls_padding_is_stripped() {
    for role in [Role::Client, Role::Server] {
        life(role, Suite::Aes256, &["-record_padding", "1024"]);
    }
}

#[test]
fn openssls_tickets_are_passed_over_also_split_over_small_records() {
    life(Role::Client, Suite::Aes128, &["-num_tickets", "7"]);
    life(Role::Client, Suite::Aes128, &["-num_tickets", "7", "-max_send_frag", "512"]);
    life(Role::Server, Suite::Aes128, &["-max_send_frag", "512"]);
}

#[test]
fn openssl_takes_our_close_notify_for_an_end() {
    for role in [Role::Client, Role::Server] {
        let (mut openssl, mut wire) = pair(role, Suite::Aes128, &[]);
        let last = seal(&mut wire.sealer, b"0123 last words", 1);
        wire.send(&last);
        openssl.wait_for("last words");
        let end = wire.sealer.seal_close_notify().unwrap();
        wire.send(&end);
        // It ends by itself, and what it says of the end is no error.
        let until = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = openssl.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "openssl goes on");
            sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", openssl.said());
        wire.receive(|news| news.closed);
    }
}
