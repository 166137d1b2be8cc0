//! The data workers: one thread each, with one single-threaded runtime, that share nothing.
//!
//! A pod's listeners are served by one worker; its connections may be owned by any. What reaches a worker from
//! outside comes through its mailboxes. [`Fleet`] is the handle that the service thread holds on all of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle as Task, LocalSet};

use crate::capture::{Acceptor, Listeners, Pod};
use crate::hands::Hands;
use crate::hbone::{self, Handshakes, Placement, WorkerId};
use crate::identity::Store;
use crate::inbound::{self, Inbound};
use crate::mesh;
use crate::net::mailbox::{Mailbox, Post};
use crate::outbound::{self, Outbound};
use crate::telemetry::{Counter, Registry, Reporter, Shard};

/// Buffers that nobody needs for so long are given back.
const SPARE_FOR: Duration = Duration::from_secs(11);

/// How often a worker tells how busy it is.
const BUSY_EVERY: Duration = Duration::from_millis(250);

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

/// A pod and the tasks of its three listeners.
type Serving = (Arc<Pod>, [Task<()>; 3]);

impl Seed {
    fn hands<T>(&self, worker: WorkerId, post: Post<T>, shard: &Shard) -> Hands<T> {
        Hands {
            worker,
            mesh: self.mesh.clone(),
            store: self.store.clone(),
            handshakes: self.handshakes.clone(),
            placement: self.placement.clone(),
            post,
            shard: shard.clone(),
        }
    }
}

/// One worker, on its thread.
pub struct Worker {
    inbound: Rc<Inbound>,
    outbound: Rc<Outbound>,
    /// The listeners this worker serves, by pod UID.
    serving: RefCell<HashMap<Arc<str>, Serving>>,
    stop: Notify,
    /// True once listeners shall close.
    closing: watch::Sender<bool>,
}

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
                let _whole = Whole;
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
    /// Returns when the listeners are closed.
    pub async fn cut(&self, pod: &Pod, on: WorkerId) {
        self.pods[on].fetch_sub(1, Ordering::Relaxed);
        pod.end();
        let mut listeners = None;
        for worker in 0..self.pods.len() {
            let uid = pod.uid.clone();
            let (tell, told) = oneshot::channel::<()>();
            self.post.to(worker, move |worker| {
                let listeners = worker.cut(&uid);
                tokio::task::spawn_local(async move {
                    for listener in listeners {
                        // An aborted task's end is the end that was asked for.
                        let _ = listener.await;
                    }
                    drop(tell);
                });
            });
            if worker == on {
                listeners = Some(told);
            }
        }
        if let Some(closed) = listeners {
            // Dropped rather than sent, so that a worker that ends meanwhile counts as done.
            let _ = closed.await;
        }
    }

    /// Has every worker judge its live connections again.
    pub fn judge_again(&self) {
        self.post.to_all(|worker| worker.inbound.judge_again());
    }

    /// Closes all listeners and tells peers to open no more streams; what is open runs on. Returns when the
    /// listeners are closed and who had connected is being served.
    pub async fn drain(&self) {
        let mut drained = Vec::new();
        for worker in 0..self.pods.len() {
            let (tell, told) = oneshot::channel::<()>();
            self.post.to(worker, move |worker| {
                let (worker, listeners) = (worker.clone(), worker.close());
                tokio::task::spawn_local(async move {
                    for listener in listeners {
                        // A cut pod's were aborted, which is an end too.
                        let _ = listener.await;
                    }
                    // Only now: who is told to go elsewhere must not meet a listener that closes.
                    worker.inbound.drain();
                    worker.outbound.drain();
                    drop(tell);
                });
            });
            drained.push(told);
        }
        for told in drained {
            // Dropped rather than sent, so that a worker that ends meanwhile counts as drained.
            let _ = told.await;
        }
    }

    /// Connections and tunnels that are still carried.
    pub fn carried(&self) -> usize {
        self.placement.loads().iter().sum()
    }

    /// Ends everything that is still open, and the workers.
    pub fn stop(self) {
        self.post.to_all(|worker| {
            for listener in worker.close() {
                listener.abort();
            }
            worker.inbound.cut_all();
            worker.outbound.cut_all();
            worker.stop.notify_one();
        });
        for thread in self.threads {
            thread.join().expect("a worker that panics takes the process with it");
        }
    }

    /// Who can be asked what the workers carry, from any thread.
    pub fn observer(&self) -> Observer {
        Observer { post: self.post.clone(), workers: self.pods.len() }
    }
}

/// Ends the process when a worker's thread panics: its pods would go dark while the process looks well. A panic in
/// one connection's task does not come here; it ends that connection.
struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("a worker thread panicked; ending the process, so that its pods are served again");
            std::process::abort();
        }
    }
}

/// Asks the workers what they carry, for operators.
#[derive(Clone)]
pub struct Observer {
    post: Post<Worker>,
    workers: usize,
}

/// One live connection as operators are shown it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The pod it belongs to.
    pub pod: Arc<Pod>,
    /// From the mesh to the pod, or the other way.
    pub reporter: Reporter,
    /// Who dialled.
    pub src: SocketAddr,
    /// What was dialled, or for what it was asked; `None` where nobody said.
    pub original_dst: Option<String>,
    /// Where the bytes go.
    pub actual_dst: SocketAddr,
    /// Whether it came, or goes, through a tunnel.
    pub tunnel: bool,
}

impl Observer {
    /// The pods that are served, and every live connection. Waits for the workers one after another.
    pub async fn look(&self) -> (Vec<Arc<Pod>>, Vec<Shown>) {
        let (mut pods, mut connections) = (Vec::new(), Vec::new());
        for worker in 0..self.workers {
            let (tell, told) = oneshot::channel();
            self.post.to(worker, move |worker| {
                // The asker only stops waiting when the process ends.
                let _ = tell.send(worker.show());
            });
            let Ok((of_worker, carried)) = told.await else { continue };
            pods.extend(of_worker);
            connections.extend(carried);
        }
        (pods, connections)
    }
}

struct Mail {
    own: Mailbox<Worker>,
    inbound: Mailbox<Inbound>,
    outbound: Mailbox<Outbound>,
}

async fn work(id: WorkerId, seed: Seed, to_inbound: Post<Inbound>, to_outbound: Post<Outbound>, mail: Mail) {
    let (shard, placement) = (seed.registry.shard(), seed.placement.clone());
    let inbound =
        Inbound::new(seed.hands(id, to_inbound, &shard), seed.inbound.clone(), seed.replaced.clone());
    let outbound = Outbound::new(seed.hands(id, to_outbound, &shard), seed.outbound.clone());
    let worker = Rc::new(Worker {
        inbound: inbound.clone(),
        outbound: outbound.clone(),
        serving: RefCell::default(),
        stop: Notify::new(),
        closing: watch::Sender::new(false),
    });
    tokio::select! {
        () = mail.own.serve(worker.clone()) => {}
        () = mail.inbound.serve(inbound) => {}
        () = mail.outbound.serve(outbound) => {}
        () = worker.stop.notified() => {}
        () = spare_memory() => {}
        () = tell_busy(id, placement) => {}
    }
    // What was told to end ends in its own task: let each run once more before the runtime goes.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// What a burst of traffic left in this worker's stock of buffers does not stay there. Never returns.
async fn spare_memory() {
    loop {
        tokio::time::sleep(SPARE_FOR).await;
        hbone::release_spare();
    }
}

/// Tells the other workers how busy this one is. Never returns.
async fn tell_busy(id: WorkerId, placement: Arc<Placement>) {
    let runtime = tokio::runtime::Handle::current().metrics();
    let mut before = (Instant::now(), runtime.worker_total_busy_duration(0));
    let mut busy = 0;
    loop {
        tokio::time::sleep(BUSY_EVERY).await;
        let now = (Instant::now(), runtime.worker_total_busy_duration(0));
        let thousandths = (now.1 - before.1).as_micros() * 1_000 / (now.0 - before.0).as_micros().max(1);
        before = now;
        // Half of it is what was before, so that one long turn does not count as being full.
        busy = (busy + u32::try_from(thousandths).unwrap_or(1_000).min(1_000)) / 2;
        placement.tell_busy(id, busy);
    }
}

impl Worker {
    fn serve(&self, pod: Arc<Pod>, listeners: Listeners) -> io::Result<()> {
        if *self.closing.borrow() {
            return Err(io::Error::other("the proxy is shutting down"));
        }
        let outbound = Acceptor::new(listeners.outbound, self.closing.subscribe())?;
        let plaintext = Acceptor::new(listeners.plaintext, self.closing.subscribe())?;
        let tunnel = Acceptor::new(listeners.tunnel, self.closing.subscribe())?;
        let tasks = [
            tokio::task::spawn_local(self.outbound.clone().serve(pod.clone(), outbound)),
            tokio::task::spawn_local(self.inbound.clone().serve_plaintext(pod.clone(), plaintext)),
            tokio::task::spawn_local(self.inbound.clone().serve(pod.clone(), tunnel)),
        ];
        self.serving.borrow_mut().insert(pod.uid.clone(), (pod, tasks));
        Ok(())
    }

    /// Ends what is here of a pod. Returns its listeners' tasks, which end when they are closed.
    fn cut(&self, pod: &Arc<str>) -> Vec<Task<()>> {
        let serving = self.serving.borrow_mut().remove(pod);
        let listeners: Vec<_> = serving.into_iter().flat_map(|(_, listeners)| listeners).collect();
        listeners.iter().for_each(Task::abort);
        self.inbound.cut_ended();
        self.outbound.cut_ended(pod);
        listeners
    }

    fn show(&self) -> (Vec<Arc<Pod>>, Vec<Shown>) {
        let pods = self.serving.borrow().values().map(|(pod, _)| pod.clone()).collect();
        let mut connections = Vec::new();
        self.inbound.each(|subject| {
            connections.push(Shown {
                pod: subject.pod.clone(),
                reporter: Reporter::Destination,
                src: subject.facts.client.addr(),
                original_dst: subject.asked.clone(),
                actual_dst: subject.facts.target.addr(),
                tunnel: subject.facts.source.is_some(),
            });
        });
        self.outbound.each(|subject| {
            let (actual_dst, tunnel) = subject.hop.get();
            connections.push(Shown {
                pod: subject.pod.clone(),
                reporter: Reporter::Source,
                src: subject.client.addr(),
                original_dst: Some(subject.original.to_string()),
                actual_dst,
                tunnel,
            });
        });
        (pods, connections)
    }

    /// Tells the listeners to close. Returns their tasks, which end when they are closed.
    fn close(&self) -> Vec<Task<()>> {
        self.closing.send_replace(true);
        self.serving.borrow_mut().drain().flat_map(|(_, (_, listeners))| listeners).collect()
    }
}
