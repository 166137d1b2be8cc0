use std::fmt;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tracing::{debug, error, info, info_span, trace, warn};

use super::*;
use crate::telemetry::log_lines_dropped;
use crate::telemetry::tests::{Buffer, logged, registry};

/// The lines without their first column, which is checked to be a time in UTC with microseconds.
fn timeless(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| {
            let (time, rest) = line.split_once('\t').unwrap();
            let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
            rest
        })
        .collect()
}

#[test]
fn a_line_is_time_level_scope_message_fields() {
    let text = logged(Format::Plain, "trace", |_| {
        info!("a message alone");
        warn!(target: "dns", n = 7, big = -1_i64, yes = true, part = 0.5, "fields");
        error!(name = "a \"quoted\" \\ word", addr = %"10.0.0.1:80", list = ?["x"], "forms");
        debug!(absent = None::<&str>, present = Some(1), "optional");
        trace!(only = "fields");
    });
    let lines = [
        "info\ttelemetry::logging::tests\ta message alone\t",
        "warn\tdns\tfields\tn=7 big=-1 yes=true part=0.5",
        r#"error	telemetry::logging::tests	forms	name="a \"quoted\" \\ word" addr=10.0.0.1:80 list=["x"]"#,
        "debug\ttelemetry::logging::tests\toptional\tpresent=1",
        "trace\ttelemetry::logging::tests\t\tonly=\"fields\"",
    ];
    assert_eq!(timeless(&text), lines);
}

#[test]
fn spans_stand_behind_the_scope_from_the_outermost() {
    let text = logged(Format::Plain, "info", |_| {
        let outer = info_span!("proxy", wl = %"shop/cart-0");
        let _outer = outer.enter();
        let inner = info_span!("inbound", id = %"4bf9", peer = tracing::field::Empty);
        inner.record("peer", tracing::field::display("10.0.0.1:4"));
        let _inner = inner.enter();
        info!(target: "adit::inbound", n = 1, "inside");
        info!(target: "access", parent: None, "apart");
        let _bare = info_span!("bare").entered();
        info!(target: "adit::inbound", "deeper");
    });
    let lines = [
        "info\tinbound:proxy{wl=shop/cart-0}:inbound{id=4bf9 peer=10.0.0.1:4}\tinside\tn=1",
        "info\taccess\tapart\t",
        "info\tinbound:proxy{wl=shop/cart-0}:inbound{id=4bf9 peer=10.0.0.1:4}:bare\tdeeper\t",
    ];
    assert_eq!(timeless(&text), lines);
}

#[test]
fn json_is_one_object_with_keys_in_order() {
    let text = logged(Format::Json, "info", |_| {
        let _span = info_span!("xds", id = 3, url = "a\"b").entered();
        tracing::event!(target: "access", tracing::Level::INFO, src.addr = %"10.0.0.1:4", name = "a\tb", n = 7, part = f64::NAN, "some {}", "message");
        info!(target: "adit::outbound", parent: None, "bare");
    });
    let shapes: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
            let (head, rest) = line.split_once(r#""time":""#).unwrap();
            let (time, rest) = rest.split_once('"').unwrap();
            assert_eq!(time.len(), "2026-08-20T13:45:53.123456Z".len());
            format!("{head}{rest}")
        })
        .collect();
    let lines = [
        concat!(
            r#"{"level":"info",,"scope":"access","message":"some message","src.addr":"10.0.0.1:4","#,
            r#""name":"a\tb","n":7,"part":"NaN","xds":{"id":3,"url":"a\"b"}}"#
        ),
        r#"{"level":"info",,"scope":"adit::outbound","message":"bare"}"#,
    ];
    assert_eq!(shapes, lines);
}

#[derive(Debug, thiserror::Error)]
#[error("dialling 10.0.0.1:80")]
struct Dial(#[source] io::Error);

#[test]
fn an_error_is_written_with_its_causes() {
    let text = logged(Format::Plain, "info", |_| {
        let error = Dial(io::Error::other("no route"));
        info!(error = &error as &dyn std::error::Error, "failed");
    });
    assert_eq!(
        timeless(&text),
        ["info\ttelemetry::logging::tests\tfailed\terror=\"dialling 10.0.0.1:80: no route\""]
    );
}

#[test]
fn text_from_outside_cannot_begin_a_line_or_a_column() {
    struct Nasty;
    impl fmt::Display for Nasty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a\n2026\tinfo\x1b[0m")
        }
    }
    let log = |_: &Logs| info!(bare = %Nasty, quoted = "a\n\tb\x1b", "message {}", Nasty);
    let plain = logged(Format::Plain, "info", log);
    let escaped = r"a\n2026\tinfo\u{1b}[0m";
    let line = format!(
        "info\ttelemetry::logging::tests\tmessage {escaped}\tbare={escaped} quoted=\"a\\n\\tb\\u{{1b}}\""
    );
    assert_eq!(timeless(&plain), [line]);
    assert_eq!(logged(Format::Json, "info", log).lines().count(), 1);
}

#[test]
fn the_longest_target_decides() {
    let text = logged(
        Format::Plain,
        "warn,access=off,adit::proxy=info,proxy::pool:trace,proxy::pool::x=error",
        |_| {
            info!(target: "other", "no");
            warn!(target: "other", "yes 1");
            error!(target: "access", "no");
            info!(target: "adit::proxy", "yes 2");
            debug!(target: "adit::proxy", "no");
            trace!(target: "adit::proxy::pool", "yes 3");
            warn!(target: "adit::proxy::pool::x", "no");
            trace!(target: "adit::proxy::pools", "no");
        },
    );
    let messages: Vec<&str> = text.lines().map(|line| line.split('\t').nth(3).unwrap()).collect();
    assert_eq!(messages, ["yes 1", "yes 2", "yes 3"]);
}

#[test]
fn levels_change_while_running() {
    let text = logged(Format::Plain, "access=debug", |logs| {
        let say = |word: &str| debug!(target: "adit::outbound", "{word}");
        let levels = logs.levels();
        assert_eq!(levels.to_string(), "info,access=debug");
        say("before");
        levels.set("outbound:debug,warn").unwrap();
        assert_eq!(levels.to_string(), "warn,access=debug,outbound=debug");
        say("wanted");
        levels.set("outbound=nonsense").unwrap_err();
        levels.set("off,outbound=").unwrap_err();
        assert_eq!(levels.to_string(), "warn,access=debug,outbound=debug");
        levels.reset("error").unwrap();
        assert_eq!(levels.to_string(), "error,access=debug");
        say("after");
        levels.reset("").unwrap();
        assert_eq!(levels.to_string(), "info,access=debug");
    });
    assert_eq!(timeless(&text), ["debug\toutbound\twanted\t"]);
}

#[test]
fn a_filter_that_is_not_understood_says_which_part() {
    for (filter, part) in [
        ("info,debgu", "debgu"),
        ("access=loud", "access=loud"),
        ("a::b", "a::b"),
        ("=info", "=info"),
        ("access:", "access:"),
        ("a=b=info", "a=b=info"),
        ("[span]=info", "[span]=info"),
    ] {
        let dropped = log_lines_dropped(&registry());
        let error = subscriber(Format::Plain, filter, io::sink(), dropped).err().unwrap();
        assert_eq!(error.to_string(), "RUST_LOG is not understood");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with(&format!("{part:?} is neither a level")), "{cause}");
    }
}

/// An output whose reader has stopped: each write says that it began, and waits to be let go.
struct Stalled {
    began: Sender<()>,
    go: Receiver<()>,
    output: Buffer,
}

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.began.send(()).map_err(io::Error::other)?;
        // Once the test lets go of its end, nothing waits any more.
        let _ = self.go.recv();
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stalled_reader_loses_lines_that_are_counted_and_stops_nobody() {
    let ((began, begins), (release, go)) = (channel(), channel::<()>());
    let output = Buffer::default();
    let dropped = log_lines_dropped(&registry());
    let stalled = Stalled { began, go, output: output.clone() };
    let (subscriber, logs) = subscriber(Format::Plain, "info", stalled, dropped.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        info!(n = 0);
        // The writer has taken the first line and is stuck; the queue is empty.
        begins.recv().unwrap();
        (1..=10_005).for_each(|n| info!(n));
    });
    assert_eq!(dropped.value(), 5);
    assert!(!logs.flush(Duration::from_millis(10)));
    drop(release);
    assert!(logs.flush(Duration::from_secs(60)));
    let text = output.text();
    let numbers = text.lines().map(|line| line.rsplit_once('=').unwrap().1.parse::<u32>().unwrap());
    assert!(numbers.eq(0..=10_000));
}

/// An output that fails for good.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_the_output_refuses_are_counted() {
    let dropped = log_lines_dropped(&registry());
    let (subscriber, logs) = subscriber(Format::Plain, "info", Gone, dropped.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || (0..200).for_each(|n| info!(n)));
    assert!(logs.flush(Duration::from_secs(30)));
    assert_eq!(dropped.value(), 200);
}

#[test]
fn dropping_the_log_writes_what_is_left() {
    let output = Buffer::default();
    let (subscriber, logs) =
        subscriber(Format::Plain, "info", output.clone(), log_lines_dropped(&registry())).unwrap();
    tracing::subscriber::with_default(subscriber, || (0..500).for_each(|n| info!(n)));
    drop(logs);
    assert_eq!(output.text().lines().count(), 500);
}
