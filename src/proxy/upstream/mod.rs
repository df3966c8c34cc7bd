//! HTTP/1.1 exchanges with engines over one connection pool per backend. Independent of roles, plans and
//! tokens.

mod address;
mod connection;
mod decoded;
pub(crate) mod error_answer;
pub(crate) mod failure;
mod outgoing;
mod pool;
mod socket;
mod tls;

pub use address::{Address, AddressError, bearer};
pub use connection::{BrokenOff, EngineAnswer, ExchangeError, Head, UpstreamBody};
pub use decoded::{ContentCoding, EngineBody, Gathered, coding_of, read_all};
pub use outgoing::Outgoing;
pub use pool::{Pool, PoolParams};
pub use socket::Socket;
pub use tls::EngineTls;
