//! Load of a group at prefill and at decode, and the stream capacity of an engine.
//!
//! Prefill load: arriving prefill work in engine-seconds per second. Decode load, in engines: the
//! larger of the running streams and the expected streams (Little's law at the TPOT target), divided
//! by the stream capacity of a mean engine.

use crate::tuning::HEADROOM;
use tidegate_types::Tokens;

use crate::planner::demand::DemandAverage;
use crate::planner::observation::BackendObservation;
use crate::planner::params::Params;

/// Engines that a group's demand keeps busy in each role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GroupLoad {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

impl GroupLoad {
    /// Returns the loads of `engines`.
    pub(super) fn of(
        params: &Params,
        average: &DemandAverage,
        engines: &[&BackendObservation],
    ) -> GroupLoad {
        let running: u32 = engines.iter().map(|engine| engine.streams).sum();
        let expected = average.output_rate() * params.slo.tpot.get();
        let capacities = stream_capacities(params, average, engines);
        let mean = capacities.iter().sum::<f64>() / (engines.len() as f64).max(1.0);
        GroupLoad {
            prefill: average.prefill_load(),
            decode: f64::from(running).max(expected) / mean.max(1.0),
        }
    }
}

/// Returns the stream capacity of each engine: the most streams within the TPOT target, the KV
/// memory and the engine's own limit, less [`HEADROOM`]. KV memory that the next stream exceeds
/// counts as full; otherwise a full engine would have capacity for a fraction of a stream.
pub(super) fn stream_capacities(
    params: &Params,
    average: &DemandAverage,
    engines: &[&BackendObservation],
) -> Vec<f64> {
    let mean_kv = mean_kv(average, engines);
    let share = 1.0 - HEADROOM;
    let stream_capacity = engines.iter().map(|engine| {
        let by_time = engine.decode_model.streams_within(params.slo.tpot, mean_kv);
        let in_memory = share * engine.kv_capacity.as_f64() / mean_kv.as_f64();
        let by_memory = (in_memory - 1.0).max(1.0);
        (share * by_time).min(by_memory).min(f64::from(engine.streams_max))
    });
    stream_capacity.collect()
}

/// Returns the mean KV tokens of a stream, over the running streams and one mean request of the
/// demand window.
pub(super) fn mean_kv(average: &DemandAverage, engines: &[&BackendObservation]) -> Tokens {
    let running: u32 = engines.iter().map(|engine| engine.streams).sum();
    let kv: Tokens = engines.iter().map(|engine| engine.kv).sum();
    let arrived = average.mean_kv();
    let streams = u64::from(running) + u64::from(arrived.is_some());
    let sum = kv.get() + arrived.unwrap_or(0.0) as u64;
    Tokens((sum / streams.max(1)).max(1))
}
