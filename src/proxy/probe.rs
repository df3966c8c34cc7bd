//! Ask each engine now and then whether it is there and what it serves. Cheap and slow on purpose:
//! the outcomes of real requests say more, and sooner.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use std::sync::Arc;
use tidegate_engine::{ModelCard, models_of};
use tidegate_terms::{BackendId, Seconds};
use tokio::sync::mpsc;

use crate::answer::read_all;
use crate::fleet::Backend;

/// The largest list of models read.
const MODELS_ANSWER_MAX: usize = 4 << 20;
/// Models are asked for again after so many probes: LoRA adapters come and go.
const MODELS_EVERY: u32 = 10;

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct ProbeParams {
    /// Between two probes of one backend.
    pub interval: Seconds,
    /// For one answer.
    pub timeout: Seconds,
}

/// What a probe found.
#[derive(Debug)]
pub enum Found {
    /// The backend came back or went away.
    Changed,
    /// It serves these models; `answer` is its own list.
    Models {
        /// Whose.
        backend: BackendId,
        /// Names and limits.
        cards: Vec<ModelCard>,
        /// The engine's own words.
        answer: Bytes,
    },
}

/// Probe one backend for as long as someone listens.
pub async fn run(backend: Arc<Backend>, params: ProbeParams, found: mpsc::Sender<Found>) {
    let mut rounds = 0u32;
    loop {
        let healthy = get(&backend, "/health", params.timeout).await.is_some();
        let changed = match healthy {
            true => backend.health.probed(),
            false => backend.health.failed(),
        };
        if changed {
            let word = backend.health.as_str();
            tracing::warn!(backend = %backend.name, "a probe finds it {word}");
            if found.send(Found::Changed).await.is_err() {
                return;
            }
        }
        let ask = changed || rounds == 0;
        if healthy
            && ask
            && let Some(models) = models(&backend, params.timeout).await
        {
            rounds = MODELS_EVERY;
            if found.send(models).await.is_err() {
                return;
            }
        }
        rounds = rounds.saturating_sub(1);
        backend.pool.sweep();
        if found.is_closed() {
            return;
        }
        tokio::time::sleep(params.interval.to_duration()).await;
    }
}

async fn models(backend: &Backend, timeout: Seconds) -> Option<Found> {
    let answer = get(backend, "/v1/models", timeout).await?;
    let cards = models_of(&answer);
    (!cards.is_empty()).then_some(Found::Models { backend: backend.id, cards, answer })
}

/// The body of a 2xx answer.
pub(crate) async fn get(backend: &Backend, path: &'static str, timeout: Seconds) -> Option<Bytes> {
    let authority = backend.pool.address().authority.as_str();
    let host = HeaderValue::from_str(authority).ok()?;
    let request = || {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = Uri::from_static(path);
        request.headers_mut().insert(HOST, host.clone());
        request
    };
    let exchange = async {
        let answer = backend.pool.send(request).await.ok()?;
        let success = answer.status().is_success();
        let body = read_all(answer.into_body(), MODELS_ANSWER_MAX).await.ok()?;
        success.then_some(body)
    };
    tokio::time::timeout(timeout.to_duration(), exchange).await.ok()?
}
