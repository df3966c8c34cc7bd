//! Sockets and clients' connections: accept, TLS, HTTP/1.1 and h2.

pub(crate) mod client_socket;
pub(crate) mod downstream;
pub(crate) mod front;
pub(crate) mod sockets;
