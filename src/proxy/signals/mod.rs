//! What engines tell beside their answers: the sockets, timers and metrics around the pure room
//! `tidegate_signals`. Nothing here touches a request, and a signal that fails to come changes
//! nothing: requests go on with what the proxy itself recorded.
//!
//! - [`kv_events`]: an engine's KV cache events into the prefix index
//! - [`exact`]: asks for exact token counts
//! - [`scrape`]: each engine's own numbers, and the trouble they show
//! - [`gpu`], [`nvml`]: the GPUs of this machine
//! - [`hit_rate`]: how well cached tokens were predicted
//! - [`zmq`]: the two sockets that events come over

pub mod exact;
mod gpu;
mod hit_rate;
mod kv_events;
mod nvml;
mod scrape;
mod zmq;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use std::sync::Arc;
use tidegate_engine::ModelCard;
use tidegate_settings::{BackendSettings, EngineName, Settings};
use tidegate_signals::orca;
use tidegate_types::{BackendId, Seconds};

use crate::learn::Observation;
use crate::metrics::Metrics;
use crate::service::Proxy;
use crate::settle::Record;
use hit_rate::HitRate;
use kv_events::KvSource;
use scrape::Look;

/// What is known beside the accounts, by backend.
pub struct Signals {
    backends: Vec<BackendSignals>,
    /// Between two looks at an engine's numbers; 0 is never.
    scrape: Seconds,
    /// Between two looks at the GPUs; 0 is never.
    gpu: Seconds,
    /// Are streams asked to count every chunk's tokens?
    exact_counts: bool,
}

/// One backend's signals.
struct BackendSignals {
    /// Its base model: the first it lists, or the first that the operator named.
    model: ArcSwapOption<String>,
    /// The operator named the models: the engine's own list does not matter.
    is_named: bool,
    kv: Option<KvSource>,
    hit_rate: HitRate,
    look: Look,
    /// The GPUs of this machine that it runs on.
    gpus: Vec<u32>,
    gpu_trouble: ArcSwapOption<&'static str>,
}

impl Signals {
    /// The signals that the settings ask for.
    pub fn new(settings: &Settings, metrics: &Metrics) -> Signals {
        let of = |backend: &BackendSettings| BackendSignals {
            model: ArcSwapOption::from(backend.models.first().cloned().map(Arc::new)),
            is_named: !backend.models.is_empty(),
            kv: KvSource::of(backend, metrics),
            hit_rate: HitRate::new(&backend.name, metrics),
            look: Look::new(&backend.name, metrics),
            gpus: backend.gpus.clone(),
            gpu_trouble: ArcSwapOption::empty(),
        };
        Signals {
            backends: settings.backends.iter().map(of).collect(),
            scrape: settings.signals.scrape,
            gpu: settings.signals.gpu,
            exact_counts: settings.signals.exact_counts && all_vllm(settings),
        }
    }

    /// Are streams asked to count every chunk's tokens?
    pub fn counts_exactly(&self) -> bool {
        self.exact_counts
    }

    /// A backend said what it serves.
    pub fn serves(&self, backend: BackendId, cards: &[ModelCard]) {
        let signals = &self.backends[backend.index()];
        if let Some(card) = cards.first().filter(|_| !signals.is_named) {
            signals.model.store(Some(Arc::new(card.id.clone())));
        }
    }

    /// An answer came; some engines say in its head how they are.
    pub fn answered(&self, backend: BackendId, headers: &HeaderMap) {
        let said = headers.get(orca::HEADER).and_then(|value| value.to_str().ok());
        if let Some(reading) = said.and_then(orca::reading) {
            self.backends[backend.index()].look.heard(&reading);
        }
    }

    /// What is wrong with a backend's engine or GPUs, in words.
    pub fn troubles(&self, backend: BackendId) -> Vec<&'static str> {
        let signals = &self.backends[backend.index()];
        let mut troubles = signals.look.troubles();
        troubles.extend(signals.gpu_trouble.load().iter().map(|word| **word));
        troubles
    }

    /// A request ended: was its cached part predicted, and did its hand-off begin?
    pub fn settled(&self, record: &Record) {
        if let (Some(_), Some(decode), Some(first)) =
            (&record.notes.prefill_on, &record.notes.decode_on, record.live.first_at())
        {
            self.backends[decode.id.index()].look.handed_over(first);
        }
        let Some(predicted) = record.notes.predicted else { return };
        let (backend, usage) = match &record.notes.prefill_on {
            Some(backend) => (Some(backend), record.notes.prefill_usage),
            None => (record.notes.decode_on.as_ref(), record.usage),
        };
        let (Some(backend), Some(usage)) = (backend, usage) else { return };
        let signals = &self.backends[backend.id.index()];
        let told = signals.kv.as_ref().is_some_and(KvSource::is_complete);
        if let Some(cached) = signals.hit_rate.settled(predicted.held, &usage, told) {
            let held = predicted.held;
            record.proxy.learn(Observation::Hit { backend: backend.id, held, cached });
        }
    }

    /// Where the proxy's knowledge of a backend's prefix cache comes from.
    pub fn prefix_source(&self, backend: BackendId) -> &'static str {
        match &self.backends[backend.index()].kv {
            Some(kv) if kv.is_complete() => "events",
            Some(_) => "record_and_events",
            None => "record",
        }
    }
}

/// A request is changed before its backend is known, and other engines may refuse what they do not
/// know.
fn all_vllm(settings: &Settings) -> bool {
    let all = settings.backends.iter().all(|backend| backend.engine == EngineName::Vllm);
    if settings.signals.exact_counts && !all {
        tracing::warn!("signals.exact_counts: not while a backend is no vLLM");
    }
    all
}

/// Listen for as long as the runtime lives.
pub fn spawn(proxy: &Arc<Proxy>) {
    if proxy.signals.gpu > Seconds::ZERO {
        tokio::spawn(gpu::run(Arc::clone(proxy), proxy.signals.gpu));
    }
    for backend in &proxy.fleet.backends {
        if proxy.signals.backends[backend.id.index()].kv.is_some() {
            tokio::spawn(kv_events::run(Arc::clone(proxy), Arc::clone(backend)));
        }
        let every = proxy.signals.scrape;
        if every > Seconds::ZERO {
            tokio::spawn(scrape::run(Arc::clone(proxy), Arc::clone(backend), every));
        }
    }
}
