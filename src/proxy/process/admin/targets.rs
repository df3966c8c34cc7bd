//! `/v1/targets`: attainment and latency percentiles by model over the last five minutes.

use serde::Serialize;
use tidegate_types::Seconds;

use crate::backends::fleet::GAPS;
use crate::dispatch::context::Proxy;
use crate::telemetry::arrivals::{ModelLatencies, WINDOW};
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
    /// Requests that count for attainment.
    requests: usize,
    /// Shares, 0 to 1.
    attainment: f64,
    ttft_attainment: f64,
    tpot_attainment: f64,
    /// 1 without an ITL target.
    itl_attainment: f64,
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
    let (now, slo) = (proxy.clock.now(), proxy.settings.load().placement.slo);
    let models = proxy.arrivals.collect(now).latencies(now);
    TargetsView {
        ttft_seconds: slo.ttft.get(),
        tpot_seconds: slo.tpot.get(),
        itl_seconds: slo.itl.map(Seconds::get),
        window_seconds: WINDOW.get(),
        models: models.iter().map(view).collect(),
    }
}

fn view(model: &ModelLatencies) -> ModelView {
    let share = |count: usize| count as f64 / model.requests.max(1) as f64;
    let of = |sorted: &[f64]| {
        let at = |share| percentile(sorted, share);
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    };
    let gap = |share| GAPS.quantile(&model.gaps, share).map(Seconds::get);
    ModelView {
        model: model.name.to_string(),
        requests: model.requests,
        attainment: share(model.met_all),
        ttft_attainment: share(model.met_ttft),
        tpot_attainment: share(model.met_tpot),
        itl_attainment: share(model.met_itl),
        ttft: of(&model.ttft),
        tpot: of(&model.tpot),
        itl: Percentiles { p50: gap(0.5), p90: gap(0.9), p99: gap(0.99) },
    }
}
