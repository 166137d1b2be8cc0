//! What the mesh looks like: workloads, services and endpoints as one immutable snapshot.
