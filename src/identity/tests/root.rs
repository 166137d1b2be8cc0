//! The embedded authority and the file of its root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use rcgen::PublicKeyData;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::identity::{Authority, AuthorityError, EmbeddedCa, RootError};

use super::*;

fn open(dir: &Path) -> Result<EmbeddedCa, RootError> {
    EmbeddedCa::open(dir, "cluster.local", standing_clock())
}

fn refusal(dir: &Path) -> RootError {
    match open(dir) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// A directory with a root in it.
fn home() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    dir
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

async fn issue(ca: &EmbeddedCa, ttl: Duration) -> Issued {
    ca.issue(id("cart"), ttl).await.unwrap()
}

/// The names in `dir`.
fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_leaf_looks_like_one_of_istiod() {
    let home = home();
    let ca = open(home.path()).unwrap();
    let issued = issue(&ca, hours(24)).await;
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(!leaf.is_ca());
    let start = new_year().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let start = i64::try_from(start).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), start - 120);
    assert_eq!(leaf.validity().not_after.timestamp(), start + 24 * 3600);
    assert_eq!((leaf.raw_serial().len(), leaf.raw_serial()[0] >> 6), (16, 1));
    let credentials = Credentials::new(&id("cart"), issued, &policy()).unwrap();
    assert_eq!(credentials.identity(), &id("cart"));
}

#[tokio::test]
async fn every_request_gets_its_own_key_and_serial() {
    let home = home();
    let ca = open(home.path()).unwrap();
    let (one, other) = (issue(&ca, hours(1)).await, issue(&ca, hours(1)).await);
    let (_, one) = X509Certificate::from_der(&one.chain[0]).unwrap();
    let (_, other) = X509Certificate::from_der(&other.chain[0]).unwrap();
    assert_ne!(one.raw_serial(), other.raw_serial());
    assert_ne!(one.public_key().raw, other.public_key().raw);
}

#[tokio::test]
async fn a_leaf_does_not_outlive_the_root() {
    let home = home();
    let nine_years = new_year() + hours(24 * 3649);
    let dial = Dial::at(nine_years);
    let ca = EmbeddedCa::open(home.path(), "cluster.local", dial.clock()).unwrap();
    let policy = TlsPolicy::new(Tls::default(), dial.clock());
    for ttl in [hours(24 * 90), Duration::MAX] {
        let credentials = Credentials::new(&id("cart"), issue(&ca, ttl).await, &policy).unwrap();
        assert_eq!(credentials.not_after(), new_year() + hours(24 * 3650));
    }
    dial.set(new_year() + hours(24 * 3650));
    let error = ca.issue(id("cart"), hours(1)).await.unwrap_err();
    assert!(matches!(error, AuthorityError::RootExpired), "{error}");
}

#[tokio::test]
async fn another_trust_domain_gets_no_certificate() {
    let home = home();
    let foreign = SpiffeId::new("other.example", "shop", "cart").unwrap();
    let error = open(home.path()).unwrap().issue(foreign, hours(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "this authority issues for trust domain cluster.local only");
}

#[test]
fn a_new_root_is_readable_by_its_owner_only() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("state/root");
    open(&dir).unwrap();
    assert_eq!((mode(&dir), mode(&dir.join("root.pem"))), (0o700, 0o600));
    assert_eq!(names(&dir), ["root.pem"], "no draft is left behind");
}

#[test]
fn a_root_may_sign_leaves_and_nothing_else() {
    let home = home();
    let pem = fs::read(home.path().join("root.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(
        &pem[pem.windows(16).position(|at| at == b"-----BEGIN CERTI").unwrap()..],
    )
    .unwrap();
    let root = pem.parse_x509().unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap().value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());
    assert!(root.subject().to_string().contains("O=cluster.local"));
}

#[tokio::test]
async fn nodes_that_share_the_directory_or_a_read_only_copy_trust_each_other() {
    let home = home();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(home.path().join("root.pem"), copy.path().join("root.pem")).unwrap();
    chmod(&copy.path().join("root.pem"), 0o400);
    chmod(copy.path(), 0o500);
    let mut roots = Vec::new();
    for dir in [home.path(), home.path(), copy.path()] {
        roots.push(issue(&open(dir).unwrap(), hours(1)).await.roots);
    }
    assert!(roots[0] == roots[1] && roots[0] == roots[2]);
}

#[tokio::test]
async fn a_race_of_eight_yields_one_root() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("state");
    let line = Barrier::new(8);
    let racers: Vec<EmbeddedCa> = thread::scope(|scope| {
        let race = || {
            line.wait();
            open(&dir).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = issue(&racers[0], hours(1)).await.roots;
    for racer in &racers {
        assert_eq!(issue(racer, hours(1)).await.roots, first);
    }
    assert_eq!(names(&dir), ["root.pem"]);
}

#[test]
fn a_symbolic_link_is_refused() {
    let (home, other) = (home(), tempfile::tempdir().unwrap());
    symlink(home.path().join("root.pem"), other.path().join("root.pem")).unwrap();
    let error = refusal(other.path());
    assert!(matches!(error, RootError::Symlink { .. }), "{error}");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("root.pem");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, RootError::NotAFile { .. }), "{error}");
    fs::remove_file(&pipe).unwrap();
    fs::create_dir(&pipe).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, RootError::NotAFile { .. }), "{error}");
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let home = home();
    let file = home.path().join("root.pem");
    for bits in [0o640, 0o604, 0o620, 0o610] {
        chmod(&file, bits);
        let error = refusal(home.path());
        assert!(matches!(error, RootError::OpenToOthers { wanted: 0o600, .. }), "{bits:o}: {error}");
        assert!(error.to_string().contains(&format!("root.pem has mode {bits:04o}")), "{error}");
    }
}

#[test]
fn a_directory_in_which_others_can_write_is_refused() {
    let home = home();
    for bits in [0o770, 0o1777] {
        chmod(home.path(), bits);
        let error = refusal(home.path());
        assert!(matches!(error, RootError::OpenToOthers { wanted: 0o700, .. }), "{bits:o}: {error}");
    }
    chmod(home.path(), 0o755);
    open(home.path()).unwrap();
}

#[test]
fn a_file_or_directory_of_another_user_is_refused() {
    let home = home();
    let file = home.path().join("root.pem");
    chown(&file, Some(12_345), None).unwrap();
    let error = refusal(home.path());
    assert!(matches!(error, RootError::ForeignOwner { owner: 12_345, .. }), "{error}");
    chown(&file, Some(nix::unistd::geteuid().as_raw()), None).unwrap();
    chown(home.path(), Some(12_345), None).unwrap();
    let error = refusal(home.path());
    assert!(matches!(error, RootError::ForeignOwner { owner: 12_345, .. }), "{error}");
}

#[test]
fn a_file_that_is_not_one_whole_root_is_refused() {
    let (home, other) = (home(), home());
    let file = home.path().join("root.pem");
    let whole = fs::read_to_string(&file).unwrap();
    let foreign = fs::read_to_string(other.path().join("root.pem")).unwrap();
    let split = |text: &str| {
        let at = text.find("-----BEGIN CERTIFICATE").unwrap();
        (text[..at].to_owned(), text[at..].to_owned())
    };
    let ((key, certificate), (foreign_key, _)) = (split(&whole), split(&foreign));
    let leaf = KeyPair::generate().unwrap();
    let mut params = authority("leaf");
    params.is_ca = IsCa::NoCa;
    let leaf_text = leaf.serialize_pem() + &params.self_signed(&leaf).unwrap().pem();
    let truncated = &whole[..whole.len() - 40];
    for (text, what) in [
        (whole.repeat(100).as_str(), "it has more than 65536 bytes"),
        ("", "it has 0 certificates"),
        ("garbage", "it has 0 certificates"),
        (truncated, "it is no whole PEM file"),
        (&key, "it has 0 certificates"),
        (&certificate, "it has 0 PKCS#8 keys"),
        (&format!("{whole}{certificate}"), "it has 2 certificates"),
        (&format!("{whole}{foreign_key}"), "it has 2 PKCS#8 keys"),
        (&format!("{foreign_key}{certificate}"), "its key is not the certificate's"),
        (&leaf_text, "no self-signed certificate authority"),
        (&whole.replace("PRIVATE KEY", "PUBLIC KEY"), "it has a section"),
    ] {
        fs::write(&file, text).unwrap();
        let error = refusal(home.path());
        assert!(matches!(error, RootError::Garbage { .. }), "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "what was found is left alone");
    }
}

#[test]
fn an_expired_root_is_refused() {
    let home = home();
    let clock = Dial::at(new_year() + hours(24 * 3650)).clock();
    let Err(error) = EmbeddedCa::open(home.path(), "cluster.local", clock) else { panic!("opened") };
    assert!(matches!(error, RootError::Expired { .. }), "{error}");
}

#[test]
fn the_file_holds_the_key_the_certificate_names() {
    let home = home();
    let text = fs::read_to_string(home.path().join("root.pem")).unwrap();
    let key = KeyPair::from_pem(&text).unwrap();
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(&text.as_bytes()[text.find("-----BEGIN CERTIFICATE").unwrap()..])
            .unwrap();
    let root = pem.parse_x509().unwrap();
    assert_eq!(root.public_key().subject_public_key.data.as_ref(), key.der_bytes());
}
