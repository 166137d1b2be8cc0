//! The node agent's side of ZDS: hands a proxy the pods of its node, one request at a time.
//!
//! One [`Agent`] per node, one [`Session`] per connected proxy. A session does only what it is told, in the order
//! it is told, so that a scenario can also break the protocol ([`Session::send_raw`]).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use prost::Message;
use socket2::{Domain, SockAddr, Socket, Type};

use super::error::Error;
use super::world::Pod;

/// The wire types of `proto/zds.proto`.
mod wire {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

use wire::workload_request::Payload;
use wire::workload_response::Payload as Response;

/// How long an answer may take; the agents in the field wait as long.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The largest packet either side reads.
const MAX_PACKET: usize = 1024;

/// Listens where the proxy of one node connects. Unlinks its socket when dropped.
#[derive(Debug)]
pub struct Agent {
    socket: Socket,
    path: PathBuf,
}

impl Agent {
    /// Binds and listens at `path`, taking the place of a socket somebody left there.
    ///
    /// # Errors
    /// A path longer than 107 bytes (unix(7)), or the system's answer.
    pub fn listen(path: &Path) -> Result<Self, Error> {
        let step = || {
            match std::fs::remove_file(path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            socket.listen(8)?;
            Ok(socket)
        };
        let socket = step().map_err(Error::io(format!("listening at {} as node agent", path.display())))?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Where it listens: the proxy's `INPOD_UDS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a proxy and its hello.
    ///
    /// # Errors
    /// [`Error::TooLate`] when no proxy comes within `within` or its hello takes more than five seconds,
    /// [`Error::Protocol`] when the first packet is no hello of version 1.
    pub fn accept(&self, within: Duration) -> Result<Session, Error> {
        let place = format!("the proxy at {}", self.path.display());
        self.socket
            .set_read_timeout(Some(within))
            .map_err(Error::io("setting the deadline of the node agent"))?;
        let (socket, _) = uninterrupted(|| self.socket.accept())
            .map_err(|cause| late(cause, &place, "connecting", within))?;
        let session = Session { socket, place };
        let hello = session.receive(ANSWER_WITHIN)?;
        match wire::ZdsHello::decode(hello.as_slice()) {
            Ok(hello) if hello.version == wire::Version::V1 as i32 => Ok(session),
            Ok(hello) => Err(session.broke(format!("its hello has version {}, not 1", hello.version))),
            Err(cause) => Err(session.broke(format!("its first packet {hello:02x?} is no hello: {cause}"))),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a proxy answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An acknowledgement without error.
    Done,
    /// An acknowledgement with this error text.
    Refused(String),
}

/// One connected proxy that said hello. Dropping it closes the connection, as a restarting agent does.
#[derive(Debug)]
pub struct Session {
    socket: Socket,
    place: String,
}

impl Session {
    /// Adds every pod, ends the snapshot, and insists that each step is acknowledged.
    ///
    /// # Errors
    /// [`Error::Protocol`] names the pod the proxy refused; otherwise as [`Session::add`].
    pub fn snapshot<'a>(&self, pods: impl IntoIterator<Item = &'a Pod>) -> Result<(), Error> {
        for pod in pods {
            if let Answer::Refused(why) = self.add(pod)? {
                return Err(self.broke(format!("it refused to serve {}: {why}", pod.full_name())));
            }
        }
        match self.snapshot_sent()? {
            Answer::Done => Ok(()),
            Answer::Refused(why) => Err(self.broke(format!("it refused the end of the snapshot: {why}"))),
        }
    }

    /// Hands over a pod with its namespace and waits for the answer.
    ///
    /// # Errors
    /// [`Error::TooLate`] without an answer in five seconds; [`Error::Protocol`] when the connection ends or the
    /// answer cannot be read.
    pub fn add(&self, pod: &Pod) -> Result<Answer, Error> {
        let add = wire::AddWorkload {
            uid: pod.uid(),
            workload_info: Some(wire::WorkloadInfo {
                name: pod.name().to_owned(),
                namespace: pod.namespace().to_owned(),
                service_account: pod.name().to_owned(),
            }),
        };
        self.send(Payload::Add(add), &[pod.netns().as_fd()])?;
        self.answer()
    }

    /// Tells the proxy to go on serving a pod it knows, and waits for the answer. Errors as [`Session::add`].
    pub fn keep(&self, uid: &str) -> Result<Answer, Error> {
        self.send(Payload::Keep(wire::KeepWorkload { uid: uid.to_owned() }), &[])?;
        self.answer()
    }

    /// Takes a pod away and waits for the answer. Errors as [`Session::add`].
    pub fn delete(&self, uid: &str) -> Result<Answer, Error> {
        self.send(Payload::Del(wire::DelWorkload { uid: uid.to_owned() }), &[])?;
        self.answer()
    }

    /// Ends the snapshot and waits for the answer. Errors as [`Session::add`].
    pub fn snapshot_sent(&self) -> Result<Answer, Error> {
        self.send(Payload::SnapshotSent(wire::SnapshotSent {}), &[])?;
        self.answer()
    }

    /// Sends one packet as it is, with these descriptors, and waits for nothing.
    ///
    /// # Errors
    /// The system's answer, for example EPIPE when the proxy has gone.
    pub fn send_raw(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map(drop)
        .map_err(|errno| Error::io(format!("sending to {}", self.place))(errno.into()))
    }

    /// Waits for one acknowledgement. Errors as [`Session::add`].
    pub fn answer(&self) -> Result<Answer, Error> {
        let packet = self.receive(ANSWER_WITHIN)?;
        match wire::WorkloadResponse::decode(packet.as_slice()) {
            Ok(wire::WorkloadResponse { payload: Some(Response::Ack(ack)) }) if ack.error.is_empty() => {
                Ok(Answer::Done)
            }
            Ok(wire::WorkloadResponse { payload: Some(Response::Ack(ack)) }) => {
                Ok(Answer::Refused(ack.error))
            }
            Ok(_) => Err(self.broke(format!("its answer {packet:02x?} has no acknowledgement"))),
            Err(cause) => Err(self.broke(format!("its answer {packet:02x?} cannot be read: {cause}"))),
        }
    }

    /// Whether the proxy ends the connection within `within`. A packet instead of an end is an error.
    pub fn wait_for_end(&self, within: Duration) -> Result<(), Error> {
        match self.packet(within)? {
            packet if packet.is_empty() => Ok(()),
            packet => Err(self.broke(format!("it sent {packet:02x?} instead of closing"))),
        }
    }

    fn send(&self, payload: Payload, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send_raw(&wire::WorkloadRequest { payload: Some(payload) }.encode_to_vec(), descriptors)
    }

    fn receive(&self, within: Duration) -> Result<Vec<u8>, Error> {
        let packet = self.packet(within)?;
        if packet.is_empty() { Err(self.broke("it closed the connection".to_owned())) } else { Ok(packet) }
    }

    fn packet(&self, within: Duration) -> Result<Vec<u8>, Error> {
        self.socket
            .set_read_timeout(Some(within))
            .map_err(Error::io(format!("setting the deadline of {}", self.place)))?;
        // One byte more than allowed, so that a longer packet shows instead of being cut.
        let mut buffer = vec![0; MAX_PACKET + 1];
        let len = uninterrupted(|| io::Read::read(&mut &self.socket, &mut buffer))
            .map_err(|cause| late(cause, &self.place, "answering", within))?;
        if len > MAX_PACKET {
            return Err(self.broke(format!("it sent a packet of more than {MAX_PACKET} bytes")));
        }
        buffer.truncate(len);
        Ok(buffer)
    }

    fn broke(&self, what: String) -> Error {
        Error::Protocol { place: self.place.clone(), what }
    }
}

/// Calls again whenever a signal came between: the kernel never restarts calls on sockets with a timeout, not even
/// after a mere stop and continue (signal(7)).
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A socket timeout reads as `WouldBlock`; everything else is what it says.
fn late(cause: io::Error, who: &str, doing: &str, within: Duration) -> Error {
    if cause.kind() == io::ErrorKind::WouldBlock {
        Error::TooLate { what: format!("{who} {doing}"), within }
    } else {
        Error::io(format!("waiting for {who}"))(cause)
    }
}
