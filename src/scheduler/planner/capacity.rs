//! Load of a group on each side, and the streams that an engine carries.
//!
//! Prefill load: arriving prefill work in engine-seconds a second. Decode load: the larger of the
//! live streams and the streams to come (Little's law at the TPOT target), in engines.

use crate::tuning::HEADROOM;
use tidegate_types::Tokens;

use crate::planner::demand::DemandAverage;
use crate::planner::observation::BackendObservation;
use crate::planner::params::Params;

/// Engines that a group's demand needs on each side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loads {
    /// Engines that prefill the arriving work.
    pub(super) prefill: f64,
    /// Engines that decode the streams.
    pub(super) decode: f64,
}

impl Loads {
    /// Returns the loads of `engines`.
    pub(super) fn of(
        params: &Params,
        average: &DemandAverage,
        engines: &[&BackendObservation],
    ) -> Loads {
        let live: u32 = engines.iter().map(|engine| engine.streams).sum();
        let coming = average.output_rate() * params.slo.tpot.get();
        let each = streams_each(params, average, engines);
        let mean = each.iter().sum::<f64>() / (engines.len() as f64).max(1.0);
        Loads {
            prefill: average.prefill_load(),
            decode: f64::from(live).max(coming) / mean.max(1.0),
        }
    }
}

/// Streams that each engine carries within the TPOT target, its KV memory and its own limit, less
/// [`HEADROOM`]. Memory counts as full when the next stream does not fit; otherwise a full engine
/// would count as having room for a fraction of a stream.
pub(super) fn streams_each(
    params: &Params,
    average: &DemandAverage,
    engines: &[&BackendObservation],
) -> Vec<f64> {
    let mean_kv = mean_kv(average, engines);
    let share = 1.0 - HEADROOM;
    let carries = engines.iter().map(|engine| {
        let by_time = engine.decode_model.streams_within(params.slo.tpot, mean_kv);
        let fit = share * engine.kv_capacity.as_f64() / mean_kv.as_f64();
        let by_memory = (fit - 1.0).max(1.0);
        (share * by_time).min(by_memory).min(f64::from(engine.streams_max))
    });
    carries.collect()
}

/// Mean KV tokens of a stream: over the live streams and one mean request of those that arrived
/// within the demand window.
pub(super) fn mean_kv(average: &DemandAverage, engines: &[&BackendObservation]) -> Tokens {
    let live: u32 = engines.iter().map(|engine| engine.streams).sum();
    let kv: Tokens = engines.iter().map(|engine| engine.kv).sum();
    let arrived = average.mean_kv();
    let streams = u64::from(live) + u64::from(arrived.is_some());
    let sum = kv.get() + arrived.unwrap_or(0.0) as u64;
    Tokens((sum / streams.max(1)).max(1))
}
