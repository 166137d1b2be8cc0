//! Which tunnel carries a new stream: one of this worker's, one of another worker's, or a new one.
//!
//! Each worker has a [`Pool`] of its own tunnels, and tells the [`Placement`] table of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Config;
use super::carrier::Tunnel;
use super::error::HandshakeError;
use super::placement::{Placement, TunnelKey, WorkerId};

/// The tunnels of one pod on one worker. Never leaves its thread; dropping it lets go of the tunnels, which end with
/// their last stream.
pub struct Pool {
    worker: WorkerId,
    config: Config,
    placement: Arc<Placement>,
    keys: RefCell<HashMap<TunnelKey, Entry>>,
}

#[derive(Default)]
struct Entry {
    tunnels: Vec<Member>,
    /// Present while somebody opens a tunnel for this key; the others wait for the same answer.
    opening: Option<Vec<oneshot::Sender<Result<(), HandshakeError>>>>,
    /// What the placement table says of this worker and key.
    announced: Option<bool>,
}

struct Member {
    tunnel: Rc<Tunnel>,
    last_used: Instant,
}

/// A tunnel with room for a stream.
pub struct Acquired {
    /// The tunnel.
    pub tunnel: Rc<Tunnel>,
    /// Whether it was there before: it may have died unnoticed, so a failure on it proves nothing about the peer.
    pub reused: bool,
}

impl Pool {
    /// An empty pool on `worker`, and the task that lets go of idle tunnels.
    pub fn start(worker: WorkerId, config: Config, placement: Arc<Placement>) -> Rc<Self> {
        let pool = Rc::new(Self { worker, config, placement, keys: RefCell::default() });
        tokio::task::spawn_local(release_idle(Rc::downgrade(&pool), pool.config.idle_release));
        pool
    }

    /// A tunnel for `key`: one with room, or what `open` makes. However many ask at once, one handshake is under
    /// way per key, and all that wait for it are told its failure at once.
    pub async fn acquire<F>(&self, key: &TunnelKey, open: impl Fn() -> F) -> Result<Acquired, HandshakeError>
    where
        F: Future<Output = Result<Tunnel, HandshakeError>>,
    {
        let mut waited = false;
        loop {
            let wait = {
                let mut keys = self.keys.borrow_mut();
                let entry = keys.entry(key.clone()).or_default();
                entry.tunnels.retain(|member| !member.tunnel.is_closed());
                let limit = self.config.streams_per_tunnel;
                // The fullest with room: the others may then run empty and be released.
                let member = entry
                    .tunnels
                    .iter_mut()
                    .filter(|member| member.tunnel.has_room(limit))
                    .max_by_key(|member| member.tunnel.streams());
                if let Some(member) = member {
                    member.last_used = Instant::now();
                    return Ok(Acquired { tunnel: member.tunnel.clone(), reused: !waited });
                }
                match &mut entry.opening {
                    Some(waiters) => {
                        let (tell, told) = oneshot::channel();
                        waiters.push(tell);
                        Some(told)
                    }
                    none => {
                        *none = Some(Vec::new());
                        None
                    }
                }
            };
            let Some(told) = wait else { break };
            match told.await {
                Ok(Ok(())) => waited = true,
                Ok(Err(cause)) => return Err(cause),
                // Whoever was opening gave up (its client left); ask again, perhaps as the one who opens.
                Err(_) => {}
            }
        }
        let opening = Opening { pool: self, key };
        let opened = open().await;
        opening.done(opened)
    }

    /// Tells the other workers when a tunnel of `key` filled up, or has room again.
    pub fn note_room(&self, key: &TunnelKey) {
        let mut keys = self.keys.borrow_mut();
        let Some(entry) = keys.get_mut(key) else { return };
        let limit = self.config.streams_per_tunnel;
        entry.tunnels.retain(|member| !member.tunnel.is_closed());
        for member in &mut entry.tunnels {
            if member.tunnel.streams() > 0 {
                member.last_used = Instant::now();
            }
        }
        let state = if entry.tunnels.is_empty() {
            None
        } else {
            Some(!entry.tunnels.iter().any(|member| member.tunnel.has_room(limit)))
        };
        if state != entry.announced {
            entry.announced = state;
            self.placement.set(key, self.worker, state);
        }
        if entry.tunnels.is_empty() && entry.opening.is_none() {
            keys.remove(key);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (key, entry) in self.keys.get_mut().drain() {
            if entry.announced.is_some() {
                self.placement.set(&key, self.worker, None);
            }
        }
    }
}

/// The right to open a tunnel for a key. Dropping it without an answer lets a waiter take over.
struct Opening<'a> {
    pool: &'a Pool,
    key: &'a TunnelKey,
}

impl Opening<'_> {
    fn done(self, opened: Result<Tunnel, HandshakeError>) -> Result<Acquired, HandshakeError> {
        let answer = opened.map(Rc::new);
        if let Some(entry) = self.pool.keys.borrow_mut().get_mut(self.key) {
            if let Ok(tunnel) = &answer {
                tunnel.count(self.pool.placement.carry(self.pool.worker));
                entry.tunnels.push(Member { tunnel: tunnel.clone(), last_used: Instant::now() });
            }
            for waiter in entry.opening.take().into_iter().flatten() {
                // A waiter that left needs no answer.
                let _ = waiter.send(answer.as_ref().map(drop).map_err(Clone::clone));
            }
        }
        let acquired = answer.map(|tunnel| Acquired { tunnel, reused: false });
        drop(self);
        acquired
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.pool.keys.borrow_mut().get_mut(self.key) {
            entry.opening = None;
        }
        self.pool.note_room(self.key);
    }
}

async fn release_idle(pool: Weak<Pool>, idle: Duration) {
    let pause = (idle / 4).clamp(Duration::from_millis(100), Duration::from_secs(15));
    loop {
        tokio::time::sleep(pause).await;
        let Some(pool) = pool.upgrade() else { return };
        let keys: Vec<TunnelKey> = pool.keys.borrow().keys().cloned().collect();
        for key in keys {
            pool.note_room(&key);
            if let Some(entry) = pool.keys.borrow_mut().get_mut(&key) {
                entry.tunnels.retain(|member| {
                    let keep = member.tunnel.streams() > 0 || member.last_used.elapsed() < idle;
                    if !keep {
                        member.tunnel.retire();
                    }
                    keep
                });
            }
            pool.note_room(&key);
        }
    }
}
