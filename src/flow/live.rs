//! The connections that are live on one worker: what there is to judge again, to cut, to show.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// The live connections of one worker, each with the facts `T` that the owner keeps of it. Never leaves its thread.
pub struct Live<T, C> {
    entries: Entries<T, C>,
}

type Entries<T, C> = Rc<RefCell<Slab<Rc<Entry<T, C>>>>>;

struct Entry<T, C> {
    facts: T,
    cut: Cell<Option<C>>,
    waker: Cell<Option<Waker>>,
}

/// One connection's place in the list; leaving it is dropping this.
pub struct Ticket<T, C> {
    entries: Entries<T, C>,
    key: usize,
    entry: Rc<Entry<T, C>>,
}

impl<T, C> Default for Live<T, C> {
    fn default() -> Self {
        Self { entries: Rc::default() }
    }
}

impl<T, C> Live<T, C> {
    /// Enters a connection.
    pub fn enter(&self, facts: T) -> Ticket<T, C> {
        let entry = Rc::new(Entry { facts, cut: Cell::new(None), waker: Cell::new(None) });
        let key = self.entries.borrow_mut().insert(entry.clone());
        Ticket { entries: self.entries.clone(), key, entry }
    }

    /// Tells every connection for which `verdict` has a reason to end.
    ///
    /// Only wakes them: each ends in its own task, so a slow one holds up no other. Returns how many were told.
    pub fn cut(&self, verdict: impl Fn(&T) -> Option<C>) -> usize {
        let mut told = 0;
        for (_, entry) in self.entries.borrow().iter() {
            if let Some(reason) = verdict(&entry.facts) {
                entry.cut.set(Some(reason));
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
                told += 1;
            }
        }
        told
    }

    /// Shows every connection's facts to `show`.
    pub fn each(&self, mut show: impl FnMut(&T)) {
        for (_, entry) in self.entries.borrow().iter() {
            show(&entry.facts);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T, C> Ticket<T, C> {
    /// Ready, with the reason, when this connection shall end. One waiter at a time.
    pub async fn cut(&self) -> C {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }

    /// As [`Ticket::cut`], for those who poll.
    pub fn poll_cut(&self, cx: &Context<'_>) -> Poll<C> {
        if let Some(reason) = self.entry.cut.take() {
            return Poll::Ready(reason);
        }
        let known = self.entry.waker.take().filter(|known| known.will_wake(cx.waker()));
        self.entry.waker.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
        Poll::Pending
    }

    /// What was entered.
    pub fn facts(&self) -> &T {
        &self.entry.facts
    }
}

impl<T, C> Drop for Ticket<T, C> {
    fn drop(&mut self) {
        self.entries.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_connections_with_a_reason_are_cut() {
        let live = Live::<u16, &str>::default();
        let (kept, lost) = (live.enter(80), live.enter(22));
        assert_eq!(live.cut(|port| (*port == 22).then_some("closed")), 1);
        assert_eq!(lost.cut().await, "closed");
        assert!(futures_are_pending(kept.cut()).await);
        drop(lost);
        assert_eq!(live.len(), 1);
    }

    #[tokio::test]
    async fn a_connection_that_already_waits_is_woken() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let live = Rc::new(Live::<(), u8>::default());
                let ticket = live.enter(());
                let waiting = tokio::task::spawn_local(async move { ticket.cut().await });
                tokio::task::yield_now().await;
                live.cut(|()| Some(7));
                assert_eq!(waiting.await.unwrap(), 7);
                assert!(live.is_empty());
            })
            .await;
    }

    async fn futures_are_pending(future: impl Future) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }
}
