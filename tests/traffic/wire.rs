//! What an eavesdropper between the nodes learns of the mesh.

use std::time::Duration;

use adit::lab::{Behaviour, Capture, Side, dial, pour};

use super::evidence::{First, exchange};
use super::stage::{Part, SOON, Stage, fail, service};

/// How long a sink is filled: some megabytes.
const A_MOMENT: Duration = Duration::from_millis(20);

#[test]
fn between_the_nodes_the_mesh_is_not_readable_and_the_same_text_outside_it_is() {
    let cast = [
        (Side::One, "shop/client", Part::Mesh),
        (Side::Two, "shop/server", Part::Mesh),
        (Side::Two, "legacy/server", Part::Outside),
    ];
    let mut stage =
        Stage::of(&cast, |mesh| mesh.service(service("shop/front", 1, (80, 8080), &["shop/server"])));
    for pod in ["shop/server", "legacy/server"] {
        stage.serve(pod, 8080, Behaviour::Respond);
        stage.serve(pod, 2525, Behaviour::Greet);
        stage.serve(pod, 9000, Behaviour::Sink);
    }
    let front = service("shop/front", 1, (80, 8080), &[]).addresses;
    let (client, server) = (stage.pod("shop/client"), stage.pod("shop/server"));
    let (secret, aloud) = ("between-us-4711", "for-all-to-hear-4711");
    // The lab's sinks are filled with this.
    let poured = "a".repeat(64);

    let capture = Capture::start(&stage.world, &[secret, aloud, &poured]).unwrap_or_else(fail);
    let say = |to, first, text| {
        exchange(&client, to, first, text)
            .unwrap_or_else(|cause| panic!("{to}: {cause}\n{}", stage.last_words()))
    };
    for to in [server.at(8080), server.at_v6(8080), (front[0], 80).into(), (front[1], 80).into()] {
        say(to, First::Client, secret);
    }
    for to in [server.at(2525), server.at_v6(2525)] {
        say(to, First::Server, secret);
    }
    for to in [server.at(9000), server.at_v6(9000)] {
        let stream = dial(client.netns(), to, SOON).unwrap();
        let (bytes, _) = pour(&stream, A_MOMENT).unwrap_or_else(|cause| panic!("{to}: {cause}"));
        assert!(bytes > 0, "nothing was poured into {to}");
    }
    let report = capture.stop().unwrap_or_else(fail);
    assert_eq!(report.lost, 0, "the capture proves nothing: {report:?}");
    assert!(report.findings.iter().all(|it| it.times == 0), "in the clear on the wire: {report:?}");
    assert_eq!(report.tunnels, 2, "one tunnel per address family carries all: {report:?}");
    assert_eq!(report.connections, report.tunnels, "nothing but tunnels: {report:?}");

    let capture = Capture::start(&stage.world, &[secret, aloud]).unwrap_or_else(fail);
    let plain = stage.pod("legacy/server");
    for to in [plain.at(8080), plain.at_v6(8080)] {
        say(to, First::Client, aloud);
    }
    let report = capture.stop().unwrap_or_else(fail);
    let times: Vec<_> = report.findings.iter().map(|it| it.times).collect();
    assert_eq!(times, [0, 4], "each text goes there and comes back: {report:?}");
    assert_eq!((report.connections, report.tunnels), (2, 0), "{report:?}");
}
