//! The data workers: one thread each, with one single-threaded runtime, that share nothing.
//!
//! A pod's listeners are served by one worker; its connections may be owned by any. What reaches a worker from
//! outside comes through its mailboxes. [`Fleet`] is the handle that the service thread holds on all of them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, LocalSet};

use crate::capture::{Acceptor, Close, Listeners, Pod};
use crate::hbone::{Handshakes, Placement, WorkerId};
use crate::identity::Store;
use crate::inbound::{self, Inbound};
use crate::mesh;
use crate::net::mailbox::{Mailbox, Post};
use crate::outbound::{self, Outbound};
use crate::telemetry::{Counter, Registry};

/// What every worker is given at its start.
#[derive(Clone)]
pub struct Seed {
    /// Settings of the inbound side.
    pub inbound: inbound::Config,
    /// Settings of the outbound side.
    pub outbound: outbound::Config,
    /// The mesh.
    pub mesh: mesh::Handle,
    /// Certificates.
    pub store: Store,
    /// The handshake pool.
    pub handshakes: Handshakes,
    /// Who owns which tunnel.
    pub placement: Arc<Placement>,
    /// Where metrics are collected.
    pub registry: Registry,
    /// Connections whose client address was not kept.
    pub replaced: Counter,
}

/// One worker, on its thread.
pub struct Worker {
    inbound: Rc<Inbound>,
    outbound: Rc<Outbound>,
    /// The listeners this worker serves, by pod UID.
    serving: RefCell<HashMap<Arc<str>, [Serving; 3]>>,
    stop: Notify,
    draining: Cell<bool>,
}

/// One listener being served: how it ends at once, and how it closes in order.
type Serving = (AbortHandle, Close);

/// All workers, seen from the service thread.
pub struct Fleet {
    post: Post<Worker>,
    placement: Arc<Placement>,
    threads: Vec<JoinHandle<()>>,
    /// Pods per worker, to give the next one to the idlest.
    pods: Vec<AtomicUsize>,
}

impl Fleet {
    /// Starts the workers. Their number is that of `seed.placement`.
    pub fn start(seed: &Seed) -> io::Result<Self> {
        let count = seed.placement.workers();
        let (post, own) = Post::<Worker>::new(count);
        let (to_inbound, for_inbound) = Post::<Inbound>::new(count);
        let (to_outbound, for_outbound) = Post::<Outbound>::new(count);
        let mut threads = Vec::new();
        for (id, ((own, inbound), outbound)) in own.into_iter().zip(for_inbound).zip(for_outbound).enumerate()
        {
            let (seed, to_inbound, to_outbound) = (seed.clone(), to_inbound.clone(), to_outbound.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            seed.registry.runtime(runtime.handle().clone());
            let mail = Mail { own, inbound, outbound };
            let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
                LocalSet::new().block_on(&runtime, work(id, seed, to_inbound, to_outbound, mail));
            })?;
            threads.push(thread);
        }
        let pods = (0..count).map(|_| AtomicUsize::new(0)).collect();
        Ok(Self { post, placement: seed.placement.clone(), threads, pods })
    }

    /// Gives a pod to the worker with the fewest. It counts as that worker's until [`Fleet::cut`].
    pub fn place(&self) -> WorkerId {
        let load = |worker: &usize| self.pods[*worker].load(Ordering::Relaxed);
        let idlest = (0..self.pods.len()).min_by_key(load).unwrap_or(0);
        self.pods[idlest].fetch_add(1, Ordering::Relaxed);
        idlest
    }

    /// Has worker `on` serve a pod's listeners. Returns when they are being served.
    ///
    /// Cancel: they may be served all the same, until [`Fleet::cut`].
    ///
    /// # Errors
    /// The reactor's refusal to watch a listener; then none of them is served.
    pub async fn serve(&self, on: WorkerId, pod: Arc<Pod>, listeners: Listeners) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        self.post.to(on, move |worker| {
            // Who no longer waits for the answer cuts the pod.
            let _ = tell.send(worker.serve(pod, listeners));
        });
        told.await.unwrap_or_else(|_| Err(io::Error::other("the worker is shutting down")))
    }

    /// Ends a pod at once: its listeners, which `on` serves or is about to, and its connections, wherever they are.
    pub fn cut(&self, pod: &Pod, on: WorkerId) {
        self.pods[on].fetch_sub(1, Ordering::Relaxed);
        pod.end();
        let pod = pod.uid.clone();
        self.post.to_all(move |worker: &Rc<Worker>| worker.cut(&pod));
    }

    /// Has every worker judge its live connections again.
    pub fn judge_again(&self) {
        self.post.to_all(|worker| worker.inbound.judge_again());
    }

    /// Closes all listeners and tells peers to open no more streams; what is open runs on.
    pub fn drain(&self) {
        self.post.to_all(|worker| worker.drain());
    }

    /// Connections and tunnels that are still carried.
    pub fn carried(&self) -> usize {
        self.placement.loads().iter().sum()
    }

    /// Ends everything that is still open, and the workers.
    pub fn stop(self) {
        self.post.to_all(|worker| {
            worker.drain();
            worker.inbound.cut_all();
            worker.outbound.cut_all();
            worker.stop.notify_one();
        });
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }

    /// Asks every worker to describe its live connections; `show` runs on the workers.
    pub async fn ask<R: Send + 'static>(
        &self,
        show: impl Fn(&Inbound, &Outbound) -> R + Send + Clone + 'static,
    ) -> Vec<R> {
        let mut answers = Vec::new();
        for worker in 0..self.pods.len() {
            let (tell, told) = oneshot::channel();
            let show = show.clone();
            self.post.to(worker, move |worker| {
                let _ = tell.send(show(&worker.inbound, &worker.outbound));
            });
            answers.extend(told.await);
        }
        answers
    }
}

struct Mail {
    own: Mailbox<Worker>,
    inbound: Mailbox<Inbound>,
    outbound: Mailbox<Outbound>,
}

async fn work(id: WorkerId, seed: Seed, to_inbound: Post<Inbound>, to_outbound: Post<Outbound>, mail: Mail) {
    let shard = seed.registry.shard();
    let inbound = Inbound::new(
        id,
        seed.inbound,
        seed.mesh.clone(),
        seed.store.clone(),
        seed.handshakes.clone(),
        seed.placement.clone(),
        to_inbound,
        shard.clone(),
        seed.replaced,
    );
    let outbound = Outbound::new(
        id,
        seed.outbound,
        seed.mesh,
        seed.store,
        seed.handshakes,
        seed.placement,
        to_outbound,
        shard,
    );
    let worker = Rc::new(Worker {
        inbound: inbound.clone(),
        outbound: outbound.clone(),
        serving: RefCell::default(),
        stop: Notify::new(),
        draining: Cell::new(false),
    });
    tokio::select! {
        () = mail.own.serve(worker.clone()) => {}
        () = mail.inbound.serve(inbound) => {}
        () = mail.outbound.serve(outbound) => {}
        () = worker.stop.notified() => {}
    }
    // What was told to end ends in its own task: let each run once more before the runtime goes.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
}

impl Worker {
    fn serve(&self, pod: Arc<Pod>, listeners: Listeners) -> io::Result<()> {
        if self.draining.get() {
            return Err(io::Error::other("the proxy is shutting down"));
        }
        let outbound = Acceptor::new(listeners.outbound)?;
        let plaintext = Acceptor::new(listeners.plaintext)?;
        let tunnel = Acceptor::new(listeners.tunnel)?;
        let [for_outbound, for_plaintext, for_tunnel] =
            [&outbound, &plaintext, &tunnel].map(Acceptor::closer);
        let outbound = tokio::task::spawn_local(self.outbound.clone().serve(pod.clone(), outbound));
        let plaintext =
            tokio::task::spawn_local(self.inbound.clone().serve_plaintext(pod.clone(), plaintext));
        let tunnel = tokio::task::spawn_local(self.inbound.clone().serve(pod.clone(), tunnel));
        let serving = [
            (outbound.abort_handle(), for_outbound),
            (plaintext.abort_handle(), for_plaintext),
            (tunnel.abort_handle(), for_tunnel),
        ];
        self.serving.borrow_mut().insert(pod.uid.clone(), serving);
        Ok(())
    }

    fn cut(&self, pod: &Arc<str>) {
        for (listener, _) in self.serving.borrow_mut().remove(pod).into_iter().flatten() {
            listener.abort();
        }
        self.inbound.cut_ended();
        self.outbound.cut_ended(pod);
    }

    fn drain(&self) {
        self.draining.set(true);
        for (_, close) in self.serving.borrow().values().flatten() {
            close.in_order();
        }
        self.inbound.drain();
    }
}
