//! The numbers and the lines: metric shards that workers own and scrapes sum, the log queue, label spelling.
