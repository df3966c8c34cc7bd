//! Builds the planner's view of the fleet: in-flight work, health, roles, and demand since the
//! previous plan.

use std::collections::BTreeMap;
use tidegate_scheduler::planner::{BackendObservation, GroupDemand, Observation};
use tidegate_types::{BackendId, GroupId, PoolId, Role, Tokens};

use super::pins::Pins;
use crate::backends::demand::DemandTotals;
use crate::backends::fleet::{Fleet, RoutingTable};

/// Demand totals of each pool at the previous plan.
#[derive(Debug, Default)]
pub struct DemandReader {
    before: BTreeMap<PoolId, DemandTotals>,
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
        let balance = backend.account.balance();
        BackendObservation {
            id: backend.id,
            group: entry.group,
            allowed: backend.allowed,
            capability: backend.capability,
            pinned: pins.role(backend.id),
            usable: backend.health.is_well() && !backend.is_leaving(),
            role: table.plan.role(backend.id),
            becoming: switching.get(&backend.id).copied(),
            prefill: entry.prefill.batch(balance.prefill),
            streams: balance.streams,
            streams_max: backend.streams_max,
            kv: balance.kv,
            kv_capacity: backend.kv_capacity(),
            prefill_model: entry.prefill,
            decode_model: entry.decode,
            runs_whole: backend.family.serves_colocated(),
        }
    });
    Observation { backends: backends.collect(), groups: groups(fleet, table, demand) }
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
            add(&mut demands[group.index()], &now, &before, share);
        }
    }
    demands
}

/// Adds a group's share of what a pool received since `before`. Nothing is rounded: with a plan
/// every few milliseconds most counts are 0 or 1, and shares below 0.5 would round to 0.
fn add(demand: &mut GroupDemand, now: &DemandTotals, before: &DemandTotals, share: f64) {
    let arrived = |now: Tokens, before: Tokens| (now - before).as_f64() * share;
    let (prompt, output) = (arrived(now.prompt, before.prompt), arrived(now.output, before.output));
    demand.arrived_requests += (now.requests - before.requests) as f64 * share;
    demand.arrived_prefill += (now.prefill - before.prefill) * share;
    demand.arrived_output += output;
    demand.arrived_kv += prompt + output / 2.0;
}

fn shares(fleet: &Fleet, table: &RoutingTable, pool: PoolId) -> Vec<(GroupId, f64)> {
    let mut counts: Vec<(GroupId, u32)> = Vec::new();
    let backends = table.backends(pool).iter().map(|id| fleet.backend(*id));
    for backend in backends.filter(|backend| backend.health.is_well()) {
        let group = table.entry(backend.id).group;
        match counts.iter_mut().find(|(known, _)| *known == group) {
            Some((_, count)) => *count += 1,
            None => counts.push((group, 1)),
        }
    }
    let all: u32 = counts.iter().map(|(_, count)| count).sum();
    counts.into_iter().map(|(group, n)| (group, f64::from(n) / f64::from(all))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::Seconds;

    #[test]
    fn a_share_of_single_arrivals_is_counted_exactly() {
        for share in [0.5, 1.0 / 3.0, 0.25, 0.75, 1.0] {
            let mut demand = GroupDemand::none(GroupId(0));
            let mut before = DemandTotals::default();
            for _ in 0..1200 {
                let now = DemandTotals {
                    requests: before.requests + 1,
                    prefill: before.prefill + Seconds(0.1),
                    prompt: before.prompt + Tokens(1000),
                    output: before.output + Tokens(1),
                };
                add(&mut demand, &now, &before, share);
                before = now;
            }
            let near = |value: f64, whole: f64| (value - whole * share).abs() < 1e-6 * whole;
            assert!(near(demand.arrived_requests, 1200.0), "{share} {demand:?}");
            assert!(near(demand.arrived_prefill.get(), 120.0), "{share} {demand:?}");
            assert!(near(demand.arrived_output, 1200.0), "{share} {demand:?}");
            assert!(near(demand.arrived_kv, 1200.0 * 1000.5), "{share} {demand:?}");
        }
    }
}
