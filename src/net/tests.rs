use std::io;

use super::{Netns, OriginalDst};

fn namespaces() -> (Netns, Netns) {
    let home = Netns::current().expect("/proc is mounted");
    let away = Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN");
    (home, away)
}

#[test]
fn a_thread_visits_a_namespace_and_comes_home() {
    let (home, away) = namespaces();
    let inside = away.run(Netns::current).unwrap();
    assert_eq!(inside.id(), away.id());
    assert_ne!(inside.id(), home.id());
    assert_eq!(Netns::current().unwrap().id(), home.id());
}

#[test]
fn a_panic_inside_a_namespace_brings_the_thread_home() {
    let (home, away) = namespaces();
    let visit = std::panic::catch_unwind(|| {
        let _ = away.run(|| -> io::Result<()> { panic!("inside the pod") });
    });
    assert!(visit.is_err());
    assert_eq!(Netns::current().unwrap().id(), home.id());
}

#[test]
fn a_descriptor_that_is_no_network_namespace_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Netns::from_fd(file.into()).unwrap_err().to_string().contains("names no namespace"));
    let mount = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    assert!(Netns::from_fd(mount.into()).unwrap_err().to_string().contains("not a network namespace"));
}

#[test]
fn mapped_addresses_are_ipv4_everywhere() {
    let dst = OriginalDst::new("[::ffff:10.0.0.1]:80".parse().unwrap());
    assert_eq!(dst.to_string(), "10.0.0.1:80");
}
