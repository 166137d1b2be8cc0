//! From the mesh to a pod: one connection from start to end.
