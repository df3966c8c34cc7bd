//! The roles of a plan, and the reason for each change.
//!
//! Each group is decided separately, in this order: pins and launch flags; one healthy backend for
//! each role; demand. `Instant` engines, whose role the proxy changes, flip with the plan.
//! `DrainThenCall` engines switch by themselves in seconds, and count as engines of their new role
//! during the switch.

use crate::cost::DecodeModel;
use crate::tuning::{AWAY_SHARE, SPILL_SHARE};
use serde::Serialize;
use std::cmp::Ordering;
use tidegate_types::{BackendId, GroupId, Moment, Role, RoleCapability, Seconds};

use crate::planner::capacity::{GroupLoad, mean_kv, stream_capacities};
use crate::planner::comparative_advantage::{Advantage, advantages, splits};
use crate::planner::counterfactual::GroupInput;
use crate::planner::demand::DemandAverage;
use crate::planner::observation::{BackendObservation, GroupDemand, Observation};
use crate::planner::params::Params;
use crate::planner::reason::{Cause, Reason};
use crate::planner::state::State;

/// Result of a planner run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// Every backend's role by slot; `None` if no role changes.
    pub roles: Option<Vec<Role>>,
    /// One reason for each change.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Returns the backends whose role changes, with the new role.
    pub fn flips(&self) -> Vec<(BackendId, Role)> {
        self.reasons.iter().map(|reason| (reason.backend, reason.to)).collect()
    }
}

/// Returns the roles at cold start, before any traffic: half of each group prefills, the only engine
/// of a group is mixed, and a backend that cannot flip gets its only possible role.
pub fn initial(observation: &Observation) -> Vec<Role> {
    let role = |backend: &BackendObservation| backend.pinned.unwrap_or(only_role(backend));
    let mut roles: Vec<Role> = observation.backends.iter().map(role).collect();
    for group in 0..group_count(observation) {
        let free = observation.backends.iter().filter(|b| b.group.index() == group && may_flip(b));
        let free: Vec<&BackendObservation> = free.collect();
        let mut by_advantage: Vec<_> = advantages(&free, &[]).into_iter().zip(&free).collect();
        by_advantage.sort_by_key(|(advantage, _)| *advantage);
        for (n, (_, backend)) in by_advantage.into_iter().enumerate() {
            roles[backend.id.index()] = match free.len() {
                1 if backend.allowed.contains(Role::Mixed) => Role::Mixed,
                of if n < of / 2 => Role::Prefill,
                _ => Role::Decode,
            };
        }
    }
    roles
}

/// Returns the roles at `now`, with reasons, and the state for the next run.
pub fn plan(
    params: &Params,
    now: Moment,
    observation: &Observation,
    state: &State,
) -> (Decision, State) {
    let groups = group_count(observation);
    let mut next = state.clone();
    next.grow_to(groups);
    let elapsed = state.at.map_or(Seconds::ZERO, |at| (now - at).max(Seconds::ZERO));
    next.at = Some(now);
    let moved = std::mem::take(&mut next.moved);
    let mut draft = Draft {
        params,
        roles: observation.backends.iter().map(|backend| backend.role).collect(),
        reasons: Vec::new(),
        state: next,
    };
    let mut members: Vec<Vec<&BackendObservation>> = vec![Vec::new(); groups];
    for backend in &observation.backends {
        draft.keep_within_flags(backend);
        members[backend.group.index()].push(backend);
    }
    for (slot, members) in members.iter().enumerate() {
        let demand = demand_of(observation, GroupId(slot as u16));
        let average = &mut draft.state.groups[slot].demand;
        *average = average.after(elapsed, &demand, params.demand_window, params.slo.ttft);
        draft.keep_minimum(members);
        let healthy: Vec<&BackendObservation> =
            members.iter().copied().filter(|b| b.healthy && is_pool_member(b)).collect();
        if members.iter().any(|b| moved.contains(&b.id)) {
            draft.state.groups[slot].counterfactual.moved();
        }
        draft.follow_demand(slot, &healthy, &demand, elapsed);
    }
    let Draft { roles, reasons, state, .. } = draft;
    let roles = (!reasons.is_empty()).then_some(roles);
    (Decision { roles, reasons }, state)
}

/// The plan under construction.
struct Draft<'a> {
    params: &'a Params,
    roles: Vec<Role>,
    reasons: Vec<Reason>,
    state: State,
}

impl Draft<'_> {
    fn role(&self, backend: &BackendObservation) -> Role {
        self.roles[backend.id.index()]
    }

    fn set(&mut self, id: BackendId, to: Role, cause: Cause, numbers: Vec<(&'static str, f64)>) {
        let from = self.roles[id.index()];
        if from != to {
            self.roles[id.index()] = to;
            self.reasons.push(Reason { backend: id, from, to, cause, numbers });
        }
    }

    fn keep_within_flags(&mut self, backend: &BackendObservation) {
        if let Some(pinned) = backend.pinned {
            self.set(backend.id, pinned, Cause::Pinned, Vec::new());
        } else if !backend.allowed.contains(backend.role) {
            self.set(backend.id, only_role(backend), Cause::NotAllowed, Vec::new());
        }
    }

    /// Keeps one healthy backend for each role where the flags allow it.
    fn keep_minimum(&mut self, members: &[&BackendObservation]) {
        let in_role = |b: &&BackendObservation| b.healthy && b.becoming.is_none();
        let healthy: Vec<_> = members.iter().copied().filter(in_role).collect();
        let free: Vec<_> = healthy.iter().copied().filter(|b| may_flip(b)).collect();
        let count = vec![("usable", healthy.len() as f64)];
        if let ([lone], [_]) = (&free[..], &healthy[..])
            && lone.allowed.contains(Role::Mixed)
        {
            return self.set(lone.id, Role::Mixed, Cause::MinimumPerRole, count);
        }
        let switching = |takes: fn(Role) -> bool| {
            members.iter().any(|b| b.healthy && b.becoming.is_some_and(takes))
        };
        for (takes, other, role) in [
            (
                Role::takes_prefill as fn(Role) -> bool,
                Role::takes_decode as fn(Role) -> bool,
                Role::Prefill,
            ),
            (Role::takes_decode, Role::takes_prefill, Role::Decode),
        ] {
            if healthy.iter().any(|backend| takes(self.role(backend))) || switching(takes) {
                continue;
            }
            // The last engine of the other role flips only if it may be mixed, so that no role
            // becomes empty.
            let others = healthy.iter().filter(|b| other(self.role(b))).count();
            let last = |b: &BackendObservation| others == 1 && other(self.role(b));
            let key = |b: &&&BackendObservation| (last(b), flip_key(b));
            let can = |b: &&&BackendObservation| b.allowed.contains(Role::Mixed) || !last(b);
            if let Some(backend) = free.iter().filter(can).min_by_key(key) {
                self.set(backend.id, role, Cause::MinimumPerRole, count.clone());
            }
        }
        self.assign_sides(&free, &healthy, &count);
    }

    /// Assigns the role with fewer engines to an engine that was mixed while it was the only one, or
    /// draining while it was out of service.
    fn assign_sides(
        &mut self,
        free: &[&BackendObservation],
        healthy: &[&BackendObservation],
        count: &[(&'static str, f64)],
    ) {
        for backend in free.iter().filter(|_| healthy.len() > 1) {
            let idle = matches!(self.role(backend), Role::Mixed | Role::Draining);
            if !idle {
                continue;
            }
            let prefills = healthy.iter().filter(|b| self.role(b) == Role::Prefill).count();
            let decodes = healthy.iter().filter(|b| self.role(b) == Role::Decode).count();
            let others = |takes: fn(Role) -> bool| {
                healthy.iter().any(|b| b.id != backend.id && takes(self.role(b)))
            };
            let side = match (others(Role::takes_prefill), others(Role::takes_decode)) {
                (true, true) if prefills < decodes => Role::Prefill,
                (true, _) => Role::Decode,
                (false, true) => Role::Prefill,
                (false, false) => Role::Mixed,
            };
            let side = if backend.allowed.contains(side) { side } else { only_role(backend) };
            self.set(backend.id, side, Cause::MinimumPerRole, count.to_vec());
        }
    }

    /// Flips engines towards the split that the counterfactual model advises.
    fn follow_demand(
        &mut self,
        group: usize,
        healthy: &[&BackendObservation],
        demand: &GroupDemand,
        elapsed: Seconds,
    ) {
        let role = |b: &BackendObservation| b.becoming.unwrap_or(self.role(b));
        let prefills = healthy.iter().filter(|b| role(b) == Role::Prefill).count();
        let decodes = healthy.iter().filter(|b| role(b) == Role::Decode).count();
        if prefills == 0 || decodes == 0 || prefills + decodes != healthy.len() {
            return;
        }
        let in_prefill: Vec<bool> = healthy.iter().map(|b| role(b) == Role::Prefill).collect();
        let memory = &mut self.state.groups[group];
        let params = &self.params.with_targets_of(&memory.demand);
        let stream_capacity = stream_capacities(params, &memory.demand, healthy);
        let loads = GroupLoad::of(params, &memory.demand, healthy);
        let input = group_input(params, &memory.demand, healthy, &in_prefill, demand, elapsed);
        let switches = input.switch.is_some();
        let advice = memory.counterfactual.follow(input, prefills);
        let (from, to, cause) = match advice.prefills.cmp(&prefills) {
            Ordering::Greater => (Role::Decode, Role::Prefill, Cause::PrefillShort),
            Ordering::Less => (Role::Prefill, Role::Decode, Cause::DecodeShort),
            Ordering::Equal => return,
        };
        let in_role =
            healthy.iter().filter(|b| b.becoming.is_none() && self.role(b) == from).count();
        let away = healthy.iter().filter(|b| b.becoming.is_some()).count();
        let count = advice.prefills.abs_diff(prefills).min(in_role.saturating_sub(1));
        let count = match switches {
            true => count.min((healthy.len() / AWAY_SHARE).max(1).saturating_sub(away)),
            false => count,
        };
        let mut candidates: Vec<_> = healthy
            .iter()
            .zip(advantages(healthy, &stream_capacity))
            .filter(|(b, _)| may_flip(b) && b.becoming.is_none() && self.role(b) == from)
            .filter(|(b, _)| b.allowed.contains(to))
            .collect();
        // Engines with an advantage in the new role first, then those with the fewest streams.
        let suits = |advantage: Advantage| match to {
            Role::Prefill => advantage as u8,
            _ => u8::MAX - advantage as u8,
        };
        candidates
            .sort_by_key(|(backend, advantage)| (suits(*advantage), flip_key(backend), backend.id));
        for (backend, _) in candidates.into_iter().take(count) {
            let numbers = vec![
                ("advised_prefill_engines", advice.prefills as f64),
                ("prefill_engines", prefills as f64),
                ("decode_engines", decodes as f64),
                ("requests_lost_moving", advice.switch_cost),
                ("prefill_load", loads.prefill),
                ("decode_load", loads.decode),
                ("streams_left_behind", f64::from(backend.streams)),
            ];
            self.set(backend.id, to, cause, numbers);
        }
    }
}

/// Returns the demand of a group since the last run, with its capacity.
pub(super) fn group_input(
    params: &Params,
    average: &DemandAverage,
    healthy: &[&BackendObservation],
    in_prefill: &[bool],
    demand: &GroupDemand,
    elapsed: Seconds,
) -> GroupInput {
    let count = healthy.len().max(1) as f64;
    let mean = |of: fn(&BackendObservation) -> Seconds| {
        Seconds(healthy.iter().map(|b| of(b).get()).sum::<f64>() / count)
    };
    let streams: u32 = healthy.iter().map(|backend| backend.streams).sum();
    let stream_capacity = stream_capacities(params, average, healthy);
    let mut splits = splits(healthy, &stream_capacity);
    splits.use_actual_engines(healthy, &stream_capacity, in_prefill);
    GroupInput {
        elapsed,
        engines: healthy.len(),
        work: demand.arrived_prefill.get(),
        recent_work: 0.0,
        mean_work: average.mean_work(),
        due: average.output_rate() * params.slo.tpot.get(),
        requests: demand.arrived_requests,
        request_rate: average.request_rate(),
        mean_output: average.mean_output(),
        window: params.demand_window,
        switch: healthy
            .iter()
            .any(|b| b.capability == RoleCapability::DrainThenCall)
            .then_some(params.switch),
        streams: f64::from(streams),
        splits,
        mean_kv: mean_kv(average, healthy),
        decode: DecodeModel {
            base: mean(|b| b.decode_model.base),
            per_stream: mean(|b| b.decode_model.per_stream),
            free_streams: healthy.iter().map(|b| b.decode_model.free_streams).sum::<u32>()
                / healthy.len().max(1) as u32,
            per_kv_token: mean(|b| b.decode_model.per_kv_token),
        },
        chunk: mean(|b| b.prefill_model.per_token) * params.chunk.as_f64(),
        ttft: params.slo.ttft,
        tpot: params.slo.tpot,
        spill: spill_share(params, healthy),
    }
}

/// Returns the share of the decode engines' idle time that spilled prefills use. Engines that serve
/// no colocated requests take none.
fn spill_share(params: &Params, healthy: &[&BackendObservation]) -> f64 {
    if !params.spill {
        return 0.0;
    }
    let takes = healthy.iter().filter(|b| b.colocates).count() as f64;
    SPILL_SHARE * takes / healthy.len().max(1) as f64
}

/// Returns whether the planner may change the role: the engine is able, and no operator has pinned
/// it. A `DrainThenCall` engine that is draining without a new role has failed to switch: only an
/// operator can return it to service.
fn may_flip(backend: &BackendObservation) -> bool {
    let able = match backend.capability {
        RoleCapability::Instant => true,
        RoleCapability::DrainThenCall => !is_out_of_service(backend),
        RoleCapability::Fixed => false,
    };
    backend.pinned.is_none()
        && able
        && backend.allowed.contains(Role::Prefill)
        && backend.allowed.contains(Role::Decode)
}

/// Returns whether the backend is draining without a new role.
pub(super) fn is_out_of_service(backend: &BackendObservation) -> bool {
    backend.role == Role::Draining && backend.becoming.is_none()
}

/// Returns whether the backend counts as an engine of its group. A backend that an operator keeps
/// out of service, or whose switch has failed, does not.
pub(super) fn is_pool_member(backend: &BackendObservation) -> bool {
    if is_out_of_service(backend) {
        return false;
    }
    may_flip(backend) || backend.pinned.is_some() || !backend.allowed.contains(Role::Mixed)
}

/// Returns the role of a backend that has no choice of roles.
fn only_role(backend: &BackendObservation) -> Role {
    let preferred = [Role::Mixed, Role::Decode, Role::Prefill];
    preferred.into_iter().find(|role| backend.allowed.contains(*role)).unwrap_or(Role::Draining)
}

/// Sort key for flips, least disturbance first: streams that would share steps with prefill chunks,
/// then prefill work in milliseconds.
fn flip_key(backend: &BackendObservation) -> (u32, u64) {
    (backend.streams, backend.prefill.as_millis() as u64)
}

fn group_count(observation: &Observation) -> usize {
    let backends = observation.backends.iter().map(|backend| backend.group.index() + 1);
    backends.max().unwrap_or(0)
}

fn demand_of(observation: &Observation, group: GroupId) -> GroupDemand {
    let known = observation.groups.iter().find(|demand| demand.group == group);
    known.copied().unwrap_or_else(|| GroupDemand::none(group))
}
