//! Counterfactual model: the requests that each split of a group would have lost, and the decision
//! to switch.
//!
//! A split is a number of prefill engines. A fluid model of each split runs on the measured demand.
//! Two kinds of requests count as lost: those whose prefill work would wait longer than the TTFT
//! target, and those whose streams exceed the stream capacity of the decode engines. The switching
//! cost is the expected loss of the streams on the engines that flip, or, for engines that switch by
//! themselves, of the requests that arrive during the switch.
//!
//! Ski-rental rule: the group switches to another split once the regret against it reaches the
//! switching cost. The regret is the loss of the advised split minus the loss of the other split,
//! accumulated while it is positive. Shifts in demand that last longer than it takes to pay for a
//! switch are followed, shorter ones are ignored. No parameter sets this time.
//!
//! The measured queue is not an input: a comparison of a measured with a modelled backlog would be
//! biased between the split in force and the others.

use crate::cost::DecodeModel;
use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Tokens};

use crate::planner::comparative_advantage::Splits;
use crate::planner::outlook::SplitOutlook;
use crate::tuning::{REGRET_MEMORY, SWITCH_PRICE};

/// Demand since the last input, and the capacity of the engines.
#[derive(Clone, Debug)]
pub(super) struct GroupInput {
    /// Time since the last input.
    pub(super) elapsed: Seconds,
    /// Healthy engines in the prefill or decode role, pinned ones included.
    pub(super) engines: usize,
    /// Prefill work that arrived, in engine-seconds.
    pub(super) work: f64,
    /// Prefill work that arrived over about one TTFT, in engine-seconds, this input included: see
    /// [`GroupInput::decay_over_ttft`].
    pub(super) recent_work: f64,
    /// Prefill work of a mean request, in engine-seconds.
    pub(super) mean_work: f64,
    /// Expected streams in steady state at the present arrival rate (Little's law at the TPOT
    /// target).
    pub(super) due: f64,
    /// Requests that arrived since the last input.
    pub(super) requests: f64,
    /// Arrival rate in requests per second: mean over the demand window.
    pub(super) request_rate: f64,
    /// Mean output tokens of a request.
    pub(super) mean_output: f64,
    /// The demand window.
    pub(super) window: Seconds,
    /// Duration of a role switch that the engine makes itself once it is idle (`DrainThenCall`).
    /// `None`: the proxy alone changes roles, and no engine is drained.
    pub(super) switch: Option<Seconds>,
    /// Running streams of the group.
    pub(super) streams: f64,
    /// Capacity of each split within the targets.
    pub(super) splits: Splits,
    /// KV tokens of a mean stream.
    pub(super) mean_kv: Tokens,
    /// Decode cost of the mean engine.
    pub(super) decode: DecodeModel,
    /// Duration of one prefill chunk.
    pub(super) chunk: Seconds,
    pub(super) ttft: Seconds,
    pub(super) tpot: Seconds,
    /// Share of a decode engine's idle time that spilled prefills use.
    pub(super) spill: f64,
}

/// The counterfactual model of one group. Losses and costs are in requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CounterfactualModel {
    /// Prefill work that arrived over about one TTFT, in engine-seconds.
    recent_work: f64,
    /// By split, starting at one prefill engine.
    splits: Vec<Fluid>,
    /// By split: regret, the losses of the advised split minus the losses of that split since it last
    /// became better. It decays with [`REGRET_MEMORY`].
    #[serde(default)]
    regret: Vec<f64>,
    /// The advised split, in prefill engines. It differs from the one in force while flips are off,
    /// on a gateway that follows, or while engines switch.
    #[serde(default)]
    advised: usize,
    /// Whether something other than a plan changed the split; the next input starts from the new one.
    moved: bool,
    /// By split: losses, decayed with the time constant of the regret. For the outlook only.
    #[serde(default)]
    lost: Vec<f64>,
    /// Switching costs at the last input. For the outlook only.
    #[serde(default)]
    costs: Costs,
}

/// Fluid model of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Fluid {
    /// Queued prefill work, in engine-seconds.
    queued: f64,
    /// Prefill work that missed the TTFT target over about one TTFT, in engine-seconds.
    overdue: f64,
}

/// The advised split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Advice {
    /// Prefill engines.
    pub(super) prefills: usize,
    /// Switching cost from the split in force, in lost requests.
    pub(super) switch_cost: f64,
}

/// Switching cost of one engine, in lost requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Costs {
    to_prefill: f64,
    to_decode: f64,
}

impl CounterfactualModel {
    /// Advances every split by one input; `at` prefill engines are in force.
    pub(super) fn follow(&mut self, mut input: GroupInput, at: usize) -> Advice {
        let splits = input.engines - 1;
        if self.splits.len() != splits {
            self.splits = vec![Fluid::default(); splits];
            self.lost = vec![0.0; splits];
            self.start_from(at.clamp(1, splits.max(1)));
        }
        if std::mem::take(&mut self.moved) {
            self.start_from(at);
        }
        let costs = input.costs(at);
        let keep = (-input.elapsed.get() / REGRET_MEMORY.get()).exp();
        self.recent_work = self.recent_work * input.decay_over_ttft() + input.work;
        input.recent_work = self.recent_work;
        let losses: Vec<f64> = self
            .splits
            .iter_mut()
            .enumerate()
            .map(|(slot, fluid)| input.losses(slot + 1, fluid))
            .collect();
        let here = losses.get(self.advised - 1).copied().unwrap_or(0.0);
        for (regret, there) in self.regret.iter_mut().zip(&losses) {
            *regret = (*regret * keep + here - there).max(0.0);
        }
        for (lost, there) in self.lost.iter_mut().zip(&losses) {
            *lost = *lost * keep + there;
        }
        self.costs = costs;
        // An idle group keeps its roles.
        let idle = input.requests <= 0.0 && input.streams <= 0.0;
        if let Some(to) = self.split_to_switch_to(costs).filter(|_| !idle) {
            self.start_from(to);
        }
        Advice { prefills: self.advised, switch_cost: costs.of(at, self.advised) }
    }

    /// Returns every split with its losses, its regret and the cost of a switch to it, from one
    /// prefill engine up. Empty before the first input.
    pub(super) fn outlook(&self) -> Vec<SplitOutlook> {
        let split = |(slot, (lost, regret)): (usize, (&f64, &f64))| SplitOutlook {
            prefill_engines: slot + 1,
            lost_requests: *lost,
            regret_requests: *regret,
            switch_cost_requests: self.costs.of(self.advised, slot + 1),
        };
        self.lost.iter().zip(&self.regret).enumerate().map(split).collect()
    }

    /// Returns the prefill engines of the advised split; 0 before the first input.
    pub(super) fn advised(&self) -> usize {
        self.advised
    }

    /// Records that something other than a plan changed the split: the next
    /// [`follow`](Self::follow) starts from the new one.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// Returns the split whose regret exceeds its switching cost by most, if one does.
    fn split_to_switch_to(&self, costs: Costs) -> Option<usize> {
        let gain = |split: &usize| self.regret[*split - 1] - costs.of(self.advised, *split);
        (1..=self.regret.len())
            .filter(|split| *split != self.advised && gain(split) >= 0.0)
            .max_by(|a, b| gain(a).total_cmp(&gain(b)))
    }

    fn start_from(&mut self, split: usize) {
        self.advised = split;
        self.regret = vec![0.0; self.splits.len()];
    }
}

impl Costs {
    /// Switching cost between two numbers of prefill engines.
    fn of(self, from: usize, to: usize) -> f64 {
        let each = if to > from { self.to_prefill } else { self.to_decode };
        each * to.abs_diff(from) as f64
    }
}

impl GroupInput {
    /// Returns the requests that a split with this many prefill engines loses in this input. Work
    /// of lost requests leaves the fluid model: late requests are served only in idle time.
    pub(super) fn losses(&self, prefills: usize, fluid: &mut Fluid) -> f64 {
        let decodes = (self.engines - prefills) as f64;
        let elapsed = self.elapsed.get();
        let stream_capacity = self.splits.stream_capacity[prefills];
        let step = self.step(self.due.min(stream_capacity) / decodes);
        let idle = (1.0 - step / self.tpot.get()).max(0.0);

        let prefill_capacity = self.splits.prefill_capacity[prefills] + self.spill * decodes * idle;
        fluid.queued = (fluid.queued + self.work - prefill_capacity * elapsed).max(0.0);
        let in_time = prefill_capacity * (self.ttft.get() - self.mean_work).max(0.0);
        let late = (fluid.queued - in_time).max(0.0);
        fluid.queued -= late;
        fluid.overdue = fluid.overdue * self.decay_over_ttft() + late;
        let late = fluid.overdue / self.recent_work.max(1e-9);
        let late_requests = self.requests * longest_share(late.clamp(0.0, 1.0));

        // The running streams occupy decode capacity in every split, in addition to those that the
        // present arrivals will add.
        let streams = self.forecast_streams().max(self.streams).max(stream_capacity).max(1e-9);
        let requests_without_stream = self.requests * (1.0 - stream_capacity / streams);
        late_requests + requests_without_stream
    }

    /// Returns the expected streams one demand window ahead. The number of streams approaches its
    /// steady state with the mean lifetime of a stream, for example 30 s for
    /// answers of 1,000 tokens at a TPOT of 30 ms, and the arrivals may end before. The forecast
    /// therefore reaches no further than the window of the measurement.
    fn forecast_streams(&self) -> f64 {
        let life = (self.mean_output * self.tpot.get()).max(1e-3);
        let near = 1.0 - (-self.window.get() / life).exp();
        self.streams.min(self.due) + (self.due - self.streams).max(0.0) * near
    }

    /// Returns the expected time until the last stream of a decode engine ends, in seconds. The
    /// expected maximum of n exponential lengths with mean m is m·(ln n + 0.58); 0.58 is Euler's
    /// constant.
    fn last_stream(&self, prefills: usize) -> f64 {
        let decodes = self.engines.saturating_sub(prefills).max(1) as f64;
        let streams = (self.streams / decodes).max(1.0);
        self.mean_output * self.tpot.get() * (streams.ln() + 0.58)
    }

    /// Returns the decay factor of this input for sums over about one TTFT target.
    pub(super) fn decay_over_ttft(&self) -> f64 {
        (-self.elapsed.get() / self.ttft.get().max(1e-3)).exp()
    }

    /// Duration of a decode step with this many streams, in seconds.
    fn step(&self, streams: f64) -> f64 {
        let kv = Tokens((streams * self.mean_kv.as_f64()) as u64);
        self.decode.step(streams as u32, kv).get()
    }

    /// Returns the switching costs.
    ///
    /// Instant flip from decode: the engine keeps its streams, and prefill chunks stall them. A
    /// stream at a random point of its answer is lost if the stalls of its remaining tokens exceed
    /// the slack of its past tokens. The cost is [`SWITCH_PRICE`] per lost stream, at least of one
    /// stream. Instant flip from prefill: the engine finishes a chunk; the cost is [`SWITCH_PRICE`].
    ///
    /// Switch by the engine itself (`DrainThenCall`): no stream is lost. The engine is unavailable
    /// until its last stream has ended and the switch is done; the cost is its share of the requests
    /// that arrive meanwhile.
    fn costs(&self, prefills: usize) -> Costs {
        if let Some(switch) = self.switch {
            let away = |drain: f64| {
                let lost = (drain + switch.get()) * self.request_rate / self.engines as f64;
                lost.max(SWITCH_PRICE)
            };
            return Costs {
                to_prefill: away(self.last_stream(prefills)),
                to_decode: away(self.ttft.get()),
            };
        }
        let decodes = self.engines.saturating_sub(prefills).max(1) as f64;
        let streams = self.streams / decodes;
        let slack = (self.tpot.get() - self.step(streams)).max(0.0);
        let stall = (self.chunk.get() - slack).max(0.0);
        let lost = if stall > 0.0 { stall / (stall + slack) } else { 0.0 };
        Costs { to_prefill: SWITCH_PRICE * (streams * lost).max(1.0), to_decode: SWITCH_PRICE }
    }
}

/// Returns the share of requests that have a share `work` of all work, longest requests first. An EDF
/// queue with a late class loses the longest requests first. With exponentially distributed sizes,
/// the longest share q of the requests has q·(1 − ln q) of the work; fixed-point iteration inverts
/// this.
fn longest_share(work: f64) -> f64 {
    if work <= 0.0 || work >= 1.0 {
        return work;
    }
    let mut share = work;
    for _ in 0..6 {
        share = work / (1.0 - share.max(1e-12).ln());
    }
    share
}
