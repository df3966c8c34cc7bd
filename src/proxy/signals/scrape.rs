//! Scrapes each engine's metrics: to export them, to correct configured capacities, and to raise
//! alerts about states that answers do not show. Engines without metrics are asked less and less
//! often.

use metrics::{Gauge, gauge};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_signals::engine::EngineReading;
use tidegate_signals::engine_alerts::{AlertWatch, EngineAlert};
use tidegate_signals::loads;
use tidegate_types::{Moment, Seconds};

use crate::ask;
use crate::fleet::Backend;
use crate::learn::Observation;
use crate::metrics::Metrics;
use crate::service::Proxy;

/// Time-out of a scrape; a metrics page of vLLM has 100 KB.
const ANSWER_MAX: Seconds = Seconds(2.0);
/// Largest factor on the interval for an engine without metrics.
const MUTE_LOOKS: u32 = 12;
/// The prefix cache uses what streams leave of the KV memory; half of it is assumed (see start.rs).
const PREFIX_SHARE: u64 = 2;

/// The latest scrape of one backend.
pub struct Look {
    troubles: Mutex<Vec<EngineAlert>>,
    /// First tokens after this moment belong to hand-offs whose KV was fetched after the engine's
    /// last observed transfer: a fetch takes less than the scrape interval.
    since: AtomicU64,
    /// Whether a decode leg with such a first token has ended.
    handed: AtomicBool,
    gauges: Gauges,
}

struct Gauges {
    kv_usage: Gauge,
    kv_capacity: Gauge,
    running: Gauge,
    waiting: Gauge,
    deferred: Gauge,
    preemptions: Gauge,
    failed_transfers: Gauge,
    expired: Gauge,
    transferred: Gauge,
    hits: Gauge,
    computed: Gauge,
    prefill_rate: Gauge,
    troubles: [Gauge; EngineAlert::ALL.len()],
}

impl Look {
    pub fn new(name: &str, metrics: &Metrics) -> Look {
        Look {
            troubles: Mutex::default(),
            since: AtomicU64::new(Moment::NEVER.0),
            handed: AtomicBool::new(false),
            gauges: metrics.within(|| Gauges::new(name)),
        }
    }

    /// Records that a decode leg with a hand-off has succeeded; its first token arrived at `first`.
    pub fn handed_over(&self, first: Moment) {
        if first.0 >= self.since.load(Relaxed) {
            self.handed.store(true, Relaxed);
        }
    }

    /// Active alerts.
    pub fn troubles(&self) -> Vec<&'static str> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().map(|trouble| trouble.as_str()).collect()
    }

    /// Exports a load report from an answer's headers; it raises no alerts.
    pub fn heard(&self, reading: &EngineReading) {
        self.gauges.load(reading);
    }

    fn seen(&self, reading: &EngineReading, troubles: Vec<EngineAlert>) {
        self.gauges.load(reading);
        self.gauges.counts(reading);
        for (gauge, trouble) in self.gauges.troubles.iter().zip(EngineAlert::ALL) {
            gauge.set(f64::from(u8::from(troubles.contains(&trouble))));
        }
        *self.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
    }
}

impl Gauges {
    fn new(name: &str) -> Gauges {
        let of = |metric: &'static str| {
            let gauge = gauge!(metric, "backend" => name.to_owned());
            // NaN marks a value that was not reported, unlike 0.
            gauge.set(f64::NAN);
            gauge
        };
        let trouble = |trouble: EngineAlert| gauge!("tidegate_engine_trouble", "backend" => name.to_owned(), "reason" => trouble.as_str());
        Gauges {
            kv_usage: of("tidegate_engine_kv_usage_ratio"),
            kv_capacity: of("tidegate_engine_kv_capacity_tokens"),
            running: of("tidegate_engine_running_requests"),
            waiting: of("tidegate_engine_waiting_requests"),
            deferred: of("tidegate_engine_deferred_requests"),
            preemptions: of("tidegate_engine_preemptions"),
            failed_transfers: of("tidegate_engine_failed_transfers"),
            expired: of("tidegate_engine_expired_handoffs"),
            transferred: of("tidegate_engine_transferred_tokens"),
            hits: of("tidegate_engine_cached_tokens"),
            computed: of("tidegate_engine_computed_tokens"),
            prefill_rate: of("tidegate_engine_prefill_tokens_per_second"),
            troubles: EngineAlert::ALL.map(trouble),
        }
    }

    fn load(&self, reading: &EngineReading) {
        set(&self.kv_usage, reading.kv_usage);
        set(&self.running, reading.running);
        set(&self.waiting, reading.waiting);
        set(&self.deferred, reading.deferred);
    }

    fn counts(&self, reading: &EngineReading) {
        set(&self.kv_capacity, reading.kv_capacity.map(|tokens| tokens.as_f64()));
        set(&self.preemptions, reading.preemptions);
        set(&self.failed_transfers, reading.failed_transfers);
        set(&self.expired, reading.expired);
        set(&self.transferred, reading.transferred);
        set(&self.hits, reading.hits);
        set(&self.computed, reading.computed);
        set(&self.prefill_rate, reading.prefill_rate);
    }
}

fn set(gauge: &Gauge, value: Option<f64>) {
    if let Some(value) = value {
        gauge.set(value);
    }
}

/// Scrapes `backend` every `every` while the runtime lives.
pub async fn run(proxy: Arc<Proxy>, backend: Arc<Backend>, every: Seconds) {
    let look = &proxy.signals.backends[backend.id.index()].look;
    let mut watch = AlertWatch::default();
    let mut before: Vec<EngineAlert> = Vec::new();
    let mut mute = 0;
    loop {
        let reading = read(&backend).await;
        if reading.is_empty() {
            // The engine may be starting or down; the next scrape may succeed.
            mute = MUTE_LOOKS.min(mute + 1);
        } else {
            mute = 0;
            if watch.has_moved(&reading) {
                look.since.store((proxy.clock.now() + every).0, Relaxed);
                look.handed.store(false, Relaxed);
            }
            let troubles = watch.observe(reading, look.handed.load(Relaxed));
            for trouble in troubles.iter().filter(|trouble| !before.contains(trouble)) {
                tracing::warn!(backend = %backend.name, alert = trouble.as_str(), "engine alert");
            }
            before.clone_from(&troubles);
            look.seen(&reading, troubles);
            calibrate(&proxy, &backend, &reading);
            if let Some(hits) = reading.hits {
                proxy.learn(Observation::Counted { backend: backend.id, hits });
            }
        }
        tokio::time::sleep((every * f64::from(mute.max(1))).to_duration()).await;
    }
}

/// Reads `/metrics`, and SGLang's `/v1/loads` unless the first was vLLM's.
async fn read(backend: &Backend) -> EngineReading {
    if !backend.health.is_usable() {
        return EngineReading::default();
    }
    let page = ask::get(&backend.pool, "/metrics", ANSWER_MAX).await;
    let reading = page.as_deref().map(EngineReading::of_metrics).unwrap_or_default();
    let is_vllm = reading.kv_block.is_some() || reading.computed.is_some();
    if is_vllm {
        return reading;
    }
    match ask::get(&backend.pool, "/v1/loads", ANSWER_MAX).await {
        Some(answer) => reading.or(loads::reading(&answer).unwrap_or_default()),
        None => reading,
    }
}

/// The engine's own capacity is more reliable than an estimate.
fn calibrate(proxy: &Proxy, backend: &Backend, reading: &EngineReading) {
    if let Some(block) = reading.kv_block {
        backend.set_kv_block(block);
    }
    if let Some(capacity) = reading.kv_capacity {
        backend.told_kv_capacity(capacity);
        let blocks = capacity.get() / PREFIX_SHARE / proxy.prefix_block.get().max(1);
        proxy.fleet.prefixes.set_capacity(backend.id, blocks);
    }
}
