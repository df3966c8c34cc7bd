//! Scrapes each engine's metrics: to export them, to correct configured capacities, and to raise
//! alerts about states that answers do not show. Engines without metrics are scraped less and less
//! often.

use metrics::{Counter, Gauge, counter, gauge};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_scheduler::learn::Sample;
use tidegate_signals::engine::EngineReading;
use tidegate_signals::engine_alerts::{AlertWatch, EngineAlert};
use tidegate_signals::loads;
use tidegate_types::{Moment, Seconds};

use crate::backends::fleet::Backend;
use crate::backends::introspect;
use crate::signals::SignalHost;
use crate::telemetry::metrics::Metrics;

/// Time-out of a scrape; a metrics page of vLLM has 100 KB.
const ANSWER_MAX: Seconds = Seconds(2.0);
/// Largest factor on the interval for an engine without metrics.
const SILENT_FACTOR_MAX: u32 = 12;

/// The latest scrape of one backend.
pub struct ScrapeState {
    alerts: Mutex<Vec<EngineAlert>>,
    /// First tokens after this moment belong to hand-offs whose KV was fetched after the engine's
    /// last observed transfer: a fetch takes less than the scrape interval.
    since: AtomicU64,
    /// Whether a decode leg with such a first token has ended.
    handed: AtomicBool,
    gauges: EngineGauges,
}

struct EngineGauges {
    kv_usage: Gauge,
    kv_capacity: Gauge,
    running: Gauge,
    waiting: Gauge,
    deferred: Gauge,
    prefill_rate: Gauge,
    alerts: [Gauge; EngineAlert::ALL.len()],
}

/// Counters of an engine since its start.
#[derive(Default)]
struct EngineCounters {
    preemptions: EngineCounter,
    failed_transfers: EngineCounter,
    expired: EngineCounter,
    transferred: EngineCounter,
    hits: EngineCounter,
    computed: EngineCounter,
}

/// An engine's counter, exported as a counter that continues when the engine restarts at 0. It is registered
/// with the first reported value: a counter that the engine does not have is absent, unlike 0.
#[derive(Default)]
struct EngineCounter {
    /// The exported counter and the last value that the engine reported.
    exported: Option<(Counter, u64)>,
}

impl EngineCounter {
    fn set(&mut self, metric: &'static str, backend: &str, value: Option<f64>) {
        let Some(value) = value else { return };
        let value = value as u64;
        let (counter, before) = self
            .exported
            .get_or_insert_with(|| (counter!(metric, "backend" => backend.to_owned()), 0));
        counter.increment(if value >= *before { value - *before } else { value });
        *before = value;
    }
}

impl EngineCounters {
    fn set(&mut self, backend: &str, reading: &EngineReading) {
        let counters = [
            ("tidegate_engine_preemptions_total", &mut self.preemptions, reading.preemptions),
            (
                "tidegate_engine_failed_transfers_total",
                &mut self.failed_transfers,
                reading.failed_transfers,
            ),
            ("tidegate_engine_expired_handoffs_total", &mut self.expired, reading.expired),
            (
                "tidegate_engine_transferred_tokens_total",
                &mut self.transferred,
                reading.transferred,
            ),
            ("tidegate_engine_cached_tokens_total", &mut self.hits, reading.hits),
            ("tidegate_engine_computed_tokens_total", &mut self.computed, reading.computed),
        ];
        for (metric, counter, value) in counters {
            counter.set(metric, backend, value);
        }
    }
}

impl ScrapeState {
    /// State of a backend called `name` before its first scrape.
    pub fn new(name: &str, metrics: &Metrics) -> ScrapeState {
        ScrapeState {
            alerts: Mutex::default(),
            since: AtomicU64::new(Moment::NEVER.0),
            handed: AtomicBool::new(false),
            gauges: metrics.of_backend(name, || EngineGauges::new(name)),
        }
    }

    /// Records that a decode leg with a hand-off has succeeded; its first token arrived at `first`.
    pub fn handed_off(&self, first: Moment) {
        if first.0 >= self.since.load(Relaxed) {
            self.handed.store(true, Relaxed);
        }
    }

    pub fn alerts(&self) -> Vec<&'static str> {
        let alerts = self.alerts.lock().unwrap_or_else(PoisonError::into_inner);
        alerts.iter().map(|alert| alert.as_str()).collect()
    }

    /// Exports a load report from an answer's headers. Alerts are raised by scrapes only.
    pub fn load_reported(&self, reading: &EngineReading) {
        self.gauges.load(reading);
    }

    fn scraped(&self, reading: &EngineReading, alerts: Vec<EngineAlert>) {
        self.gauges.load(reading);
        self.gauges.scraped(reading);
        for (gauge, alert) in self.gauges.alerts.iter().zip(EngineAlert::ALL) {
            gauge.set(f64::from(u8::from(alerts.contains(&alert))));
        }
        *self.alerts.lock().unwrap_or_else(PoisonError::into_inner) = alerts;
    }
}

impl EngineGauges {
    fn new(name: &str) -> EngineGauges {
        let of = |metric: &'static str| {
            let gauge = gauge!(metric, "backend" => name.to_owned());
            // NaN marks a value that was not reported, unlike 0.
            gauge.set(f64::NAN);
            gauge
        };
        let alert = |alert: EngineAlert| gauge!("tidegate_engine_alert", "backend" => name.to_owned(), "reason" => alert.as_str());
        EngineGauges {
            kv_usage: of("tidegate_engine_kv_usage_ratio"),
            kv_capacity: of("tidegate_engine_kv_capacity_tokens"),
            running: of("tidegate_engine_running_requests"),
            waiting: of("tidegate_engine_waiting_requests"),
            deferred: of("tidegate_engine_deferred_requests"),
            prefill_rate: of("tidegate_engine_prefill_tokens_per_second"),
            alerts: EngineAlert::ALL.map(alert),
        }
    }

    fn load(&self, reading: &EngineReading) {
        set(&self.kv_usage, reading.kv_usage);
        set(&self.running, reading.running);
        set(&self.waiting, reading.waiting);
        set(&self.deferred, reading.deferred);
    }

    fn scraped(&self, reading: &EngineReading) {
        set(&self.kv_capacity, reading.kv_capacity.map(|tokens| tokens.as_f64()));
        set(&self.prefill_rate, reading.prefill_rate);
    }
}

fn set(gauge: &Gauge, value: Option<f64>) {
    if let Some(value) = value {
        gauge.set(value);
    }
}

/// Scrapes `backend` every `every` while the runtime lives.
pub async fn run(host: Arc<dyn SignalHost>, backend: Arc<Backend>, every: Seconds) {
    let signals = host.signals().of(backend.id);
    let scrape = &signals.scrape;
    let mut watch = AlertWatch::default();
    let mut counters = EngineCounters::default();
    let mut before: Vec<EngineAlert> = Vec::new();
    let mut silent_scrapes: u32 = 0;
    while !backend.has_left() {
        let reading = read(&backend).await;
        if reading.is_empty() {
            // The engine may be starting or down; the next scrape may succeed.
            silent_scrapes = SILENT_FACTOR_MAX.min(silent_scrapes + 1);
        } else {
            silent_scrapes = 0;
            if watch.has_moved(&reading) {
                scrape.since.store((host.clock().now() + every).0, Relaxed);
                scrape.handed.store(false, Relaxed);
            }
            let alerts = watch.observe(reading, scrape.handed.load(Relaxed));
            for alert in alerts.iter().filter(|alert| !before.contains(alert)) {
                tracing::warn!(backend = %backend.name, alert = alert.as_str(), "engine alert");
            }
            before.clone_from(&alerts);
            scrape.scraped(&reading, alerts);
            host.metrics().of_backend(&backend.name, || counters.set(&backend.name, &reading));
            calibrate(&*host, &backend, &reading);
            if let Some(hits) = reading.hits {
                host.report_sample(Sample::Counted { backend: backend.id, hits });
            }
        }
        tokio::time::sleep((every * f64::from(silent_scrapes.max(1))).to_duration()).await;
    }
}

/// Reads `/metrics`, and SGLang's `/v1/loads` unless the first was vLLM's.
async fn read(backend: &Backend) -> EngineReading {
    if !backend.health.is_usable() {
        return EngineReading::default();
    }
    let page = introspect::get(&backend.pool, "/metrics", ANSWER_MAX).await;
    let reading = page.as_deref().map(EngineReading::of_metrics).unwrap_or_default();
    let is_vllm = reading.kv_block.is_some() || reading.computed.is_some();
    if is_vllm {
        return reading;
    }
    match introspect::get(&backend.pool, "/v1/loads", ANSWER_MAX).await {
        Some(answer) => reading.or(loads::reading(&answer).unwrap_or_default()),
        None => reading,
    }
}

/// Applies the KV block size and capacity that the engine reports, which replace estimates.
fn calibrate(host: &dyn SignalHost, backend: &Backend, reading: &EngineReading) {
    if let Some(block) = reading.kv_block {
        backend.set_kv_block(block);
    }
    if let Some(capacity) = reading.kv_capacity {
        backend.report_kv_capacity(capacity);
        host.fleet().prefixes.set_kv_capacity(backend.id, capacity, host.prefix_block());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn an_engine_counter_is_absent_until_reported_and_continues_after_a_restart() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let shown = || {
            let page = handle.render();
            let value = page.lines().find_map(|line| line.strip_prefix("x_total{backend=\"a\"} "));
            value.map(str::to_owned)
        };
        let mut counter = EngineCounter::default();
        for (value, total) in [
            (None, None),
            (Some(4.0), Some("4")),
            (Some(6.0), Some("6")),
            (None, Some("6")),
            (Some(1.0), Some("7")),
        ] {
            with_local_recorder(&recorder, || counter.set("x_total", "a", value));
            assert_eq!(shown().as_deref(), total, "{value:?}");
        }
    }
}
