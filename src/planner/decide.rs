//! The roles, and why.
//!
//! Each group is decided for itself: pins and launch flags first, then one usable backend for each
//! role, then the demand. Only engines whose role the proxy alone decides (`Instant`) move.

use serde::Serialize;
use tidegate_terms::{BackendId, GroupId, Moment, Role, RoleCapability, Seconds};

use crate::capacity::{Wanted, wanted};
use crate::observation::{BackendObservation, GroupDemand, Observation};
use crate::params::Params;
use crate::reason::{Cause, Reason};
use crate::state::State;

/// What the planner says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// Every backend's role by slot, if any changes.
    pub roles: Option<Vec<Role>>,
    /// Why, one a change.
    pub reasons: Vec<Reason>,
    /// What each group's demand asks for.
    pub wanted: Vec<Wanted>,
}

/// Roles to start with, before any traffic: half of each group prefills, a lone engine does both,
/// and what cannot move has the one role it can have.
pub fn initial(_params: &Params, observation: &Observation) -> Vec<Role> {
    let groups = group_count(observation);
    let mut movable = vec![0_usize; groups];
    for backend in observation.backends.iter().filter(|backend| moves(backend)) {
        movable[backend.group.index()] += 1;
    }
    let mut given = vec![0_usize; groups];
    let role = |backend: &BackendObservation| {
        if let Some(role) = backend.pinned {
            return role;
        }
        if !moves(backend) {
            return only_role(backend);
        }
        let (of, n) = (movable[backend.group.index()], &mut given[backend.group.index()]);
        *n += 1;
        match of {
            1 => Role::Mixed,
            of if *n <= of / 2 => Role::Prefill,
            _ => Role::Decode,
        }
    };
    observation.backends.iter().map(role).collect()
}

/// Which role each backend should have now.
pub fn plan(
    params: &Params,
    now: Moment,
    observation: &Observation,
    state: &State,
) -> (Decision, State) {
    let groups = group_count(observation);
    let mut next = state.clone();
    next.make_room(observation.backends.len(), groups);
    let elapsed = state.at.map_or(Seconds::ZERO, |at| (now - at).max(Seconds::ZERO));
    next.at = Some(now);
    let mut draft = Draft {
        params,
        now,
        roles: observation.backends.iter().map(|backend| backend.role).collect(),
        reasons: Vec::new(),
        state: next,
    };
    let mut members: Vec<Vec<&BackendObservation>> = vec![Vec::new(); groups];
    for backend in &observation.backends {
        draft.keep_within_flags(backend);
        members[backend.group.index()].push(backend);
    }
    let mut all_wanted = Vec::new();
    for (slot, members) in members.iter().enumerate() {
        let demand = demand_of(observation, GroupId(slot as u16));
        let average = &mut draft.state.groups[slot].demand;
        *average = average.after(elapsed, &demand, params.demand_window);
        let average = *average;
        draft.keep_minimum(members);
        let usable: Vec<&BackendObservation> =
            members.iter().copied().filter(|b| b.usable && moves_or_pinned(b)).collect();
        if let Some(wanted) = wanted(params, &average, &demand, &usable) {
            draft.follow_demand(slot, &usable, &wanted);
            all_wanted.push(wanted);
        }
    }
    let Draft { roles, reasons, state, .. } = draft;
    let roles = (!reasons.is_empty()).then_some(roles);
    (Decision { roles, reasons, wanted: all_wanted }, state)
}

/// A plan in the making.
struct Draft<'a> {
    params: &'a Params,
    now: Moment,
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
            self.state.flipped_at[id.index()] = Some(self.now);
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

    /// One usable backend for each role where the flags allow it, without waiting for any dwell:
    /// requests have nowhere to go.
    fn keep_minimum(&mut self, members: &[&BackendObservation]) {
        let usable: Vec<_> = members.iter().copied().filter(|b| b.usable).collect();
        let free: Vec<_> = usable.iter().copied().filter(|b| moves(b)).collect();
        let count = vec![("usable", usable.len() as f64)];
        if let ([lone], [_]) = (&free[..], &usable[..]) {
            return self.set(lone.id, Role::Mixed, Cause::MinimumPerRole, count);
        }
        for (takes, other, role) in [
            (
                Role::takes_prefill as fn(Role) -> bool,
                Role::takes_decode as fn(Role) -> bool,
                Role::Prefill,
            ),
            (Role::takes_decode, Role::takes_prefill, Role::Decode),
        ] {
            if usable.iter().any(|backend| takes(self.role(backend))) {
                continue;
            }
            // Not the only one on the other side, or that would be empty next.
            let others = usable.iter().filter(|b| other(self.role(b))).count();
            let key = |b: &&&BackendObservation| (others == 1 && other(self.role(b)), burden(b));
            if let Some(backend) = free.iter().min_by_key(key) {
                self.set(backend.id, role, Cause::MinimumPerRole, count.clone());
            }
        }
        self.give_sides(&free, &usable, &count);
    }

    /// An engine that did both while it was alone, or nothing while it was kept out, takes the side
    /// with fewer engines; one that an operator has just put there rests first.
    fn give_sides(
        &mut self,
        free: &[&BackendObservation],
        usable: &[&BackendObservation],
        count: &[(&'static str, f64)],
    ) {
        for backend in free.iter().filter(|_| usable.len() > 1) {
            let idle = matches!(self.role(backend), Role::Mixed | Role::Draining);
            if !idle || self.rests(self.state.flipped_at[backend.id.index()]) {
                continue;
            }
            let prefills = usable.iter().filter(|b| self.role(b) == Role::Prefill).count();
            let decodes = usable.iter().filter(|b| self.role(b) == Role::Decode).count();
            let side = if prefills < decodes { Role::Prefill } else { Role::Decode };
            self.set(backend.id, side, Cause::MinimumPerRole, count.to_vec());
        }
    }

    /// Move engines to where the demand is.
    fn follow_demand(&mut self, group: usize, usable: &[&BackendObservation], wanted: &Wanted) {
        let prefills = usable.iter().filter(|b| self.role(b) == Role::Prefill).count();
        let decodes = usable.iter().filter(|b| self.role(b) == Role::Decode).count();
        if prefills == 0 || decodes == 0 {
            return;
        }
        // The half is what rounding needs; each pool keeps one.
        let short = wanted.prefill - prefills as f64;
        let step = 0.5 + self.params.margin;
        let moves_to_prefill = short > step;
        let (from, to, cause, least_left) = if moves_to_prefill {
            (Role::Decode, Role::Prefill, Cause::PrefillShort, decodes - 1)
        } else if -short > step {
            (Role::Prefill, Role::Decode, Cause::DecodeShort, prefills - 1)
        } else {
            return;
        };
        let memory = self.state.groups[group];
        let opposite = if moves_to_prefill { memory.to_decode_at } else { memory.to_prefill_at };
        if self.rests(opposite) {
            return;
        }
        let count =
            ((short.abs() - self.params.margin).round() as usize).clamp(1, least_left.max(1));
        let mut candidates: Vec<_> = usable
            .iter()
            .filter(|b| moves(b) && self.role(b) == from && b.allowed.contains(to))
            .filter(|b| !self.rests(self.state.flipped_at[b.id.index()]))
            .copied()
            .collect();
        candidates.sort_by_key(|backend| (burden(backend), backend.id));
        for backend in candidates.into_iter().take(count.min(least_left)) {
            let numbers = vec![
                ("wanted_prefill", wanted.prefill),
                ("wanted_decode", wanted.decode),
                ("prefill_load", wanted.prefill_load),
                ("decode_load", wanted.decode_load),
                ("prefill_engines", prefills as f64),
                ("decode_engines", decodes as f64),
                ("streams_left_behind", f64::from(backend.streams)),
            ];
            self.set(backend.id, to, cause, numbers);
            let memory = &mut self.state.groups[group];
            let at =
                if moves_to_prefill { &mut memory.to_prefill_at } else { &mut memory.to_decode_at };
            *at = Some(self.now);
        }
    }

    /// Is `at` less than a dwell ago?
    fn rests(&self, at: Option<Moment>) -> bool {
        at.is_some_and(|at| self.now - at < self.params.dwell)
    }
}

/// May the proxy alone change its role, and has no operator fixed it?
fn moves(backend: &BackendObservation) -> bool {
    backend.pinned.is_none()
        && backend.capability == RoleCapability::Instant
        && backend.allowed.contains(Role::Prefill)
        && backend.allowed.contains(Role::Decode)
}

/// Does it count in the sizes of the pools?
fn moves_or_pinned(backend: &BackendObservation) -> bool {
    moves(backend) || backend.pinned.is_some() || !backend.allowed.contains(Role::Mixed)
}

/// The role of a backend that cannot choose.
fn only_role(backend: &BackendObservation) -> Role {
    let preferred = [Role::Mixed, Role::Decode, Role::Prefill];
    preferred.into_iter().find(|role| backend.allowed.contains(*role)).unwrap_or(Role::Draining)
}

/// How much a backend's present work would suffer from a flip: streams that would share steps with
/// prefill chunks, then prefill work in milliseconds.
fn burden(backend: &BackendObservation) -> (u32, u64) {
    (backend.streams, backend.prefill.as_millis() as u64)
}

fn group_count(observation: &Observation) -> usize {
    let backends = observation.backends.iter().map(|backend| backend.group.index() + 1);
    backends.max().unwrap_or(0)
}

fn demand_of(observation: &Observation, group: GroupId) -> GroupDemand {
    let known = observation.groups.iter().find(|demand| demand.group == group);
    known.copied().unwrap_or(GroupDemand {
        group,
        arrived_requests: 0,
        arrived_prefill: Seconds::ZERO,
        arrived_output: tidegate_terms::Tokens::ZERO,
        mean_kv: tidegate_terms::Tokens::ZERO,
        waiting_requests: 0,
        waiting_prefill: Seconds::ZERO,
        waiting_decodes: 0,
    })
}
