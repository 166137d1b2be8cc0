//! Servers inside pods, each remembering who came and how many bytes it was given.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::error::Error;
use super::traffic::listen_for;
use super::world::Pod;
use crate::net::canonical;

/// Longest request head or line a server reads.
const MAX_LINES: u64 = 64 * 1024;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Reads an HTTP request head and answers with the peer it saw and the request's `x-secret`.
    Respond,
    /// Speaks first, as mail and database servers do: says whom it sees, then reads a line and says it back.
    Greet,
    /// Swallows bytes to the end, then says how many there were (eight bytes, big-endian).
    Sink,
    /// Sends back every byte as it comes.
    Echo,
}

/// One connection as the application saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The address it came from.
    pub peer: SocketAddr,
    /// Bytes read from it so far.
    pub bytes: u64,
}

/// A running server. Dropping it closes its port and cuts its connections.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    guests: Guests,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug, Default)]
struct Guests(Arc<Mutex<Vec<Guest>>>);

#[derive(Debug)]
struct Guest {
    peer: SocketAddr,
    bytes: Arc<AtomicU64>,
    /// Until its connection is over.
    stream: Option<TcpStream>,
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Vec<Guest>> {
        // Entries are only appended and never left half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Listens on `port` in `pod`, at every address of it.
    ///
    /// # Errors
    /// The system's answer.
    pub fn start(pod: &Pod, port: u16, behaviour: Behaviour) -> Result<Self, Error> {
        let what = || format!("listening on port {port} in {}", pod.full_name());
        let listener = listen_for(pod.netns(), port).map_err(Error::io(what()))?;
        let guests = Guests::default();
        let acceptor = std::thread::Builder::new()
            .name("lab-server".to_owned())
            .spawn({
                let (listener, guests) = (listener.try_clone().map_err(Error::io(what()))?, guests.clone());
                move || accept_all(&listener, &guests, behaviour)
            })
            .map_err(Error::io(what()))?;
        Ok(Self { listener, guests, acceptor: Some(acceptor) })
    }

    /// The connections so far, in the order they came.
    pub fn seen(&self) -> Vec<Seen> {
        let guests = self.guests.lock();
        guests.iter().map(|it| Seen { peer: it.peer, bytes: it.bytes.load(Ordering::Relaxed) }).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the blocked accept, which then fails (EINVAL).
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.guests.lock().iter().filter_map(|it| it.stream.as_ref()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all(listener: &TcpListener, guests: &Guests, behaviour: Behaviour) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(guest) => guest,
            // A client that gave up while it waited is its own affair.
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => return,
        };
        let peer = canonical(peer);
        let bytes = Arc::new(AtomicU64::new(0));
        let index = {
            let mut guests = guests.lock();
            guests.push(Guest { peer, bytes: Arc::clone(&bytes), stream: stream.try_clone().ok() });
            guests.len() - 1
        };
        let guests = guests.clone();
        std::thread::spawn(move || {
            // A broken connection shows at the client, which is where scenarios look.
            let _ = serve(Counted { stream: &stream, bytes: &bytes }, peer, behaviour);
            // The copy in the list goes first, so that dropping the stream closes the connection.
            guests.lock()[index].stream = None;
        });
    }
}

/// A stream that counts what is read from it.
#[derive(Clone, Copy)]
struct Counted<'a> {
    stream: &'a TcpStream,
    bytes: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(buffer)?;
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

fn serve(from: Counted<'_>, peer: SocketAddr, behaviour: Behaviour) -> io::Result<()> {
    let mut to = from.stream;
    to.set_nodelay(true)?;
    match behaviour {
        Behaviour::Respond => {
            let mut secret = String::new();
            for line in BufReader::new(from.take(MAX_LINES)).lines() {
                let line = line?;
                if line.is_empty() {
                    let body = format!("peer={peer}\nsecret={secret}\n");
                    let length = body.len();
                    let head =
                        format!("HTTP/1.0 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    return to.write_all(format!("{head}{body}").as_bytes());
                }
                if let Some(value) = line.strip_prefix("x-secret: ") {
                    value.clone_into(&mut secret);
                }
            }
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        Behaviour::Greet => {
            to.write_all(format!("peer={peer}\r\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(from.take(MAX_LINES)).read_line(&mut line)?;
            to.write_all(format!("secret={line}").as_bytes())
        }
        Behaviour::Sink => {
            let mut from = from;
            let mut buffer = vec![0; 256 * 1024];
            let mut count = 0_u64;
            loop {
                match from.read(&mut buffer)? {
                    0 => return to.write_all(&count.to_be_bytes()),
                    len => count += len as u64,
                }
            }
        }
        Behaviour::Echo => {
            let mut from = from;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match from.read(&mut buffer)? {
                    0 => return to.shutdown(Shutdown::Write),
                    len => to.write_all(&buffer[..len])?,
                }
            }
        }
    }
}
