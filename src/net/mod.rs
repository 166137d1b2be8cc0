//! The kernel as typed functions: addresses with roles, socket options, network namespaces.
//!
//! Knows nothing of meshes or proxies. One file, `sys.rs`, holds all unsafe code of the crate. Nothing here
//! lives longer than the call, except the descriptors it returns.

mod addr;
pub mod mailbox;
mod netns;
mod pipe;
pub mod socket;
#[expect(unsafe_code, reason = "the one file that talks to the kernel without a safe wrapper")]
mod sys;
#[cfg(test)]
mod tests;

pub use addr::{ClientAddr, OriginalDst, TargetAddr, canonical};
pub use netns::{Netns, NetnsId};
pub use pipe::Pipe;
pub use sys::{die_with_this_thread, lower_thread_priority, watched};
