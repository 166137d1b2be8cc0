use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Config, Error, Source, Stop, load, start};
use crate::mesh::{
    Destination, Handle, HealthPolicy, LoadBalancerMode, Protocol, Scope, ServiceKey, Snapshot, Viewer,
};
use crate::policy::UnknownPolicy;

const COMPLETE: &str = r#"
workloads:
- uid: c1//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  workloadIps: ["10.1.0.5", "fd00::5"]
  protocol: HBONE
  node: worker-1
  network: ""
  clusterId: Kubernetes
  locality: {region: r1, zone: z1, subzone: ""}
  status: Healthy
  capacity: 2
  authorizationPolicies: ["shop/cart-only-web"]
  waypoint: {destination: "shop/wp.shop.svc.cluster.local", hboneMtlsPort: 15008}
  services:
    "shop/cart.shop.svc.cluster.local": {80: 8080}
- uid: c1/networking.istio.io/ServiceEntry/shop/db/db.example.com
  name: db
  namespace: shop
  serviceAccount: default
  trustDomain: cluster.local
  workloadIps: []
  hostname: db.example.com
  services:
    "shop/db.example.com": {5432: 5432}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.96.0.10"]
  ports: {80: 8080}
  canonical: true
  loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: OnlyHealthy}
- name: db
  namespace: shop
  hostname: db.example.com
  vips: ["/240.240.0.1"]
  cidrVips: [{network: "", cidr: 10.50.0.0/24}]
  ports: {5432: 5432}
  visibility: Namespace
policies:
- name: cart-only-web
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact cluster.local/ns/web/sa/web]
        destinationPorts: [8080]
"#;

fn read(text: &str) -> Result<Snapshot, Error> {
    load("mesh.yaml", text.as_bytes(), None, UnknownPolicy::Close)
}

/// What is said about a text that must not be taken.
fn refused(text: &str) -> String {
    read(text).map(|_| ()).expect_err(text).to_string()
}

/// One workload, with `line` among its keys, on the fourth line.
fn workload(line: &str) -> String {
    format!("workloads:\n- uid: w\n  namespace: shop\n  {line}\n  workloadIps: []\n  services: {{}}\n")
}

/// One service, with `line` among its keys, on the fifth line.
fn service(line: &str) -> String {
    format!("services:\n- name: s\n  namespace: shop\n  hostname: s.shop\n  {line}\n  vips: []\n")
}

#[test]
fn a_complete_file_becomes_the_mesh_it_describes() {
    let mesh = read(COMPLETE).unwrap();
    let cart = mesh.local_workload("cart-0", "shop", "cart").unwrap();
    assert_eq!((cart.protocol, cart.capacity, &*cart.node), (Protocol::Hbone, 2, "worker-1"));
    assert_eq!(cart.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.5", "fd00::5"]);
    assert_eq!((&*cart.locality.region, &*cart.locality.zone), ("r1", "z1"));
    let key = ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    assert_eq!(*cart.services, *std::slice::from_ref(&key));
    let waypoint = cart.waypoint.as_ref().unwrap();
    let gate = ServiceKey { namespace: "shop".into(), hostname: "wp.shop.svc.cluster.local".into() };
    assert_eq!((&waypoint.destination, waypoint.hbone_port), (&Destination::Hostname(gate), 15008));

    let service = mesh.service_at("", "10.96.0.10".parse().unwrap(), Viewer::Anyone).unwrap();
    assert_eq!(service.key, key);
    assert!(service.canonical);
    let balancer = service.load_balancer.as_ref().unwrap();
    assert_eq!(balancer.preferences.to_vec(), [Scope::Network, Scope::Region, Scope::Zone]);
    assert_eq!(
        (balancer.mode, balancer.health_policy),
        (LoadBalancerMode::Failover, HealthPolicy::OnlyHealthy)
    );
    assert_eq!(mesh.target_port(cart, service, 80), Some(8080));
    assert!(mesh.service_at("", "10.50.0.3".parse().unwrap(), Viewer::In("shop")).is_some());
    assert!(mesh.service_at("", "10.50.0.3".parse().unwrap(), Viewer::In("web")).is_none());
    assert_eq!(mesh.all_policies().iter().count(), 1);
}

#[test]
fn quoted_port_keys_and_json_are_read_too() {
    let json = r#"{"workloads": [{"uid": "a", "namespace": "shop", "workloadIps": ["10.1.0.5"],
        "services": {"shop/s.shop": {"80": 8080}}}],
        "services": [{"name": "s", "namespace": "shop", "hostname": "s.shop", "vips": ["/10.96.0.1"],
        "ports": {"80": 0}}]}"#;
    let mesh = read(json).unwrap();
    let service = mesh.service_at("", "10.96.0.1".parse().unwrap(), Viewer::Anyone).unwrap();
    assert_eq!(mesh.target_port(mesh.workload("a").unwrap(), service, 80), Some(8080));
}

#[test]
fn a_destination_is_an_address_if_it_can_be_one_and_else_a_hostname() {
    let read = |destination: &str| {
        let line = format!("waypoint: {{destination: \"{destination}\", hboneMtlsPort: 15008}}");
        let mesh = read(&workload(&line)).unwrap();
        mesh.workload("w").unwrap().waypoint.as_ref().unwrap().to_string()
    };
    assert_eq!(read("net/10.0.0.1"), "net/10.0.0.1");
    assert_eq!(read("/fd00::1"), "/fd00::1");
    assert_eq!(read("shop/gate.shop"), "shop/gate.shop");
}

#[test]
fn unknown_keys_are_refused_everywhere_with_their_place() {
    let balancer = "{routingPreferences: [], mode: Strict, healthPolicy: AllowAll, x: 1}";
    for (text, place) in [
        ("workload: []\n".to_owned(), "1:1"),
        (workload("prots: 1"), "4:3"),
        (workload("locality: {region: a, zone: b, subzone: c, x: d}"), "4:46"),
        (workload("waypoint: {destination: a/b, hboneMtlsPort: 1, x: 1}"), "4:50"),
        (workload("applicationTunnel: {protocol: NONE, x: 1}"), "4:39"),
        (service("ports: {}\n  cidrVips: [{network: a, cidr: 10.0.0.0/8, x: 1}]"), "6:45"),
        (service(&format!("ports: {{}}\n  loadBalancer: {balancer}")), "6:80"),
        (service("ports: {}\n  endpoints: {a: {workloadUid: a, port: {}, status: Healthy, x: 1}}"), "6:62"),
    ] {
        let said = refused(&text);
        assert!(said.starts_with(&format!("mesh.yaml:{place}: unknown field")), "{text}{said}");
    }
    let policy = "policies:\n- name: p\n  namespace: shop\n  scope: Global\n  action: Allow\n  dryRun: false\n  \
                  rules: [[[{principal: []}]]]\n";
    assert!(refused(policy).contains("unknown field `principal`"), "{}", refused(policy));
}

#[test]
fn ports_are_ports_and_never_cut_to_size() {
    for (line, place) in [
        ("ports: {80: 65616}", "5:15"),
        ("ports: {65616: 80}", "5:11"),
        ("ports: {0: 80}", "5:11"),
        ("ports: {80: -1}", "5:15"),
        ("ports: {80: 8080x}", "5:15"),
        ("ports: {80: 18446744073709551696}", "5:15"),
    ] {
        let said = refused(&service(line));
        assert!(
            said.starts_with(&format!("mesh.yaml:{place}: ")) && said.contains("65535"),
            "{line}: {said}"
        );
    }
    assert!(read(&service("ports: {80: 0}")).is_ok());
    let own = workload("x: 1").replace("x: 1", "name: w").replace("services: {}", "services: {a/b: {80: 0}}");
    assert!(refused(&own).starts_with("mesh.yaml:6:24: \"0\" is not valid here"), "{}", refused(&own));
    let gate = workload("waypoint: {destination: a/b, hboneMtlsPort: 80544}");
    assert!(refused(&gate).starts_with("mesh.yaml:4:47: \"80544\" is not valid here"), "{}", refused(&gate));
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = "workloads:\n- uid: a\n  namespace: shop\n  workloadIps: [10.0.0.300, 10.0.0.1:80]\n  \
                protocol: hbone\n  status: Ill\n  capacity: -1\n  networkMode: Host\n  \
                authorizationPolicies: [cart]\n  waypoint: {destination: gate, hboneMtlsPort: 1}\n  \
                services: {cart: {}}\nservices:\n- name: s\n  namespace: shop\n  hostname: s.shop\n  \
                vips: [10.0.0.1, /10.0.0.0/8]\n  cidrVips: [{network: '', cidr: 10.0.0.0/33}]\n  \
                ports: {}\n  subjectAltNames: ['cluster.local/ns/a/sa/b']\n  ipFamilies: Both\n";
    let said = refused(text);
    let places: Vec<&str> = said.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let at = |place: &str| places.contains(&format!("mesh.yaml:{place}").as_str());
    for place in [
        "4:17", "4:29", "5:13", "6:11", "7:13", "8:16", "9:27", "10:27", "11:14", "16:10", "16:20", "17:34",
        "19:21", "20:15",
    ] {
        assert!(at(place), "{place} is missing in\n{said}");
    }
    assert_eq!(places.len(), 14, "{said}");
}

#[test]
fn a_second_object_of_one_key_is_refused_and_the_first_one_named() {
    let twice = |text: &str, list: &str| {
        let entry = text.strip_prefix(list).unwrap();
        format!("{text}{entry}")
    };
    let said = refused(&twice(&workload("name: w"), "workloads:\n"));
    assert!(
        said.starts_with("mesh.yaml:7:3: a workload with uid \"w\" is here a second time, first at 2:3"),
        "{said}"
    );
    let said = refused(&twice(&service("ports: {}"), "services:\n"));
    assert!(
        said.starts_with("mesh.yaml:7:3: service shop/s.shop is here a second time, first at 2:3"),
        "{said}"
    );
    let policy = "- {name: p, namespace: shop, scope: Global, action: Allow, dryRun: false, rules: []}\n";
    let said = refused(&format!("policies:\n{policy}{policy}"));
    assert!(said.starts_with("mesh.yaml:3:3: policy shop/p is here a second time, first at 2:3"), "{said}");
    let said = refused(&service("ports: {80: 1, \"80\": 2}"));
    assert!(said.starts_with("mesh.yaml:5:18: port 80 is here a second time, first at 5:11"), "{said}");
}

#[test]
fn a_workload_that_cannot_have_an_identity_is_refused_at_the_part_that_is_wrong() {
    assert!(refused(&workload("trustDomain: Cluster.Local")).starts_with("mesh.yaml:4:16: "));
    assert!(refused(&workload("serviceAccount: a b")).starts_with("mesh.yaml:4:19: "));
    let nameless = workload("name: w").replace("namespace: shop", "namespace: ''");
    assert!(refused(&nameless).starts_with("mesh.yaml:3:14: "), "{}", refused(&nameless));
    let mesh = read(&workload("trustDomain: ''")).unwrap();
    let identity = mesh.workload("w").unwrap().identity().unwrap().to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/shop/sa/default");
}

#[test]
fn a_key_without_a_value_is_not_the_absence_of_what_it_names() {
    for text in [
        workload("waypoint:"),
        workload("authorizationPolicies:"),
        workload("protocol:"),
        service("ports:"),
        "policies:\n".to_owned(),
    ] {
        let wrong = read(&text).map(|_| ()).unwrap_err();
        assert!(wrong.place().is_some() && wrong.to_string().contains("no value"), "{text}{wrong}");
    }
}

#[test]
fn what_is_wrong_in_a_policy_is_told_with_its_place() {
    let policy = |rules: &str| {
        let head =
            "policies:\n- name: p\n  namespace: shop\n  scope: Global\n  action: Deny\n  dryRun: false\n";
        let said = refused(&format!("{head}  rules:\n  - - - {rules}\n"));
        assert!(said.starts_with("mesh.yaml:8:"), "{said}");
    };
    policy("destinationPorts: [65616]");
    policy("sourceIps: [10.0.0.0/33]");
    policy("principals: [cluster.local/ns/a/sa/b]");
    policy("namespaces:");
}

#[test]
fn a_text_that_is_no_mesh_at_all_is_refused() {
    for text in ["", "\n\n", "---\n# nothing yet\n"] {
        assert!(refused(text).contains("there is nothing in it"), "{text:?}");
    }
    assert!(read("workloads: []\n").is_ok());
    assert!(refused("workloads: [\n").starts_with("mesh.yaml:"));
    assert!(refused("workloads: []\n---\nservices: []\n").starts_with("mesh.yaml:3:1: "));
    let latin = load("mesh.yaml", b"workloads: []\n# caf\xe9\n", None, UnknownPolicy::Close);
    assert!(latin.unwrap_err().to_string().starts_with("mesh.yaml:2:6: this byte is not UTF-8"));
}

#[test]
fn a_service_that_nobody_describes_may_be_named() {
    let text = workload("name: w").replace("services: {}", "services: {shop/later.shop: {80: 80}}");
    let mesh = read(&text).unwrap();
    assert_eq!(mesh.services_of(mesh.workload("w").unwrap()).count(), 0);
}

#[test]
fn a_service_may_list_its_endpoints_itself() {
    let text = format!(
        "{}{}",
        workload("name: w"),
        service("ports: {80: 0}\n  endpoints: {w: {workloadUid: w, port: {80: 9090}, status: Healthy}}")
    );
    let mesh = read(&text).unwrap();
    let service = mesh.service_by_hostname("s.shop", Viewer::Anyone).unwrap();
    assert_eq!(mesh.target_port(mesh.workload("w").unwrap(), service, 80), Some(9090));
    let said = refused(&text.replace("workloadUid: w", "workloadUid: v"));
    assert!(said.contains("\"w\""), "{said}");
}

/// A discovery thread on a file of its own, and what it logged.
struct Running {
    directory: tempfile::TempDir,
    handle: Handle,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    logged: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Running {
    /// Starts on `mesh.yaml` in a directory that `fill` prepares.
    fn on(fill: impl FnOnce(&std::path::Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let source = Source::File(directory.path().join("mesh.yaml"));
        let config = Config { source, node: None, unknown_policy: UnknownPolicy::Close };
        let (discovery, handle) = start(config).unwrap();
        let (stop, logged) = (discovery.stopper(), Log::default());
        let writer = logged.clone();
        let thread = std::thread::spawn(move || {
            let subscriber =
                tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || discovery.run());
        });
        Self { directory, handle, stop, thread: Some(thread), logged }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("mesh.yaml")
    }

    fn uids(&self) -> BTreeSet<String> {
        self.handle.load().all_workloads().map(|workload| workload.uid.to_string()).collect()
    }

    fn logged(&self) -> String {
        String::from_utf8(self.logged.0.lock().unwrap().clone()).unwrap()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what} never happened; logged:\n{}", self.logged());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_it_has(&self, uid: &str) {
        self.until(uid, |it| it.uids() == BTreeSet::from([uid.to_owned()]));
    }

    fn until_logged(&self, text: &str) {
        self.until(text, |it| it.logged().contains(text));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn only(uid: &str) -> String {
    workload("name: w").replace("uid: w", &format!("uid: {uid}"))
}

#[test]
fn a_file_that_is_written_in_place_or_renamed_over_is_read_again() {
    let running = Running::on(|dir| fs::write(dir.join("mesh.yaml"), only("first")).unwrap());
    assert_eq!(running.uids(), BTreeSet::from(["first".to_owned()]));
    fs::write(running.file(), only("second")).unwrap();
    running.until_it_has("second");
    let beside = running.directory.path().join(".mesh.yaml.swp");
    fs::write(&beside, only("third")).unwrap();
    fs::rename(beside, running.file()).unwrap();
    running.until_it_has("third");
}

#[test]
fn a_config_maps_symlink_swap_is_noticed() {
    use std::os::unix::fs::symlink;
    let running = Running::on(|dir| {
        fs::create_dir(dir.join("..1")).unwrap();
        fs::write(dir.join("..1/mesh.yaml"), only("first")).unwrap();
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/mesh.yaml", dir.join("mesh.yaml")).unwrap();
    });
    let dir = running.directory.path();
    fs::create_dir(dir.join("..2")).unwrap();
    fs::write(dir.join("..2/mesh.yaml"), only("second")).unwrap();
    symlink("..2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    running.until_it_has("second");
}

#[test]
fn a_bad_edit_keeps_the_last_good_state_and_is_told_once_with_its_line() {
    let running = Running::on(|dir| fs::write(dir.join("mesh.yaml"), only("first")).unwrap());
    fs::write(running.file(), only("second").replace("services: {}", "services: {a/b: {80: 65616}}"))
        .unwrap();
    running.until_logged("is refused");
    // Touched without a change: nothing new to say.
    let text = fs::read(running.file()).unwrap();
    fs::write(running.file(), text).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(running.uids(), BTreeSet::from(["first".to_owned()]));
    let logged = running.logged();
    let told: Vec<&str> = logged.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(told.len(), 1, "{logged}");
    assert!(
        told[0].contains("line=6") && told[0].contains("65616") && told[0].contains("mesh.yaml"),
        "{logged}"
    );
    fs::write(running.file(), only("third")).unwrap();
    running.until_it_has("third");
}

#[test]
fn a_file_that_vanishes_keeps_the_last_good_state_and_may_come_back() {
    let running = Running::on(|dir| fs::write(dir.join("mesh.yaml"), only("first")).unwrap());
    fs::remove_file(running.file()).unwrap();
    running.until_logged("cannot be read");
    assert_eq!(running.uids(), BTreeSet::from(["first".to_owned()]));
    let mut changes = running.handle.changes();
    fs::write(running.file(), only("first")).unwrap();
    running.until_logged("is again what it was");
    assert!(!changes.has_changed().unwrap(), "the same state was published twice");
    fs::write(running.file(), only("second")).unwrap();
    running.until_it_has("second");
    assert!(changes.borrow_and_update().ge(&2));
}

#[test]
fn a_change_that_no_watch_sees_is_found_by_looking() {
    let nested = |dir: &std::path::Path, uid: &str| {
        fs::create_dir(dir.join("conf")).unwrap();
        fs::write(dir.join("conf/mesh.yaml"), only(uid)).unwrap();
    };
    let running = Running::on(|dir| {
        nested(dir, "first");
        std::os::unix::fs::symlink("conf/mesh.yaml", dir.join("mesh.yaml")).unwrap();
    });
    // Nothing happens in the watched directory itself when a file behind a link changes: the slow look finds it.
    fs::write(running.directory.path().join("conf/mesh.yaml"), only("second")).unwrap();
    running.until_it_has("second");
    fs::remove_dir_all(running.directory.path().join("conf")).unwrap();
    nested(running.directory.path(), "third");
    running.until_it_has("third");
}

#[test]
fn without_a_first_state_there_is_no_start() {
    let at = |source| start(Config { source, node: None, unknown_policy: UnknownPolicy::Close });
    let missing = at(Source::File("/nonexistent/mesh.yaml".into())).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/mesh.yaml: it cannot be read"), "{missing}");
    let wrong = at(Source::Inline("workload: []".into())).unwrap_err().to_string();
    assert!(wrong.starts_with("LOCAL_XDS:1:1: unknown field"), "{wrong}");
}

#[test]
fn inline_text_is_read_once_and_its_thread_stops() {
    let config =
        Config { source: Source::Inline(only("w")), node: None, unknown_policy: UnknownPolicy::Close };
    let (discovery, handle) = start(config).unwrap();
    assert!(handle.load().workload("w").is_some());
    let stop = discovery.stopper();
    let thread = std::thread::spawn(move || discovery.run());
    stop.stop();
    thread.join().unwrap();
}
