//! Work handed from one worker to another: the only way they meet.

use std::rc::Rc;

use tokio::sync::mpsc;

/// Something to do on another worker, with that worker's own `T`.
pub type Job<T> = Box<dyn FnOnce(&Rc<T>) + Send>;

/// The workers' mailboxes. Cheap to clone; messages to one worker arrive in order.
pub struct Post<T> {
    workers: std::sync::Arc<[mpsc::UnboundedSender<Job<T>>]>,
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self { workers: self.workers.clone() }
    }
}

/// One worker's end.
pub struct Mailbox<T> {
    jobs: mpsc::UnboundedReceiver<Job<T>>,
}

impl<T> Post<T> {
    /// Mailboxes for `workers` workers. What may wait in them is bounded by the sockets that are open.
    pub fn new(workers: usize) -> (Self, Vec<Mailbox<T>>) {
        let (senders, boxes): (Vec<_>, Vec<_>) = (0..workers.max(1))
            .map(|_| {
                let (sender, jobs) = mpsc::unbounded_channel();
                (sender, Mailbox { jobs })
            })
            .unzip();
        (Self { workers: senders.into() }, boxes)
    }

    /// Has `job` done on `worker`. Returns whether that worker still works; if not, the job is dropped.
    pub fn to(&self, worker: usize, job: impl FnOnce(&Rc<T>) + Send + 'static) -> bool {
        self.workers[worker].send(Box::new(job)).is_ok()
    }

    /// Has `job` done on every worker.
    pub fn to_all(&self, job: impl Fn(&Rc<T>) + Send + Clone + 'static) {
        for worker in 0..self.workers.len() {
            let job = job.clone();
            self.to(worker, move |it| job(it));
        }
    }
}

impl<T> Mailbox<T> {
    /// Does what arrives, one job at a time, until every [`Post`] is gone. Jobs must be short: what takes time is
    /// spawned by them.
    pub async fn serve(mut self, it: Rc<T>) {
        while let Some(job) = self.jobs.recv().await {
            job(&it);
        }
    }
}
