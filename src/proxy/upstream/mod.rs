//! HTTP exchanges with engines: hyper's codec over connections that tidegate pools itself, one
//! pool a backend. Knows nothing of roles, plans or tokens.

mod address;
mod connection;
mod doorbell;
mod pool;
mod tls;

pub use address::{Address, AddressError};
pub use connection::{Answer, ExchangeError, UpstreamBody};
pub use pool::{Pool, PoolParams};
pub use tls::{TlsError, client_config};
