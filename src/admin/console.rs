//! The operator's interface, port 15000 on loopback: state dump, log level, end.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::sync::Semaphore;

use super::query::parameters;
use super::server::{Answer, aside, empty, serve, text, typed};
use crate::telemetry::Levels;

const INDEX: &str = "<!DOCTYPE html>
<html><head><title>adit</title></head><body><table>
<tr><td><a href=\"config_dump\">config_dump</a></td><td>what this node knows, as JSON</td></tr>
<tr><td>logging</td><td>POST: show or change what is logged</td></tr>
<tr><td>quitquitquit</td><td>POST: drain and exit</td></tr>
</table></body></html>
";

const LOGGING_HELP: &str = "usage:
  POST /logging                            show what is logged
  POST /logging?level=<level>              log everything at this level
  POST /logging?level=<target>:<level>     log one target at this level; `=` does as well as `:`
  POST /logging?level=<part>,<part>        several of these
  POST /logging?reset                      back to RUST_LOG, with or without level=
levels: off, error, warn, info, debug, trace
";

/// What the operator's interface shows and presses.
#[derive(Clone)]
pub struct Console {
    /// What is logged.
    pub levels: Levels,
    /// Renders the state of this node as JSON, or says why it cannot. May take long: it is called on a thread
    /// of its own, one call at a time.
    pub dump: Arc<dyn Fn() -> Result<String, String> + Send + Sync>,
    /// Begins the orderly end of the process, and returns at once.
    pub quit: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("levels", &self.levels).finish_non_exhaustive()
    }
}

/// Answers `/`, `/config_dump`, `/logging` and `/quitquitquit`, until the future is dropped (that closes the
/// port at once). It asks nobody who they are: bind it to loopback.
///
/// # Errors
/// If the current runtime cannot take the listener.
pub async fn console(listener: TcpListener, console: Console) -> io::Result<Infallible> {
    let turns = Arc::new(Semaphore::new(1));
    serve(listener, move |request| {
        let (console, turns) = (console.clone(), Arc::clone(&turns));
        async move {
            match (request.uri().path(), request.method()) {
                ("/", _) => typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
                ("/config_dump", _) => dump(&console, turns).await,
                ("/logging", &Method::POST) => {
                    logging(&console.levels, request.uri().query().unwrap_or_default())
                }
                ("/logging", _) => text(StatusCode::METHOD_NOT_ALLOWED, LOGGING_HELP),
                ("/quitquitquit", &Method::POST) => {
                    (console.quit)();
                    text(StatusCode::OK, "shutdown now\n")
                }
                ("/quitquitquit", _) => empty(StatusCode::METHOD_NOT_ALLOWED),
                _ => empty(StatusCode::NOT_FOUND),
            }
        }
    })
    .await
}

async fn dump(console: &Console, turns: Arc<Semaphore>) -> Answer {
    let render = Arc::clone(&console.dump);
    match aside(turns, move || render()).await.and_then(|rendered| rendered) {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

fn logging(levels: &Levels, query: &str) -> Answer {
    let (mut reset, mut wanted) = (false, String::new());
    for (key, value) in parameters(query) {
        match &*key {
            "reset" => reset = true,
            "level" => {
                wanted.push_str(&value);
                wanted.push(',');
            }
            _ => {}
        }
    }
    let changed = match (reset, &*wanted) {
        (true, wanted) => levels.reset(wanted),
        (false, "") => Ok(()),
        (false, wanted) => levels.set(wanted),
    };
    match changed {
        Ok(()) => text(StatusCode::OK, format!("current log level is {levels}\n")),
        Err(error) => {
            let wanted = wanted.trim_end_matches(',');
            text(
                StatusCode::BAD_REQUEST,
                format!("Invalid level provided: {wanted}\n{error}\n{LOGGING_HELP}"),
            )
        }
    }
}
