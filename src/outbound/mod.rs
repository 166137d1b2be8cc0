//! From a pod to the mesh: one connection from start to end.
