//! Compiles the wire types in `proto/` without a protoc binary, and notes what is being built.

use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["zds", "xds", "workload", "authorization", "ca"].map(|name| format!("proto/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    // Bytes are slices of the message that they came in.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;

    // A source tree without git, or without its history, still builds.
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    let revision = answer("git", &["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let status = match answer("git", &["status", "--porcelain", "--untracked-files=no"]) {
        None => "unknown",
        Some(changes) if changes.is_empty() => "Clean",
        Some(_) => "Modified",
    };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rust = answer(&rustc, &["--version"]).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=ADIT_GIT_REVISION={revision}");
    println!("cargo:rustc-env=ADIT_GIT_STATUS={status}");
    println!("cargo:rustc-env=ADIT_RUST_VERSION={rust}");
    Ok(())
}

fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
