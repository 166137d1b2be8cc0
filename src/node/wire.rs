//! What a packet means: requests from the agent, our hello and our answers.
//!
//! Wire types are generated from `proto/zds.proto` and end here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use prost::Message as _;

use super::PodInfo;
use super::error::Violation;
use super::socket::Packet;

pub(super) mod proto {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

use proto::workload_request::Payload;

/// Longest text of an answer, in bytes. The agent reads 1024 bytes per packet, framing included, and drops
/// what is longer.
const ANSWER_TEXT: usize = 990;

/// What the agent asks.
#[derive(Debug)]
pub(super) enum Request {
    /// Serve this pod, whose network namespace the descriptor should name.
    Add(PodInfo, OwnedFd),
    /// This pod still runs; the agent does not know its namespace (yet).
    Keep(Arc<str>),
    /// This pod is gone.
    Del(Arc<str>),
    /// All pods of the node have been named.
    SnapshotSent,
    /// A kind of request a newer agent may know.
    Unknown,
}

impl Request {
    /// Gives `packet` its meaning. Descriptors nobody asked for are closed.
    ///
    /// # Errors
    /// Every [`Violation`] that one packet alone can commit.
    pub(super) fn read(packet: Packet) -> Result<Self, Violation> {
        let request =
            proto::WorkloadRequest::decode(packet.bytes.as_slice()).map_err(Violation::Undecodable)?;
        let mut descriptors = packet.descriptors;
        let Some(payload) = request.payload else {
            // What a newer agent sends along with a request we do not know is not ours to judge.
            return Ok(Self::Unknown);
        };
        let takes = usize::from(matches!(payload, Payload::Add(_)));
        if descriptors.len() > takes {
            return Err(Violation::Descriptors(descriptors.len(), takes));
        }
        match payload {
            Payload::Add(add) => {
                let netns = descriptors.pop().ok_or(Violation::NoDescriptor)?;
                let uid: Arc<str> = add.uid.into();
                let info = add.workload_info.ok_or_else(|| Violation::NoWorkloadInfo(Arc::clone(&uid)))?;
                let pod = PodInfo {
                    uid,
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                };
                Ok(Self::Add(pod, netns))
            }
            Payload::Keep(keep) => Ok(Self::Keep(keep.uid.into())),
            Payload::Del(del) => Ok(Self::Del(del.uid.into())),
            Payload::SnapshotSent(proto::SnapshotSent {}) => Ok(Self::SnapshotSent),
        }
    }
}

/// The first packet of a session.
pub(super) fn hello() -> Vec<u8> {
    proto::ZdsHello { version: proto::Version::V1.into() }.encode_to_vec()
}

/// The answer to one request: `error` is empty for success and is cut where it would no longer fit.
pub(super) fn answer(mut error: String) -> Vec<u8> {
    if error.len() > ANSWER_TEXT {
        const MARK: &str = " [cut]";
        let mut end = ANSWER_TEXT - MARK.len();
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        error.truncate(end);
        error.push_str(MARK);
    }
    let ack = proto::workload_response::Payload::Ack(proto::Ack { error });
    proto::WorkloadResponse { payload: Some(ack) }.encode_to_vec()
}
