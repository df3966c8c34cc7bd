//! Model discovery: a request for a model that is in no routing table triggers a query of the engines'
//! model lists before it is refused, so that the first request for a newly loaded adapter succeeds.
//! Engines are queried at most once a second, whatever the number of such requests.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backends::fleet::{Backend, Fleet};
use crate::backends::introspect;
use crate::backends::probe::{ProbeReport, cards_of};
use crate::runtime::clock::Clock;

/// Shortest interval between two rounds of queries. A model list takes about 1 ms of an engine's API
/// server.
const INTERVAL: Seconds = Seconds(1.0);
/// Time-out of a query. An engine that exceeds it is queried again by the prober.
const TIMEOUT: Seconds = Seconds(2.0);
/// Most requests waiting for a round; further ones are refused at once.
const WAITING_MAX: usize = 256;
/// Most names remembered as unknown to every engine.
const MISSING_MAX: usize = 256;

/// Queries engines for their models.
pub struct ModelDiscovery {
    found: mpsc::Sender<ProbeReport>,
    rounds: Mutex<Rounds>,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Rounds {
    /// Start of the last round.
    began: Option<Moment>,
    /// Names queried in recent rounds, each with the start of its round.
    missing: VecDeque<(Moment, String)>,
}

/// Counts one waiting request until it is dropped.
struct WaiterCount<'a>(&'a AtomicUsize);

impl Drop for WaiterCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl ModelDiscovery {
    /// Creates the discovery; `found` is the control loop's channel.
    pub fn new(found: mpsc::Sender<ProbeReport>) -> ModelDiscovery {
        ModelDiscovery { found, rounds: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    /// Queries the engines because `name` is in no table. Returns whether a round was completed since
    /// the call; the directory then contains its results.
    pub async fn refresh(&self, clock: Clock, fleet: &Fleet, name: &str) -> bool {
        let arrived = clock.now();
        let waiting = self.waiting.fetch_add(1, Relaxed);
        let _waiting = WaiterCount(&self.waiting);
        if waiting >= WAITING_MAX {
            return false;
        }
        let mut rounds = self.rounds.lock().await;
        if rounds.began.is_some_and(|began| began >= arrived) {
            return true;
        }
        let now = clock.now();
        let recent = |(at, missing): &(Moment, String)| now - *at < INTERVAL && missing == name;
        if rounds.missing.iter().any(recent) {
            return false;
        }
        if let Some(began) = rounds.began.filter(|began| now - *began < INTERVAL) {
            tokio::time::sleep_until(clock.instant(began + INTERVAL)).await;
        }
        let began = clock.now();
        rounds.began = Some(began);
        self.query_all(fleet).await;
        if rounds.missing.len() == MISSING_MAX {
            rounds.missing.pop_front();
        }
        // A name that was found is in the directory and is not queried again.
        rounds.missing.push_back((began, name.to_owned()));
        true
    }

    async fn query_all(&self, fleet: &Fleet) {
        let mut queries = JoinSet::new();
        for backend in fleet.backends().iter().filter(|backend| backend.health.is_usable()) {
            let backend = Arc::clone(backend);
            queries.spawn(async move {
                let list = introspect::get(&backend.pool, "/v1/models", TIMEOUT).await;
                (backend, list)
            });
        }
        while let Some(query) = queries.join_next().await {
            if let Ok((backend, Some(answer))) = query {
                self.publish(&backend, answer).await;
            }
        }
    }

    /// Sends a model list to the control loop and waits until the table contains it.
    async fn publish(&self, backend: &Backend, answer: Bytes) {
        let cards = cards_of(backend.kind, &answer);
        let (applied, published) = oneshot::channel();
        let listed = ProbeReport::Models { backend: backend.id, cards, answer, applied };
        if self.found.send(listed).await.is_ok() {
            // The control loop drops the sender when the table is published; no message is sent.
            published.await.ok();
        }
    }
}
