//! The HTTP/1.1 server under all three interfaces.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// A request's head must be complete this long after the last answer, or after the connection was made.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// No connection is served longer: a reader that stalls must not hold its place for ever.
const LIFETIME: Duration = Duration::from_secs(300);
/// Connections of one interface at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 128;
/// How long accepting rests after it failed, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's head; hyper's least.
const BUFFER: usize = 8192;

pub(super) type Answer = Response<Full<Bytes>>;

/// A port could not be taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {addr} for {purpose}; find who has port {} (`ss -ltnp`) and stop it{}",
    addr.port(),
    .setting.map(|key| format!(", or set another port with {key}")).unwrap_or_default()
)]
pub struct BindError {
    addr: SocketAddr,
    purpose: &'static str,
    setting: Option<&'static str>,
    #[source]
    cause: io::Error,
}

/// Takes the port `addr` for `purpose`. `setting` is the key by which an operator can choose another port.
///
/// # Errors
/// [`BindError`]: one sentence with the address and what to do; its source is the cause.
pub fn bind(
    addr: SocketAddr,
    purpose: &'static str,
    setting: Option<&'static str>,
) -> Result<TcpListener, BindError> {
    let listen = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|cause| BindError { addr, purpose, setting, cause })
}

/// Serves `listener` until the future is dropped; that closes the port at once, and answers in flight are
/// finished.
///
/// Runs on the current runtime, which needs I/O and time. `handle` makes one answer; it must not block.
///
/// # Errors
/// If the runtime cannot take the listener, before anything is served.
pub(super) async fn serve<H, F>(listener: TcpListener, handle: H) -> io::Result<Infallible>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an admin connection was not accepted"
                );
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .half_close(true)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(socket), service);
            // A client that hangs up, is late or asks nonsense is told so by hyper, and is nobody else's
            // business.
            if let Ok(Err(error)) = timeout(LIFETIME, connection).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "an admin connection ended early");
            }
            drop(place);
        });
    }
}

/// `text/plain`.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain", body)
}

/// A body with a content type.
pub(super) fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = empty(status);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    *answer.body_mut() = Full::new(body.into());
    answer
}

/// No body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// Runs `work` on a thread where it may take its time; only as many at once as `turns` has permits, also when
/// clients hang up meanwhile. If it panics that is an error here and goes no further.
pub(super) async fn aside<T: Send + 'static>(
    turns: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let turn = turns.acquire_owned().await.map_err(|error| error.to_string())?;
    let work = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("rendering failed: {error}"))
}
