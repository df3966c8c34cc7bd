//! `/v1/targets`: attainment and latency percentiles by model over the last five minutes.

use serde::Serialize;

use crate::backends::fleet::{GAP_BUCKETS, gap_bound};
use crate::dispatch::context::Proxy;
use crate::telemetry::arrivals::{ModelLatencies, WINDOW};
use crate::telemetry::history::percentile;

/// `/v1/targets`
#[derive(Serialize)]
pub struct TargetsView {
    ttft_seconds: f64,
    tpot_seconds: f64,
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
    let (now, slo) = (proxy.clock.now(), proxy.fleet.slo());
    let models = proxy.arrivals.collect(now).latencies(now, &slo);
    TargetsView {
        ttft_seconds: slo.ttft.get(),
        tpot_seconds: slo.tpot.get(),
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
    ModelView {
        model: model.name.to_string(),
        requests: model.requests,
        attainment: share(model.met_both),
        ttft_attainment: share(model.met_ttft),
        tpot_attainment: share(model.met_tpot),
        ttft: of(&model.ttft),
        tpot: of(&model.tpot),
        itl: Percentiles {
            p50: gap(&model.gaps, 0.5),
            p90: gap(&model.gaps, 0.9),
            p99: gap(&model.gaps, 0.99),
        },
    }
}

/// The percentile, interpolated within its bucket; `None` without a gap.
fn gap(counts: &[u32; GAP_BUCKETS], share: f64) -> Option<f64> {
    let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let rank = ((share * all as f64).ceil() as u64).max(1);
    let mut below = 0;
    let bucket = counts.iter().position(|count| {
        below += u64::from(*count);
        below >= rank
    })?;
    let count = u64::from(counts[bucket]);
    let within = (rank + count - below) as f64 / count.max(1) as f64;
    let upper = gap_bound(bucket).get();
    let lower = bucket.checked_sub(1).map_or(0.0, |before| gap_bound(before).get());
    Some(lower + (upper - lower) * within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_of_gaps_is_interpolated_within_its_bucket() {
        let mut counts = [0; GAP_BUCKETS];
        assert_eq!(gap(&counts, 0.5), None);
        (counts[3], counts[20]) = (90, 10);
        let bound = |bucket: usize| gap_bound(bucket).get();
        let middle = bound(2) + (bound(3) - bound(2)) * 0.5;
        assert!((gap(&counts, 0.45).unwrap() - middle).abs() < 1e-9);
        assert_eq!(gap(&counts, 0.9), Some(bound(3)));
        assert!(gap(&counts, 0.99).is_some_and(|gap| gap > bound(19) && gap < bound(20)));
    }
}
