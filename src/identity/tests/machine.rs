//! The certificate's state machine, row by row.

use tokio::time::Instant;

use crate::identity::state::{Action, Ask, Event, Moment, State};

use super::*;

/// No jitter.
const EVEN: f64 = 0.5;

fn start() -> Moment {
    Moment { instant: Instant::now(), wall: new_year(), chance: EVEN }
}

/// `span` later on both clocks.
fn later(moment: &Moment, span: Duration) -> Moment {
    Moment { instant: moment.instant + span, wall: moment.wall + span, ..*moment }
}

/// Valid from two minutes before the new year until `life` after it.
fn living(life: Duration) -> Arc<Credentials> {
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_after = (new_year() + life).into();
    Arc::new(Credentials::new(&id("cart"), Mint::new().issue(&params), &policy()).unwrap())
}

fn step(state: State, event: Event, now: &Moment) -> State {
    state.on(event, now).0
}

fn fresh(life: Duration, now: &Moment) -> State {
    step(step(State::new(now), Event::Asked, now), Event::Issued(living(life)), now)
}

fn ageing(life: Duration, now: &Moment) -> State {
    step(fresh(life, now), Event::Due, now)
}

#[test]
fn a_new_identity_is_asked_for_at_once() {
    let now = start();
    assert_eq!(State::new(&now).asks_at(), Some(now.instant));
}

#[test]
fn wanted_asked_has_one_request_under_way() {
    let now = start();
    let state = step(State::new(&now), Event::Asked, &now);
    assert!(matches!(state, State::Wanted { refusals: 0, ask: Ask::UnderWay { .. } }));
    assert_eq!(state.asks_at(), None);
    let state = step(state, Event::Awaited, &later(&now, seconds(5)));
    assert_eq!(state.asks_at(), None, "a waiting connection must not start a second request");
}

#[test]
fn wanted_awaited_advances_the_retry_to_one_a_second() {
    let now = start();
    let mut state = State::new(&now);
    for _ in 0..6 {
        state = step(step(state, Event::Asked, &now), Event::Refused, &now);
    }
    assert_eq!(state.asks_at(), Some(now.instant + seconds(32)));
    let soon = later(&now, Duration::from_millis(300));
    let state = step(state, Event::Awaited, &soon);
    assert_eq!(state.asks_at(), Some(now.instant + seconds(1)));
    let much_later = later(&now, seconds(20));
    let state = step(state, Event::Awaited, &much_later);
    assert_eq!(state.asks_at(), Some(now.instant + seconds(1)), "what is due already is not put off");
}

#[test]
fn wanted_issued_is_fresh_and_served() {
    let now = start();
    let credentials = living(hours(24));
    let (state, action) =
        step(State::new(&now), Event::Asked, &now).on(Event::Issued(credentials.clone()), &now);
    assert!(matches!(action, Action::Serve(served) if Arc::ptr_eq(&served, &credentials)));
    assert!(Arc::ptr_eq(state.credentials().unwrap(), &credentials));
    assert!(matches!(state, State::Fresh { .. }));
    assert_eq!(state.elapses_at(&now), Some(now.instant + hours(12)));
}

#[test]
fn wanted_refused_waits_longer_each_time_up_to_150_seconds() {
    let mut now = start();
    let mut state = State::new(&now);
    let mut pauses = Vec::new();
    for _ in 0..40 {
        state = step(step(state, Event::Asked, &now), Event::Refused, &now);
        let due = state.asks_at().unwrap();
        pauses.push((due - now.instant).as_secs());
        now = later(&now, due - now.instant);
    }
    assert_eq!(pauses[..10], [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
    assert!(pauses[10..].iter().all(|pause| *pause == 150));
    assert_eq!(state.refusals(), 40);
}

#[test]
fn a_slow_refusal_is_followed_by_a_pause_as_well() {
    let now = start();
    let refused = later(&now, seconds(10));
    let state = step(step(State::new(&now), Event::Asked, &now), Event::Refused, &refused);
    assert_eq!(state.asks_at(), Some(now.instant + seconds(11)));
    let state = step(state, Event::Awaited, &refused);
    assert_eq!(state.asks_at(), Some(now.instant + seconds(10)));
}

#[test]
fn fresh_is_due_at_half_of_what_was_left_on_arrival() {
    let now = start();
    for (chance, half) in [(0.0, 10_800), (0.5, 12_000), (1.0, 13_200)] {
        let state = fresh(seconds(24_000), &Moment { chance, ..now });
        assert!(state.elapsed(&later(&now, seconds(half - 1))).is_none());
        assert!(matches!(state.elapsed(&later(&now, seconds(half))), Some(Event::Due)));
    }
}

#[test]
fn fresh_due_asks_at_once_and_keeps_serving() {
    let now = start();
    let half = later(&now, hours(12));
    let (state, action) = fresh(hours(24), &now).on(Event::Due, &half);
    assert!(matches!((&state, action), (State::Ageing { refusals: 0, .. }, Action::Nothing)));
    assert_eq!(state.asks_at(), Some(half.instant));
    assert!(state.credentials().is_some());
    assert_eq!(state.elapses_at(&half), Some(half.instant + hours(12)));
}

#[test]
fn fresh_expired_is_served_no_more_and_asked_for() {
    let now = start();
    let over = later(&now, hours(24));
    let state = fresh(hours(24), &now);
    assert!(matches!(state.elapsed(&over), Some(Event::Expired)));
    let (state, action) = state.on(Event::Expired, &over);
    assert!(matches!((&state, action), (State::Wanted { refusals: 0, .. }, Action::Withdraw)));
    assert_eq!(state.asks_at(), Some(over.instant));
}

#[test]
fn ageing_asked_has_one_request_under_way() {
    let now = start();
    let state = step(ageing(hours(24), &now), Event::Asked, &now);
    assert!(matches!(state, State::Ageing { ask: Ask::UnderWay { .. }, .. }));
    assert!(state.is_asking() && state.asks_at().is_none() && state.credentials().is_some());
}

#[test]
fn ageing_issued_serves_the_new_one() {
    let now = start();
    let new = living(hours(36));
    let half = later(&now, hours(12));
    let state = step(ageing(hours(24), &now), Event::Asked, &half);
    let (state, action) = state.on(Event::Issued(new.clone()), &half);
    assert!(matches!(action, Action::Serve(served) if Arc::ptr_eq(&served, &new)));
    assert!(Arc::ptr_eq(state.credentials().unwrap(), &new));
    assert_eq!(state.elapses_at(&half), Some(half.instant + hours(12)));
}

#[test]
fn ageing_refused_keeps_serving_and_waits_longer() {
    let now = start();
    let mut state = ageing(hours(24), &now);
    for pause in [1, 2, 4] {
        state = step(step(state, Event::Asked, &now), Event::Refused, &now);
        assert_eq!(state.asks_at(), Some(now.instant + seconds(pause)));
        assert!(state.credentials().is_some());
    }
    for (chance, pause) in [(0.0, 6.4), (1.0, 9.6)] {
        let now = Moment { chance, ..now };
        state = step(step(ageing_after(3, &now), Event::Asked, &now), Event::Refused, &now);
        assert_eq!(state.asks_at(), Some(now.instant + Duration::from_secs_f64(pause)));
    }
}

fn ageing_after(refusals: u32, now: &Moment) -> State {
    State::Ageing {
        credentials: living(hours(24)),
        refusals,
        ask: Ask::At { due: now.instant, earliest: now.instant },
    }
}

#[test]
fn ageing_expired_is_served_no_more_and_asked_for_before_its_retry() {
    let now = start();
    let mut state = ageing(seconds(100), &now);
    for _ in 0..9 {
        state = step(step(state, Event::Asked, &now), Event::Refused, &now);
    }
    let over = later(&now, seconds(100));
    assert!(matches!(state.elapsed(&over), Some(Event::Expired)));
    let (state, action) = state.on(Event::Expired, &over);
    assert!(matches!((&state, action), (State::Wanted { refusals: 9, .. }, Action::Withdraw)));
    assert_eq!(state.asks_at(), Some(over.instant));
}

#[test]
fn any_other_event_changes_nothing() {
    let now = start();
    let state = fresh(hours(24), &now);
    let before = state.elapses_at(&now);
    let state = step(step(step(state, Event::Refused, &now), Event::Awaited, &now), Event::Asked, &now);
    assert!(matches!(state, State::Fresh { .. }));
    assert_eq!((state.elapses_at(&now), state.asks_at()), (before, None));
    let state = step(State::new(&now), Event::Due, &now);
    assert_eq!(state.asks_at(), Some(now.instant));
}

#[test]
fn certificates_of_a_second_are_not_renewed_in_a_tight_loop() {
    let now = start();
    let state = fresh(seconds(1), &now);
    let over = later(&now, seconds(1));
    assert!(matches!(state.elapsed(&over), Some(Event::Expired)));
    let state = step(state, Event::Expired, &over);
    assert_eq!(state.asks_at(), Some(now.instant + seconds(5)));
    let state = step(state, Event::Awaited, &over);
    assert_eq!(state.asks_at(), Some(over.instant), "but a waiting connection gets one a second");
}

#[test]
fn a_suspended_machine_renews_when_it_wakes() {
    let now = start();
    let state = fresh(hours(24), &now);
    let woken = Moment { wall: now.wall + hours(13), instant: now.instant + seconds(20), ..now };
    assert!(matches!(state.elapsed(&woken), Some(Event::Due)));
}

#[test]
fn a_clock_set_back_does_not_put_renewal_off() {
    let now = start();
    let state = fresh(hours(24), &now);
    let back = Moment { wall: now.wall - seconds(60), instant: now.instant + hours(12), ..now };
    assert!(matches!(state.elapsed(&back), Some(Event::Due)));
    let before_it_was_valid =
        Moment { wall: now.wall - hours(100), instant: now.instant + seconds(20), ..now };
    assert!(matches!(state.elapsed(&before_it_was_valid), Some(Event::Due)));
}

#[test]
fn a_step_right_after_the_arrival_waits_for_the_least_time_and_promises_no_earlier_wake() {
    let now = start();
    let state = fresh(hours(24), &now);
    let stepped = Moment { wall: now.wall + hours(13), instant: now.instant + seconds(1), ..now };
    assert!(state.elapsed(&stepped).is_none());
    assert_eq!(state.elapses_at(&stepped), Some(now.instant + seconds(5)));
}

#[test]
fn a_certificate_from_an_authority_whose_clock_is_ahead_is_not_renewed_at_once() {
    let now = start();
    let mut params = Mint::leaf(vec![uri(id("cart").as_str())]);
    params.not_before = (new_year() + hours(2)).into();
    params.not_after = (new_year() + hours(26)).into();
    let credentials = Credentials::new(&id("cart"), Mint::new().issue(&params), &policy()).unwrap();
    let state = step(State::new(&now), Event::Issued(Arc::new(credentials)), &now);
    assert!(state.elapsed(&later(&now, hours(1))).is_none());
    assert_eq!(state.elapses_at(&now), Some(now.instant + hours(12)));
}
