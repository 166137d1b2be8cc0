//! What both directions share about one connection: its record, its outcome, plaintext relaying.
