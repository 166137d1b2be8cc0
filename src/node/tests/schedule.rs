//! How long it waits.

use super::super::backoff::{Backoff, Session};
use super::super::state::{Action, Event, State};
use super::*;

#[test]
fn a_pod_that_fails_waits_one_second_and_then_twice_as_long_up_to_fifteen() {
    let netns = Arc::new(namespace());
    let mut state = State::new(Netns::current().unwrap().id(), Timing::default().retry);
    let pod = PodInfo {
        uid: "a".into(),
        name: "pod".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "till".to_owned(),
    };
    let mut now = Instant::now();
    let mut waits = Vec::new();
    let mut next = Event::Add(pod.clone(), Ok(netns));
    for _ in 0..7 {
        assert!(matches!(state.on(next, now), Action::Start(..)));
        state.on(Event::Failed(Arc::clone(&pod.uid)), now);
        let (at, uid) = state.next_retry().unwrap();
        waits.push((at - now).as_secs());
        now = at;
        next = Event::Due(uid);
    }
    assert_eq!(waits, [1, 2, 4, 8, 15, 15, 15]);
    state.on(next, now);
    state.on(Event::Started(pod.uid), now);
    assert!(state.next_retry().is_none());
}

const NONE: Session = Session { synced: false, violated: false, lasted: Duration::ZERO };

fn backoff() -> Backoff {
    Backoff::new(Timing::default().reconnect, Timing::default().settled)
}

/// Whether the next wait after `session` is the shortest, although many before came to nothing.
fn starts_over(session: Session) -> bool {
    let mut backoff = backoff();
    for _ in 0..20 {
        backoff.after(NONE);
    }
    backoff.after(session) < Duration::from_millis(25)
}

#[test]
fn reconnecting_waits_20_ms_and_then_twice_as_long_up_to_15_s_give_or_take_a_fifth() {
    let mut backoff = backoff();
    let mut middle = Duration::from_millis(20);
    for _ in 0..40 {
        let wait = backoff.after(NONE);
        assert!(wait >= middle.mul_f64(0.79), "{wait:?} is not around {middle:?}");
        assert!(wait <= middle.mul_f64(1.21), "{wait:?} is not around {middle:?}");
        middle = (middle * 2).min(Duration::from_secs(15));
    }
}

#[test]
fn only_a_session_that_was_good_for_something_starts_the_wait_over() {
    let synced = Session { synced: true, ..NONE };
    assert!(starts_over(synced));
    assert!(!starts_over(NONE));
    assert!(!starts_over(Session { violated: true, ..synced }));
    assert!(starts_over(Session { violated: true, lasted: Duration::from_secs(60), ..synced }));
    assert!(!starts_over(Session { lasted: HOUR, ..NONE }));
}

#[test]
fn the_deadlines_fit_into_what_the_agent_allows() {
    let timing = Timing::default();
    assert!(timing.start + timing.stop < timing.answer);
    assert!(timing.answer < Duration::from_secs(5));
}
