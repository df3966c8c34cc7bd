//! Limits on open client connections: total, and per address. Cost: one atomic per connection and,
//! with a limit per address, one map operation; none per request.

use dashmap::DashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The limit that refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// `[server] connections_max`.
    Total,
    /// `[server] connections_per_address_max`.
    Address,
}

impl ConnectionLimit {
    /// Value of the `limit` label in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConnectionLimit::Total => "total",
            ConnectionLimit::Address => "address",
        }
    }
}

/// The open connections of one port.
#[derive(Debug)]
pub struct Connections {
    max: AtomicUsize,
    /// Largest number of connections per address; 0: no limit.
    per_address_max: AtomicUsize,
    open: AtomicUsize,
    by_address: DashMap<IpAddr, usize>,
}

/// Counts one connection while it is open.
#[derive(Debug)]
pub struct Connection {
    all: Arc<Connections>,
    address: Option<IpAddr>,
}

impl Connections {
    /// Creates the limits; `per_address_max` 0 means no limit per address.
    pub fn new(max: usize, per_address_max: usize) -> Arc<Connections> {
        Arc::new(Connections {
            max: AtomicUsize::new(max),
            per_address_max: AtomicUsize::new(per_address_max),
            open: AtomicUsize::new(0),
            by_address: DashMap::new(),
        })
    }

    /// Changes the limits. Open connections stay; those that were opened without a limit per address
    /// do not count for their address.
    pub fn set_limits(&self, max: usize, per_address_max: usize) {
        self.max.store(max, Relaxed);
        self.per_address_max.store(per_address_max, Relaxed);
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Counts a connection until the result is dropped.
    ///
    /// # Errors
    /// The limit that the connection would exceed.
    pub fn admit(self: &Arc<Self>, from: SocketAddr) -> Result<Connection, ConnectionLimit> {
        // Incremented first: the drop decrements on every path.
        let mut connection = Connection { all: Arc::clone(self), address: None };
        if self.open.fetch_add(1, Relaxed) >= self.max.load(Relaxed) {
            return Err(ConnectionLimit::Total);
        }
        let per_address_max = self.per_address_max.load(Relaxed);
        if per_address_max > 0 {
            // An IPv4 client of a dual-stack socket is the same client.
            let address = from.ip().to_canonical();
            let mut count = self.by_address.entry(address).or_insert(0);
            if *count >= per_address_max {
                return Err(ConnectionLimit::Address);
            }
            *count += 1;
            connection.address = Some(address);
        }
        Ok(connection)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.open.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            self.all.by_address.entry(address).and_modify(|count| *count -= 1);
            self.all.by_address.remove_if(&address, |_, count| *count == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn limits_hold_and_every_count_returns_to_zero() {
        let all = Connections::new(3, 2);
        let first = all.admit(from("10.0.0.1:1")).unwrap();
        let second = all.admit(from("[::ffff:10.0.0.1]:2")).unwrap();
        assert_eq!(all.admit(from("10.0.0.1:3")).unwrap_err(), ConnectionLimit::Address);
        let other = all.admit(from("10.0.0.2:1")).unwrap();
        assert_eq!(all.admit(from("10.0.0.3:1")).unwrap_err(), ConnectionLimit::Total);
        drop(first);
        let again = all.admit(from("10.0.0.1:4")).unwrap();
        all.set_limits(4, 3);
        let more = all.admit(from("10.0.0.1:5")).unwrap();
        assert_eq!(all.admit(from("10.0.0.3:1")).unwrap_err(), ConnectionLimit::Total);
        drop((second, other, again, more));
        assert_eq!((all.open(), all.by_address.len()), (0, 0));
    }
}
