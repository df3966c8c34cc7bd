//! RouteDecision of a decode backend for a prefilled request. It is made after the prefill, which may take
//! seconds in which the free capacity changes. Allocates nothing.

use crate::placement::order::order;
use crate::placement::{DecodeRequest, Fleet, Load, Params};
use crate::tuning::{PACKING_SHARE, SAMPLE, SLACK_PRICE};
use tidegate_types::{BackendId, Role, Seconds};

/// Preference class of a backend: role fits, role does not fit, suspect, or the request has failed
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    Role,
    OtherRole,
    Suspect,
    Failed,
}

/// Returns the backend of `from`'s group with the least predicted completion among those with
/// capacity for one more stream. Callers list `from` among the excluded backends, so that it is the
/// last resort: engines do not read their own blocks.
///
/// If no usable backend of the group has a role that takes decodes, other usable backends are
/// considered, then suspects, then backends on which the request has failed. Returns `None` if the
/// group has no capacity or no usable backend now.
pub fn place_decode(
    params: &Params,
    request: &DecodeRequest,
    fleet: &impl Fleet,
) -> Option<BackendId> {
    let group = fleet.load(request.from).group;
    let backends = fleet.pool(request.pool);
    let mut preferred = Preference::Failed;
    let mut best: Option<(BackendId, f64)> = None;
    let mut looked_at = 0;
    for index in order(backends.len(), request.seed) {
        if looked_at >= SAMPLE && preferred == Preference::Role && best.is_some() {
            break;
        }
        let on = backends[index];
        let load = fleet.load(on);
        if load.group != group || !load.is_open() {
            continue;
        }
        looked_at += 1;
        let preference = preference(request, on, &load);
        if preference > preferred {
            continue;
        }
        if preference < preferred {
            // Candidates of a less preferred class are dropped, whether or not this backend has
            // capacity.
            (preferred, best) = (preference, None);
        }
        let score = score(params, request, on, &load);
        if has_room(params, request, &load) && best.is_none_or(|(_, least)| score < least) {
            best = Some((on, score));
        }
    }
    best.map(|(on, _)| on)
}

/// Returns the decode backend of a prefilled request that has waited until its hand-off deadline: of
/// the usable backends of the group the one with the fewest streams, whatever its capacity, because
/// the prefill is already done. Draining backends, those on which the request has failed, suspects
/// and backends of another role come last, in this order. Returns `None` if no backend of the group is usable.
pub fn place_decode_overdue(request: &DecodeRequest, fleet: &impl Fleet) -> Option<BackendId> {
    let group = fleet.load(request.from).group;
    let loads = fleet.pool(request.pool).iter().map(|on| (*on, fleet.load(*on)));
    let usable = loads.filter(|(_, load)| load.group == group && load.usable);
    let key = |(on, load): &(BackendId, Load)| {
        let failed = request.excluded.contains(*on);
        let draining = load.role == Role::Draining;
        (!load.takes_over, draining, failed, load.last, !load.role.takes_decode(), load.streams)
    };
    usable.min_by_key(key).map(|(on, _)| on)
}

fn preference(request: &DecodeRequest, on: BackendId, load: &Load) -> Preference {
    match load.role.takes_decode() {
        _ if request.excluded.contains(on) => Preference::Failed,
        _ if load.last => Preference::Suspect,
        true => Preference::Role,
        false => Preference::OtherRole,
    }
}

fn has_room(params: &Params, request: &DecodeRequest, load: &Load) -> bool {
    load.streams < load.streams_max
        && load.has_memory_for(request.kv, request.expected_output)
        && load.has_step_room(request.kv, params.slo.tpot)
}

/// Predicted completion plus the weighted prefill work ahead of the stream and the slack that it
/// removes from the backend.
fn score(params: &Params, request: &DecodeRequest, on: BackendId, load: &Load) -> f64 {
    let stays = on == request.from;
    let hand_off = if stays { Seconds::ZERO } else { load.transfer_model.predict(request.kv) };
    let steps = load.step_with(request.kv) * request.expected_output.as_f64();
    let taken = load.prefill + slack(params, request, load);
    (hand_off + steps + taken * SLACK_PRICE).get()
}

/// Slack of the backend's streams without the new one, at most the TTFT target. Above the packing limit
/// the backend counts as having the full slack, so that new streams go elsewhere.
fn slack(params: &Params, request: &DecodeRequest, load: &Load) -> Seconds {
    let base = load.decode_model.base;
    let packs = base + (params.slo.tpot - base).max(Seconds::ZERO) * PACKING_SHARE;
    let most = if params.spill { params.slo.ttft } else { Seconds::ZERO };
    match load.awaiting_first_token {
        _ if load.step_with(request.kv) > packs => most,
        0 => load.slack.max(Seconds::ZERO).min(most),
        _ => Seconds::ZERO,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
