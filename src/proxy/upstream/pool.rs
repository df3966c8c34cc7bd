//! Connection pool of one backend; connections are taken and returned without a lock.
//!
//! uvicorn closes a connection that was idle for 5 s; one that waited longer here is not tried.

use crossbeam_queue::ArrayQueue;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tidegate_types::{Moment, Seconds};
use tokio::time::timeout;

use super::connection::{Answer, ExchangeError, Link, Rest};
use super::outgoing::Outgoing;
use super::socket::Socket;
use super::{Address, tls};
use crate::runtime::clock::Clock;

/// Limits of one backend's connections.
#[derive(Clone, Copy, Debug)]
pub struct PoolParams {
    /// Most idle connections kept; more in flight are opened as needed and closed after use.
    pub idle_max: usize,
    /// How long an idle connection may wait for its next use; below the engine's own limit.
    pub idle_time: Seconds,
    /// How long opening a connection may take.
    pub connect_timeout: Seconds,
    /// How long an engine may take to the first byte of its answer.
    pub first_byte_timeout: Seconds,
}

/// After bytes beyond an answer, the connections of that engine are not reused for this time. Such bytes
/// may arrive while the next request is sent, where they look like its answer. Without reuse each
/// request of that broken engine costs a connection.
const SUSPECT: Seconds = Seconds(60.0);

/// Idle connections and since when each waits.
pub(super) struct Idle {
    links: ArrayQueue<(Link, Moment)>,
    clock: Clock,
    /// Until when no connection is used again.
    suspect_until: AtomicU64,
}

impl Idle {
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Keep a connection; when the pool is full, or its engine suspect, it is closed instead.
    pub(super) fn put(&self, link: Link) {
        let now = self.clock.now();
        if !self.is_suspect(now) {
            drop(self.links.push((link, now)));
        }
    }

    /// The engine sent bytes that belong to no answer.
    pub(super) fn suspect(&self) {
        let now = self.clock.now();
        if !self.is_suspect(now) {
            tracing::warn!("an engine sends bytes beyond its answers: no connection is used twice");
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
    tls: Option<tls::Connector>,
    idle: Arc<Idle>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.address.authority).finish()
    }
}

impl Pool {
    /// A pool without connections; none is opened before the first request.
    pub fn new(
        address: Address,
        params: PoolParams,
        tls: Option<tls::Connector>,
        clock: Clock,
    ) -> Pool {
        let idle = Arc::new(Idle {
            links: ArrayQueue::new(params.idle_max.max(1)),
            clock,
            suspect_until: AtomicU64::new(0),
        });
        Pool { address, params, tls, idle }
    }

    /// How long an engine may take to the first byte of its answer.
    pub fn first_byte_timeout(&self) -> Duration {
        self.params.first_byte_timeout.to_duration()
    }

    /// The backend's address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Send a request and wait for the head of the answer. A kept-alive connection that turns out
    /// to be closed is replaced by a fresh one, once: `request` makes it again then.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`ExchangeError`]; see [`ExchangeError::before_sending`] for whether the engine saw it.
    pub async fn send(&self, request: impl Fn() -> Outgoing) -> Result<Answer, ExchangeError> {
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

    /// The same, as long as it takes: the caller has a limit for this and more.
    ///
    /// # Errors
    /// As above, but for the timeout.
    pub async fn send_unbounded(
        &self,
        request: impl Fn() -> Outgoing,
    ) -> Result<Answer, ExchangeError> {
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
            // Not even that is there: whether the engine saw the request, only the first knows.
            (Err(_), Some(stale @ ExchangeError::Stale { sent: true, .. })) => Err(stale),
            (Err(error), _) => Err(error),
        }
    }

    fn take(&self, now: Moment) -> Option<Link> {
        while let Some((mut link, since)) = self.idle.links.pop() {
            if !self.is_fresh(since, now) || self.idle.is_suspect(now) {
                continue;
            }
            match link.rest() {
                Rest::Quiet => return Some(link),
                Rest::Ended => {}
                Rest::Surplus => self.idle.suspect(),
            }
        }
        None
    }

    fn is_fresh(&self, since: Moment, now: Moment) -> bool {
        now - since < self.params.idle_time
    }

    async fn open(&self) -> Result<Link, ExchangeError> {
        let limit = self.params.connect_timeout.to_duration();
        let connecting = Socket::connect(&self.address, self.tls.as_ref());
        let socket = timeout(limit, connecting)
            .await
            .map_err(|_| ExchangeError::ConnectTimeout(limit))?
            .map_err(ExchangeError::Connect)?;
        Ok(Link::new(socket))
    }
}
