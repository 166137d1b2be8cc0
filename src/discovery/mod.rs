//! Where the mesh comes from: reads it, builds a snapshot, publishes it by one pointer swap.
