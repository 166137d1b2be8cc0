//! Environment and files to typed values, once, at start; all complaints at once.
