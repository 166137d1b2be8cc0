//! HPACK: header compression for HTTP/2.
