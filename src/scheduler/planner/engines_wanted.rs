//! Engines wanted, for autoscalers: the fewest engines that would have lost no request over the last
//! 150 to 300 s. The fluid model of `counterfactual` runs for other fleet sizes. A modelled fleet
//! takes the split with the smallest loss in each input: the switching cost is neglected.
//!
//! A modelled fleet consists of mean engines. Its streams follow from the arrivals alone, because an
//! overloaded fleet has other streams than a larger one would have.

use tidegate_types::{GroupId, Moment, Role, Seconds};

use crate::planner::capacity::stream_capacities;
use crate::planner::comparative_advantage::Splits;
use crate::planner::counterfactual::{Fluid, GroupInput};
use crate::planner::decide::{group_input, is_out_of_service};
use crate::planner::demand::DemandAverage;
use crate::planner::observation::{BackendObservation, GroupDemand, Observation};
use crate::planner::params::Params;

/// Interval of the model's inputs: the shortest TTFT target in use, because arrivals within one input are
/// spread evenly. Other values were not tried.
const TICK: Seconds = Seconds(1.0);
/// Half of the window: losses count in the current half and in the previous one.
const HALF: Seconds = Seconds(150.0);
/// Loss that counts as none, as a share of the window's requests; at least half a request.
const NO_LOSS_SHARE: f64 = 0.002;
/// The largest modelled fleet has twice the engines of the actual one, plus this number.
const EXTRA_ENGINES: usize = 8;
/// Most modelled sizes of a group, and most modelled splits of a size; larger fleets are modelled in
/// strides.
const MODELLED_MAX: usize = 48;

/// The model of all groups.
#[derive(Clone, Debug, Default)]
pub struct EnginesWanted {
    at: Option<Moment>,
    half_since: Option<Moment>,
    groups: Vec<Group>,
}

/// Model of one group.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Demand since the last input.
    arrived: Option<GroupDemand>,
    average: DemandAverage,
    /// Prefill work that arrived over about one TTFT, in engine-seconds.
    recent_work: f64,
    /// Streams that result from the arrivals at the TPOT target.
    streams: f64,
    sizes: Vec<Size>,
    /// Requests of the current and of the previous half of the window.
    requests: [f64; 2],
    wanted: Option<usize>,
}

/// A fleet of one size.
#[derive(Clone, Debug)]
struct Size {
    engines: usize,
    splits: Vec<(usize, Fluid)>,
    /// Requests lost in the current and in the previous half of the window.
    lost: [f64; 2],
}

impl EnginesWanted {
    /// Adds the demand of `observation`, and advances the model once a second.
    pub fn follow(&mut self, params: &Params, now: Moment, observation: &Observation) {
        let count = observation.groups.iter().map(|demand| demand.group.index() + 1).max();
        self.groups.resize_with(count.unwrap_or(0), Group::default);
        for demand in &observation.groups {
            self.groups[demand.group.index()].add(demand);
        }
        let at = *self.at.get_or_insert(now);
        let half = *self.half_since.get_or_insert(now);
        if now - at < TICK {
            return;
        }
        self.at = Some(now);
        let half_ends = now - half >= HALF;
        if half_ends {
            self.half_since = Some(now);
        }
        for (slot, group) in self.groups.iter_mut().enumerate() {
            let here = |b: &&BackendObservation| {
                b.group.index() == slot && b.healthy && !is_out_of_service(b)
            };
            let healthy: Vec<&BackendObservation> =
                observation.backends.iter().filter(here).collect();
            if half_ends {
                group.start_half();
            }
            group.advance(params, now - at, &healthy, GroupId(slot as u16));
        }
    }

    /// Returns the engines wanted in a group; `None` before its first input or without engines.
    pub fn of(&self, group: GroupId) -> Option<usize> {
        self.groups.get(group.index()).and_then(|group| group.wanted)
    }
}

impl Group {
    fn add(&mut self, demand: &GroupDemand) {
        let sum = self.arrived.get_or_insert(GroupDemand::none(demand.group));
        sum.arrived_requests += demand.arrived_requests;
        sum.arrived_prefill += demand.arrived_prefill;
        sum.arrived_output += demand.arrived_output;
        sum.arrived_kv += demand.arrived_kv;
        sum.ttft_excess += demand.ttft_excess;
        sum.tpot_excess += demand.tpot_excess;
    }

    /// Starts the other half of the window.
    fn start_half(&mut self) {
        self.requests = [0.0, self.requests[0]];
        for size in &mut self.sizes {
            size.lost = [0.0, size.lost[0]];
        }
    }

    fn advance(
        &mut self,
        params: &Params,
        elapsed: Seconds,
        healthy: &[&BackendObservation],
        group: GroupId,
    ) {
        let arrived = self.arrived.take().unwrap_or(GroupDemand::none(group));
        self.average = self.average.after(elapsed, &arrived, params.demand_window, params.slo.ttft);
        if healthy.is_empty() {
            self.wanted = None;
            return;
        }
        let params = &params.with_targets_of(&self.average);
        let stream_capacity = stream_capacities(params, &self.average, healthy);
        let stream_capacity = stream_capacity.iter().sum::<f64>() / stream_capacity.len() as f64;
        let mixed = healthy.iter().all(|engine| is_mixed(engine));
        let life = (self.average.mean_output() * params.slo.tpot.get()).max(1e-3);
        self.streams = self.streams * (-elapsed.get() / life).exp() + arrived.arrived_requests;
        let in_prefill = vec![false; healthy.len()];
        let mut input = group_input(params, &self.average, healthy, &in_prefill, &arrived, elapsed);
        self.recent_work = self.recent_work * input.decay_over_ttft() + input.work;
        input.recent_work = self.recent_work;
        (input.streams, input.due) = (self.streams, self.streams);
        self.requests[0] += input.requests;
        self.model_sizes(healthy.len());
        for size in &mut self.sizes {
            size.lost[0] += size.losses(&mut input, stream_capacity, mixed);
        }
        self.wanted = Some(self.fewest(least(healthy)));
    }

    /// Models the sizes from one engine to twice `engines` plus [`EXTRA_ENGINES`]. Modelled sizes are
    /// kept when the fleet grows or shrinks.
    fn model_sizes(&mut self, engines: usize) {
        let most = 2 * engines + EXTRA_ENGINES;
        if self.sizes.last().is_some_and(|size| size.engines >= most) {
            return;
        }
        let sizes = strides(most, MODELLED_MAX);
        let kept = std::mem::take(&mut self.sizes);
        self.sizes = sizes
            .map(|engines| {
                let known = kept.iter().find(|size| size.engines == engines);
                known.cloned().unwrap_or_else(|| Size::new(engines))
            })
            .collect();
    }

    /// Returns the smallest size, at least `least`, that lost no request; the largest modelled size
    /// if all did.
    fn fewest(&self, least: usize) -> usize {
        let no_loss = (NO_LOSS_SHARE * (self.requests[0] + self.requests[1])).max(0.5);
        let suffices =
            |size: &&Size| size.engines >= least && size.lost[0] + size.lost[1] < no_loss;
        let largest = self.sizes.last().map_or(least, |size| size.engines);
        self.sizes.iter().find(suffices).map_or(largest, |size| size.engines).max(least)
    }
}

impl Size {
    fn new(engines: usize) -> Size {
        let splits = strides(engines.saturating_sub(1), MODELLED_MAX);
        Size { engines, splits: splits.map(|p| (p, Fluid::default())).collect(), lost: [0.0; 2] }
    }

    /// Returns the requests that this size loses in a input with its best split, or, if `mixed`, with
    /// mixed engines.
    fn losses(&mut self, input: &mut GroupInput, stream_capacity: f64, mixed: bool) -> f64 {
        let engines = self.engines;
        if engines == 1 || mixed {
            // Prefill and decode time of a mixed engine add up. The only engine of a fleet is mixed.
            let load = input.work / input.elapsed.get() + input.streams / stream_capacity.max(1e-9);
            return input.requests * (1.0 - engines as f64 / load.max(engines as f64));
        }
        input.engines = engines;
        input.splits = Splits {
            prefill_capacity: (0..=engines).map(|prefills| prefills as f64).collect(),
            stream_capacity: (0..=engines)
                .map(|prefills| (engines - prefills) as f64 * stream_capacity)
                .collect(),
        };
        let losses = self.splits.iter_mut().map(|(split, fluid)| input.losses(*split, fluid));
        losses.fold(f64::INFINITY, f64::min)
    }
}

/// Returns the fewest engines of a group without demand: 1 if an engine serves colocated requests,
/// else one for each role.
fn least(healthy: &[&BackendObservation]) -> usize {
    let whole = healthy.iter().any(|b| b.colocates && b.allowed.contains(Role::Mixed));
    if whole { 1 } else { 2 }
}

/// Returns whether the engine takes no other role than `mixed`.
fn is_mixed(engine: &BackendObservation) -> bool {
    !engine.allowed.contains(Role::Prefill) && !engine.allowed.contains(Role::Decode)
}

/// Returns at most `count` numbers from 1 to `most`, the largest included.
fn strides(most: usize, count: usize) -> impl Iterator<Item = usize> {
    let stride = most.div_ceil(count).max(1);
    (1..=most).rev().step_by(stride).collect::<Vec<_>>().into_iter().rev()
}

#[cfg(test)]
#[path = "engines_wanted_tests.rs"]
mod tests;
