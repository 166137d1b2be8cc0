//! `adit demo`: builds the lab, runs real traffic through it and prints what happened.
