//! What this build is.

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One line in the form that Istio's tools know.
pub fn line() -> String {
    let istio = std::env::var("ISTIO_META_ISTIO_VERSION").unwrap_or_else(|_| "unknown".into());
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!(
        "version.BuildInfo{{Version:\"adit-{VERSION}\", GitRevision:\"{}\", RustVersion:\"{}\", \
         BuildProfile:\"{profile}\", BuildStatus:\"{}\", IstioVersion:\"{istio}\", CryptoProvider:\"tls-aws-lc\"}}",
        env!("ADIT_GIT_REVISION"),
        env!("ADIT_RUST_VERSION"),
        env!("ADIT_GIT_STATUS"),
    )
}
