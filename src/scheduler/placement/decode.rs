//! Decode backend of a prefilled request. It is chosen when the prefill has ended, because the free
//! capacity changes during a prefill of seconds. Allocates nothing.

use crate::placement::fleet::TpotLimit;
use crate::placement::order::order;
use crate::placement::{BackendLoad, DecodeRequest, FleetLoads, Params};
use crate::tuning::{PACKING_SHARE, SAMPLE, SLACK_PRICE};
use tidegate_types::{BackendId, Role, Seconds};

/// Preference for a backend, best first: its role takes decodes, another role, suspect, the request
/// has failed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    Role,
    OtherRole,
    Suspect,
    Failed,
}

/// Returns the backend with the lowest score in the group of `from`, among those with capacity for
/// one more stream. The TPOT targets of stricter classes limit a backend if another one has capacity
/// within them; the prefill is done, and the stream does not wait for them. Only backends of the best
/// available preference are considered: usable backends whose role takes decodes, else other usable
/// backends, else suspects, else backends on which the request has failed. Callers list `from` among the failed ones, because engines do not read their
/// own blocks. Returns `None` if the group has no capacity or no usable backend now.
pub fn place_decode(
    params: &Params,
    request: &DecodeRequest,
    fleet: &impl FleetLoads,
) -> Option<BackendId> {
    let group = fleet.load(request.from).group;
    let backends = fleet.pool(request.pool);
    let mut preferred = Preference::Failed;
    // The best with regard to every target, and the best with regard to the common ones.
    let mut best: Option<(BackendId, f64)> = None;
    let mut common = None;
    let mut examined = 0;
    for index in order(backends.len(), request.seed) {
        if examined >= SAMPLE && preferred == Preference::Role && best.is_some() {
            break;
        }
        let on = backends[index];
        let load = fleet.load(on);
        if load.group != group || !load.is_open() {
            continue;
        }
        examined += 1;
        let preference = preference(request, on, &load);
        if preference > preferred {
            continue;
        }
        if preference < preferred {
            // Candidates of a lower preference are dropped even if this backend has no capacity.
            (preferred, best, common) = (preference, None, None);
        }
        let score = score(params, request, on, &load);
        for (limit, best) in [(TpotLimit::Every, &mut best), (TpotLimit::Common, &mut common)] {
            let improves = best.is_none_or(|(_, least)| score < least);
            if improves && has_capacity(params, request, &load, limit) {
                *best = Some((on, score));
            }
        }
    }
    best.or(common).map(|(on, _)| on)
}

/// Returns the decode backend of a prefilled request that has waited until its hand-off deadline: of
/// the usable backends of the group the one with the fewest streams, whatever its capacity, because
/// the prefill is already done. Less preferred, in this order: backends of another role, suspects, those
/// on which the request has failed, draining ones, and last those that accept no hand-off. Returns
/// `None` if no backend of the group is usable.
pub fn place_decode_overdue(request: &DecodeRequest, fleet: &impl FleetLoads) -> Option<BackendId> {
    let group = fleet.load(request.from).group;
    let loads = fleet.pool(request.pool).iter().map(|on| (*on, fleet.load(*on)));
    let usable = loads.filter(|(_, load)| load.group == group && load.usable);
    let key = |(on, load): &(BackendId, BackendLoad)| {
        let failed = request.excluded.contains(*on);
        let draining = load.role == Role::Draining;
        (
            !load.accepts_hand_off,
            draining,
            failed,
            load.suspect,
            !load.role.takes_decode(),
            load.streams,
        )
    };
    usable.min_by_key(key).map(|(on, _)| on)
}

fn preference(request: &DecodeRequest, on: BackendId, load: &BackendLoad) -> Preference {
    match load.role.takes_decode() {
        _ if request.excluded.contains(on) => Preference::Failed,
        _ if load.suspect => Preference::Suspect,
        true => Preference::Role,
        false => Preference::OtherRole,
    }
}

fn has_capacity(
    params: &Params,
    request: &DecodeRequest,
    load: &BackendLoad,
    limit: TpotLimit,
) -> bool {
    let size = (request.kv, request.expected_output);
    load.admits_stream(params, &request.targets, size, limit, |tpot| tpot)
}

/// Returns the score: predicted completion, plus [`SLACK_PRICE`] per second of prefill work ahead of
/// the stream and of slack that it removes from the backend. The lowest score wins.
fn score(params: &Params, request: &DecodeRequest, on: BackendId, load: &BackendLoad) -> f64 {
    let stays = on == request.from;
    let hand_off = if stays { Seconds::ZERO } else { load.transfer_model.predict(request.kv) };
    let steps = load.step_with(request.kv) * request.expected_output.as_f64();
    let taken = load.prefill + slack(params, request, load);
    (hand_off + steps + taken * SLACK_PRICE).get()
}

/// Returns the slack of the backend's streams without the new one, at most the TTFT target. A backend
/// above the packing limit ([`PACKING_SHARE`]) counts with the full TTFT target, so that bin packing
/// ends there.
fn slack(params: &Params, request: &DecodeRequest, load: &BackendLoad) -> Seconds {
    let packing_step = load.step_within(load.shared_tpot(request.targets.slo.tpot), PACKING_SHARE);
    let most = if params.spill { params.slo.ttft } else { Seconds::ZERO };
    match load.awaiting_first_token {
        _ if load.step_with(request.kv) > packing_step => most,
        0 => load.slack.max(Seconds::ZERO).min(most),
        _ => Seconds::ZERO,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
