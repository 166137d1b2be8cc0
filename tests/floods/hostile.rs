//! One connection of a peer that writes its frames by hand: rustls without I/O over a socket that never blocks.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use super::frames::{ACK, PREFACE, SETTINGS, WINDOW_UPDATE, frame};
use super::stage::{Door, Stage};

/// How it behaves, whatever it sends.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// It reads what it is answered.
    pub reads: bool,
    /// How many tunnels each peer has at a time.
    pub tunnels: usize,
    /// The length of its TLS records.
    pub record: Option<usize>,
    /// It changes its keys at each turn and asks for new ones.
    pub keys: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { reads: true, tunnels: 1, record: None, keys: false }
    }
}

pub struct Hostile {
    tcp: TcpStream,
    tls: ClientConnection,
    manner: Manner,
    heard: Vec<u8>,
}

/// A connection to the tunnel port on which nothing was said.
pub fn begin(stage: &Stage) -> io::Result<TcpStream> {
    dial(&stage.door(), Duration::from_secs(1))
}

fn dial(door: &Door, within: Duration) -> io::Result<TcpStream> {
    let socket = door.netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&door.to.into(), within)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The first bytes of a handshake.
pub fn hello(stage: &Stage) -> Vec<u8> {
    let mut hello = Vec::new();
    client(&stage.door().config, &stage.door()).write_tls(&mut hello).unwrap();
    hello
}

fn client(config: &Arc<ClientConfig>, door: &Door) -> ClientConnection {
    let mut tls = ClientConnection::new(config.clone(), ServerName::IpAddress(door.to.ip().into())).unwrap();
    tls.set_buffer_limit(None);
    tls
}

impl Hostile {
    /// Connects, proves who it is and says hello in HTTP/2.
    pub fn open(stage: &Stage, manner: Manner, until: Instant) -> io::Result<Self> {
        Self::through(&stage.door(), manner, until)
    }

    pub fn through(door: &Door, manner: Manner, until: Instant) -> io::Result<Self> {
        let mut config = door.config.clone();
        Arc::make_mut(&mut config).max_fragment_size = manner.record;
        let within = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut new =
            Self { tcp: dial(door, within)?, tls: client(&config, door), manner, heard: Vec::new() };
        while new.tls.is_handshaking() {
            let moved = new.write()? | new.read()?;
            new.pause(moved, until)?;
        }
        // The largest windows there can be: it is ready for anything.
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        let window = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0, 0]);
        new.send(&[PREFACE, &settings, &frame(SETTINGS, ACK, 0, &[]), &window].concat(), until)?;
        Ok(new)
    }

    /// Sends `bytes`, or its next nuisance in TLS. Returns how many bytes the socket took.
    ///
    /// # Errors
    /// The far side has ended it. Time that runs out is no error.
    pub fn send(&mut self, bytes: &[u8], until: Instant) -> io::Result<u64> {
        if self.manner.keys && bytes.is_empty() {
            self.tls.refresh_traffic_keys().map_err(Error::other)?;
        }
        self.tls.writer().write_all(bytes)?;
        let waits = Instant::now() + Duration::from_millis(50);
        while self.tls.wants_write() {
            let wrote = self.write()?;
            let read = self.manner.reads && self.read()?;
            if Instant::now() >= until || (!self.manner.reads && Instant::now() >= waits) {
                break;
            }
            if !wrote && !read {
                thread::sleep(Duration::from_millis(1));
            }
        }
        if self.manner.reads {
            while self.read()? {}
        } else if bytes.is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(bytes.len() as u64)
    }

    /// Reads until `words` have come, whatever frames came before them.
    pub fn hear(&mut self, words: &[u8], until: Instant) -> io::Result<()> {
        while !self.heard.windows(words.len()).any(|window| window == words) {
            let moved = self.write()? | self.read()?;
            self.pause(moved, until)?;
        }
        Ok(())
    }

    fn pause(&self, moved: bool, until: Instant) -> io::Result<()> {
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
        if !moved {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<bool> {
        if !self.tls.wants_write() {
            return Ok(false);
        }
        match self.tls.write_tls(&mut self.tcp) {
            Ok(written) => Ok(written > 0),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(cause) => Err(cause),
        }
    }

    fn read(&mut self) -> io::Result<bool> {
        match self.tls.read_tls(&mut self.tcp) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(cause) => return Err(cause),
        }
        let state = self.tls.process_new_packets().map_err(Error::other)?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        self.tls.reader().read_exact(&mut plain)?;
        // Only as much as somebody may look for.
        self.heard.extend(plain);
        let surplus = self.heard.len().saturating_sub(256);
        self.heard.drain(..surplus);
        if state.peer_has_closed() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(true) }
    }
}
