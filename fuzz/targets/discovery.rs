//! Addresses and policies as a control plane sends them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| adit::discovery::xds::testing::hostile(bytes));
