//! The embedded authority's root: one file that holds key and certificate, and what makes it trustworthy.
//!
//! The file appears whole or not at all: it is written under another name and linked into place, and of two
//! processes that race, the one whose link comes second loads the other's root.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open as open_at_path, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, unlinkat};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::ca::{BACKDATED, random_serial};
use super::x509::{self, Certificate};
use super::{Clock, RootError};

const FILE: &str = "root.pem";
/// Ten years.
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Most that is read; a root has about 1 KiB.
const MAX_FILE: u64 = 64 * 1024;

/// The authority's own certificate and key. The key's encoding is wiped when the root is dropped.
pub(super) struct Root {
    pub(super) certificate: Certificate,
    pub(super) key: KeyPair,
}

impl Drop for Root {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Loads the root in `dir`, or makes one for `trust_domain`. Directories that are missing are made, 0700.
pub(super) fn open(dir: &Path, trust_domain: &str, clock: &Clock) -> Result<Root, RootError> {
    let home = Home::open(dir)?;
    if let Some(root) = home.load(clock)? {
        return Ok(root);
    }
    home.make(trust_domain, clock)?;
    // Always through the same checks: after a lost race this is the other process's root.
    home.load(clock)?.ok_or_else(|| home.io("opening")(Errno::ENOENT))
}

/// The directory, held open: what was checked is what is used, whatever happens to its name meanwhile.
struct Home {
    fd: OwnedFd,
    file: PathBuf,
}

impl Home {
    fn open(dir: &Path) -> Result<Self, RootError> {
        let io = |step| move |cause| RootError::Io { step, path: dir.to_owned(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("making the directory"))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = open_at_path(dir, flags, Mode::empty())
            .map_err(|errno| io("opening the directory")(errno.into()))?;
        let held = File::from(fd);
        let about = held.metadata().map_err(io("examining the directory"))?;
        // Root may own it as well: whoever is root can do anything here anyway.
        if about.uid() != 0 {
            owned_by_us(dir, about.uid())?;
        }
        closed_to_others(dir, about.permissions().mode(), 0o022, 0o700)?;
        Ok(Self { fd: held.into(), file: dir.join(FILE) })
    }

    fn io(&self, step: &'static str) -> impl Fn(Errno) -> RootError {
        move |errno| RootError::Io { step, path: self.file.clone(), cause: errno.into() }
    }

    /// The root, or `None` when there is no file.
    fn load(&self, clock: &Clock) -> Result<Option<Root>, RootError> {
        // Without O_NONBLOCK a pipe of that name would hold the start up for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let path = || self.file.clone();
        let file = match openat(&self.fd, FILE, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(RootError::Symlink { path: path() }),
            Err(Errno::ENXIO) => return Err(RootError::NotAFile { path: path() }),
            Err(errno) => return Err(self.io("opening")(errno)),
        };
        let io = |step| move |cause| RootError::Io { step, path: self.file.clone(), cause };
        let about = file.metadata().map_err(io("examining"))?;
        if !about.is_file() {
            return Err(RootError::NotAFile { path: path() });
        }
        owned_by_us(&self.file, about.uid())?;
        closed_to_others(&self.file, about.permissions().mode(), 0o077, 0o600)?;
        if about.len() > MAX_FILE {
            return Err(RootError::Garbage {
                path: path(),
                what: format!("it has more than {MAX_FILE} bytes"),
            });
        }
        // Room for all of it at once: a buffer that grows leaves unwiped copies behind.
        let room = usize::try_from(about.len()).map_or(0, |length| length + 64);
        let mut text = Zeroizing::new(Vec::with_capacity(room));
        file.take(MAX_FILE).read_to_end(&mut text).map_err(io("reading"))?;
        let root = parse(&text).map_err(|what| RootError::Garbage { path: path(), what })?;
        if root.certificate.not_after <= clock.now() {
            return Err(RootError::Expired { path: path() });
        }
        Ok(Some(root))
    }

    /// Makes a root and links it into place, unless another process has been faster.
    fn make(&self, trust_domain: &str, clock: &Clock) -> Result<(), RootError> {
        let text = generate(trust_domain, clock)?;
        let draft = Draft { home: self, name: format!(".{FILE}.{:016x}", fastrand::u64(..)) };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, draft.name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => fd,
            Err(Errno::EROFS) => return Err(RootError::ReadOnly { path: self.file.clone() }),
            Err(errno) => return Err(self.io("creating a draft of")(errno)),
        };
        let write = |mut file: File| -> io::Result<()> {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write(File::from(fd)).map_err(|cause| RootError::Io {
            step: "writing a draft of",
            path: self.file.clone(),
            cause,
        })?;
        match linkat(&self.fd, draft.name.as_str(), &self.fd, FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.io("linking into place")(errno)),
        }
        fsync(&self.fd).map_err(self.io("making durable"))
    }
}

/// A file on its way to become the root; its own name goes away in any case.
struct Draft<'a> {
    home: &'a Home,
    name: String,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // ENOENT when it was never created; any other failure leaves a 0600 file with a key nobody uses.
        let _ = unlinkat(&self.home.fd, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

fn owned_by_us(path: &Path, owner: u32) -> Result<(), RootError> {
    let us = geteuid().as_raw();
    if owner == us { Ok(()) } else { Err(RootError::ForeignOwner { path: path.to_owned(), owner, us }) }
}

/// None of the bits in `forbidden` may be set.
fn closed_to_others(path: &Path, mode: u32, forbidden: u32, wanted: u32) -> Result<(), RootError> {
    let mode = mode & 0o7777;
    if mode & forbidden == 0 {
        Ok(())
    } else {
        Err(RootError::OpenToOthers { path: path.to_owned(), mode, wanted })
    }
}

/// A fresh root as PEM: certificate, then key.
fn generate(trust_domain: &str, clock: &Clock) -> Result<Zeroizing<String>, RootError> {
    let make = |cause| RootError::Make(Box::new(cause));
    let now = clock.now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "adit root");
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).into();
    params.not_after = now.checked_add(LIFETIME).unwrap_or(now).into();
    params.serial_number = Some(random_serial().map_err(|cause| RootError::Make(Box::new(cause)))?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
    let signed = params.self_signed(&key);
    let mut text = Zeroizing::new(key.serialize_pem());
    key.zeroize();
    text.push_str(&signed.map_err(make)?.pem());
    Ok(text)
}

/// Reads exactly one certificate and one PKCS#8 key that belong together and may sign leaves.
fn parse(text: &[u8]) -> Result<Root, String> {
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        match section.map_err(|error| format!("it is no whole PEM file ({error})"))? {
            (SectionKind::Certificate, der) => certificates.push(CertificateDer::from(der)),
            (SectionKind::PrivateKey, der) => keys.push(Zeroizing::new(der)),
            (kind, _) => return Err(format!("it has a section {kind:?}")),
        }
    }
    let [der] = <[_; 1]>::try_from(certificates)
        .map_err(|found| format!("it has {} certificates, one is needed", found.len()))?;
    let [key] = keys.as_slice() else {
        return Err(format!("it has {} PKCS#8 keys (PRIVATE KEY), one is needed", keys.len()));
    };
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.as_slice()))
        .map_err(|error| format!("its key cannot be used ({error})"))?;
    let certificate =
        Certificate::read(der).map_err(|error| format!("its certificate cannot be read ({error})"))?;
    let root = Root { certificate, key };
    let parsed = x509::parse(&root.certificate.der)?;
    if parsed.public_key().subject_public_key.data.as_ref() != root.key.der_bytes() {
        return Err("its key is not the certificate's".to_owned());
    }
    let constraints = parsed.basic_constraints().map_err(|error| error.to_string())?;
    let usage = parsed.key_usage().map_err(|error| error.to_string())?;
    let signs = constraints.is_some_and(|found| found.value.ca)
        && usage.is_none_or(|found| found.value.key_cert_sign());
    if !signs || root.certificate.issuer != root.certificate.subject {
        return Err("its certificate is no self-signed certificate authority".to_owned());
    }
    Ok(root)
}
