//! Tunnels, as client and server: mutual TLS, HTTP/2, one CONNECT stream per connection.
