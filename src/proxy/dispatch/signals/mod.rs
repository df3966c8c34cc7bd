//! Signals from engines and GPUs beside the answers: the sockets, timers and metrics around the
//! pure crate `tidegate_signals`. No signal is on the request path. Without a signal, the proxy
//! uses its own records.
//!
//! - [`kv_events`]: an engine's KV cache events into the prefix index
//! - [`usage_injection`]: usage injection for exact token counts
//! - [`scrape`]: each engine's metrics and the alerts derived from them
//! - [`gpu`], [`nvml`]: GPUs of this machine
//! - [`hit_rate`]: accuracy of predicted cached tokens
//! - [`zmq`]: the two sockets of KV events

mod gpu;
mod hit_rate;
mod kv_events;
mod nvml;
mod scrape;
pub mod usage_injection;
mod zmq;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use std::sync::Arc;
use tidegate_engine::ModelCard;
use tidegate_settings::{BackendSettings, EngineName, Settings};
use tidegate_signals::orca;
use tidegate_types::{BackendId, Seconds};

use crate::dispatch::context::Proxy;
use crate::dispatch::settle::RequestRecord;
use crate::telemetry::control_events::ControlEvent;
use crate::telemetry::metrics::Metrics;
use hit_rate::HitRate;
use kv_events::KvSource;
use scrape::Look;

/// The signals of all backends.
pub struct Signals {
    backends: Vec<BackendSignals>,
    /// Interval of engine scrapes; 0: off.
    scrape: Seconds,
    /// Interval of GPU readings; 0: off.
    gpu: Seconds,
    /// Whether usage in every chunk is requested for streams.
    exact_counts: bool,
}

/// The signals of one backend.
struct BackendSignals {
    /// Its base model: the first one in the settings, else the first one that the engine lists.
    model: ArcSwapOption<String>,
    /// Whether the settings name its models; the engine's list is then ignored.
    is_named: bool,
    kv: Option<KvSource>,
    hit_rate: HitRate,
    look: Look,
    /// NVML numbers of the GPUs it runs on.
    gpus: Vec<u32>,
    gpu_alert: ArcSwapOption<&'static str>,
}

impl Signals {
    /// The signals enabled in the settings.
    pub fn new(settings: &Settings, metrics: &Metrics) -> Signals {
        let of = |backend: &BackendSettings| BackendSignals {
            model: ArcSwapOption::from(backend.models.first().cloned().map(Arc::new)),
            is_named: !backend.models.is_empty(),
            kv: KvSource::of(backend, metrics),
            hit_rate: HitRate::new(&backend.name, metrics),
            look: Look::new(&backend.name, metrics),
            gpus: backend.gpus.clone(),
            gpu_alert: ArcSwapOption::empty(),
        };
        Signals {
            backends: settings.backends.iter().map(of).collect(),
            scrape: settings.signals.scrape,
            gpu: settings.signals.gpu,
            exact_counts: settings.signals.exact_counts && all_vllm(settings),
        }
    }

    /// Whether usage in every chunk is requested for streams.
    pub fn counts_exactly(&self) -> bool {
        self.exact_counts
    }

    /// Takes the models that a backend reports.
    pub fn serves(&self, backend: BackendId, cards: &[ModelCard]) {
        let signals = &self.backends[backend.index()];
        if let Some(card) = cards.first().filter(|_| !signals.is_named) {
            signals.model.store(Some(Arc::new(card.id.clone())));
        }
    }

    /// Takes the load report (ORCA) that some engines put into the headers of answers.
    pub fn answered(&self, backend: BackendId, headers: &HeaderMap) {
        let said = headers.get(orca::HEADER).and_then(|value| value.to_str().ok());
        if let Some(reading) = said.and_then(orca::reading) {
            self.backends[backend.index()].look.heard(&reading);
        }
    }

    /// Active alerts of a backend's engine and GPUs.
    pub fn alerts(&self, backend: BackendId) -> Vec<&'static str> {
        let signals = &self.backends[backend.index()];
        let mut alerts = signals.look.alerts();
        alerts.extend(signals.gpu_alert.load().iter().map(|alert| **alert));
        alerts
    }

    /// Takes the outcome of a finished request: predicted against reported cached tokens, and a
    /// completed hand-off.
    pub fn settled(&self, record: &RequestRecord) {
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
        if let Some(cached) = signals.hit_rate.settled(predicted.predicted_hit, &usage, told) {
            let predicted_hit = predicted.predicted_hit;
            record.proxy.report(ControlEvent::Hit { backend: backend.id, predicted_hit, cached });
        }
    }

    /// Source of the prefix index's entries for a backend.
    pub fn prefix_source(&self, backend: BackendId) -> &'static str {
        match &self.backends[backend.index()].kv {
            Some(kv) if kv.is_complete() => "events",
            Some(_) => "record_and_events",
            None => "record",
        }
    }
}

/// Usage injection edits a request before its backend is chosen, and other engines may refuse the
/// unknown member.
fn all_vllm(settings: &Settings) -> bool {
    let all = settings.backends.iter().all(|backend| backend.engine == EngineName::Vllm);
    if settings.signals.exact_counts && !all {
        tracing::warn!("signals.exact_counts is off: it requires that all backends are vLLM");
    }
    all
}

/// Starts the tasks that read signals; they run while the runtime lives.
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
