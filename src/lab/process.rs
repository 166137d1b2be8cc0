//! One real `adit` process on one node: started, watched, ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::Error;
use super::log::{AccessLog, Log};
use super::traffic;
use super::world::{Node, Side};
use crate::net::{Netns, die_with_this_thread};

/// How long a dropped proxy may drain before it is killed.
const DRAIN: Duration = Duration::from_secs(3);
/// How often something without an event of its own is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What to start: the program, its arguments and its whole environment.
///
/// [`Launch::new`] fills in what a DaemonSet would; scenarios change single variables with [`Launch::env`].
#[derive(Clone, Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<String, String>,
}

impl Launch {
    /// The proxy of `side`: `program proxy ztunnel` with the agent's socket, the mesh file and the directory of the
    /// embedded certificate authority. Proxies with the same directory trust each other. `TUNNEL` is handed on from the caller's
    /// own environment, so that every scenario can be run with either carrier.
    pub fn new(program: &Path, side: Side, agent: &Path, mesh_file: &Path, authority: &Path) -> Self {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let environment = [
            ("NODE_NAME", side.name().to_owned()),
            ("PROXY_MODE", "shared".to_owned()),
            ("INPOD_UDS", path(agent)),
            ("LOCAL_XDS_PATH", path(mesh_file)),
            ("XDS_ADDRESS", String::new()),
            ("ADIT_CA", "embedded".to_owned()),
            ("ADIT_CA_DIR", path(authority)),
            ("LOG_FORMAT", "json".to_owned()),
            ("RUST_LOG", "info".to_owned()),
            ("CLUSTER_ID", "Kubernetes".to_owned()),
            ("ISTIO_META_DNS_CAPTURE", "false".to_owned()),
            ("IPV6_ENABLED", "true".to_owned()),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "2".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .chain(std::env::var("TUNNEL").ok().map(|carrier| ("TUNNEL".to_owned(), carrier)))
        .collect();
        Self { program: program.to_owned(), arguments: vec!["proxy".into(), "ztunnel".into()], environment }
    }

    /// Sets one variable, replacing what was there.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Replaces all arguments, for programs that are not started as ztunnel is.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Takes one variable away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Starts it in the namespace of `node`. It dies with this process, and when the [`Proxy`] is dropped.
    ///
    /// # Errors
    /// The system's answer, when the program cannot be started.
    pub fn start(&self, node: &Node) -> Result<Proxy, Error> {
        let who = format!("the proxy of {}", node.side());
        let keep_namespace =
            || duplicate(node.netns()).map_err(Error::io(format!("keeping the namespace of {who}")));
        let netns = keep_namespace()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.environment).stdin(Stdio::null());
        // Its own process group: a Ctrl-C in the terminal is ours to act on, not its.
        command.process_group(0);
        let log = Log::new(who.clone());
        let (started, start) = mpsc::channel();
        let (release, keep) = mpsc::channel();
        let keeper = std::thread::Builder::new()
            .name("lab-proxy".to_owned())
            .spawn({
                let (log, netns) = (log.clone(), keep_namespace()?);
                move || keep_process(command, &netns, &log, &started, &keep)
            })
            .map_err(Error::io(format!("starting the thread that watches {who}")))?;
        let child = start
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that should start it ended")))
            .map_err(Error::io(format!("starting {} as {who}", self.program.display())))?;
        Ok(Proxy { who, netns, child, log, keeper: Some((release, keeper)) })
    }
}

/// Starts the process, reads it to the end, and stays until released: the process dies with this thread.
fn keep_process(
    mut command: Command,
    netns: &Netns,
    log: &Log,
    started: &mpsc::Sender<io::Result<Child>>,
    keep: &mpsc::Receiver<()>,
) {
    let mut spawn = || {
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = netns.run(|| die_with_this_thread(&mut command).spawn())?;
        Ok((child, reader))
    };
    let result = spawn();
    // The command holds our ends of the pipe; without this its end would never be seen.
    drop(command);
    let reader = match result {
        Ok((child, reader)) => {
            let _ = started.send(Ok(child));
            reader
        }
        Err(cause) => {
            let _ = started.send(Err(cause));
            return;
        }
    };
    for line in BufReader::new(reader).split(b'\n') {
        let Ok(line) = line else { break };
        log.push(String::from_utf8_lossy(&line).into_owned());
    }
    log.end();
    // Answers only when the proxy is dropped, which closes the channel.
    let _ = keep.recv();
}

/// A running proxy. Dropping it asks it to drain, waits three seconds, then kills it.
#[derive(Debug)]
pub struct Proxy {
    who: String,
    netns: Netns,
    child: Child,
    log: Log,
    keeper: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Proxy {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The connections it told about.
    pub fn access_log(&self) -> AccessLog {
        AccessLog(self.log.clone())
    }

    /// Waits until `GET /healthz/ready` on port 15021 of its node answers 200.
    ///
    /// # Errors
    /// [`Error::Ended`] with its last words when it ends instead, [`Error::TooLate`] after `within`.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            if self
                .get(15021, "/healthz/ready", Duration::from_secs(1))
                .is_ok_and(|reply| reply.status == 200)
            {
                return Ok(());
            }
            self.still_runs()?;
            if Instant::now() >= deadline {
                return Err(Error::TooLate {
                    what: format!(
                        "{} becoming ready; its last words:\n{}\nThat",
                        self.who,
                        self.log.last(15)
                    ),
                    within,
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Says whether it still runs.
    ///
    /// # Errors
    /// [`Error::Ended`] with its exit status and last words.
    pub fn still_runs(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(cause) => Err(Error::io(format!("asking whether {} runs", self.who))(cause)),
        }
    }

    /// Asks one of its admin pages, from inside its node: 15000, 15020 or 15021 on loopback.
    ///
    /// # Errors
    /// When nobody answers within `within`.
    pub fn get(&self, port: u16, path: &str, within: Duration) -> Result<traffic::Reply, Error> {
        let to = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
        traffic::http_get(&self.netns, to, path, within)
            .map_err(Error::io(format!("asking http://{to}{path} of {}", self.who)))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// ESRCH when it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        let pid = i32::try_from(self.pid()).map_err(|_| Error::Protocol {
            place: self.who.clone(),
            what: format!("its process id {} is outside the kernel's range", self.pid()),
        })?;
        kill(Pid::from_raw(pid), signal)
            .map_err(|errno| Error::io(format!("sending {signal} to {}", self.who))(errno.into()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::TooLate`] when it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => return Err(Error::TooLate { what: format!("the end of {}", self.who), within }),
                Err(cause) => return Err(Error::io(format!("waiting for {}", self.who))(cause)),
            }
        }
    }

    /// Asks it to drain and end (SIGTERM), and kills it when it still runs after `within`.
    ///
    /// # Errors
    /// [`Error::TooLate`] when it had to be killed.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(within).inspect_err(|_| self.kill())
    }

    /// Ends it at once (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only when it has already ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended(&self, status: ExitStatus) -> Error {
        // The last lines may still be on their way through the pipe.
        std::thread::sleep(POLL * 5);
        Error::Ended { who: self.who.clone(), how: status.to_string(), last_words: self.log.last(15) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.stop(DRAIN).is_err() {
            self.kill();
        }
        if let Some((release, keeper)) = self.keeper.take() {
            drop(release);
            let _ = keeper.join();
        }
    }
}

/// A second descriptor of the same namespace.
fn duplicate(netns: &Netns) -> io::Result<Netns> {
    Netns::from_fd(std::os::fd::AsFd::as_fd(netns).try_clone_to_owned()?)
}
