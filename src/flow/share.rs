//! Pods share a worker by bytes: however many connections one has, the others move as much.
//!
//! Deficit round robin (M. Shreedhar and G. Varghese, 1996), with what is ready on the worker as its queues. Each pod may move
//! [`QUANTUM`] bytes per round and what it has left of the round before; a pod that has used them up waits for the next round, each
//! of its connections in the order they came. A round ends when all that have more to move at once have used up theirs. A pod that is
//! alone never waits.
//!
//! Why this and what else was considered: `docs/decisions/0017-pods-share-by-bytes.md`. Every worker has one of these, made when it is needed first; a [`Share`] is one pod's.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes that a pod may move per round: a little more than the largest read, so that each round moves something.
const QUANTUM: i64 = (1 << 20) + (64 << 10);

thread_local! {
    static WORKER: Worker = Worker::default();
}

/// What the shares of one worker have in common.
#[derive(Default)]
struct Worker {
    accounts: RefCell<HashMap<Arc<str>, Weak<Account>>>,
    round: Cell<u64>,
    /// How often another pod moved bytes than the one that did last; and that one.
    switches: Cell<u64>,
    last: Cell<Option<u64>>,
    /// Somebody who has more to move has had a turn since the keeper looked.
    unfinished: Cell<bool>,
    /// Numbers for accounts.
    made: Cell<u64>,
    /// Pods of which somebody waits.
    waiting: RefCell<Vec<Rc<Account>>>,
    /// The task that ends rounds.
    keeper: Cell<Keeper>,
}

/// The task that ends rounds.
#[derive(Default)]
enum Keeper {
    /// Not there.
    #[default]
    None,
    /// At work, or about to be.
    Awake,
    /// Waits until somebody waits.
    Asleep(Waker),
}

/// What one pod has moved.
struct Account {
    pod: Option<Arc<str>>,
    number: u64,
    /// Bytes that it may still move in `round`; below zero when it has moved more.
    left: Cell<i64>,
    round: Cell<u64>,
    /// [`Worker::switches`] when it got its last quantum.
    switches: Cell<u64>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// One of the waiters was told that it is its turn and has not moved anything yet.
    told: Cell<bool>,
    /// It is in [`Worker::waiting`].
    listed: Cell<bool>,
}

#[derive(Default)]
struct Waiter {
    state: Cell<State>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It wants nothing.
    #[default]
    Idle,
    /// It waits.
    Queued,
    /// It is its turn.
    Told,
}

/// One pod's share of this worker. Clones are the same share.
#[derive(Clone)]
pub struct Share(Rc<Account>);

impl Share {
    /// The share of `pod`, by its UID, on the calling thread.
    pub fn of(pod: &Arc<str>) -> Self {
        WORKER.with(|worker| {
            let mut accounts = worker.accounts.borrow_mut();
            if let Some(known) = accounts.get(pod).and_then(Weak::upgrade) {
                return Self(known);
            }
            let account = Rc::new(Account::new(worker, Some(pod.clone())));
            accounts.insert(pod.clone(), Rc::downgrade(&account));
            Self(account)
        })
    }

    /// A share that nobody else has.
    pub fn alone() -> Self {
        Self(WORKER.with(|worker| Rc::new(Account::new(worker, None))))
    }

    /// A place for one who moves bytes: a connection in one direction, or a tunnel.
    pub fn place(&self) -> Place {
        Place { account: self.0.clone(), waiter: None }
    }
}

/// Where one connection, or one tunnel, waits for its pod's turn.
pub struct Place {
    account: Rc<Account>,
    /// Made when it has to wait for the first time.
    waiter: Option<Rc<Waiter>>,
}

/// The right to move one batch. Dropped, it is the next one's turn.
#[must_use = "it is for moving bytes"]
pub struct Turn<'a> {
    account: &'a Account,
    bytes: usize,
}

impl Turn<'_> {
    /// `bytes` were moved, and there was `more` to move at once.
    pub fn moved(mut self, bytes: usize, more: bool) {
        self.bytes = bytes;
        if more {
            WORKER.with(|worker| worker.unfinished.set(true));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.account.spend(self.bytes);
        self.account.pass_on();
    }
}

impl Place {
    /// The right to move one batch now; without it, `cx` is woken when there is one.
    pub fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<Turn<'_>> {
        self.poll_right(cx).map(|()| Turn { account: &self.account, bytes: 0 })
    }

    /// Waits for the right to move one batch.
    ///
    /// Cancel: the place in the queue stays.
    pub async fn turn(&mut self) -> Turn<'_> {
        poll_fn(|cx| self.poll_right(cx)).await;
        Turn { account: &self.account, bytes: 0 }
    }

    fn poll_right(&mut self, cx: &Context<'_>) -> Poll<()> {
        let state = self.waiter.as_ref().map_or(State::Idle, |waiter| waiter.state.get());
        if state == State::Idle && WORKER.with(|worker| self.account.may_move(worker)) {
            return Poll::Ready(());
        }
        let waiter = self.waiter.get_or_insert_default();
        if state == State::Told {
            waiter.state.set(State::Idle);
            return Poll::Ready(());
        }
        waiter.wait(cx);
        if state == State::Idle {
            waiter.state.set(State::Queued);
            self.account.waiters.borrow_mut().push_back(waiter.clone());
            WORKER.with(|worker| worker.list(&self.account));
        }
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(waiter) = &self.waiter else { return };
        match waiter.state.get() {
            State::Idle => {}
            State::Queued => {
                self.account.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, waiter));
            }
            State::Told => self.account.pass_on(),
        }
    }
}

impl Waiter {
    fn wait(&self, cx: &Context<'_>) {
        let mut known = self.waker.borrow_mut();
        if known.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *known = Some(cx.waker().clone());
        }
    }
}

impl Account {
    fn new(worker: &Worker, pod: Option<Arc<str>>) -> Self {
        let number = worker.made.get();
        worker.made.set(number + 1);
        Self {
            pod,
            number,
            left: Cell::new(QUANTUM),
            round: Cell::new(worker.round.get()),
            switches: Cell::new(worker.switches.get()),
            waiters: RefCell::default(),
            told: Cell::new(false),
            listed: Cell::new(false),
        }
    }

    /// Whether one that has not waited may move a batch.
    fn may_move(&self, worker: &Worker) -> bool {
        self.begin_round(worker);
        if self.told.get() || !self.waiters.borrow().is_empty() {
            return false;
        }
        let is_alone = self.switches.get() == worker.switches.get() && worker.waiting.borrow().is_empty();
        if self.left.get() <= 0 && is_alone {
            // Nobody else has moved anything since it got these, and nobody waits, so nobody loses by it.
            self.left.set(QUANTUM);
        }
        self.left.get() > 0
    }

    /// Gives it what the rounds since the last time have brought; what was not used then is not kept.
    fn begin_round(&self, worker: &Worker) {
        let now = worker.round.get();
        let rounds = now - self.round.replace(now);
        if rounds > 0 {
            let brought = QUANTUM.saturating_mul(i64::try_from(rounds).unwrap_or(i64::MAX));
            self.left.set(self.left.get().saturating_add(brought).min(QUANTUM));
            self.switches.set(worker.switches.get());
        }
    }

    fn spend(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.left.set(self.left.get().saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX)));
        // At the end of the thread there is nobody left to share with.
        let _ = WORKER.try_with(|worker| {
            if worker.last.replace(Some(self.number)) != Some(self.number) {
                let before = worker.switches.replace(worker.switches.get() + 1);
                if self.switches.get() == before {
                    // That one does not count: nobody else has moved anything.
                    self.switches.set(before + 1);
                }
            }
        });
    }

    /// Tells the next of its waiters, while it has something left.
    fn pass_on(&self) {
        let next = if self.left.get() > 0 { self.waiters.borrow_mut().pop_front() } else { None };
        self.told.set(next.is_some());
        if let Some(waiter) = next {
            waiter.state.set(State::Told);
            if let Some(waker) = &*waiter.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(pod) = &self.pod {
            let _ = WORKER.try_with(|worker| worker.accounts.borrow_mut().remove(pod));
        }
    }
}

impl Worker {
    /// Somebody of `account` waits for a round to come.
    fn list(&self, account: &Rc<Account>) {
        if !account.listed.replace(true) {
            self.waiting.borrow_mut().push(account.clone());
        }
        match self.keeper.replace(Keeper::Awake) {
            Keeper::None => drop(tokio::task::spawn_local(keep_rounds())),
            Keeper::Awake => {}
            Keeper::Asleep(waker) => waker.wake(),
        }
    }

    /// Nobody has more to move and may: those that wait get more.
    fn next_round(&self) {
        self.round.set(self.round.get() + 1);
        // Those of them that wait again are listed again, behind the others.
        for account in self.waiting.take() {
            account.begin_round(self);
            // Also where one was told before: whoever does not come holds up nobody for longer than a round.
            account.pass_on();
            let waits = !account.waiters.borrow().is_empty();
            account.listed.set(waits);
            if waits {
                self.waiting.borrow_mut().push(account);
            }
        }
    }
}

/// Ends rounds as long as somebody waits. One of it per worker.
async fn keep_rounds() {
    struct Gone;
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = WORKER.try_with(|worker| worker.keeper.set(Keeper::None));
        }
    }
    let _gone = Gone;
    loop {
        poll_fn(|cx| {
            WORKER.with(|worker| {
                if !worker.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                worker.keeper.set(Keeper::Asleep(cx.waker().clone()));
                Poll::Pending
            })
        })
        .await;
        // Those who have used up what they had are not among those who run. This comes back when many of the others have run, or all
        // that were ready, and the sockets were asked who else is.
        WORKER.with(|worker| worker.unfinished.set(false));
        loop {
            tokio::task::yield_now().await;
            if !WORKER.with(|worker| worker.unfinished.replace(false)) {
                break;
            }
        }
        WORKER.with(Worker::next_round);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    fn on_a_worker(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            tokio::time::timeout(Duration::from_secs(60), story).await.expect("the story hangs");
        });
    }

    fn pod(name: &str) -> Share {
        Share::of(&name.into())
    }

    /// Connections of a pod that move `batch` bytes at each of their turns, for ever; counts them in `moved`.
    fn pour(share: &Share, connections: usize, batch: usize, moved: &Rc<Cell<usize>>) {
        for _ in 0..connections {
            let (mut place, moved) = (share.place(), moved.clone());
            spawn_local(async move {
                loop {
                    place.turn().await.moved(batch, true);
                    moved.set(moved.get() + batch);
                    again().await;
                }
            });
        }
    }

    /// Behind everybody who is ready, as connections do that have more to move.
    async fn again() {
        let mut first = true;
        poll_fn(|cx| match std::mem::take(&mut first) {
            true => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await;
    }

    async fn until(total: usize, counts: &[&Rc<Cell<usize>>]) {
        while counts.iter().map(|count| count.get()).sum::<usize>() < total {
            yield_now().await;
        }
    }

    #[test]
    fn pods_get_the_same_however_many_connections_they_have_and_however_large_their_batches_are() {
        for (connections, batch) in [(1, 1 << 20), (100, 1 << 20), (100, 16 << 10), (500, 64 << 10)] {
            on_a_worker(async {
                let (crowd, single) = (Rc::default(), Rc::default());
                pour(&pod("crowd"), connections, batch, &crowd);
                pour(&pod("single"), 1, 256 << 10, &single);
                until(1 << 30, &[&crowd, &single]).await;
                let part = single.get() as f64 / (1 << 30) as f64;
                assert!((0.4..=0.6).contains(&part), "{connections} x {batch}: one connection got {part}");
            });
        }
    }

    #[test]
    fn connections_of_one_pod_take_turns() {
        on_a_worker(async {
            let (one, other) = (pod("one"), Rc::default());
            pour(&pod("other"), 1, 1 << 20, &other);
            let counts: Vec<Rc<Cell<usize>>> = (0..10).map(|_| Rc::default()).collect();
            counts.iter().for_each(|count| pour(&one, 1, 256 << 10, count));
            until(1 << 30, &[&other]).await;
            let (least, most) =
                (counts.iter().map(|it| it.get()).min(), counts.iter().map(|it| it.get()).max());
            assert!(most.unwrap() - least.unwrap() <= 1 << 20, "{least:?} to {most:?}");
        });
    }

    #[test]
    fn a_pod_that_is_alone_never_waits() {
        on_a_worker(async {
            let share = pod("alone");
            let mut places = [share.place(), share.place()];
            let cx = Context::from_waker(Waker::noop());
            for _ in 0..1_000 {
                for place in &mut places {
                    let Poll::Ready(turn) = place.poll_turn(&cx) else { panic!("it has to wait for itself") };
                    turn.moved(1 << 20, true);
                }
            }
        });
    }

    #[test]
    fn a_pod_that_says_little_does_not_wait_behind_one_that_says_much() {
        on_a_worker(async {
            let much = Rc::default();
            pour(&pod("much"), 100, 256 << 10, &much);
            let mut place = pod("little").place();
            for _ in 0..1_000 {
                let before = much.get();
                place.turn().await.moved(64, false);
                assert!(much.get() - before <= 2 << 20, "it waited for {} bytes", much.get() - before);
                yield_now().await;
            }
        });
    }

    #[test]
    fn who_has_moved_more_than_its_share_waits_for_rounds_and_not_for_ever() {
        for batch in [QUANTUM + 1_408, 3 * QUANTUM + 7] {
            on_a_worker(async move {
                let (over, other) = (Rc::default(), Rc::default());
                pour(&pod("over"), 1, usize::try_from(batch).unwrap(), &over);
                pour(&pod("other"), 1, 256 << 10, &other);
                for step in 1..=64 {
                    until(step << 26, &[&over, &other]).await;
                    let part = over.get() as f64 / (over.get() + other.get()) as f64;
                    assert!(step < 8 || (0.4..=0.6).contains(&part), "{batch}: {part} after {step} x 64 MiB");
                }
            });
        }
    }

    #[test]
    fn one_that_is_told_and_does_not_come_does_not_stop_its_pod() {
        on_a_worker(async {
            let (pod, other, moved) = (pod("pod"), Rc::default(), Rc::default());
            pour(&self::pod("other"), 1, 256 << 10, &other);
            until(8 << 20, &[&other]).await;
            let (mut one, cx) = (pod.place(), Context::from_waker(Waker::noop()));
            one.turn().await.moved(2 << 20, true);
            assert!(one.poll_turn(&cx).is_pending());
            pour(&pod, 2, 256 << 10, &moved);
            let before = other.get();
            until(64 << 20, &[&moved]).await;
            assert!(other.get() - before < 80 << 20, "{} bytes went by", other.get() - before);
            drop(one);
        });
    }

    #[test]
    fn who_leaves_while_it_waits_or_is_told_holds_nobody_up() {
        on_a_worker(async {
            let (pod, other) = (pod("pod"), pod("other"));
            other.place().turn().await.moved(1, true);
            let mut places: Vec<_> = (0..3).map(|_| pod.place()).collect();
            places[0].turn().await.moved(2 << 20, true);
            other.place().turn().await.moved(1, true);
            let cx = Context::from_waker(Waker::noop());
            assert!(places.iter_mut().all(|place| place.poll_turn(&cx).is_pending()));
            // The second leaves while it waits, the first when it was told.
            drop(places.remove(1));
            while places[0].waiter.as_ref().unwrap().state.get() != State::Told {
                yield_now().await;
            }
            drop(places.remove(0));
            drop(places[0].turn().await);
            assert!(pod.0.waiters.borrow().is_empty());
            // Who was told and does not come holds up nobody either.
            places[0].turn().await.moved(2 << 20, true);
            other.place().turn().await.moved(1, true);
            let mut late = pod.place();
            assert!(late.poll_turn(&cx).is_pending());
            let mut last = pod.place();
            drop(last.turn().await);
            drop(late);
        });
    }

    #[test]
    fn nothing_is_left_of_a_pod_that_is_gone() {
        on_a_worker(async {
            let share = pod("gone");
            assert!(Rc::ptr_eq(&share.0, &pod("gone").0));
            let place = share.place();
            drop(share);
            assert_eq!(WORKER.with(|worker| worker.accounts.borrow().len()), 1);
            drop(place);
            assert_eq!(WORKER.with(|worker| worker.accounts.borrow().len()), 0);
        });
    }
}
