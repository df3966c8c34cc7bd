//! Signals from engines and GPUs beside the answers: the sockets, timers and metrics around the
//! pure crate `tidegate_signals`. The tasks run beside the request path. Without a signal, the proxy
//! uses its own records.
//!
//! - [`kv_events`]: an engine's KV cache events into the prefix index
//! - [`scrape`]: each engine's metrics and the alerts derived from them
//! - `gpu`, `nvml`: GPUs of this machine; cargo feature `gpu`
//! - [`hit_rate`]: accuracy of predicted cached tokens
//! - [`zmq`]: the two sockets of KV events

#[cfg(feature = "gpu")]
mod gpu;
mod hit_rate;
mod kv_events;
#[cfg(feature = "gpu")]
mod nvml;
mod scrape;
mod zmq;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderMap;
use std::sync::Arc;
use tidegate_engine::{ModelCard, Usage};
use tidegate_scheduler::learn::Sample;
use tidegate_settings::{BackendSettings, EngineName, Settings};
use tidegate_signals::orca;
use tidegate_types::{BackendId, Moment, Seconds, Tokens};

use crate::backends::fleet::{Backend, Fleet};
use crate::runtime::clock::Clock;
use crate::telemetry::metrics::Metrics;
use hit_rate::HitRate;
use kv_events::KvSource;
use scrape::ScrapeState;

/// Access of the signal tasks to the proxy that runs them.
pub trait SignalHost: Send + Sync + 'static {
    fn clock(&self) -> Clock;
    /// The backends, the routing table and the prefix index.
    fn fleet(&self) -> &Fleet;
    /// The recorder for exported readings.
    fn metrics(&self) -> &Metrics;
    fn signals(&self) -> &EngineSignals;
    /// Returns whether the proxy tokenizes prompts for `model`.
    fn tokenizes(&self, model: &str) -> bool;
    /// Tokens per block of the prefix index.
    fn prefix_block(&self) -> Tokens;
    /// Sends an observation to the control loop.
    fn report_sample(&self, sample: Sample);
}

/// Backends and token counts of a finished request.
pub struct FinishedLegs<'a> {
    /// Backend of the prefill leg of a disaggregated request.
    pub prefill_on: Option<&'a Backend>,
    /// Backend of the decode leg, or of the only leg.
    pub decode_on: Option<&'a Backend>,
    /// Arrival of the first token.
    pub first_token: Option<Moment>,
    /// Tokens that the prefix index predicted to be cached; `None` if the request was not placed.
    pub predicted_hit: Option<Tokens>,
    /// Usage that the prefill engine reported.
    pub prefill_usage: Option<Usage>,
    /// Usage in the client's answer.
    pub usage: Option<Usage>,
}

/// The signals of all backends.
pub struct EngineSignals {
    /// By backend slot. Written by the control loop only.
    backends: ArcSwap<Vec<Arc<BackendSignals>>>,
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
    scrape: ScrapeState,
    /// NVML numbers of the GPUs it runs on.
    gpus: Vec<u32>,
    gpu_alert: ArcSwapOption<&'static str>,
}

impl BackendSignals {
    fn new(backend: &BackendSettings, metrics: &Metrics) -> BackendSignals {
        BackendSignals {
            model: ArcSwapOption::from(backend.models.first().cloned().map(Arc::new)),
            is_named: !backend.models.is_empty(),
            kv: KvSource::of(backend, metrics),
            hit_rate: HitRate::new(&backend.name, metrics),
            scrape: ScrapeState::new(&backend.name, metrics),
            gpus: backend.gpus.clone(),
            gpu_alert: ArcSwapOption::empty(),
        }
    }
}

impl EngineSignals {
    /// The signals enabled in the settings.
    pub fn new(settings: &Settings, metrics: &Metrics) -> EngineSignals {
        let of = |backend: &BackendSettings| Arc::new(BackendSignals::new(backend, metrics));
        EngineSignals {
            backends: ArcSwap::from_pointee(settings.backends.iter().map(of).collect()),
            scrape: settings.signals.scrape,
            gpu: settings.signals.gpu,
            exact_counts: settings.signals.exact_counts && all_vllm(settings),
        }
    }

    /// Adds the signals of a backend that joins, in place of those of the one that had its slot.
    pub(crate) fn join(&self, id: BackendId, backend: &BackendSettings, metrics: &Metrics) {
        let signals = Arc::new(BackendSignals::new(backend, metrics));
        let mut next = (**self.backends.load()).clone();
        id.put(&mut next, signals);
        self.backends.store(Arc::new(next));
    }

    /// The signals of one backend.
    fn of(&self, backend: BackendId) -> Arc<BackendSignals> {
        Arc::clone(&self.backends.load()[backend.index()])
    }

    /// Whether usage in every chunk is requested for streams.
    pub fn counts_exactly(&self) -> bool {
        self.exact_counts
    }

    /// Takes the models that a backend reports.
    pub fn serves(&self, backend: BackendId, cards: &[ModelCard]) {
        let signals = self.of(backend);
        if let Some(card) = cards.first().filter(|_| !signals.is_named) {
            signals.model.store(Some(Arc::new(card.id.clone())));
        }
    }

    /// Takes the load report (ORCA) that some engines put into the headers of answers.
    pub fn answered(&self, backend: BackendId, headers: &HeaderMap) {
        let report = headers.get(orca::HEADER).and_then(|value| value.to_str().ok());
        if let Some(reading) = report.and_then(orca::reading) {
            self.of(backend).scrape.load_reported(&reading);
        }
    }

    /// Active alerts of a backend's engine and GPUs.
    pub fn alerts(&self, backend: BackendId) -> Vec<&'static str> {
        let signals = self.of(backend);
        let mut alerts = signals.scrape.alerts();
        alerts.extend(signals.gpu_alert.load().iter().map(|alert| **alert));
        alerts
    }

    /// Records a finished request: a completed hand-off, and predicted against reported cached tokens.
    /// Returns the report of cached tokens for the control loop, if there is one.
    pub fn request_ended(&self, legs: &FinishedLegs<'_>) -> Option<Sample> {
        if let (Some(_), Some(decode), Some(first)) =
            (legs.prefill_on, legs.decode_on, legs.first_token)
        {
            self.of(decode.id).scrape.handed_off(first);
        }
        let predicted_hit = legs.predicted_hit?;
        let (backend, usage) = match legs.prefill_on {
            Some(backend) => (backend.id, legs.prefill_usage?),
            None => (legs.decode_on?.id, legs.usage?),
        };
        let signals = self.of(backend);
        let from_events = signals.kv.as_ref().is_some_and(KvSource::is_complete);
        let cached = signals.hit_rate.observe(predicted_hit, &usage, from_events)?;
        Some(Sample::Hit { backend, predicted_hit, cached })
    }

    /// Source of the prefix index's entries for a backend.
    pub fn prefix_source(&self, backend: BackendId) -> &'static str {
        match &self.of(backend).kv {
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
pub fn spawn(host: &Arc<dyn SignalHost>) {
    read_gpus(host);
    for backend in host.fleet().backends().iter() {
        follow(host, backend);
    }
}

/// Starts the readings of this machine's GPUs.
#[cfg(feature = "gpu")]
fn read_gpus(host: &Arc<dyn SignalHost>) {
    if host.signals().gpu > Seconds::ZERO {
        tokio::spawn(gpu::run(Arc::clone(host), host.signals().gpu));
    }
}

/// Warns where the settings expect readings that this build does not make.
#[cfg(not(feature = "gpu"))]
fn read_gpus(host: &Arc<dyn SignalHost>) {
    let signals = host.signals();
    let named = signals.backends.load().iter().any(|signals| !signals.gpus.is_empty());
    if signals.gpu > Seconds::ZERO && named {
        tracing::warn!(
            "backends list `gpus`, but this tidegate is built without the feature `gpu`"
        );
    }
}

/// Starts the tasks that read one backend's signals; they end when it has left.
pub fn follow(host: &Arc<dyn SignalHost>, backend: &Arc<Backend>) {
    if host.signals().of(backend.id).kv.is_some() {
        tokio::spawn(kv_events::run(Arc::clone(host), Arc::clone(backend)));
    }
    let every = host.signals().scrape;
    if every > Seconds::ZERO {
        tokio::spawn(scrape::run(Arc::clone(host), Arc::clone(backend), every));
    }
}
