//! What the demo prints: a table for people, or one JSON object per line for machines.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::judge::{Judged, Throughput, Wire};
use super::stage::{SERVICE, Stage};
use crate::lab::{Membership, Side};

/// Widths of the table's columns; the last has none. Together with the gaps they fill 118 characters.
const WIDTHS: [usize; 7] = [10, 26, 8, 32, 11, 8, 8];
const HEADINGS: [&str; 8] =
    ["CALLER", "CALLED", "ROUTE", "PROVEN IDENTITIES", "SEEN FROM", "VERDICT", "FIRST", "NEXT"];

/// Prints as it goes and remembers what was not as it had to be.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    colour: bool,
    headed: bool,
    failures: Vec<String>,
}

#[derive(Serialize)]
struct Verdict<'a> {
    as_expected: bool,
    failures: &'a [String],
}

#[derive(Serialize)]
struct Built {
    seconds: f64,
    nodes: Vec<&'static str>,
    pods: Vec<Resident>,
}

#[derive(Serialize)]
struct Resident {
    name: String,
    node: &'static str,
    ipv4: std::net::Ipv4Addr,
    ipv6: std::net::Ipv6Addr,
    in_mesh: bool,
}

impl Report {
    /// For people, or for machines.
    pub(super) fn new(json: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, headed: false, failures: Vec::new() }
    }

    /// A line of text. A reader that has gone away does not end the demo: its exit code still counts.
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end());
        let _ = out.flush();
    }

    /// An object with its kind in front.
    fn object(&self, kind: &str, what: &impl Serialize) {
        #[derive(Serialize)]
        struct Kind<'a, T> {
            kind: &'a str,
            #[serde(flatten)]
            what: &'a T,
        }
        let text = serde_json::to_string(&Kind { kind, what })
            .expect("the report's types have text keys and plain values");
        self.line(&text);
    }

    /// Who lives where.
    pub(super) fn stage(&self, stage: &Stage) {
        if self.json {
            let pods = stage.pods().map(|pod| Resident {
                name: pod.full_name(),
                node: pod.side().name(),
                ipv4: pod.ipv4(),
                ipv6: pod.ipv6(),
                in_mesh: pod.membership() == Membership::Mesh,
            });
            let nodes = Side::BOTH.map(Side::name).into();
            return self
                .object("stage", &Built { seconds: stage.took.as_secs_f64(), nodes, pods: pods.collect() });
        }
        self.line(&format!(
            "A mesh of two nodes, one adit process each, one certificate authority; ready in {:.1} s.",
            stage.took.as_secs_f64()
        ));
        self.line("");
        for side in Side::BOTH {
            for pod in stage.pods().filter(|pod| pod.side() == side && pod.namespace() != "bare") {
                let part = match pod.membership() {
                    Membership::Mesh => pod.identity().as_str(),
                    Membership::Outside => "not in the mesh",
                };
                let (v4, v6) = (pod.ipv4().to_string(), pod.ipv6().to_string());
                self.line(&format!("  {side}  {:<17} {v4:<11} {v6:<11} {part}", pod.full_name()));
            }
        }
        let service = stage.service();
        let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
        self.line(&format!("  service   {}:{SERVICE} at {}", service.host(), addresses.join(" and ")));
        self.line("");
    }

    /// One connection.
    pub(super) fn row(&mut self, number: usize, row: &Judged) {
        let (caller, called) = (short(&row.caller), short(&row.called));
        self.note(&format!("row {number} ({caller} to {called}, {})", row.what), &row.problems);
        if self.json {
            return self.object("row", row);
        }
        if !self.headed {
            self.headed = true;
            self.line(&columns(&HEADINGS.map(str::to_owned)));
        }
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let identities = match (&row.caller_identity, &row.called_identity) {
            (None, None) => "-".to_owned(),
            (caller, called) => format!("{} → {}", workload(caller.as_deref()), workload(called.as_deref())),
        };
        let text = columns(&[
            caller.to_owned(),
            format!("{called}, {}", row.what),
            row.route.to_owned(),
            identities,
            row.seen_from.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            row.verdict.to_owned(),
            time(row.first_ms),
            time(row.next_ms),
        ]);
        let paint = match row.verdict {
            _ if !row.problems.is_empty() => RED,
            "refused" => YELLOW,
            _ => PLAIN,
        };
        self.line(&self.painted(paint, &text));
        if row.verdict == "allowed" {
            if let Some(policy) = &row.policy {
                self.line(&format!("            └ by {policy}"));
            }
        } else {
            let error = row.error.as_deref().unwrap_or("the access log gives no reason");
            let policy = row.policy.as_deref().filter(|policy| !error.contains(policy));
            let policy = policy.map(|policy| format!(" ({policy})")).unwrap_or_default();
            self.line(&format!("            └ {error}{policy}"));
        }
        self.problems(&row.problems);
    }

    /// The eavesdropper.
    pub(super) fn wire(&mut self, wire: &Wire) {
        self.note("the wire", &wire.problems);
        if self.json {
            return self.object("wire", wire);
        }
        let bytes = wire.bytes / 1024;
        self.line(&format!(
            "\nOn the wire between the nodes: {} frames, {bytes} KiB, {} TCP connections, {} of them tunnels.",
            wire.packets, wire.connections, wire.tunnels
        ));
        self.line(&format!(
            "  text of the mesh seen in the clear   {:>3} times (0 wanted, {} frames lost)\n  \
               text sent outside the mesh           {:>3} times (the control: it must be found)",
            wire.secret_seen, wire.lost, wire.control_seen
        ));
        self.problems(&wire.problems);
    }

    /// How fast.
    pub(super) fn throughput(&mut self, it: &Throughput) {
        self.note("throughput", &it.problems);
        if self.json {
            return self.object("throughput", it);
        }
        let speed = |gbits: Option<f64>| gbits.map_or_else(|| "-".to_owned(), |it| format!("{it:.1} Gbit/s"));
        self.line(&format!(
            "\nOne connection, as fast as it goes, congestion control {}:\n  \
               storefront → payments, encrypted     {}\n  \
               the same wire without a mesh         {}",
            it.congestion,
            speed(it.mesh_gbits),
            speed(it.bare_gbits)
        ));
        self.problems(&it.problems);
    }

    /// The last word. True when everything was as it had to be.
    pub(super) fn verdict(&self) -> bool {
        let as_expected = self.failures.is_empty();
        if self.json {
            self.object("result", &Verdict { as_expected, failures: &self.failures });
        } else if as_expected {
            self.line(&self.painted(GREEN, "\nEverything was as it had to be."));
        } else {
            self.line(&self.painted(RED, "\nNot as it had to be:"));
            for failure in &self.failures {
                self.line(&format!("  {failure}"));
            }
        }
        as_expected
    }

    /// How to look around in what keeps running.
    pub(super) fn kept(&self, stage: &Stage) {
        let payments = stage.service().addresses.first().map(ToString::to_string).unwrap_or_default();
        let text = format!(
            "\nThe mesh keeps running; Ctrl-C ends it. In another terminal, as the same user:\n\n  \
               adit demo exec storefront -- curl -s http://{payments}\n  \
               adit demo exec node-one -- curl -s localhost:15020/metrics       numbers\n  \
               adit demo exec node-one -- curl -s localhost:15000/config_dump   what the proxy knows\n  \
               adit demo exec node-two -- curl -s localhost:15021/healthz/ready readiness\n  \
               adit demo exec wire -- tcpdump -ni any port 15008                the tunnels\n\n\
             Names: {}, node-one, node-two, wire.",
            stage.pods().map(|pod| pod.name().to_owned()).collect::<Vec<_>>().join(", ")
        );
        if self.json {
            // Machines read stdout to the last line; this is for whoever started them.
            eprintln!("{text}");
        } else {
            self.line(&text);
        }
    }

    fn note(&mut self, what: &str, problems: &[String]) {
        self.failures.extend(problems.iter().map(|problem| format!("{what}: {problem}")));
    }

    fn problems(&self, problems: &[String]) {
        for problem in problems {
            self.line(&self.painted(RED, &format!("           ! {problem}")));
        }
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colour && !colour.is_empty() { format!("{colour}{text}\x1b[0m") } else { text.to_owned() }
    }
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "";

/// Cells under their headings. A cell that is too wide pushes the rest instead of being cut.
pub(super) fn columns(cells: &[String; 8]) -> String {
    let mut line = String::new();
    for (index, cell) in cells.iter().enumerate() {
        line.push_str(cell);
        if let Some(width) = WIDTHS.get(index) {
            let gap = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', gap));
        }
    }
    line.trim_end().to_owned()
}

/// The name without its namespace.
fn short(full: &str) -> &str {
    full.rsplit('/').next().unwrap_or(full)
}

/// `namespace/service account` of an identity, which is what differs inside one mesh.
pub(super) fn workload(identity: Option<&str>) -> String {
    let Some(identity) = identity else { return "?".to_owned() };
    match identity.split_once("/ns/").and_then(|(_, rest)| rest.split_once("/sa/")) {
        Some((namespace, account)) => format!("{namespace}/{account}"),
        None => identity.to_owned(),
    }
}
