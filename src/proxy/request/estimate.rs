//! Estimates a request's cost: uncached prompt tokens, expected output, deadlines. Demand is measured
//! here, before placement.

use std::sync::Arc;
use tidegate_engine::Scan;
use tidegate_filters::Accepted;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{Disaggregation, Excluded, PrefillRequest};
use tidegate_types::{BackendId, Moment, PoolId, Tokens};

use crate::backends::fleet::{EVERYONE, InflightRequest, RoutingTable};
use crate::dispatch::context::Proxy;
use crate::dispatch::settings_in_force::SettingsInForce;

/// Returns the request's registry entry, the request as placement sees it, and the backends that hold a
/// prefix of its prompt.
pub fn job(
    proxy: &Proxy,
    settings: &SettingsInForce,
    accepted: &Accepted,
    arrived: Moment,
) -> (Arc<InflightRequest>, PrefillRequest, Matches) {
    let (id, targets) = (proxy.next_request(), accepted.targets);
    let table = proxy.fleet.table();
    let prompt = accepted.prompt.tokens;
    let pool = table.pool_for(accepted.model.as_deref()).unwrap_or(EVERYONE);
    let output = accepted.scan.as_ref().and_then(|scan| scan.max_tokens).unwrap_or(Tokens(1));
    let pool = table.long_enough(pool, prompt + output);
    let matches = proxy.fleet.prefixes.matches(&accepted.prompt.chain);
    let expected_output = expected_output(proxy, accepted);
    let cached = most_cached(proxy, &matches).min(prompt - Tokens(1));
    let entry = table.pool(pool).unwrap_or(&table.pools[EVERYONE.index()]);
    let work = entry.prefill.predict(prompt - cached, cached);
    // Batch work uses the remaining capacity and is not counted as demand.
    if !targets.is_batch() {
        proxy.reaction.arrived(arrived);
        entry.demand.arrivals.count(work, prompt, expected_output);
        let default = &settings.placement.slo;
        if targets.slo != *default {
            entry.demand.arrivals.count_targets(&targets.slo, default, expected_output);
        }
        if work >= settings.placement.prefill_backlog_max {
            // The prefill alone exceeds an engine's prefill backlog bound: the planner runs at once.
            proxy.replan.notify_one();
        }
    }
    let class = settings.classes.class(targets.class);
    let job = PrefillRequest {
        id,
        pool,
        prompt,
        expected_output,
        arrived,
        targets,
        ttft_deadline: arrived + targets.slo.ttft,
        queue_deadline: arrived + class.queue_deadline,
        disaggregation: disaggregation(proxy, &table, pool, accepted),
        seed: id.spread(),
        excluded: Excluded::default(),
    };
    let model = accepted.model.clone();
    let name = &accepted.request_id;
    let live = InflightRequest::new(id, name, model, arrived, prompt, targets);
    (Arc::new(live), job, matches)
}

/// Returns the largest number of prompt tokens that a backend has cached.
fn most_cached(proxy: &Proxy, matches: &Matches) -> Tokens {
    let backends = proxy.fleet.backends();
    let real = |(holder, blocks): &(BackendId, u32)| {
        proxy.fleet.real_hit(
            &backends[holder.index()],
            Tokens(u64::from(*blocks) * proxy.prefix_block.get()),
        )
    };
    matches.entries().iter().map(real).max().unwrap_or(Tokens::ZERO)
}

/// Returns whether prefill and decode of the request may run on two engines.
fn disaggregation(
    proxy: &Proxy,
    table: &RoutingTable,
    pool: PoolId,
    accepted: &Accepted,
) -> Disaggregation {
    let is_colocated = |scan: &Scan| scan.colocated.is_some();
    let endpoint = accepted.endpoint;
    // Every family splits chat and completions; other endpoints need support in the whole pool.
    let splits = || {
        let mut families = table.backends(pool).iter().map(|id| proxy.fleet.backend(*id).family);
        families.all(|family| !family.can_split() || family.splits(endpoint))
    };
    // Without a model name each engine serves its own model, so that the KV of one does not fit another.
    let several = accepted.model.is_none() && table.models.len() > 1;
    match &accepted.scan {
        Some(scan) if endpoint.can_split() && !several && !is_colocated(scan) => {
            match endpoint.is_completion() || splits() {
                true => Disaggregation::Allowed,
                false => Disaggregation::Never,
            }
        }
        _ => Disaggregation::Never,
    }
}

/// Returns the expected output tokens; 0 for endpoints that do not generate.
fn expected_output(proxy: &Proxy, accepted: &Accepted) -> Tokens {
    if !accepted.endpoint.generates() {
        return Tokens::ZERO;
    }
    let max_tokens = accepted.scan.as_ref().and_then(|scan| scan.max_tokens);
    proxy.fleet.estimates().output.expect(max_tokens, accepted.prompt.tokens)
}
