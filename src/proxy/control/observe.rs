//! The fleet as the planner sees it: accounts, health, roles, and the demand since the last look.

use std::collections::BTreeMap;
use tidegate_planner::{BackendObservation, GroupDemand, Observation};
use tidegate_terms::{BackendId, GroupId, PoolId, Role, Seconds, Tokens};

use super::pins::Pins;
use crate::demand::DemandTotals;
use crate::fleet::{Fleet, RoutingTable};

/// Remembers the totals of the last look.
#[derive(Debug, Default)]
pub struct DemandReader {
    before: BTreeMap<PoolId, DemandTotals>,
}

/// What the planner gets to see now.
pub fn fleet(
    fleet: &Fleet,
    table: &RoutingTable,
    pins: &Pins,
    switching: &BTreeMap<BackendId, Role>,
    demand: &mut DemandReader,
) -> Observation {
    let backends = fleet.backends.iter().map(|backend| {
        let entry = table.entry(backend.id);
        let balance = backend.account.balance();
        BackendObservation {
            id: backend.id,
            group: entry.group,
            allowed: backend.allowed,
            capability: backend.capability,
            pinned: pins.role(backend.id),
            usable: backend.health.is_well(),
            role: table.plan.role(backend.id),
            becoming: switching.get(&backend.id).copied(),
            prefill: entry.prefill.batch(balance.prefill),
            streams: balance.streams,
            streams_max: backend.streams_max,
            kv: balance.kv,
            kv_capacity: backend.kv_capacity(),
            prefill_model: entry.prefill,
            decode_model: entry.decode,
        }
    });
    Observation { backends: backends.collect(), groups: groups(fleet, table, demand) }
}

/// Demand is counted by pool; a pool's share for each of its groups is the group's share of its
/// usable backends.
fn groups(fleet: &Fleet, table: &RoutingTable, reader: &mut DemandReader) -> Vec<GroupDemand> {
    let groups = table.entries.iter().map(|entry| entry.group.0 + 1).max().unwrap_or(0);
    let mut demands: Vec<GroupDemand> = (0..groups).map(|g| nothing(GroupId(g))).collect();
    let mut kv = vec![(0.0, 0.0); demands.len()];
    reader.before.retain(|pool, _| table.pool(*pool).is_some());
    for pool in &table.pools {
        let now = pool.demand.totals();
        let before = reader.before.insert(pool.id, now).unwrap_or_default();
        for (group, share) in shares(fleet, table, pool.id) {
            let demand = &mut demands[group.index()];
            add(demand, &now, &before, share);
            let requests = now.requests as f64 * share;
            let (sum, count) = &mut kv[group.index()];
            *sum += (now.prompt.as_f64() + now.output.as_f64() / 2.0) * share;
            *count += requests;
        }
    }
    for (demand, (sum, count)) in demands.iter_mut().zip(kv) {
        demand.mean_kv = Tokens(if count > 0.0 { (sum / count) as u64 } else { 0 });
    }
    demands
}

fn nothing(group: GroupId) -> GroupDemand {
    GroupDemand {
        group,
        arrived_requests: 0,
        arrived_prefill: Seconds::ZERO,
        arrived_output: Tokens::ZERO,
        mean_kv: Tokens::ZERO,
        waiting_requests: 0,
        waiting_prefill: Seconds::ZERO,
        waiting_decodes: 0,
    }
}

fn add(demand: &mut GroupDemand, now: &DemandTotals, before: &DemandTotals, share: f64) {
    let part = |count: u64| (count as f64 * share).round();
    demand.arrived_requests += part(now.requests - before.requests) as u64;
    demand.arrived_prefill += (now.prefill - before.prefill) * share;
    demand.arrived_output += Tokens(part((now.output - before.output).get()) as u64);
    demand.waiting_requests += part(u64::from(now.waiting_requests)) as u32;
    demand.waiting_prefill += now.waiting_prefill * share;
    demand.waiting_decodes += part(u64::from(now.waiting_decodes)) as u32;
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
