//! How a tunnel ends in order (RFC 9113 §6.8).

use super::*;

#[test]
fn a_server_leaves_in_two_steps_and_serves_what_was_on_its_way() {
    let mut wire = Wire::serving();
    wire.machine.shutdown(wire.now);
    wire.machine.shutdown(wire.now);
    let mut output = wire.machine.output().to_vec();
    assert_eq!(wire.out(), ["GOAWAY 2147483647 NO_ERROR", "PING 0 8"]);
    // The client had opened another before it read that.
    assert_eq!(wire.get(&connect(3)).unwrap().len(), 1);
    // Its answer to our PING is the PING with ACK.
    let mut pong = output.split_off(output.len() - 17);
    pong[4] = flag::ACK;
    assert_eq!(wire.get(&pong), Ok(vec![]));
    assert_eq!(wire.out(), ["GOAWAY 3 NO_ERROR"]);
    // Whoever asks now is not served, and not refused either: GOAWAY has said so.
    assert_eq!(wire.get(&[connect(5), data(5, b"x")].concat()), Ok(vec![]));
    assert_eq!(wire.out(), [""; 0]);
    assert_eq!(wire.get(&data(1, b"still here")).unwrap(), ["1: data still here"]);
    assert!(!wire.machine.is_finished());
    for stream in [1, 3] {
        wire.machine.reset(StreamId::new(stream), Code::CANCEL);
    }
    assert!(wire.machine.is_finished());
    assert_eq!(wire.machine.deadline(), None);
}

#[test]
fn a_client_that_does_not_answer_the_last_call_is_not_waited_for() {
    let mut wire = Wire::serving();
    wire.machine.shutdown(wire.now);
    wire.out();
    assert_eq!(wire.machine.deadline(), Some(wire.now + GOAWAY_DEADLINE));
    wire.later(GOAWAY_DEADLINE);
    wire.machine.on_time(wire.now).unwrap();
    assert_eq!(wire.out(), ["GOAWAY 1 NO_ERROR"]);
}

#[test]
fn a_client_leaves_in_one_step() {
    let mut wire = Wire::carrying();
    wire.machine.shutdown(wire.now);
    assert_eq!(wire.out(), ["GOAWAY 0 NO_ERROR"]);
    assert_eq!(wire.machine.open("10.0.0.1:80", []), Err(OpenError::Closing));
    assert_eq!(wire.machine.can_open(), 0);
    assert_eq!(wire.get(&last_data(1, b"all")).unwrap(), ["1: data all, end"]);
    wire.machine.finish(StreamId::new(1)).unwrap();
    assert!(wire.machine.is_finished());
    assert_eq!(wire.out(), ["DATA 1 0 end"]);
}

#[test]
fn streams_above_a_goaway_may_be_tried_elsewhere_and_those_below_run_on() {
    let mut wire = Wire::client();
    for _ in 0..3 {
        wire.machine.open("10.0.0.1:80", []).unwrap();
    }
    wire.get(&[ok(1), ok(5)].concat()).unwrap();
    // First the announcement, which takes back nothing.
    assert_eq!(wire.get(&goaway((1 << 31) - 1, Code::NO_ERROR, "")).unwrap(), ["goaway NO_ERROR "]);
    assert_eq!(wire.machine.open("10.0.0.1:80", []), Err(OpenError::Closing));
    assert_eq!(wire.machine.streams(), 3);
    let told = wire.get(&goaway(1, Code::NO_ERROR, "leaving")).unwrap();
    // Stream 5 was answered, so it was served, and its bytes cannot be sent again.
    assert_eq!(told, ["goaway NO_ERROR leaving", "3: Refused", "5: ByPeer(NO_ERROR)"]);
    // One that would take streams back that it had not taken before is no reason to open any.
    assert_eq!(wire.get(&goaway(5, Code::NO_ERROR, "")).unwrap().len(), 1);
    assert_eq!(wire.get(&data(1, b"on")).unwrap(), ["1: data on"]);
    assert!(!wire.machine.is_finished());
    wire.machine.reset(StreamId::new(1), Code::CANCEL);
    assert!(wire.machine.is_finished());
}

#[test]
fn what_a_goaway_says_of_its_reason_is_kept_up_to_a_limit() {
    let mut wire = Wire::client();
    let reason = "too_many_pings ".repeat(100);
    let told = wire.get(&goaway(0, Code::ENHANCE_YOUR_CALM, &reason)).unwrap();
    assert_eq!(told, [format!("goaway ENHANCE_YOUR_CALM {}", &reason[..DEBUG_LIMIT])]);
    // The next header block begins with an empty buffer.
    assert_eq!(wire.get(&settings(&[])), Ok(vec![]));
}

#[test]
fn a_failure_tells_the_peer_why_in_words() {
    let mut wire = Wire::serving();
    wire.get(&settings_ack()).unwrap_err();
    let output = wire.machine.output().to_vec();
    let (_, payload) = frames(&output)[0];
    assert_eq!(String::from_utf8_lossy(&payload[8..]), "an acknowledgement of SETTINGS that were not sent");
    assert_eq!(wire.machine.failure(), Some(&Error::UnaskedAck));
}

#[test]
fn a_failure_takes_in_no_stream_that_the_last_goaway_had_left_out() {
    let mut wire = Wire::serving();
    wire.machine.shutdown(wire.now);
    wire.later(GOAWAY_DEADLINE);
    wire.machine.on_time(wire.now).unwrap();
    assert_eq!(wire.out().last().unwrap(), "GOAWAY 1 NO_ERROR");
    wire.get(&connect(99)).unwrap();
    wire.get(&settings_ack()).unwrap_err();
    assert_eq!(wire.out(), ["GOAWAY 1 PROTOCOL_ERROR"]);
}

#[test]
fn a_tunnel_is_ended_at_once_where_that_is_wanted() {
    let mut wire = Wire::serving();
    wire.machine.abort(Code::NO_ERROR);
    assert_eq!(wire.out(), ["GOAWAY 1 NO_ERROR"]);
    assert_eq!(wire.get(&data(1, b"x")), Err(Error::Aborted(Code::NO_ERROR)));
    assert_eq!(wire.machine.streams(), 0);
}
