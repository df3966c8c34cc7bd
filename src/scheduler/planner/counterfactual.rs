//! Counterfactual model: the requests that each split of a group would have lost, and when to
//! switch.
//!
//! A split is a number of prefill engines. A fluid model of every split runs on the measured
//! demand. Prefill work that would wait longer than the TTFT target counts as lost requests, and so
//! do streams beyond what the decode engines carry within the TPOT target. The switching cost
//! counts the streams left on the engines that flip.
//!
//! Ski rental: the group switches to another split once its regret, the losses in force minus the
//! losses of that split, reaches the switching cost. Persistent shifts in demand are followed, and
//! shifts that end before they pay are ignored; no parameter sets the length of a shift.
//!
//! The measured queue is not an input: comparing a real backlog with a modelled one would bias the
//! comparison between the split in force and the others.

use crate::cost::DecodeModel;
use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Tokens};

use crate::planner::comparative_advantage::Splits;
use crate::planner::outlook::SplitOutlook;
use crate::tuning::{REGRET_MEMORY, SWITCH_PRICE};

/// Demand since the last tick, and the capacity of the engines.
#[derive(Clone, Debug)]
pub(super) struct Tick {
    /// Time since the last tick.
    pub(super) elapsed: Seconds,
    /// Usable engines that may take either role.
    pub(super) engines: usize,
    /// Prefill work that arrived, in engine-seconds.
    pub(super) work: f64,
    /// Prefill work that arrived over about one TTFT, in engine-seconds, this tick included: see
    /// [`Tick::lingers`].
    pub(super) recent_work: f64,
    /// Prefill work of a mean request, in engine-seconds.
    pub(super) mean_work: f64,
    /// Streams in equilibrium at the present arrival rate: Little's law at the TPOT target.
    pub(super) due: f64,
    /// Requests that arrived since the last tick.
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
    /// Streams in the group.
    pub(super) streams: f64,
    /// Capacity of each split within the targets.
    pub(super) splits: Splits,
    /// KV tokens of a mean stream.
    pub(super) mean_kv: Tokens,
    /// The mean engine's decode step.
    pub(super) decode: DecodeModel,
    /// Duration of one prefill chunk.
    pub(super) chunk: Seconds,
    /// The TTFT target.
    pub(super) ttft: Seconds,
    /// The TPOT target.
    pub(super) tpot: Seconds,
    /// Share of a decode engine's idle time that short prefills use.
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
    /// became better.
    #[serde(default)]
    regret: Vec<f64>,
    /// The advised split, in prefill engines. It differs from the one in force while flips are off,
    /// on a gateway that follows, or while engines switch.
    #[serde(default)]
    at: usize,
    /// Whether the split was changed other than by a plan; the next tick starts from the new one.
    moved: bool,
    /// By split: losses over the time constant of the regret. Shown, not used by decisions.
    #[serde(default)]
    lost: Vec<f64>,
    /// Switching costs at the last tick. Shown, not used by decisions.
    #[serde(default)]
    costs: Costs,
}

/// Fluid model of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Fluid {
    /// Queued prefill work, in engine-seconds.
    prefill: f64,
    /// Prefill work that missed the TTFT target over about one TTFT, in engine-seconds.
    late: f64,
}

/// The advised split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Advice {
    /// Prefill engines.
    pub(super) prefills: usize,
    /// Switching cost from the split in force, in lost requests.
    pub(super) move_costs: f64,
}

/// Switching cost of one engine, in lost requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Costs {
    to_prefill: f64,
    to_decode: f64,
}

impl CounterfactualModel {
    /// Advances every split by one tick; `at` prefill engines are in force.
    pub(super) fn follow(&mut self, mut tick: Tick, at: usize) -> Advice {
        let splits = tick.engines - 1;
        if self.splits.len() != splits {
            self.splits = vec![Fluid::default(); splits];
            self.lost = vec![0.0; splits];
            self.start_from(at.clamp(1, splits.max(1)));
        }
        if std::mem::take(&mut self.moved) {
            self.start_from(at);
        }
        let costs = tick.costs(at);
        let keep = (-tick.elapsed.get() / REGRET_MEMORY.get()).exp();
        self.recent_work = self.recent_work * tick.lingers() + tick.work;
        tick.recent_work = self.recent_work;
        let losses: Vec<f64> = self
            .splits
            .iter_mut()
            .enumerate()
            .map(|(slot, fluid)| tick.losses(slot + 1, fluid))
            .collect();
        let here = losses.get(self.at - 1).copied().unwrap_or(0.0);
        for (regret, there) in self.regret.iter_mut().zip(&losses) {
            *regret = (*regret * keep + here - there).max(0.0);
        }
        for (lost, there) in self.lost.iter_mut().zip(&losses) {
            *lost = *lost * keep + there;
        }
        self.costs = costs;
        // An idle group keeps its roles.
        let idle = tick.requests <= 0.0 && tick.streams <= 0.0;
        if let Some(to) = self.better(costs).filter(|_| !idle) {
            self.start_from(to);
        }
        Advice { prefills: self.at, move_costs: costs.of(at, self.at) }
    }

    /// Returns every split with its losses, its regret and the cost of a switch to it, from one
    /// prefill engine up. Empty before the first tick.
    pub(super) fn outlook(&self) -> Vec<SplitOutlook> {
        let split = |(slot, (lost, regret)): (usize, (&f64, &f64))| SplitOutlook {
            prefill_engines: slot + 1,
            lost_requests: *lost,
            regret_requests: *regret,
            switch_cost_requests: self.costs.of(self.at, slot + 1),
        };
        self.lost.iter().zip(&self.regret).enumerate().map(split).collect()
    }

    /// Returns the prefill engines of the advised split; 0 before the first tick.
    pub(super) fn advised(&self) -> usize {
        self.at
    }

    /// Notes a change of the split other than by a plan: the next [`follow`](Self::follow) starts
    /// from the new split.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// Returns the split whose regret exceeds its switching cost by most, if one does.
    fn better(&self, costs: Costs) -> Option<usize> {
        let gain = |split: &usize| self.regret[*split - 1] - costs.of(self.at, *split);
        (1..=self.regret.len())
            .filter(|split| *split != self.at && gain(split) >= 0.0)
            .max_by(|a, b| gain(a).total_cmp(&gain(b)))
    }

    fn start_from(&mut self, split: usize) {
        self.at = split;
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

impl Tick {
    /// Returns the requests that a split with this many prefill engines loses in this tick. Lost
    /// requests are served when nothing else waits, so their work leaves the fluid model.
    pub(super) fn losses(&self, prefills: usize, fluid: &mut Fluid) -> f64 {
        let decodes = (self.engines - prefills) as f64;
        let elapsed = self.elapsed.get();
        let places = self.splits.places[prefills];
        let step = self.step(self.due.min(places) / decodes);
        let idle = (1.0 - step / self.tpot.get()).max(0.0);

        let serves = self.splits.serves[prefills] + self.spill * decodes * idle;
        fluid.prefill = (fluid.prefill + self.work - serves * elapsed).max(0.0);
        let in_time = serves * (self.ttft.get() - self.mean_work).max(0.0);
        let late = (fluid.prefill - in_time).max(0.0);
        fluid.prefill -= late;
        fluid.late = fluid.late * self.lingers() + late;
        let late = fluid.late / self.recent_work.max(1e-9);
        let untimely = self.requests * longest_share(late.clamp(0.0, 1.0));

        // The streams that result from the present requests need decode capacity. The streams that
        // run now count in every split.
        let crowd = self.soon().max(self.streams).max(places).max(1e-9);
        let crowded_out = self.requests * (1.0 - places / crowd);
        untimely + crowded_out
    }

    /// Expected streams one demand window ahead: the forecast reaches as far as the measurement.
    /// Answers of a thousand tokens fill a fleet in the better part of a minute, and their arrivals
    /// may have ended by then.
    fn soon(&self) -> f64 {
        let life = (self.mean_output * self.tpot.get()).max(1e-3);
        let near = 1.0 - (-self.window.get() / life).exp();
        self.streams.min(self.due) + (self.due - self.streams).max(0.0) * near
    }

    /// Expected remaining duration of the last stream of a decode engine, in seconds. The longest
    /// of n exponential remaining lengths with mean m is m·(ln n + 0.58).
    fn last_stream(&self, prefills: usize) -> f64 {
        let decodes = self.engines.saturating_sub(prefills).max(1) as f64;
        let streams = (self.streams / decodes).max(1.0);
        self.mean_output * self.tpot.get() * (streams.ln() + 0.58)
    }

    /// Decay factor of a sum over one TTFT in this tick.
    pub(super) fn lingers(&self) -> f64 {
        (-self.elapsed.get() / self.ttft.get().max(1e-3)).exp()
    }

    /// Duration of a decode step with this many streams, in seconds.
    fn step(&self, streams: f64) -> f64 {
        let kv = Tokens((streams * self.mean_kv.as_f64()) as u64);
        self.decode.step(streams as u32, kv).get()
    }

    /// Returns the switching costs.
    ///
    /// Instant flip: an engine that leaves decode keeps its streams. A stream at a random point of
    /// its answer is lost if the prefill chunks delay its remaining tokens by more than the slack
    /// that its past tokens have earned. The cost is [`SWITCH_PRICE`] of these streams, at least of
    /// one. An engine that leaves prefill finishes a chunk, and costs [`SWITCH_PRICE`].
    ///
    /// Switch by the engine itself: no stream is lost, but the engine is away until its last stream
    /// has ended, and then for the switch; meanwhile its share of the requests may be lost.
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

/// Returns the share of requests that carry a share `work` of all work, the longest first: an EDF queue
/// with a late class delays the longest. For exponential sizes the longest share q holds q·(1 - ln q)
/// of the work.
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
