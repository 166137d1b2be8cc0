//! From a pod to the mesh: one connection from start to end.

pub mod balance;
pub mod route;
