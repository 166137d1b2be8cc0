//! Against rustls and OpenSSL as peers, with real certificates, and against a peer that seals by hand what neither of
//! them would.

mod carry;
mod handshake;
mod keys;
mod openssl;
mod random;
mod refuse;
mod seal;
mod state;
mod support;
