//! Clients' connections: accepts, detects the HTTP version, serves until the connection ends.
//! Independent of engines: calls `request::handle` and writes its response.

mod accept;
mod h2_body;
mod http1;
mod http2;
mod pace;
mod preface;
mod presence;
mod reading;
mod writing;

pub use accept::DataApp;
