//! Rendezvous data of prefill engines, needed before their first concurrent legs: Mooncake's engine
//! ids, TensorRT-LLM's endpoint. Queried once and cached until a leg fails, because a restarted
//! engine has other ids. A request whose backend's data is cached sends no query.

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::Method;
use std::sync::Arc;
use std::time::Duration;
use tidegate_engine::{Family, Peer, PeerQuery};

use crate::backends::fleet::Backend;
use crate::upstream::failure::LegProblem;
use crate::upstream::read_all;
use crate::upstream::{ExchangeError, Outgoing, Pool};

/// Timeout of a query, which is a look-up without engine work.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Largest answer read, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// What one backend told, and where it is asked.
pub struct Bootstrap {
    ask: Option<PeerQuery>,
    /// Address of the bootstrap server, if it has its own port.
    server: Option<Pool>,
    /// At least one rank, once it told; written by requests.
    peers: ArcSwapOption<Vec<Peer>>,
}

impl Bootstrap {
    /// Nothing is known yet; `at_port` is called if there is a bootstrap server to ask.
    pub fn new<E>(
        family: Family,
        at_port: impl FnOnce() -> Result<Pool, E>,
    ) -> Result<Bootstrap, E> {
        let ask = family.peer_query();
        let elsewhere = ask.is_some_and(|ask| ask.at_bootstrap);
        let server = if elsewhere { Some(at_port()?) } else { None };
        Ok(Bootstrap { ask, server, peers: ArcSwapOption::empty() })
    }

    /// Discards the cached data after a failed leg, so that it is queried again.
    pub fn forget(&self) {
        if self.ask.is_some() {
            self.peers.store(None);
        }
    }
}

/// The rank of `backend` that a request with this random id shall use; `None` where its family asks
/// nothing.
///
/// # Errors
/// The query failed, or its answer is unusable.
pub(crate) async fn peer(backend: &Backend, id: u64) -> Result<Option<Peer>, LegProblem> {
    let bootstrap = &backend.bootstrap;
    let Some(ask) = bootstrap.ask else { return Ok(None) };
    let peers = match bootstrap.peers.load_full() {
        Some(peers) => peers,
        None => {
            let answer = tokio::time::timeout(ANSWER_WITHIN, exchange(backend, ask)).await;
            let answer = answer
                .unwrap_or(Err(ExchangeError::AnswerTimeout(ANSWER_WITHIN).into()))
                .map_err(|problem| LegProblem::Unasked(Box::new(problem)))?;
            let peers = Arc::new(backend.family.read_peers(&answer)?);
            bootstrap.peers.store(Some(Arc::clone(&peers)));
            peers
        }
    };
    let chosen = usize::try_from(id % peers.len().max(1) as u64).unwrap_or(0);
    Ok(peers.get(chosen).cloned())
}

async fn exchange(backend: &Backend, ask: PeerQuery) -> Result<Bytes, LegProblem> {
    let pool = backend.bootstrap.server.as_ref().unwrap_or(&backend.pool);
    let request = || Outgoing::own(&Method::GET, pool.address(), ask.path, Bytes::new());
    let answer = pool.send(request).await?;
    if !answer.head.status.is_success() {
        return Err(LegProblem::Status(answer.head.status));
    }
    read_all(answer.body, ANSWER_MAX).await
}
