//! Who is who and the proof: SPIFFE names, trust roots, certificates and their renewal, peer verification.

mod spiffe;

pub use spiffe::{SpiffeError, SpiffeId};
