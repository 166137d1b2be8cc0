//! Plays a row and compares what happened with what had to: by the applications, the access logs, the wire.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rows::{By, End, Reason, Route, Row};
use super::stage::{SINK, Stage};
use crate::lab::{self, AccessLine, Membership, Pod, Position, WireReport};

/// How long one step of a connection may take.
const STEP: Duration = Duration::from_secs(4);
/// How long an access log line may take after its connection ended.
const LINE: Duration = Duration::from_secs(2);
/// How long nothing must be heard of a connection that must not be captured.
const SILENCE: Duration = Duration::from_millis(150);
/// Connections after the first of a row: they show what an open tunnel costs.
const AGAIN: usize = 3;

/// What became of one row.
#[derive(Debug, Serialize)]
pub(super) struct Judged {
    /// Who dialled.
    pub(super) caller: String,
    /// Whom.
    pub(super) called: String,
    /// What is special about it.
    pub(super) what: &'static str,
    /// The address that was dialled.
    pub(super) dialled: SocketAddr,
    /// How it was carried, according to the access logs.
    pub(super) route: &'static str,
    /// Identity the caller proved, as the called pod's proxy logged it.
    pub(super) caller_identity: Option<String>,
    /// Identity the called pod proved, as the caller's proxy logged it; not for refused callers.
    pub(super) called_identity: Option<String>,
    /// The address the application saw the connection come from.
    pub(super) seen_from: Option<IpAddr>,
    /// `allowed`, `refused` or `failed`.
    pub(super) verdict: &'static str,
    /// The policy that decided, from the access log of the called pod's node.
    pub(super) policy: Option<String>,
    /// The error of that line.
    pub(super) error: Option<String>,
    /// From dialling to the answer, the first time, in milliseconds.
    pub(super) first_ms: Option<f64>,
    /// The same, the best of the next three.
    pub(super) next_ms: Option<f64>,
    /// What is not as it had to be. Empty is good.
    pub(super) problems: Vec<String>,
}

/// One connection as its client knows it.
pub(super) struct Call {
    pub(super) local: Option<SocketAddr>,
    pub(super) seen: io::Result<SocketAddr>,
    pub(super) took: Duration,
}

/// Plays `row` and judges it.
pub(super) fn play(stage: &Stage, row: &Row) -> Judged {
    let (caller, called) = (stage.pod(row.caller), stage.pod(row.called));
    let dialled = address(stage, row);
    let server = stage.server(row.called, row.by.port());
    let visits = || server.map(|it| it.seen().len());
    let (visits_before, from) = (visits(), positions(stage, row));
    let mut problems = Vec::new();

    let first = call(stage, row, dialled);
    let mut calls = 1;
    let mut next_ms: Option<f64> = None;
    if first.seen.is_ok() {
        for _ in 0..AGAIN {
            let again = call(stage, row, dialled);
            calls += 1;
            match &again.seen {
                Ok(_) => next_ms = Some(next_ms.unwrap_or(f64::MAX).min(ms(again.took))),
                Err(cause) => problems.push(format!("a later connection failed: {cause}")),
            }
        }
    }
    let lines = Lines::gather(stage, row, &first, from, calls, &mut problems);

    let seen_from = first.seen.as_ref().ok().map(SocketAddr::ip);
    let verdict = match (&first.seen, &lines.inbound) {
        (Ok(_), _) => "allowed",
        (Err(_), Some(line)) if line.error.is_some() => "refused",
        (Err(_), _) => "failed",
    };
    let judged = Judged {
        caller: caller.full_name(),
        called: called.full_name(),
        what: row.what,
        dialled,
        route: lines.route().name(),
        caller_identity: lines.inbound.as_ref().and_then(|it| it.src_identity.clone()),
        called_identity: lines.outbound.as_ref().and_then(|it| it.dst_identity.clone()),
        seen_from,
        verdict,
        policy: lines.inbound.as_ref().and_then(|it| it.policy.clone()),
        error: lines.inbound.as_ref().and_then(|it| it.error.clone()),
        first_ms: first.seen.is_ok().then(|| ms(first.took)),
        next_ms,
        problems,
    };
    expect(row, caller, called, &first, visits_before == visits(), judged)
}

/// Adds what is not as `row` demands.
pub(super) fn expect(
    row: &Row,
    caller: &Pod,
    called: &Pod,
    first: &Call,
    application_untouched: bool,
    mut judged: Judged,
) -> Judged {
    let mut wrong = |what: String| judged.problems.push(what);
    if judged.route != row.route.name() {
        wrong(format!("it went by {} instead of {}", judged.route, row.route.name()));
    }
    match row.end {
        End::Answered => match &first.seen {
            Ok(seen) if seen.ip() != caller.ip_like(judged.dialled.ip()) => {
                wrong(format!("the application saw {} instead of its client", seen.ip()));
            }
            Ok(_) => {}
            Err(cause) => wrong(format!("no answer came: {cause}")),
        },
        End::Refused(reason) => {
            if first.seen.is_ok() {
                wrong("it was answered and had to be refused".to_owned());
            }
            if !application_untouched {
                wrong("the application was reached before the refusal".to_owned());
            }
            let policy = judged.policy.as_deref().unwrap_or_default();
            let error = judged.error.as_deref().unwrap_or_default();
            let (told, wanted) = match reason {
                Reason::Denied(name) => (policy.ends_with(name) && error.contains(name), name),
                Reason::NotAllowed(name) => (policy.ends_with(name) && error.contains("none allowed"), name),
            };
            if !told {
                wrong(format!("the access log gives another reason than {wanted}"));
            }
        }
    }
    let tunnelled = row.route == Route::Hbone;
    let answered = row.end == End::Answered;
    let proven = |pod: &Pod, wanted: bool| wanted.then(|| pod.identity().as_str().to_owned());
    let wanted = proven(caller, tunnelled);
    if judged.caller_identity != wanted {
        wrong(format!("the caller proved {:?} instead of {wanted:?}", judged.caller_identity));
    }
    let wanted = proven(called, tunnelled);
    // A refused caller's own line may end before it can name the other side.
    if answered && judged.called_identity != wanted {
        wrong(format!("the called proved {:?} instead of {wanted:?}", judged.called_identity));
    }
    judged
}

fn address(stage: &Stage, row: &Row) -> SocketAddr {
    let called = stage.pod(row.called);
    let port = row.by.dialled();
    match row.by {
        By::Pod | By::Greeting => called.at(port),
        By::PodV6 => called.at_v6(port),
        By::Service => {
            let v4 = stage.service().addresses.iter().find(|ip| ip.is_ipv4());
            SocketAddr::new(*v4.expect("the demo's service has an IPv4 address"), port)
        }
    }
}

fn call(stage: &Stage, row: &Row, dialled: SocketAddr) -> Call {
    let text = if row.route == Route::Plain { &stage.aloud } else { &stage.secret };
    let start = Instant::now();
    let mut local = None;
    let mut talk = || {
        let stream: TcpStream = lab::dial(stage.pod(row.caller).netns(), dialled, STEP)?;
        local = Some(stream.local_addr()?);
        match row.by {
            By::Greeting => lab::hear(&stream, text),
            By::Pod | By::PodV6 | By::Service => lab::ask(&stream, text),
        }
    };
    let seen = talk();
    Call { local, seen, took: start.elapsed() }
}

/// Where the logs of the caller's and the called pod's node end now.
fn positions(stage: &Stage, row: &Row) -> (Position, Position) {
    let end = |pod: &Pod| stage.proxy(pod.side()).log().position();
    (end(stage.pod(row.caller)), end(stage.pod(row.called)))
}

/// What the proxies told about the first connection of a row.
#[derive(Default)]
struct Lines {
    outbound: Option<AccessLine>,
    inbound: Option<AccessLine>,
}

impl Lines {
    /// Waits for one line per connection and direction that must have one, so that none of them is taken for
    /// another row's; a missing line is a problem.
    fn gather(
        stage: &Stage,
        row: &Row,
        first: &Call,
        from: (Position, Position),
        calls: usize,
        problems: &mut Vec<String>,
    ) -> Self {
        let (caller, called) = (stage.pod(row.caller), stage.pod(row.called));
        let mut lines = Self::default();
        if row.route == Route::SamePod {
            std::thread::sleep(SILENCE);
            let log = stage.proxy(caller.side()).access_log().since(from.0);
            if let Some(line) = log.iter().find(|line| first.is_source_of(line)) {
                problems.push(format!("it was captured as {} traffic", line.direction));
                lines.outbound = Some(line.clone());
            }
            return lines;
        }
        if caller.membership() == Membership::Mesh {
            let log = stage.proxy(caller.side()).access_log();
            let from_caller = |line: &AccessLine| {
                line.direction == "outbound"
                    && ip_of(line.src_addr.as_deref()).is_some_and(|ip| is_of(caller, ip))
            };
            let ends = log.wait_for_count(from.0, calls, from_caller, LINE);
            lines.outbound = ends.iter().find(|line| first.is_source_of(line)).cloned();
            if ends.len() < calls || lines.outbound.is_none() {
                problems.push(format!("{} of {calls} lines in the caller's access log", ends.len()));
            }
        }
        if called.membership() == Membership::Mesh {
            let log = stage.proxy(called.side()).access_log();
            let to_called = |line: &AccessLine| {
                line.direction == "inbound"
                    && ip_of(line.dst_addr.as_deref()).is_some_and(|ip| is_of(called, ip))
                    && ip_of(line.src_addr.as_deref()).is_some_and(|ip| is_of(caller, ip))
            };
            let ends = log.wait_for_count(from.1, calls, to_called, LINE);
            if ends.len() < calls {
                problems.push(format!("{} of {calls} lines in the called pod's access log", ends.len()));
            }
            lines.inbound = ends.into_iter().next();
        }
        lines
    }

    fn route(&self) -> Route {
        let all = [&self.outbound, &self.inbound];
        if all.iter().all(|line| line.is_none()) {
            Route::SamePod
        } else if all
            .into_iter()
            .flatten()
            .any(|line| line.dst_hbone_addr.is_some() || line.src_identity.is_some())
        {
            Route::Hbone
        } else {
            Route::Plain
        }
    }
}

impl Call {
    fn is_source_of(&self, line: &AccessLine) -> bool {
        let logged = line.src_addr.as_deref().and_then(|it| it.parse::<SocketAddr>().ok());
        logged.is_some() && logged == self.local
    }
}

fn ip_of(addr: Option<&str>) -> Option<IpAddr> {
    addr?.parse::<SocketAddr>().ok().map(|it| it.ip())
}

fn is_of(pod: &Pod, ip: IpAddr) -> bool {
    ip == pod.ip_like(ip)
}

/// What an eavesdropper heard, judged.
#[derive(Debug, Serialize)]
pub(super) struct Wire {
    /// Frames between the nodes.
    pub(super) packets: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// TCP connections to port 15008.
    pub(super) tunnels: usize,
    /// TCP connections to any port.
    pub(super) connections: usize,
    /// How often the text said only inside the mesh was seen.
    pub(super) secret_seen: u64,
    /// How often the text said outside it was seen, which shows that the search works.
    pub(super) control_seen: u64,
    /// Frames the capture lost.
    pub(super) lost: u64,
    /// What is not as it had to be.
    pub(super) problems: Vec<String>,
}

/// Judges the capture of all rows.
///
/// `secret` was said only inside the mesh, `aloud` only outside it.
pub(super) fn wire(secret: &str, aloud: &str, report: &WireReport) -> Wire {
    let times =
        |secret: &str| report.findings.iter().filter(|it| it.secret == secret).map(|it| it.times).sum();
    let (secret_seen, control_seen) = (times(secret), times(aloud));
    let mut problems = Vec::new();
    if secret_seen > 0 {
        problems.push("text of the mesh was on the wire in the clear".to_owned());
    }
    if control_seen == 0 {
        problems.push(
            "the search did not find the text that was sent in the clear, so it proves nothing".to_owned(),
        );
    }
    if report.lost > 0 {
        problems.push(format!("{} frames were lost to the capture, so it proves nothing", report.lost));
    }
    if report.tunnels == 0 {
        problems.push("no tunnel was opened between the nodes".to_owned());
    }
    Wire {
        packets: report.packets,
        bytes: report.bytes,
        tunnels: report.tunnels,
        connections: report.connections,
        secret_seen,
        control_seen,
        lost: report.lost,
        problems,
    }
}

/// Bytes per second through one connection, with and without the mesh.
#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    /// Storefront to payments, in Gbit/s.
    pub(super) mesh_gbits: Option<f64>,
    /// Between two pods without rules on the same nodes and wire.
    pub(super) bare_gbits: Option<f64>,
    /// The namespaces' congestion control.
    pub(super) congestion: String,
    /// What is not as it had to be. A speed never is.
    pub(super) problems: Vec<String>,
}

/// Pours for `during` through each.
pub(super) fn throughput(stage: &Stage, during: Duration) -> Throughput {
    use super::rows::Who::{Payments, Storefront};
    let mut problems = Vec::new();
    let [bare_one, bare_two] = stage.bare();
    let mut pour = |what: &str, from: &Pod, to: &Pod| {
        let poured = lab::dial(from.netns(), to.at(SINK), STEP).and_then(|stream| lab::pour(&stream, during));
        match poured {
            // Far below 2^53, so the conversion is exact.
            Ok((bytes, took)) => Some(bytes as f64 * 8.0 / took.as_secs_f64() / 1e9),
            Err(cause) => {
                problems.push(format!("pouring {what}: {cause}"));
                None
            }
        }
    };
    let mesh_gbits = pour("through the mesh", stage.pod(Storefront), stage.pod(Payments));
    let bare_gbits = pour("between the bare pods", bare_one, bare_two);
    Throughput { mesh_gbits, bare_gbits, congestion: stage.world().congestion().to_owned(), problems }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
