//! Ask each engine now and then whether it is there and what it is. Cheap and slow on purpose: the
//! outcomes of real requests say more, and sooner. What must never happen is that an engine which
//! was away is used before it has said what it is now: it may be another one.

use bytes::Bytes;
use std::sync::Arc;
use tidegate_engine::{EngineKind, ModelCard, models_of};
use tidegate_signals::facts::Facts;
use tidegate_types::{BackendId, Moment, Seconds};
use tokio::sync::{mpsc, oneshot};

use crate::ask::{self, Found as How, Told};
use crate::clock::Clock;
use crate::fleet::Backend;

/// What it is is asked for again after so many probes: LoRA adapters come and go.
const WHAT_EVERY: u32 = 10;
/// Some engines ask their scheduler first, which is in the middle of a step.
const WHAT_TIMEOUT: Seconds = Seconds(5.0);

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
    /// It was asked for its models alone, and said which.
    Listed {
        /// Whose.
        backend: BackendId,
        /// Every name that it serves, with its limits.
        cards: Vec<ModelCard>,
        /// The engine's own list.
        answer: Bytes,
        /// Dropped when the table goes by it.
        heard: oneshot::Sender<()>,
    },
    /// It said what it is.
    Told {
        /// Whose.
        backend: BackendId,
        /// Its version, mode and base models.
        facts: Facts,
        /// Every name that it serves, with its limits; none if it does not say.
        cards: Vec<ModelCard>,
        /// The engine's own list.
        answer: Bytes,
        /// Dropped when the table goes by it.
        heard: oneshot::Sender<()>,
    },
}

/// Probe one backend for as long as someone listens.
pub async fn run(
    backend: Arc<Backend>,
    params: ProbeParams,
    clock: Clock,
    found: mpsc::Sender<Found>,
) {
    let mut rounds = 0u32;
    loop {
        let asked = clock.now();
        let how = ask::how(&backend.pool, backend.kind, params.timeout).await;
        let well = matches!(how, How::Well);
        // Before it is used again: it may have been restarted as something else.
        if well && (rounds == 0 || !backend.health.is_up()) {
            let told = ask::what(&backend.pool, backend.kind, params.timeout.max(WHAT_TIMEOUT));
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
            // It may have been started again.
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

/// What a probe that was `asked` then says of the backend's health. True if that is new.
fn note(backend: &Backend, how: How, asked: Moment, interval: Seconds, now: Moment) -> bool {
    let health = &backend.health;
    // Tokens of its streams are a better proof than a probe: those that came while it was waited for,
    // or, where it says that it is unwell, since about the probe before.
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
                tracing::info!(backend = %backend.name, "a probe finds it {word}");
            }
            return up;
        }
        How::Sick(why) => (health.failed_probe(), why),
        How::Gone(why) => (health.refused(), why),
        How::Late(why) => (health.missed_probe(), why),
    };
    if out {
        tracing::warn!(backend = %backend.name, "a probe finds it down: {why}");
        health.set_reason(format!("probe: {why}"));
    }
    out
}

/// Tell the control loop, and wait until it has heard.
async fn tell(backend: &Backend, told: Told, found: &mpsc::Sender<Found>) {
    let (heard, hears) = oneshot::channel();
    let cards = cards_of(backend.kind, &told.models);
    let Told { facts, models: answer } = told;
    let told = Found::Told { backend: backend.id, facts, cards, answer, heard };
    if found.send(told).await.is_ok() {
        // It never sends: the drop is the word.
        hears.await.ok();
    }
}

/// Ollama's clients may leave the tag away where it is `latest`.
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
