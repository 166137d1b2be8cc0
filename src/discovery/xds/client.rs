//! The stream to the control plane, opened again whenever it ends.

use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::{Code, Request, Streaming};
use tonic_prost::ProstCodec;
use tracing::{debug, info, warn};

use super::address::{Decoder, Refused};
use super::metrics::Reason;
use super::policy;
use super::state::{Backoff, Subscription, Told};
use super::wire::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use super::wire::{ADDRESS, AUTHORIZATION};
use super::{Config, Metrics};
use crate::control::{self, connect};
use crate::mesh::{Change, Model, Publisher};
use crate::policy::PolicyKey;

/// The whole mesh comes as one message.
const LARGEST: usize = 400 << 20;
/// A server that has taken the request and says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(60);
/// Answers under way. The server waits for each before it sends more.
const ANSWERS: usize = 16;

/// Follows the control plane.
pub(super) struct Client {
    config: Config,
    node: Node,
    model: Model,
    decoder: Decoder,
    publisher: Publisher,
    synced: watch::Sender<bool>,
    metrics: Metrics,
    addresses: Subscription,
    policies: Subscription,
    backoff: Backoff,
    /// The server's limit is below what our versions take.
    too_large: bool,
    /// The last stream was answered.
    opened: bool,
    /// When the mesh is another though nothing changes.
    snapshot_at: Option<Instant>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error("{}", told(.0))]
    Status(#[from] Box<tonic::Status>),
    #[error("nothing was told for {}s", SILENCE.as_secs())]
    Silent,
    #[error("the server closed the stream")]
    Closed,
}

impl End {
    fn reason(&self, opened: bool) -> Reason {
        match self {
            _ if !opened => Reason::ConnectionError,
            Self::Closed => Reason::Complete,
            Self::Status(status) => match status.code() {
                Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Reason::Reconnect,
                Code::Unavailable
                    if ["transport is closing", "received prior goaway"]
                        .iter()
                        .any(|text| status.message().contains(text)) =>
                {
                    Reason::Reconnect
                }
                _ => Reason::Error,
            },
            Self::Control(_) | Self::Silent => Reason::Error,
        }
    }
}

/// Whether our request was larger than the server takes; a server that has too much to do says the same code.
fn is_too_large(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("larger than max")
}

fn told(status: &tonic::Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{:?}: {message}", status.code()),
    }
}

impl Client {
    pub fn new(
        config: Config,
        model: Model,
        publisher: Publisher,
        synced: watch::Sender<bool>,
        metrics: Metrics,
    ) -> Self {
        let node = config.node.message();
        Self {
            config,
            node,
            model,
            decoder: Decoder::default(),
            publisher,
            synced,
            metrics,
            addresses: Subscription::new(ADDRESS),
            policies: Subscription::new(AUTHORIZATION),
            backoff: Backoff::default(),
            too_large: false,
            opened: false,
            snapshot_at: None,
        }
    }

    /// Follows until told to stop.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            let end = tokio::select! {
                end = self.stream() => end,
                _ = &mut stop => return,
            };
            let Err(end) = end else { continue };
            self.too_large = matches!(&end, End::Status(status) if is_too_large(status));
            let wait = self.backoff.wait(fastrand::f64());
            self.metrics.ended(end.reason(self.opened));
            // istiod ends each stream after half an hour.
            if let End::Closed = end {
                debug!(?wait, "discovery: {end}");
            } else {
                warn!(control_plane = %self.config.control.address, why = %end, again_in = ?wait, "discovery is interrupted; the last state stays");
            }
            let rest = async {
                let until = Instant::now() + wait;
                while Instant::now() < until {
                    self.wait_until_due(until).await;
                    self.on_time();
                }
            };
            tokio::select! {
                () = rest => {}
                _ = &mut stop => return,
            }
        }
    }

    async fn stream(&mut self) -> Result<(), End> {
        let with_versions = !self.too_large;
        self.opened = false;
        let connection = connect(&self.config.control).await?;
        let mut grpc = Grpc::with_origin(connection, self.config.control.address.origin())
            .max_decoding_message_size(LARGEST);
        let (send, requests) = mpsc::channel(ANSWERS);
        for kind in [&mut self.addresses, &mut self.policies] {
            let first = DeltaDiscoveryRequest { node: Some(self.node.clone()), ..kind.open(with_versions) };
            // Room for both was made above.
            let _ = send.try_send(first);
        }
        let mut request = Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = self.config.control.credentials()?;
        let path = PathAndQuery::from_static(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        );
        grpc.ready().await.map_err(|_| End::Closed)?;
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        // istiod sends the head of its answer with its first message, so this too is silence.
        let opening = timeout(SILENCE, grpc.streaming(request, path, codec));
        let mut responses: Streaming<DeltaDiscoveryResponse> =
            opening.await.map_err(|_| End::Silent)?.map_err(Box::new)?.into_inner();
        self.opened = true;
        info!(control_plane = %self.config.control.address, "discovery is connected");
        let began = Instant::now();
        let mut answered = [false; 2];
        loop {
            let patience = match answered.iter().all(|answered| *answered) {
                // What has not changed need not be told; that the server lives the connection's PINGs ask.
                true => None,
                false => Some(began + SILENCE),
            };
            let next = self.next_due();
            let next = tokio::select! {
                next = responses.next() => next,
                () = until(next) => {
                    self.on_time();
                    continue;
                }
                () = until(patience) => return Err(End::Silent),
            };
            let response = match next {
                None => return Err(End::Closed),
                Some(response) => response.map_err(Box::new)?,
            };
            for (kind, answered) in [ADDRESS, AUTHORIZATION].into_iter().zip(&mut answered) {
                *answered |= kind == response.type_url;
            }
            let answer = self.take(response);
            self.backoff.reset();
            if send.send(answer).await.is_err() {
                return Err(End::Closed);
            }
        }
    }

    /// Takes one response: everything good in it counts at once.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let bytes: usize = response
            .resources
            .iter()
            .filter_map(|one| one.resource.as_ref())
            .map(|any| any.value.len())
            .sum();
        self.metrics.received(&response.type_url, bytes);
        let now = Instant::now();
        match response.type_url.as_str() {
            ADDRESS => self.take_addresses(response, now),
            AUTHORIZATION => self.take_policies(response, now),
            other => {
                warn!(kind = other, "discovery sends what was not asked for; ignored");
                DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    ..DeltaDiscoveryRequest::default()
                }
            }
        }
    }

    fn take_addresses(&mut self, response: DeltaDiscoveryResponse, now: Instant) -> DeltaDiscoveryRequest {
        let DeltaDiscoveryResponse { resources, removed_resources, nonce, .. } = response;
        let mut names = Vec::with_capacity(resources.len());
        let mut changes = Vec::with_capacity(resources.len());
        for resource in resources {
            // Without a value it is an empty message, which is nothing that anybody knows.
            let value = resource.resource.unwrap_or_default().value;
            let why = match self.decoder.decode(&resource.name, value) {
                Ok(change) => {
                    changes.push(change);
                    None
                }
                Err(Refused { why, at }) => {
                    self.metrics.refused.increment();
                    warn!(name = %resource.name, %why, "an address is refused; its last good version stays");
                    changes.push(Change::Misunderstood(resource.name.as_str().into(), at));
                    Some(why)
                }
            };
            names.push((resource.name, resource.version, why));
        }
        let (removed, answer) = self.addresses.take(named(&names, &removed_resources, &nonce), now);
        self.model.apply(changes.into_iter().chain(removed.into_iter().map(Change::RemoveAddress)), now);
        self.decoder.forget_unused();
        self.publish();
        answer
    }

    fn take_policies(&mut self, response: DeltaDiscoveryResponse, now: Instant) -> DeltaDiscoveryRequest {
        let DeltaDiscoveryResponse { resources, removed_resources, nonce, .. } = response;
        let mut names = Vec::with_capacity(resources.len());
        let mut changes = Vec::with_capacity(resources.len());
        for resource in resources {
            let why = match self
                .policy(&resource.name, resource.resource.map(|any| any.value).unwrap_or_default())
            {
                Ok(change) => {
                    changes.push(change);
                    None
                }
                Err((why, instead)) => {
                    self.metrics.refused.increment();
                    changes.extend(instead);
                    Some(why)
                }
            };
            names.push((resource.name, resource.version, why));
        }
        let (removed, answer) = self.policies.take(named(&names, &removed_resources, &nonce), now);
        let removed = removed.iter().filter_map(|name| PolicyKey::parse(name).ok()).map(Change::RemovePolicy);
        self.model.apply(changes.into_iter().chain(removed), now);
        self.publish();
        answer
    }

    /// Decodes a policy; with the reason, what stands in for it where there is nothing better.
    fn policy(&self, name: &str, bytes: bytes::Bytes) -> Result<Change, (String, Option<Change>)> {
        let key = PolicyKey::parse(name).map_err(|cause| {
            tracing::error!(policy = name, why = %cause, "a policy is refused: nobody could name it");
            (cause.to_string(), None)
        })?;
        policy::decode(&key, &bytes).map(Change::Policy).map_err(|misunderstood| {
            let why = misunderstood.why;
            if self.model.has_policy(&key) {
                warn!(policy = %key, %why, "a policy is not understood; its last good version stays in force");
                (why, None)
            } else {
                tracing::error!(policy = %key, %why, "a policy is not understood; what it selects is closed until it is");
                (why, Some(Change::Policy(misunderstood.instead)))
            }
        })
    }

    /// Shows what there is now, once both types have been told: before, a namespace's policies may be missing.
    fn publish(&mut self) {
        if !(self.addresses.is_told() && self.policies.is_told()) {
            return;
        }
        let now = Instant::now();
        let version = self.publisher.publish(self.model.snapshot(now));
        self.snapshot_at = self.model.due(now);
        let (addresses, policies) = (self.addresses.len(), self.policies.len());
        debug!(version, addresses, policies, "a new state of the mesh is in force");
        if !self.synced.send_replace(true) {
            info!(addresses, policies, "discovery has told the whole mesh");
        }
    }

    /// When time brings something: a removal that was held back, or what the mesh itself forgets.
    fn next_due(&self) -> Option<Instant> {
        let removals = [&self.addresses, &self.policies].into_iter().filter_map(Subscription::due);
        removals.chain(self.snapshot_at).min()
    }

    async fn wait_until_due(&self, at_most: Instant) {
        let next = self.next_due().map_or(at_most, |next| next.min(at_most));
        sleep(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1)).await;
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        let addresses = self.addresses.on_time(now);
        let policies = self.policies.on_time(now);
        let changed = self.snapshot_at.is_some_and(|at| at <= now);
        if addresses.is_empty() && policies.is_empty() && !changed {
            return;
        }
        if !addresses.is_empty() || !policies.is_empty() {
            let (addresses, policies) = (addresses.len(), policies.len());
            warn!(addresses, policies, "removals that were held back are done now");
        }
        let policies =
            policies.iter().filter_map(|name| PolicyKey::parse(name).ok()).map(Change::RemovePolicy);
        self.model.apply(addresses.into_iter().map(Change::RemoveAddress).chain(policies), now);
        self.publish();
    }
}

/// What a response says of names: each with its version, and why it is refused if it is.
fn named<'a>(all: &'a [(String, String, Option<String>)], removed: &'a [String], nonce: &'a str) -> Told<'a> {
    let resources = all.iter().map(|(name, version, why)| (&**name, &**version, why.clone())).collect();
    Told { resources, removed, nonce }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// For the thread that runs it.
pub(super) fn block_on(client: Client, stop: oneshot::Receiver<()>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(client.run(stop));
    Ok(())
}
