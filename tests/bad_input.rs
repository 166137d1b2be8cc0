//! What somebody gets wrong, and what adit says to it: one exit code, one message with the place and the remedy,
//! and nothing left half done.
//!
//! The real binary, in network namespaces of its own; needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails right there")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use adit::lab::{Agent, Answer, Launch, Membership, MeshFile, Position, Side, World, dial, listen_for};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::killpg;
use nix::unistd::Pid;

/// How long a start that must fail may take.
const FAILS_WITHIN: Duration = Duration::from_secs(20);
/// What may take a moment on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const ADIT: &str = env!("CARGO_BIN_EXE_adit");
/// Somebody without any right.
const NOBODY: u32 = 65_534;

const MESH: &str = "\
workloads:
- uid: Kubernetes//Pod/shop/client
  name: client
  namespace: shop
  serviceAccount: client
  trustDomain: cluster.local
  workloadIps: [10.77.1.1]
  protocol: HBONE
  node: node-one
  services: {}
services:
- name: payments
  namespace: shop
  hostname: payments.shop.svc.cluster.local
  vips: [/10.96.0.10]
  ports: {80: 8080}
policies:
- name: callers
  namespace: shop
  scope: Namespace
  action: Deny
  rules: [[[{sourceIps: [10.0.0.0/8]}]]]
";

/// A node of its own, with a directory that holds everything adit is told about.
struct Bench {
    world: World,
    place: tempfile::TempDir,
    environment: BTreeMap<String, String>,
}

/// How a start that was to fail ended.
#[derive(Debug)]
struct Failed {
    code: Option<i32>,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        let world = World::new().unwrap_or_else(|cause| panic!("{}; run this as root", cause.story()));
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("mesh.yaml"), MESH).unwrap();
        let mut bench = Self { world, place, environment: BTreeMap::new() };
        bench.set("NODE_NAME", "node-one");
        bench.set("ADIT_CA", "embedded");
        for (name, file) in
            [("LOCAL_XDS_PATH", "mesh.yaml"), ("ADIT_CA_DIR", "ca"), ("INPOD_UDS", "agent.sock")]
        {
            let path = bench.path(file);
            bench.set(name, &path);
        }
        bench
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn path(&self, file: &str) -> String {
        self.place.path().join(file).to_str().unwrap().to_owned()
    }

    fn write(&self, file: &str, text: &str) -> String {
        fs::write(self.place.path().join(file), text).unwrap();
        self.path(file)
    }

    /// Everything on disk.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.place.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path.clone());
                }
                files.push(path);
            }
        }
        files.sort();
        files
    }

    fn command(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        command.args(arguments).env_clear().envs(&self.environment);
        command
    }

    /// Runs what must fail, and insists that it says why in `complaints` lines with all of `words`, and that nothing
    /// is left of it.
    fn fails(&self, arguments: &[&str], code: i32, complaints: usize, words: &[&str]) {
        self.fails_as(self.command(ADIT, arguments), code, complaints, words);
    }

    fn fails_as(&self, command: Command, code: i32, complaints: usize, words: &[&str]) {
        let shown = format!("{command:?}");
        let before = self.files();
        let failed = self.world.node(Side::One).netns().run(|| Ok(run(command))).unwrap();
        let Failed { code: found, stderr } = &failed;
        println!("{stderr}");
        assert_eq!(*found, Some(code), "{shown} ended otherwise:\n{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{shown} does not say {word:?}:\n{stderr}");
        }
        let told = stderr.lines().filter(|line| !line.is_empty() && *line != "adit cannot start:").count();
        assert_eq!(told, complaints, "{shown}: lines of complaint:\n{stderr}");
        assert!(!stderr.contains("panicked"), "{shown}:\n{stderr}");
        assert_eq!(self.files(), before, "{shown} left something behind, or took something away");
    }
}

/// Runs to the end; what is left of its process group then is a failure.
fn run(mut command: Command) -> Failed {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let Some(status) = ended(&mut child, FAILS_WITHIN) else {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("{command:?} still ran after {FAILS_WITHIN:?}; it said:\n{}", reader.join().unwrap().unwrap());
    };
    assert_eq!(killpg(group, None), Err(nix::errno::Errno::ESRCH), "{command:?} left processes behind");
    Failed { code: status.code(), stderr: reader.join().unwrap().unwrap() }
}

fn ended(child: &mut Child, within: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

#[test]
fn a_command_line_nobody_understands_is_refused_with_the_word_and_the_way_to_help() {
    let bench = Bench::new();
    for word in ["--nonsense", "fly"] {
        bench.fails(&[word], 2, 3, &[word, "Usage: adit", "--help"]);
    }
    bench.fails(&["run", "--config"], 2, 2, &["--config <CONFIG>", "--help"]);
    bench.fails(&["demo", "--fast"], 2, 4, &["--fast", "Usage: adit demo", "--help"]);
}

#[test]
fn a_settings_file_is_refused_with_every_key_that_is_wrong() {
    let bench = Bench::new();
    let nowhere = bench.path("nowhere.yaml");
    bench.fails(&["run", "--config", &nowhere], 1, 1, &[&nowhere, "cannot be read", "--config"]);
    let file = bench
        .write("adit.yaml", "nodename: x\nhttp2FrameSize: many\nipv6Enabled: [true]\nstatsPort: 65616\n");
    let words = [
        &format!("{file}: no setting is called nodename"),
        "nodeName",
        &format!("{file}: http2FrameSize is \"many\": write a whole number"),
        &format!("{file}: ipv6Enabled is [true], but a plain value is needed"),
        &format!("{file}: statsPort is \"65616\": write a port from 1 to 65535"),
    ];
    bench.fails(&["run", "--config", &file], 1, 4, &words);
    let file = bench.write("adit.yaml", "nodeName: x\n  ca: embedded\n");
    bench.fails(&["run", "--config", &file], 1, 1, &[&format!("{file}:2:5:"), "key: value"]);
    let file = bench.write("adit.yaml", "just a word\n");
    bench.fails(&["run", "--config", &file], 1, 1, &[&file, "key: value"]);
}

#[test]
fn settings_are_refused_all_at_once_with_name_value_and_remedy() {
    let mut bench = Bench::new();
    for port in ["0", "65616"] {
        bench.set("ADIT_STATS_PORT", port);
        bench.fails(&[], 1, 1, &["ADIT_STATS_PORT", port, "a port from 1 to 65535"]);
    }
    bench.set("IPV6_ENABLED", "yes");
    bench.environment.remove("ADIT_CA");
    bench.environment.remove("LOCAL_XDS_PATH");
    let words = [
        "ADIT_STATS_PORT is \"65616\"",
        "IPV6_ENABLED is \"yes\": write true or false",
        "ADIT_CA=embedded",
        "LOCAL_XDS_PATH",
    ];
    bench.fails(&["proxy", "ztunnel"], 1, 4, &words);
}

#[test]
fn a_mesh_file_is_refused_with_file_and_line_of_everything_that_is_wrong() {
    let bench = Bench::new();
    let file = bench.path("mesh.yaml");
    let at = |text: &str, what: &str| {
        let line = text.lines().position(|line| line.contains(what)).unwrap() + 1;
        format!("{file}:{line}:")
    };
    let refused = |text: &str, wrong: &[(&str, &str)]| {
        bench.write("mesh.yaml", text);
        let places: Vec<String> = wrong.iter().map(|(what, _)| at(text, what)).collect();
        let words: Vec<&str> =
            places.iter().map(String::as_str).chain(wrong.iter().map(|(_, why)| *why)).collect();
        bench.fails(&[], 1, wrong.len(), &words);
    };
    let port = |port: &str| MESH.replace("{80: 8080}", &format!("{{80: {port}}}"));
    refused(&port("65616"), &[("65616", "65616")]);
    refused(&MESH.replace("{80: 8080}", "{0: 8080}"), &[("{0:", "a port from 1 to 65535")]);
    let cidr = MESH.replace("10.0.0.0/8", "10.0.0.0/33");
    refused(&cidr, &[("/33", "10.0.0.0/33")]);
    let workload: Vec<&str> = MESH.lines().skip(1).take(9).collect();
    let doubled = MESH.replace("services:\n", &format!("{}\nservices:\n", workload.join("\n")));
    bench.write("mesh.yaml", &doubled);
    bench.fails(&[], 1, 1, &[&format!("{file}:11:"), "Kubernetes//Pod/shop/client"]);
    let policy: Vec<&str> = MESH.lines().skip(17).collect();
    let doubled = format!("{MESH}{}\n", policy.join("\n"));
    bench.write("mesh.yaml", &doubled);
    bench.fails(&[], 1, 1, &[&format!("{file}:23:"), "shop/callers"]);

    let all = port("65616")
        .replace("protocol: HBONE", "protocol: HBON")
        .replace("[10.77.1.1]", "[10.77.1.256]")
        .replace("/10.96.0.10", "10.96.0.10");
    refused(
        &all,
        &[("65616", "65616"), ("HBON", "HBON"), ("256", "10.77.1.256"), ("vips", "\"10.96.0.10\"")],
    );
    refused(&MESH.replace("action: Deny", "action: Denny"), &[("Denny", "Denny")]);
    refused(&MESH.replace("serviceAccount:", "serviceacount:"), &[("serviceacount", "serviceacount")]);
    for key in ["services: {}", "workloadIps", "namespace"] {
        let name = key.split(':').next().unwrap();
        let lines: Vec<&str> = MESH.lines().collect();
        let gone = lines.iter().position(|line| line.trim_start().starts_with(key)).unwrap();
        let text: Vec<&str> =
            lines.iter().enumerate().filter(|(nth, _)| *nth != gone).map(|(_, line)| *line).collect();
        bench.write("mesh.yaml", &text.join("\n"));
        bench.fails(&[], 1, 1, &[&format!("{file}:"), &format!("missing field `{name}`")]);
    }
    bench.write("mesh.yaml", "workloads: [\n");
    bench.fails(&[], 1, 1, &[&file]);
    fs::remove_file(&file).unwrap();
    bench.fails(&[], 1, 1, &[&file, "cannot be read", "LOCAL_XDS_PATH"]);
    fs::create_dir(&file).unwrap();
    bench.fails(&[], 1, 1, &[&file, "cannot be read", "LOCAL_XDS_PATH"]);
}

#[test]
fn a_busy_port_is_named_with_the_setting_that_moves_it() {
    let bench = Bench::new();
    for (port, setting) in
        [(15000, "ADIT_ADMIN_PORT"), (15020, "ADIT_STATS_PORT"), (15021, "ADIT_READINESS_PORT")]
    {
        let taken = listen_for(bench.world.node(Side::One).netns(), port).unwrap();
        bench.fails(&[], 1, 1, &[&port.to_string(), setting]);
        drop(taken);
    }
}

#[test]
fn without_the_right_to_enter_namespaces_nothing_is_begun() {
    let bench = Bench::new();
    // Wherever the binary lies, this user can run a copy of it.
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = bench.place.path().join("adit");
    fs::copy(ADIT, &program).unwrap();
    open(&program);
    open(bench.place.path());
    let mut command = bench.command(&program, &[]);
    command.uid(NOBODY).gid(NOBODY);
    bench.fails_as(command, 1, 1, &["network namespaces cannot be entered", "run as root", "CAP_SYS_ADMIN"]);
}

#[test]
fn a_root_that_others_can_read_is_not_used() {
    let bench = Bench::new();
    let directory = PathBuf::from(bench.path("ca"));
    fs::create_dir(&directory).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&directory, 0o700);
    let root = directory.join("root.pem");
    fs::write(&root, "no root at all").unwrap();
    let shown = root.to_str().unwrap();
    mode(&root, 0o644);
    bench.fails(&[], 1, 1, &[shown, "mode 0644", "chmod 0600"]);
    mode(&root, 0o600);
    bench.fails(&[], 1, 1, &[shown, "no usable root", "restore it"]);
    fs::remove_file(&root).unwrap();
    mode(&directory, 0o777);
    bench.fails(&[], 1, 1, &[directory.to_str().unwrap(), "mode 0777", "chmod 0700"]);
    fs::remove_dir(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    bench.fails(&[], 1, 1, &[directory.to_str().unwrap(), "ADIT_CA_DIR"]);
}

#[test]
fn the_demo_names_the_packages_it_needs() {
    let bench = Bench::new();
    // A mount namespace in which every directory of tools is empty; it goes with the thread and the process.
    let bare = |mut command: Command| {
        std::thread::scope(|scope| {
            let run = scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let nothing: Option<&str> = None;
                mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
                for directory in
                    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"]
                {
                    match mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), nothing) {
                        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
                        Err(cause) => panic!("hiding {directory}: {cause}"),
                    }
                }
                command.env("TMPDIR", "/tmp");
                run(command)
            });
            run.join().unwrap()
        })
    };
    let demos = || {
        fs::read_dir(std::env::temp_dir())
            .unwrap()
            .filter(|it| {
                it.as_ref().is_ok_and(|it| it.file_name().to_string_lossy().starts_with("adit-demo"))
            })
            .count()
    };
    let before = demos();
    let failed = bare(bench.command(ADIT, &["demo"]));
    assert_eq!(failed.code, Some(2), "{}", failed.stderr);
    assert_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
    for word in ["`ip`", "`iptables-restore`", "missing", "sudo apt install iproute2 iptables"] {
        assert!(failed.stderr.contains(word), "no {word}: {}", failed.stderr);
    }
    assert_eq!(demos(), before, "the demo left its directory");
}

#[test]
fn an_agent_that_talks_nonsense_is_told_so_and_may_come_again() {
    let mut world = World::new().unwrap_or_else(|cause| panic!("{}; run this as root", cause.story()));
    let place = tempfile::tempdir().unwrap();
    let pod = world.add_pod(Side::One, "shop", "client", Membership::Mesh).unwrap();
    let outside = world.add_pod(Side::One, "legacy", "plain", Membership::Outside).unwrap();
    pod.install_rules().unwrap();
    let mesh = place.path().join("mesh.yaml");
    MeshFile::new([&pod, &outside]).save(&mesh).unwrap();
    let agent = Agent::listen(&place.path().join("agent.sock")).unwrap();
    let launch = Launch::new(Path::new(ADIT), Side::One, agent.path(), &mesh, &place.path().join("ca"));
    let mut proxy = launch.start(world.node(Side::One)).unwrap();
    let session = agent.accept(SOON).unwrap();
    session.snapshot([&pod]).unwrap();
    proxy.wait_ready(SOON).unwrap();
    let listener = listen_for(pod.netns(), 8080).unwrap();
    let calls = || {
        dial(outside.netns(), pod.at(8080), SOON).unwrap();
        listener.accept().unwrap();
    };
    calls();

    let nonsense: [&[u8]; 4] = [&[0xff; 40], b"GET / HTTP/1.1\r\n\r\n", &[0x0a, 0x7f], &[7; 5000]];
    let mut session = session;
    for packet in nonsense {
        let from = proxy.log().position();
        session.send_raw(packet, &[]).unwrap();
        match session.answer() {
            Ok(Answer::Refused(why)) => assert!(why.contains("failure"), "{why}"),
            other => panic!("{packet:02x?} was answered with {other:?}"),
        }
        session.wait_for_end(SOON).unwrap();
        let told =
            |line: &str| line.contains("the session with the node agent is dropped").then(|| line.to_owned());
        let told = proxy.log().find(from, "the complaint", SOON, told).unwrap();
        assert!(told.contains("failure to read message"), "{told}");
        calls();
        session = agent.accept(SOON).unwrap();
        session.snapshot([&pod]).unwrap();
        calls();
    }
    proxy.still_runs().unwrap();
    proxy.wait_ready(SOON).unwrap();
    let panics = |line: &String| line.contains("panicked");
    assert!(!proxy.log().since(Position::START).iter().any(panics), "{}", proxy.log().last(50));
}
