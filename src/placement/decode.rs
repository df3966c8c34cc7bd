//! A decode backend for a request that is prefilled, chosen only now: a prefill may take seconds,
//! and what was free before it need not be after. Allocates nothing.

use crate::order::order;
use crate::{Fleet, Handover, Load, Params};
use tidegate_terms::{BackendId, Moment, Seconds};

/// How far from its role a backend is asked to go: by role, over the role, even where it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Role,
    Over,
    Failed,
}

/// The backend in `from`'s group with the least predicted completion, among those with room for
/// one more stream. `from` itself if its role takes decodes and it is the best: the KV is there.
///
/// If no usable backend of the group takes decodes, whichever else is usable does, and one it has
/// failed on only if that is all there is. `None`: no room now, or nobody usable in the group, or it
/// had better wait for the end of a prefill.
pub fn place_decode(
    params: &Params,
    now: Moment,
    handover: &Handover,
    fleet: &impl Fleet,
) -> Option<BackendId> {
    let group = fleet.load(handover.from).group;
    let backends = fleet.pool(handover.pool);
    let mut nearest = Reach::Failed;
    let mut best: Option<(BackendId, f64)> = None;
    let mut looked_at = 0;
    for index in order(backends.len(), handover.seed) {
        if looked_at >= params.sample && nearest == Reach::Role && best.is_some() {
            break;
        }
        let on = backends[index];
        let load = fleet.load(on);
        if load.group != group || !load.is_open() {
            continue;
        }
        looked_at += 1;
        let reach = reach(handover, on, &load);
        if reach > nearest {
            continue;
        }
        if reach < nearest {
            // What was seen further away no longer counts, room or not.
            (nearest, best) = (reach, None);
        }
        let rank = rank(params, handover, on, &load);
        if has_room(params, handover, &load)
            && !is_better_later(params, now, handover, &load)
            && best.is_none_or(|(_, least)| rank < least)
        {
            best = Some((on, rank));
        }
    }
    best.map(|(on, _)| on)
}

fn reach(handover: &Handover, on: BackendId, load: &Load) -> Reach {
    match load.role.takes_decode() {
        _ if handover.excluded.contains(on) => Reach::Failed,
        true => Reach::Role,
        false => Reach::Over,
    }
}

fn has_room(params: &Params, handover: &Handover, load: &Load) -> bool {
    load.streams < load.streams_max
        && load.has_memory_for(handover.kv, handover.expected_output, params.kv_share)
        && load.has_step_room(handover.kv, params.slo.tpot)
}

/// Would the prefill work that is in the way there cost the stream its TPOT, and is there time to
/// wait for its end? A short answer has no tokens to make up in for those that come late.
fn is_better_later(params: &Params, now: Moment, handover: &Handover, load: &Load) -> bool {
    if load.prefill <= Seconds::ZERO {
        return false;
    }
    let tpot = params.slo.tpot;
    let chunk = load.prefill_model.per_token * params.chunk.as_f64();
    let steps = (load.prefill / chunk).ceil().max(1.0);
    let beside = load.decode_model.beside_prefill(load.streams, load.kv);
    let prefill = load.prefill.max(load.decode_model.base * steps) + beside * steps;
    let step = load.step_with(handover.kv);
    let after = (handover.expected_output.as_f64() - 1.0 - steps).max(0.0);
    let held_up = prefill - tpot * steps > (tpot - step) * after;
    let ttft = params.transfer.predict(handover.kv) + step;
    held_up && now + prefill + ttft <= handover.ttft_deadline
}

/// Predicted completion, which is the prefill work that is in the way, the hand-off, then its steps;
/// and the slack that it takes from the backend.
fn rank(params: &Params, handover: &Handover, on: BackendId, load: &Load) -> f64 {
    let stays = on == handover.from;
    let hand_off = if stays { Seconds::ZERO } else { params.transfer.predict(handover.kv) };
    let steps = load.step_with(handover.kv) * handover.expected_output.as_f64();
    (load.prefill + hand_off + steps + slack(params, load) * params.slack_weight).get()
}

/// What the backend's streams could be held up for, were there no new one.
fn slack(params: &Params, load: &Load) -> Seconds {
    match load.unbegun {
        0 => load.slack.min(params.hold_max).max(Seconds::ZERO),
        _ => Seconds::ZERO,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
