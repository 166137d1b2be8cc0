use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::telemetry::tests::{Buffer, registry};
use crate::telemetry::{Format, Logs, Readiness, Registry, log_lines_dropped, subscriber};

/// One interface on a real port of loopback, served by a thread of its own until this is dropped.
struct Served {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn serve<F: Future<Output = std::io::Result<std::convert::Infallible>> + Send + 'static>(
    interface: impl FnOnce(std::net::TcpListener) -> F,
) -> Served {
    let listener = bind("127.0.0.1:0".parse().unwrap(), "a test", None).unwrap();
    let addr = listener.local_addr().unwrap();
    let interface = interface(listener);
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                ended = interface => panic!("{ended:?}"),
                _ = stopped => {}
            }
        });
    });
    Served { addr, stop: Some(stop), thread: Some(thread) }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Answered {
    status: u16,
    head: String,
    body: String,
}

impl Served {
    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    fn ask_with(&self, method: &str, path: &str, headers: &str) -> Answered {
        let mut socket = self.connect();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        // Clients such as netcat close their side at once; the answer still comes.
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answered { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let Answered { status, body, .. } = self.ask_with(method, path, "");
        (status, body)
    }
}

#[test]
fn readiness_lists_what_is_pending() {
    let tasks = Readiness::default();
    let (state, dns) = (tasks.task("state manager"), tasks.task("dns proxy"));
    let served = serve(|listener| readiness(listener, tasks.clone()));
    let answer = served.ask_with("GET", "/healthz/ready", "");
    assert_eq!(answer.status, 500);
    assert_eq!(answer.body, "not ready, pending: dns proxy, state manager\n");
    assert!(answer.head.contains("content-type: text/plain"), "{}", answer.head);
    state.done();
    dns.done();
    assert_eq!(served.ask("GET", "/healthz/ready"), (200, "ready\n".into()));
    assert_eq!(served.ask("HEAD", "/healthz/ready"), (405, String::new()));
    assert_eq!(served.ask("POST", "/healthz/ready"), (405, String::new()));
    assert_eq!(served.ask("GET", "/"), (404, String::new()));
}

#[test]
fn metrics_are_served_on_both_paths_and_nowhere_else() {
    let served = serve(|listener| stats(listener, registry()));
    for path in ["/metrics", "/stats/prometheus", "/metrics?x=1"] {
        let (status, body) = served.ask("GET", path);
        assert_eq!(status, 200);
        assert!(body.contains("# TYPE istio_build gauge\n") && body.ends_with("\n# EOF\n"), "{body}");
    }
    assert_eq!(served.ask("POST", "/metrics").0, 200);
    assert_eq!(served.ask("GET", "/healthz/ready"), (404, String::new()));
}

#[test]
fn the_content_type_is_what_the_scraper_accepts() {
    let served = serve(|listener| stats(listener, registry()));
    let content_type = |accept: &str| {
        let head = served.ask_with("GET", "/metrics", accept).head;
        head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap().to_owned()
    };
    let open = "application/openmetrics-text;charset=utf-8;version=1.0.0";
    assert_eq!(content_type(""), "text/plain; charset=utf-8");
    assert_eq!(content_type("Accept: text/plain, */*\r\n"), "text/plain; charset=utf-8");
    assert_eq!(
        content_type("Accept: text/plain;q=0.5, Application/OpenMetrics-Text; version=1.0.0\r\n"),
        open
    );
    assert_eq!(content_type("Accept: text/plain\r\nAccept: application/openmetrics-text\r\n"), open);
}

/// A console whose log goes nowhere; dumps wait until the test sends what they return.
struct Desk {
    served: Served,
    logs: Logs,
    quits: Arc<AtomicUsize>,
    begins: Receiver<()>,
    dumps: Sender<Result<String, String>>,
}

fn desk() -> Desk {
    let (_, logs) =
        subscriber(Format::Plain, "info", Buffer::default(), log_lines_dropped(&registry())).unwrap();
    let quits = Arc::new(AtomicUsize::new(0));
    let ((begin, begins), (dumps, dump)) = (channel(), channel());
    let dump = std::sync::Mutex::new((begin, dump));
    let desk = Console {
        levels: logs.levels(),
        dump: Arc::new(move || {
            let (begin, dump) = &*dump.lock().unwrap();
            begin.send(()).unwrap();
            dump.recv().unwrap()
        }),
        quit: Arc::new({
            let quits = Arc::clone(&quits);
            move || {
                quits.fetch_add(1, Ordering::SeqCst);
            }
        }),
    };
    Desk { served: serve(|listener| console(listener, desk)), logs, quits, begins, dumps }
}

#[test]
fn a_log_level_is_shown_changed_and_reset() {
    let desk = desk();
    let now = |filter: &str| (200, format!("current log level is {filter}\n"));
    for (query, filter) in [
        ("", "info"),
        ("?level=", "info"),
        ("?level=debug", "debug"),
        ("?level=access:debug,adit::outbound%3Dtrace", "debug,access=debug,adit::outbound=trace"),
        ("?level=info&reset", "info"),
        ("?level=warn,access=off", "warn,access=off"),
        ("?reset", "info"),
        ("?reset&level=dns=debug", "info,dns=debug"),
    ] {
        assert_eq!(desk.served.ask("POST", &format!("/logging{query}")), now(filter), "{query}");
    }
    let (status, body) = desk.served.ask("POST", "/logging?level=access=debug,loud");
    assert_eq!(status, 400);
    assert!(body.starts_with("Invalid level provided: access=debug,loud\n\"loud\" is neither"), "{body}");
    assert_eq!(desk.logs.levels().to_string(), "info,dns=debug");
    let (status, body) = desk.served.ask("GET", "/logging?level=debug");
    assert_eq!(status, 405);
    assert!(body.starts_with("usage:"));
    assert_eq!(desk.logs.levels().to_string(), "info,dns=debug");
}

#[test]
fn only_a_post_ends_the_process() {
    let desk = desk();
    assert_eq!(desk.served.ask("GET", "/quitquitquit"), (405, String::new()));
    assert_eq!(desk.quits.load(Ordering::SeqCst), 0);
    assert_eq!(desk.served.ask("POST", "/quitquitquit"), (200, "shutdown now\n".into()));
    assert_eq!(desk.quits.load(Ordering::SeqCst), 1);
}

#[test]
fn the_index_is_html_and_other_paths_are_not_found() {
    let desk = desk();
    let answer = desk.served.ask_with("GET", "/", "");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/html"));
    for path in ["/config_dump", "/logging", "/quitquitquit"] {
        assert!(answer.body.contains(&path[1..]));
    }
    assert_eq!(desk.served.ask("GET", "/metrics"), (404, String::new()));
}

#[test]
fn a_dump_is_json_or_an_error_and_holds_up_nobody() {
    let desk = desk();
    std::thread::scope(|scope| {
        let dump = scope.spawn(|| desk.served.ask_with("GET", "/config_dump", ""));
        desk.begins.recv().unwrap();
        // The dump is being rendered; the same thread answers others.
        assert_eq!(desk.served.ask("POST", "/logging").0, 200);
        desk.dumps.send(Ok("{}".into())).unwrap();
        let answer = dump.join().unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "{}"));
        assert!(answer.head.contains("content-type: application/json"));

        desk.dumps.send(Err("the state is not there".into())).unwrap();
        assert_eq!(desk.served.ask("GET", "/config_dump"), (500, "the state is not there".into()));
    });
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let served = serve(|listener| stats(listener, registry()));
    let mut silent = served.connect();
    silent.write_all(b"GET /metrics HT").unwrap();
    let mut rest = Vec::new();
    // Ends with an error or an end of file, but ends: without a header timeout the read itself would time out.
    if let Err(error) = silent.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_stopped_interface_refuses_connections() {
    let served = serve(|listener| stats(listener, Registry::new("x", 1)));
    let addr = served.addr;
    drop(served);
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_in_use_is_one_clear_sentence() {
    let taken = bind("127.0.0.1:0".parse().unwrap(), "a test", None).unwrap();
    let addr = taken.local_addr().unwrap();
    let error = bind(addr, "metrics", Some("statsPort")).unwrap_err();
    let port = addr.port();
    let expected =
        format!("cannot listen on {addr} for metrics; find who has port {port} (`ss -ltnp`) and stop it");
    assert_eq!(error.to_string(), format!("{expected}, or set another port with statsPort"));
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("Address already in use"));
    assert_eq!(bind(addr, "metrics", None).unwrap_err().to_string(), expected);
}
