//! Connection pool of one backend; connections are taken and returned without a lock.
//!
//! uvicorn closes a connection after 5 s idle; connections idle for longer are not reused.

use crossbeam_queue::ArrayQueue;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tidegate_types::{Moment, Seconds};
use tokio::time::timeout;

use super::connection::{EngineAnswer, EngineConnection, ExchangeError, IdleState};
use super::outgoing::Outgoing;
use super::socket::Socket;
use super::{Address, tls};
use crate::runtime::clock::Clock;

/// Limits of one backend's connections.
#[derive(Clone, Copy, Debug)]
pub struct PoolParams {
    /// Most idle connections kept. Connections beyond them are opened on demand and closed after
    /// use.
    pub idle_max: usize,
    /// Longest idle time of a reusable connection; below the engine's own limit.
    pub idle_time: Seconds,
    /// Time-out of opening a connection.
    pub connect_timeout: Seconds,
    /// Time-out for the first byte of an answer.
    pub first_byte_timeout: Seconds,
}

/// Time without connection reuse after an engine has sent bytes beyond an answer. Such bytes may
/// arrive while the next request is sent and would be read as its answer. Each request to that
/// engine then opens a connection.
const SUSPECT: Seconds = Seconds(60.0);

/// Idle connections, each with the time at which it became idle.
pub(super) struct IdlePool {
    links: ArrayQueue<(EngineConnection, Moment)>,
    clock: Clock,
    /// End of the time without reuse.
    suspect_until: AtomicU64,
}

impl IdlePool {
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Keeps a connection. Closes it if the pool is full or the engine has sent surplus bytes.
    pub(super) fn put(&self, link: EngineConnection) {
        let now = self.clock.now();
        if !self.is_suspect(now) {
            drop(self.links.push((link, now)));
        }
    }

    /// Records that the engine has sent surplus bytes.
    pub(super) fn suspect(&self) {
        let now = self.clock.now();
        if !self.is_suspect(now) {
            tracing::warn!(
                "an engine sends bytes beyond its answers: its connections are not reused"
            );
        }
        self.suspect_until.store((now + SUSPECT).0, Relaxed);
    }

    fn is_suspect(&self, now: Moment) -> bool {
        now < Moment(self.suspect_until.load(Relaxed))
    }
}

/// Exchanges with one backend.
pub struct Pool {
    address: Address,
    params: PoolParams,
    tls: Option<tls::EngineTls>,
    idle: Arc<IdlePool>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.address.authority).finish()
    }
}

impl Pool {
    /// An empty pool; connections are opened on request.
    pub fn new(
        address: Address,
        params: PoolParams,
        tls: Option<tls::EngineTls>,
        clock: Clock,
    ) -> Pool {
        let idle = Arc::new(IdlePool {
            links: ArrayQueue::new(params.idle_max.max(1)),
            clock,
            suspect_until: AtomicU64::new(0),
        });
        Pool { address, params, tls, idle }
    }

    /// Time-out for the first byte of an answer.
    pub fn first_byte_timeout(&self) -> Duration {
        self.params.first_byte_timeout.to_duration()
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and awaits the head of the answer. If a reused connection is closed, the request is
    /// sent once more on a fresh connection: `request` is then called again.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`ExchangeError`]; [`ExchangeError::before_sending`] shows whether the engine may have received it.
    pub async fn send(
        &self,
        request: impl Fn() -> Outgoing,
    ) -> Result<EngineAnswer, ExchangeError> {
        let limit = self.first_byte_timeout();
        match timeout(limit, pin!(self.send_unbounded(request))).await {
            Ok(answer) => answer,
            Err(_) => Err(ExchangeError::AnswerTimeout(limit)),
        }
    }

    /// Closes connections idle beyond the limit. Called periodically by the prober.
    pub fn sweep(&self) {
        let now = self.idle.now();
        for _ in 0..self.idle.links.len() {
            if let Some((link, since)) = self.idle.links.pop()
                && self.is_fresh(since, now)
            {
                drop(self.idle.links.push((link, since)));
            }
        }
    }

    /// Like [`Pool::send`], without the first-byte time-out, which the caller applies.
    ///
    /// # Errors
    /// As [`Pool::send`], except the time-out.
    pub async fn send_unbounded(
        &self,
        request: impl Fn() -> Outgoing,
    ) -> Result<EngineAnswer, ExchangeError> {
        let mut stale = None;
        let now = self.idle.now();
        if let Some(link) = self.take(now) {
            match link.exchange(request(), Arc::clone(&self.idle), now).await {
                Err(error @ ExchangeError::Stale { .. }) => stale = Some(error),
                answer => return answer,
            }
        }
        match (self.open().await, stale) {
            (Ok(link), _) => {
                let now = self.idle.now();
                link.exchange(request(), Arc::clone(&self.idle), now).await
            }
            // The fresh connection failed too: the first error shows whether the engine may have
            // received the request.
            (Err(_), Some(stale @ ExchangeError::Stale { sent: true, .. })) => Err(stale),
            (Err(error), _) => Err(error),
        }
    }

    fn take(&self, now: Moment) -> Option<EngineConnection> {
        while let Some((mut link, since)) = self.idle.links.pop() {
            if !self.is_fresh(since, now) || self.idle.is_suspect(now) {
                continue;
            }
            match link.idle_state() {
                IdleState::Quiet => return Some(link),
                IdleState::Ended => {}
                IdleState::Surplus => self.idle.suspect(),
            }
        }
        None
    }

    fn is_fresh(&self, since: Moment, now: Moment) -> bool {
        now - since < self.params.idle_time
    }

    async fn open(&self) -> Result<EngineConnection, ExchangeError> {
        let limit = self.params.connect_timeout.to_duration();
        let connecting = Socket::connect(&self.address, self.tls.as_ref());
        let socket = timeout(limit, connecting)
            .await
            .map_err(|_| ExchangeError::ConnectTimeout(limit))?
            .map_err(ExchangeError::Connect)?;
        Ok(EngineConnection::new(socket))
    }
}
