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

use crate::backends::fleet::Backend;
use crate::backends::introspect;
use crate::backends::probe::{Found, cards_of};
use crate::dispatch::context::Proxy;

/// Interval between two rounds of queries: a list costs an engine a millisecond of its API server.
const EVERY: Seconds = Seconds(1.0);
/// How long an engine may take. One that is in the middle of a long step is asked again by its probe.
const TIMEOUT: Seconds = Seconds(2.0);
/// Most requests waiting for a round; further ones are refused at once.
const WAITING_MAX: usize = 256;
/// Most names remembered as unknown to every engine.
const MISSING_MAX: usize = 256;

/// Asks engines for their models.
pub struct Discovery {
    found: mpsc::Sender<Found>,
    rounds: Mutex<Rounds>,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Rounds {
    /// When the last one began.
    began: Option<Moment>,
    /// What was asked for in vain, and when.
    missing: VecDeque<(Moment, String)>,
}

/// One request that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Discovery {
    /// `found` leads to the control loop.
    pub fn new(found: mpsc::Sender<Found>) -> Discovery {
        Discovery { found, rounds: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    /// Ask for `what` is missing. True: the engines were asked since the call, and the directory has
    /// what they said.
    pub async fn look(&self, proxy: &Proxy, what: &str) -> bool {
        let came = proxy.clock.now();
        let waiting = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if waiting >= WAITING_MAX {
            return false;
        }
        let mut rounds = self.rounds.lock().await;
        if rounds.began.is_some_and(|began| began >= came) {
            return true;
        }
        let now = proxy.clock.now();
        let recent = |(at, name): &(Moment, String)| now - *at < EVERY && name == what;
        if rounds.missing.iter().any(recent) {
            return false;
        }
        if let Some(began) = rounds.began.filter(|began| now - *began < EVERY) {
            tokio::time::sleep_until(proxy.clock.instant(began + EVERY)).await;
        }
        let began = proxy.clock.now();
        rounds.began = Some(began);
        self.ask_all(proxy).await;
        if rounds.missing.len() == MISSING_MAX {
            rounds.missing.pop_front();
        }
        // One that was found is not asked for again.
        rounds.missing.push_back((began, what.to_owned()));
        true
    }

    async fn ask_all(&self, proxy: &Proxy) {
        let mut asking = JoinSet::new();
        for backend in proxy.fleet.backends.iter().filter(|backend| backend.health.is_usable()) {
            let backend = Arc::clone(backend);
            asking.spawn(async move {
                let list = introspect::get(&backend.pool, "/v1/models", TIMEOUT).await;
                (backend, list)
            });
        }
        while let Some(asked) = asking.join_next().await {
            if let Ok((backend, Some(answer))) = asked {
                self.tell(&backend, answer).await;
            }
        }
    }

    /// Tell the control loop, and wait until the table goes by it.
    async fn tell(&self, backend: &Backend, answer: Bytes) {
        let cards = cards_of(backend.kind, &answer);
        let (heard, hears) = oneshot::channel();
        let listed = Found::Listed { backend: backend.id, cards, answer, heard };
        if self.found.send(listed).await.is_ok() {
            // The sender is dropped without a message: the drop signals the end of the round.
            hears.await.ok();
        }
    }
}
