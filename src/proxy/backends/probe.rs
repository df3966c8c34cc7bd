//! Active health checks and discovery of engine facts. Probes are cheap and infrequent: outcomes of
//! real requests are earlier and better evidence. After an outage the facts are read before the
//! backend is used again, because another engine may have been started at its address.

use bytes::Bytes;
use std::sync::Arc;
use tidegate_engine::{EngineKind, ModelCard, models_of};
use tidegate_signals::facts::Facts;
use tidegate_types::{BackendId, Moment, Seconds};
use tokio::sync::{mpsc, oneshot};

use crate::backends::fleet::Backend;
use crate::backends::introspect::{self, ProbeResult, ReportedFacts};
use crate::backends::pd_role;
use crate::runtime::clock::Clock;

/// Facts are requested again after this many probes, because LoRA adapters are loaded and unloaded.
const FACTS_EVERY: u32 = 10;
/// Shortest time-out of a facts request: some engines answer it after the current step.
const FACTS_TIMEOUT: Seconds = Seconds(5.0);

/// Timing of probes.
#[derive(Clone, Copy, Debug)]
pub struct ProbeParams {
    /// From the end of one probe of a backend to the next.
    pub interval: Seconds,
    /// Time-out of one probe.
    pub timeout: Seconds,
}

/// Result of a probe for the control loop.
#[derive(Debug)]
pub enum ProbeReport {
    /// The backend's health changed.
    HealthChanged,
    /// The backend's models, from a request for the models only.
    Models {
        backend: BackendId,
        /// Every name that it serves, with context lengths.
        cards: Vec<ModelCard>,
        /// The engine's `/v1/models` answer.
        answer: Bytes,
        /// Dropped once the routing table contains the models.
        applied: oneshot::Sender<()>,
    },
    /// The backend's facts and models.
    Facts {
        backend: BackendId,
        /// Version, mode and base models.
        facts: Facts,
        /// Every name that it serves, with context lengths; empty if it does not list models.
        cards: Vec<ModelCard>,
        /// The engine's `/v1/models` answer.
        answer: Bytes,
        /// Dropped once the routing table reflects the facts.
        applied: oneshot::Sender<()>,
    },
}

/// Probes one backend until the receiver of `found` is dropped.
pub async fn run(
    backend: Arc<Backend>,
    params: ProbeParams,
    clock: Clock,
    found: mpsc::Sender<ProbeReport>,
) {
    let mut rounds = 0u32;
    while !backend.has_left() {
        let began = clock.now();
        let result = introspect::check_health(&backend.pool, backend.kind, params.timeout).await;
        let well = matches!(result, ProbeResult::Healthy);
        // Facts are read before the backend is used again: another engine may have been started.
        if well && (rounds == 0 || !backend.health.is_up()) {
            let timeout = params.timeout.max(FACTS_TIMEOUT);
            let facts = introspect::read_facts(&backend.pool, backend.kind, timeout).await;
            if let Some(mut facts) = facts {
                if let Some(mode) = pd_role::mode(&backend, timeout).await {
                    facts.facts.mode = Some(mode);
                }
                rounds = FACTS_EVERY;
                report(&backend, facts, &found).await;
            }
        }
        if !well {
            rounds = 0;
        }
        let changed = apply(&backend, result, began, params.interval, clock.now());
        if changed {
            // The engine may have been restarted.
            backend.bootstrap.forget();
            if found.send(ProbeReport::HealthChanged).await.is_err() {
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

/// Applies the result of a probe that began at `began` to the backend's health. Returns whether
/// that changed.
fn apply(
    backend: &Backend,
    result: ProbeResult,
    began: Moment,
    interval: Seconds,
    now: Moment,
) -> bool {
    let health = &backend.health;
    // Tokens of its streams are better evidence than a probe: tokens since the probe began for an
    // unanswered probe, tokens since about the previous probe for one that reports a failure.
    let received = health.received_at();
    let streams = match result {
        ProbeResult::Unanswered(_) => received >= began,
        ProbeResult::Unhealthy(_) => received > Moment::START && received + interval >= now,
        ProbeResult::Healthy | ProbeResult::Refused(_) => false,
    };
    if streams {
        health.probed(now);
        return false;
    }
    let (out, why) = match result {
        ProbeResult::Healthy => {
            let up = health.probed(now);
            if up {
                let state = health.as_str(now);
                tracing::info!(backend = %backend.name, "probe: backend is {state}");
            }
            return up;
        }
        ProbeResult::Unhealthy(why) => (health.failed_probe(), why),
        ProbeResult::Refused(why) => (health.refused(), why),
        ProbeResult::Unanswered(why) => (health.missed_probe(), why),
    };
    if out {
        tracing::warn!(backend = %backend.name, "probe: backend is down: {why}");
        health.set_reason(format!("probe: {why}"));
    }
    out
}

/// Sends the facts to the control loop and waits until they are applied.
async fn report(backend: &Backend, reported: ReportedFacts, found: &mpsc::Sender<ProbeReport>) {
    let (applied, done) = oneshot::channel();
    let cards = cards_of(backend.kind, &reported.models);
    let ReportedFacts { facts, models: answer } = reported;
    let report = ProbeReport::Facts { backend: backend.id, facts, cards, answer, applied };
    if found.send(report).await.is_ok() {
        // Completed by dropping the sender.
        done.await.ok();
    }
}

/// The model cards in an engine's answer. Ollama's clients may omit the tag `:latest`.
pub(crate) fn cards_of(kind: EngineKind, models: &[u8]) -> Vec<ModelCard> {
    let mut cards = models_of(models);
    if kind == EngineKind::Ollama {
        let short = |card: &ModelCard| {
            let id = card.id.strip_suffix(":latest")?.to_owned();
            Some(ModelCard { id, ..card.clone() })
        };
        let short: Vec<ModelCard> = cards.iter().filter_map(short).collect();
        cards.extend(short);
    }
    cards
}
