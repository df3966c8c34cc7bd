//! `/v1/targets`: attainment and latency percentiles by model and service class over the last five
//! minutes.

use serde::Serialize;
use tidegate_filters::{ServiceClass, ServiceClasses};
use tidegate_types::{ClassKind, Seconds};

use crate::backends::fleet::GAPS;
use crate::dispatch::context::Proxy;
use crate::telemetry::arrivals::{Latencies, WINDOW};
use crate::telemetry::history::percentile;

/// `/v1/targets`
#[derive(Serialize)]
pub struct TargetsView {
    ttft_seconds: f64,
    tpot_seconds: f64,
    itl_seconds: Option<f64>,
    window_seconds: f64,
    models: Vec<ModelView>,
}

#[derive(Serialize)]
struct ModelView {
    model: String,
    class: String,
    /// Targets of the class; `None` for batch work, and after the class was removed.
    ttft_seconds: Option<f64>,
    tpot_seconds: Option<f64>,
    itl_seconds: Option<f64>,
    /// Requests whose client stayed to the end.
    requests: usize,
    /// Shares, 0 to 1; `None` for batch work.
    attainment: Option<f64>,
    ttft_attainment: Option<f64>,
    tpot_attainment: Option<f64>,
    /// 1 without an ITL target.
    itl_attainment: Option<f64>,
    ttft: Percentiles,
    tpot: Percentiles,
    /// Interpolated within quarter-octave buckets.
    itl: Percentiles,
}

/// In seconds; `None` without a value.
#[derive(Serialize)]
struct Percentiles {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
}

/// Attainment and latencies of the last five minutes.
pub fn targets(proxy: &Proxy) -> TargetsView {
    let (now, settings) = (proxy.clock.now(), proxy.settings.load());
    let slo = settings.placement.slo;
    let rows = proxy.arrivals.collect(now).latencies(now);
    TargetsView {
        ttft_seconds: slo.ttft.get(),
        tpot_seconds: slo.tpot.get(),
        itl_seconds: slo.itl.map(Seconds::get),
        window_seconds: WINDOW.get(),
        models: rows.iter().map(|row| view(&settings.classes, row)).collect(),
    }
}

fn view(classes: &ServiceClasses, row: &Latencies) -> ModelView {
    let has_targets = |class: &&ServiceClass| class.kind == ClassKind::Interactive;
    let class = classes.all().find(|class| class.name == row.class).filter(has_targets);
    let share = |count: usize| (row.judged > 0).then(|| count as f64 / row.judged as f64);
    let of = |sorted: &[f64]| {
        let at = |share| percentile(sorted, share);
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    };
    let gap = |share| GAPS.quantile(&row.gaps, share).map(Seconds::get);
    ModelView {
        model: row.model.to_string(),
        class: row.class.to_string(),
        ttft_seconds: class.map(|class| class.slo.ttft.get()),
        tpot_seconds: class.map(|class| class.slo.tpot.get()),
        itl_seconds: class.and_then(|class| class.slo.itl).map(Seconds::get),
        requests: row.requests,
        attainment: share(row.met_all),
        ttft_attainment: share(row.met_ttft),
        tpot_attainment: share(row.met_tpot),
        itl_attainment: share(row.met_itl),
        ttft: of(&row.ttft),
        tpot: of(&row.tpot),
        itl: Percentiles { p50: gap(0.5), p90: gap(0.9), p99: gap(0.99) },
    }
}
