//! One pod's sockets: rules that bring traffic here, listeners in the pod, where a connection was going.

pub mod rules;
