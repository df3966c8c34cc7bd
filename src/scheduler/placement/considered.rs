//! The candidates of one placement with their predicted costs, for records of decisions (`tidegate
//! explain`). `place.rs` decides, on the same [`BackendLoad`]s.

use crate::placement::candidate::Evaluation;
use crate::placement::order::order;
use crate::placement::{BackendLoad, FleetLoads, Params, PrefillRequest};
use tidegate_types::{BackendId, Moment, Role, Seconds, Tokens};

/// Most candidates in one record.
pub const CONSIDERED_MAX: usize = 16;

/// The values of one backend on which a placement was decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Considered {
    /// The backend.
    pub on: BackendId,
    /// Its role.
    pub role: Role,
    /// Whether it may receive this request: it is usable and not draining, and the request has not
    /// failed on it.
    pub open: bool,
    /// Whether its prefill backlog admits the prompt.
    pub prefill_capacity: bool,
    /// Whether one more stream fits within its KV memory and the TPOT target.
    pub decode_capacity: bool,
    /// Whether the TPOT slack of its streams covers the prefill.
    pub slack: bool,
    /// Decode streams on it.
    pub streams: u32,
    /// Prompt tokens that its prefix cache is predicted to hold.
    pub cached: Tokens,
    /// Predicted prefill work in flight on it.
    pub backlog: Seconds,
    /// Predicted time from the placement to the end of the prefill.
    pub prefill_end: Seconds,
}

/// Returns the chosen backend `on` with its load, then the others of the pool in the order in which
/// placement considers them; at most [`CONSIDERED_MAX`].
pub fn considered(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    fleet: &impl FleetLoads,
    (on, load): (BackendId, &BackendLoad),
) -> Box<[Considered]> {
    let backends = fleet.pool(job.pool);
    let others = order(backends.len(), job.seed).map(|index| backends[index]);
    let others = others.filter(|other| *other != on).take(CONSIDERED_MAX - 1);
    let mut all = Vec::with_capacity(backends.len().min(CONSIDERED_MAX));
    all.push(seen(params, now, job, fleet, (on, load)));
    all.extend(others.map(|other| seen(params, now, job, fleet, (other, &fleet.load(other)))));
    all.into_boxed_slice()
}

fn seen(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    fleet: &impl FleetLoads,
    (on, load): (BackendId, &BackendLoad),
) -> Considered {
    let evaluation =
        Evaluation::new(params, job, (on, load), fleet.cached(job, on), job.ttft_deadline - now);
    Considered {
        on,
        role: load.role,
        open: load.is_open() && !job.excluded.contains(on),
        prefill_capacity: evaluation.has_prefill_capacity(),
        decode_capacity: evaluation.has_decode_capacity(),
        slack: evaluation.has_slack(),
        streams: load.streams,
        cached: evaluation.cached,
        backlog: load.prefill,
        prefill_end: evaluation.prefill().ttft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::fixture::{Engines, idle, job};

    #[test]
    fn the_chosen_backend_comes_first_and_the_record_is_bounded() {
        let fleet = Engines::new(vec![idle(Role::Prefill); CONSIDERED_MAX + 4]);
        let chosen = (BackendId(18), &fleet.load(BackendId(18)));
        let seen = considered(&Params::default(), Moment::START, &job(1, 1000), &fleet, chosen);
        assert_eq!(seen.len(), CONSIDERED_MAX);
        assert_eq!(seen[0].on, BackendId(18));
        let mut ids: Vec<u16> = seen.iter().map(|candidate| candidate.on.0).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CONSIDERED_MAX, "each backend once");
        assert!(seen.iter().all(|candidate| candidate.open && candidate.prefill_capacity));
    }
}
