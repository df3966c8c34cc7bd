//! How many engines a group's demand needs on each side.
//!
//! Prefill: the work that arrives a second, in engine-seconds, and the work that waits spread over
//! one TTFT. Decode: the streams there are, or the streams there will be if the arriving output is
//! emitted at the TPOT target (Little's law), over what one engine carries within the target. The
//! group's engines are shared in the proportion of the two needs: spare ones too, and missing ones.
//! A twentieth of the group is added to either need, so that a nearly idle fleet stands half and half
//! and does not follow single requests.

use serde::Serialize;
use tidegate_types::{GroupId, Tokens};

use crate::planner::demand::DemandAverage;
use crate::planner::observation::{BackendObservation, GroupDemand};
use crate::planner::params::Params;

/// What a group's demand asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Wanted {
    /// Whose.
    pub group: GroupId,
    /// Prefill engines, once shared; fractional.
    pub prefill: f64,
    /// Decode engines, once shared.
    pub decode: f64,
    /// Engines that the prefill demand alone needs.
    pub prefill_load: f64,
    /// Engines that the decode demand alone needs.
    pub decode_load: f64,
}

/// A stream's KV when nothing is known yet: a prompt of a thousand tokens.
const KV_PRIOR: Tokens = Tokens(1000);
/// The arrived requests' mean weighs as much as this many live streams: one long prompt alone is no
/// mean.
const LEAN: u64 = 8;
/// Loads below this are nobody's.
const IDLE: f64 = 1e-3;
/// The share of a group that is added to either side's need.
const EVEN_SHARE: f64 = 0.05;

/// What `demand` wants of these usable engines. `None` if there is no demand at all.
pub fn wanted(
    params: &Params,
    average: &DemandAverage,
    demand: &GroupDemand,
    engines: &[&BackendObservation],
) -> Option<Wanted> {
    let count = engines.len() as f64;
    let waiting = demand.waiting_prefill.get() / params.slo.ttft.get();
    let prefill_load = average.prefill_load() + waiting;
    let live: u32 = engines.iter().map(|engine| engine.streams).sum();
    let coming = average.output_rate() * params.slo.tpot.get();
    let streams = (f64::from(live) + demand.waiting_decodes).max(coming);
    let each = streams_each(params, average, engines);
    let mean = each.iter().sum::<f64>() / count.max(1.0);
    let decode_load = streams / mean.max(1.0);
    if prefill_load + decode_load < IDLE {
        return None;
    }
    let even = EVEN_SHARE * count;
    let prefill = count * (prefill_load + even) / (prefill_load + decode_load + 2.0 * even);
    Some(Wanted {
        group: demand.group,
        prefill,
        decode: count - prefill,
        prefill_load,
        decode_load,
    })
}

/// Streams that each engine carries: within TPOT, within its KV memory, within its own limit. Memory
/// is full when the next stream no longer fits, or a full engine would not look it.
pub(super) fn streams_each(
    params: &Params,
    average: &DemandAverage,
    engines: &[&BackendObservation],
) -> Vec<f64> {
    let mean_kv = mean_kv(average, engines);
    let carries = engines.iter().map(|engine| {
        let by_time = engine.decode_model.streams_within(params.slo.tpot, mean_kv);
        let fit = params.filling * engine.kv_capacity.as_f64() / mean_kv.as_f64();
        let by_memory = (fit - 1.0).max(1.0);
        (params.filling * by_time).min(by_memory).min(f64::from(engine.streams_max))
    });
    carries.collect()
}

/// Mean KV tokens of a stream: over the live streams, and while these are few also over the requests
/// that arrived within the demand window.
pub(super) fn mean_kv(average: &DemandAverage, engines: &[&BackendObservation]) -> Tokens {
    let streams: u32 = engines.iter().map(|engine| engine.streams).sum();
    let kv: Tokens = engines.iter().map(|engine| engine.kv).sum();
    let (lean, arrived) = match average.mean_kv() {
        None if streams > 0 => (0, Tokens::ZERO),
        None => (1, KV_PRIOR),
        Some(arrived) => (LEAN, Tokens(arrived as u64)),
    };
    let sum = kv.get() + arrived.get() * lean;
    Tokens((sum / (u64::from(streams) + lean)).max(1))
}
