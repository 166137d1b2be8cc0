//! L4 authorization: rules, facts, verdicts. A decision, pure: no I/O, no clock, no lock.
