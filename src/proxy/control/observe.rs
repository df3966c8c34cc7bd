//! Builds the planner's view of the fleet: in-flight work, health, roles, and demand since the
//! previous plan.

use std::collections::BTreeMap;
use tidegate_scheduler::planner::{ArrivalTotals, BackendObservation, GroupDemand, Observation};
use tidegate_types::{BackendId, GroupId, PoolId, Role, RoleSet};

use super::pins::Pins;
use crate::backends::fleet::{Backend, Fleet, RoutingTable};

/// Demand totals of each pool at the previous plan.
#[derive(Debug, Default)]
pub struct DemandReader {
    before: BTreeMap<PoolId, ArrivalTotals>,
}

/// The planner's input at this moment.
pub fn fleet(
    fleet: &Fleet,
    table: &RoutingTable,
    pins: &Pins,
    switching: &BTreeMap<BackendId, Role>,
    demand: &mut DemandReader,
) -> Observation {
    let all = fleet.backends();
    let backends = all.iter().map(|backend| {
        let entry = table.entry(backend.id);
        // Batch work uses the remaining capacity and is not counted as demand.
        let balance = backend.account.total().without(&backend.account.batch_streams());
        BackendObservation {
            id: backend.id,
            group: entry.group,
            allowed: reachable_roles(backend, table.plan.role(backend.id)),
            capability: backend.capability,
            pinned: pins.role(backend.id),
            healthy: backend.health.is_healthy() && !backend.is_leaving(),
            role: table.plan.role(backend.id),
            becoming: switching.get(&backend.id).copied(),
            prefill: entry.prefill.batch(balance.prefill),
            streams: balance.streams,
            streams_max: backend.streams_max,
            kv: balance.kv,
            kv_capacity: backend.kv_capacity(),
            prefill_model: entry.prefill,
            decode_model: entry.decode,
            colocates: backend.family.serves_colocated(),
        }
    });
    Observation { backends: backends.collect(), groups: groups(fleet, table, demand) }
}

/// The roles that the planner may give a backend: not one whose hand-offs failed in every trial.
fn reachable_roles(backend: &Backend, role: Role) -> RoleSet {
    let reaches = |to: &Role| match to {
        _ if *to == role => true,
        Role::Prefill => backend.trials.may_hand_off(),
        Role::Decode => backend.trials.may_accept(),
        Role::Mixed | Role::Draining => true,
    };
    backend.allowed.iter().filter(reaches).collect()
}

/// Demand per compatibility group. Demand is counted by pool; each group of a pool gets the share
/// of its usable backends.
fn groups(fleet: &Fleet, table: &RoutingTable, reader: &mut DemandReader) -> Vec<GroupDemand> {
    let groups = table.entries.iter().map(|entry| entry.group.0 + 1).max().unwrap_or(0);
    let mut demands: Vec<GroupDemand> =
        (0..groups).map(|g| GroupDemand::none(GroupId(g))).collect();
    reader.before.retain(|pool, _| table.pool(*pool).is_some());
    for pool in &table.pools {
        let now = pool.demand.totals();
        let before = reader.before.insert(pool.id, now).unwrap_or_default();
        for (group, share) in shares(fleet, table, pool.id) {
            demands[group.index()].add(&before, &now, share);
        }
    }
    demands
}

fn shares(fleet: &Fleet, table: &RoutingTable, pool: PoolId) -> Vec<(GroupId, f64)> {
    let mut counts: Vec<(GroupId, u32)> = Vec::new();
    let backends = table.backends(pool).iter().map(|id| fleet.backend(*id));
    for backend in backends.filter(|backend| backend.health.is_healthy()) {
        let group = table.entry(backend.id).group;
        match counts.iter_mut().find(|(known, _)| *known == group) {
            Some((_, count)) => *count += 1,
            None => counts.push((group, 1)),
        }
    }
    let all: u32 = counts.iter().map(|(_, count)| count).sum();
    counts.into_iter().map(|(group, n)| (group, f64::from(n) / f64::from(all))).collect()
}
