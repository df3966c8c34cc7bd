//! Clients' connections: accepted, told apart by what they speak, and served until they end. Knows
//! nothing of engines: a request goes in at `request::handle`, an answer comes out.

mod accept;
mod h2_body;
mod http1;
mod http2;
mod pace;
mod preface;
mod presence;
mod reading;
mod socket;
mod writing;

pub use accept::DataApp;
pub use socket::ClientSocket;
