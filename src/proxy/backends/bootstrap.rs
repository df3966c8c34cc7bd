//! Rendezvous data of prefill engines, needed before their first concurrent legs: Mooncake's engine
//! ids, TensorRT-LLM's endpoint. Queried once and cached until a leg fails, because a restarted
//! engine has other ids. A request whose backend's data is cached sends no query.

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::Method;
use std::sync::Arc;
use std::time::Duration;
use tidegate_engine::{Family, Peer, PeerQuery};

use crate::upstream::failure::LegProblem;
use crate::upstream::read_all;
use crate::upstream::{ExchangeError, Outgoing, Pool};

/// Time-out of a query, which is a look-up without engine work.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Largest answer read, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// Cached rendezvous data of one backend, and the server that reports it.
pub struct Bootstrap {
    query: Option<PeerQuery>,
    /// Address of the bootstrap server, if it has its own port.
    server: Option<Pool>,
    /// The ranks that the server reported; written by requests.
    peers: ArcSwapOption<Vec<Peer>>,
}

impl Bootstrap {
    /// An empty cache; `at_port` is called if the family has a separate bootstrap server.
    pub fn new<E>(
        family: Family,
        at_port: impl FnOnce() -> Result<Pool, E>,
    ) -> Result<Bootstrap, E> {
        let query = family.peer_query();
        let is_separate = query.is_some_and(|query| query.at_bootstrap);
        let server = if is_separate { Some(at_port()?) } else { None };
        Ok(Bootstrap { query, server, peers: ArcSwapOption::empty() })
    }

    /// Discards the cached data after a failed leg, so that it is queried again.
    pub fn forget(&self) {
        if self.query.is_some() {
            self.peers.store(None);
        }
    }

    /// Returns the rank for a request with this random id, of an engine of this family behind `pool`.
    /// `None` if the family has no rendezvous query.
    ///
    /// # Errors
    /// The query failed, or its answer is unusable.
    pub(crate) async fn peer(
        &self,
        family: Family,
        pool: &Pool,
        id: u64,
    ) -> Result<Option<Peer>, LegProblem> {
        let Some(query) = self.query else { return Ok(None) };
        let peers = match self.peers.load_full() {
            Some(peers) => peers,
            None => {
                let pool = self.server.as_ref().unwrap_or(pool);
                let answer = tokio::time::timeout(ANSWER_WITHIN, exchange(pool, query)).await;
                let answer = answer
                    .unwrap_or(Err(ExchangeError::AnswerTimeout(ANSWER_WITHIN).into()))
                    .map_err(|problem| LegProblem::RendezvousFailed(Box::new(problem)))?;
                let peers = Arc::new(family.read_peers(&answer)?);
                self.peers.store(Some(Arc::clone(&peers)));
                peers
            }
        };
        let chosen = usize::try_from(id % peers.len().max(1) as u64).unwrap_or(0);
        Ok(peers.get(chosen).cloned())
    }
}

async fn exchange(pool: &Pool, query: PeerQuery) -> Result<Bytes, LegProblem> {
    let request = || Outgoing::own(&Method::GET, pool.address(), query.path, Bytes::new());
    let answer = pool.send(request).await?;
    if !answer.head.status.is_success() {
        return Err(LegProblem::Status(answer.head.status));
    }
    read_all(answer.body, ANSWER_MAX).await
}
