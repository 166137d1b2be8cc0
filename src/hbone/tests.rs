//! Both roles against each other over loopback.
