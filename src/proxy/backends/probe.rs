//! Active health checks and discovery of engine facts. Probes are cheap and infrequent, because
//! outcomes of real requests tell more and sooner. An engine that was away is asked for its facts
//! before it is used again, as another engine may have been started in its place.

use bytes::Bytes;
use std::sync::Arc;
use tidegate_engine::{EngineKind, ModelCard, models_of};
use tidegate_signals::facts::Facts;
use tidegate_types::{BackendId, Moment, Seconds};
use tokio::sync::{mpsc, oneshot};

use crate::backends::fleet::Backend;
use crate::backends::introspect::{self, Found as How, Told};
use crate::runtime::clock::Clock;

/// Facts are requested again after this many probes, because LoRA adapters are loaded and unloaded.
const WHAT_EVERY: u32 = 10;
/// Shortest time-out of a facts request: some engines answer it after the current step.
const WHAT_TIMEOUT: Seconds = Seconds(5.0);

/// Timing of probes.
#[derive(Clone, Copy, Debug)]
pub struct ProbeParams {
    /// Between two probes of one backend.
    pub interval: Seconds,
    /// Time-out of one probe.
    pub timeout: Seconds,
}

/// Result of a probe for the control loop.
#[derive(Debug)]
pub enum Found {
    /// The backend's health changed.
    Changed,
    /// The backend's models, from a request for the models only.
    Listed {
        backend: BackendId,
        /// Every name that it serves, with context lengths.
        cards: Vec<ModelCard>,
        /// The engine's `/v1/models` answer.
        answer: Bytes,
        /// Dropped once the routing table contains the models.
        heard: oneshot::Sender<()>,
    },
    /// The backend's facts and models.
    Told {
        backend: BackendId,
        /// Version, mode and base models.
        facts: Facts,
        /// Every name that it serves, with context lengths; empty if it does not list models.
        cards: Vec<ModelCard>,
        /// The engine's `/v1/models` answer.
        answer: Bytes,
        /// Dropped once the routing table reflects the facts.
        heard: oneshot::Sender<()>,
    },
}

/// Probes one backend until the receiver of `found` is gone.
pub async fn run(
    backend: Arc<Backend>,
    params: ProbeParams,
    clock: Clock,
    found: mpsc::Sender<Found>,
) {
    let mut rounds = 0u32;
    while !backend.has_left() {
        let asked = clock.now();
        let how = introspect::how(&backend.pool, backend.kind, params.timeout).await;
        let well = matches!(how, How::Well);
        // Facts are taken before the backend is used again: it may have been restarted as something
        // else.
        if well && (rounds == 0 || !backend.health.is_up()) {
            let told =
                introspect::what(&backend.pool, backend.kind, params.timeout.max(WHAT_TIMEOUT));
            if let Some(told) = told.await {
                rounds = WHAT_EVERY;
                tell(&backend, told, &found).await;
            }
        }
        if !well {
            rounds = 0;
        }
        let changed = note(&backend, how, asked, params.interval, clock.now());
        if changed {
            // The engine may have been restarted.
            backend.bootstrap.forget();
            if found.send(Found::Changed).await.is_err() {
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

/// Applies the result of a probe that began at `asked` to the backend's health. Returns whether
/// that changed.
fn note(backend: &Backend, how: How, asked: Moment, interval: Seconds, now: Moment) -> bool {
    let health = &backend.health;
    // Tokens of its streams are better evidence than a probe: tokens since the probe began for a
    // late probe, tokens since about the previous probe for one that reports a failure.
    let heard = health.heard_at();
    let speaks = match how {
        How::Late(_) => heard >= asked,
        How::Sick(_) => heard > Moment::START && heard + interval >= now,
        How::Well | How::Gone(_) => false,
    };
    if speaks {
        health.probed(now);
        return false;
    }
    let (out, why) = match how {
        How::Well => {
            let up = health.probed(now);
            if up {
                let word = health.as_str(now);
                tracing::info!(backend = %backend.name, "probe: backend is {word}");
            }
            return up;
        }
        How::Sick(why) => (health.failed_probe(), why),
        How::Gone(why) => (health.refused(), why),
        How::Late(why) => (health.missed_probe(), why),
    };
    if out {
        tracing::warn!(backend = %backend.name, "probe: backend is down: {why}");
        health.set_reason(format!("probe: {why}"));
    }
    out
}

/// Sends the facts to the control loop and waits until they are applied.
async fn tell(backend: &Backend, told: Told, found: &mpsc::Sender<Found>) {
    let (heard, hears) = oneshot::channel();
    let cards = cards_of(backend.kind, &told.models);
    let Told { facts, models: answer } = told;
    let told = Found::Told { backend: backend.id, facts, cards, answer, heard };
    if found.send(told).await.is_ok() {
        // Completed by dropping the sender.
        hears.await.ok();
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
