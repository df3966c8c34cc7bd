//! A decode backend for a request that is prefilled, chosen only now: a prefill may take seconds,
//! and what was free before it need not be after. Allocates nothing.

use crate::placement::order::order;
use crate::placement::{Fleet, Handover, Load, Params};
use tidegate_types::{BackendId, Moment, Seconds};

/// Nine answers of ten are longer than this share of what is expected, if they end at any token alike.
const SURE: f64 = 0.1;
/// Streams are packed while steps take so much of what the TPOT target leaves them. Between a half
/// and .85 nothing changes in the simulator; to the end, the slightest chunk costs all of them.
const PACKS: f64 = 0.7;

/// Might it miss its TPOT there, and the rest; less is better.
type Rank = (bool, f64);

/// How far from its role a backend is asked to go: by role, over the role, though it is a suspect,
/// even where the request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Role,
    Over,
    Last,
    Failed,
}

/// The backend in `from`'s group with the least predicted completion, among those with room for
/// one more stream. `from` itself if its role takes decodes and it is the best: the KV is there.
///
/// If no usable backend of the group takes decodes, whichever else is usable does; a suspect only if
/// there is no other, and one it has failed on only if that is all there is. `None`: no room now, or nobody usable in the group, or it
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
    let mut best: Option<(BackendId, Rank)> = None;
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
        let held_up = held_up(params, handover, &load);
        let rank = (held_up.is_some(), rank(params, handover, on, &load));
        if has_room(params, handover, &load)
            && !held_up.is_some_and(|prefill| is_in_time(params, now, handover, &load, prefill))
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
        _ if load.last => Reach::Last,
        true => Reach::Role,
        false => Reach::Over,
    }
}

fn has_room(params: &Params, handover: &Handover, load: &Load) -> bool {
    load.streams < load.streams_max
        && load.has_memory_for(handover.kv, handover.expected_output, params.kv_share)
        && load.has_step_room(handover.kv, params.slo.tpot)
}

/// For how long prefill work is in the way there, if that might cost the stream its TPOT: a short
/// answer has no tokens to make up in for those that come late.
fn held_up(params: &Params, handover: &Handover, load: &Load) -> Option<Seconds> {
    if load.prefill <= Seconds::ZERO {
        return None;
    }
    let tpot = params.slo.tpot;
    let chunk = load.prefill_model.per_token * params.chunk.as_f64();
    let steps = (load.prefill / chunk).ceil().max(1.0);
    let beside = load.decode_model.beside_prefill(load.streams, load.kv);
    let prefill = load.prefill.max(load.decode_model.base * steps) + beside * steps;
    let step = load.step_with(handover.kv);
    let sure = handover.expected_output.as_f64() * SURE;
    let after = (sure - 1.0 - steps).max(0.0);
    (prefill - tpot * steps > (tpot - step) * after).then_some(prefill)
}

/// Is there time to wait for the end of that work?
fn is_in_time(
    params: &Params,
    now: Moment,
    handover: &Handover,
    load: &Load,
    prefill: Seconds,
) -> bool {
    let ttft = params.transfer.predict(handover.kv) + load.step_with(handover.kv);
    now + prefill + ttft <= handover.ttft_deadline
}

/// Predicted completion, and what cannot be made up for: the prefill work that is in the way, and the
/// slack that it takes from the backend.
fn rank(params: &Params, handover: &Handover, on: BackendId, load: &Load) -> f64 {
    let stays = on == handover.from;
    let hand_off = if stays { Seconds::ZERO } else { params.transfer.predict(handover.kv) };
    let steps = load.step_with(handover.kv) * handover.expected_output.as_f64();
    let taken = load.prefill + slack(params, handover, load);
    (hand_off + steps + taken * params.slack_weight).get()
}

/// What the backend's streams could be held up for, were there no new one. One whose steps take a
/// good part of the target is left to those it has, however young they are.
fn slack(params: &Params, handover: &Handover, load: &Load) -> Seconds {
    let base = load.decode_model.base;
    let packs = base + (params.slo.tpot - base).max(Seconds::ZERO) * PACKS;
    let most = params.hold_max.max(Seconds::ZERO);
    match load.unbegun {
        _ if load.step_with(handover.kv) > packs => most,
        0 => load.slack.max(Seconds::ZERO).min(most),
        _ => Seconds::ZERO,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
