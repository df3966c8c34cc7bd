//! Shadow fleets: what each split of a group, and each way of following the demand, would have cost.
//!
//! A split is a number of prefill engines. Every split is followed all the time as a fluid: the
//! prefill work that arrives waits in its backlog until its engines have served it, and what would
//! wait longer than the TTFT target is counted as requests lost; streams beyond what its decode
//! engines carry within the TPOT target are counted likewise. Changing the split costs the streams
//! that stay on the engines that change.
//!
//! When to change is the question of the ski rental: a [`Follower`] moves to another split once
//! staying has lost as many requests more than that split as the move costs, times its patience.
//! Followers of several patiences run side by side, and the one that has lost the fewest so far, its
//! moves included, is followed. So a shift that lasts is answered at once by the impatient, and
//! shifts that end sooner than they pay are sat out by the patient, without anybody having set how
//! long a shift lasts. Whether to move is told by what was lost; how far, also by what would have been
//! lost under half as much demand again: the nearest split that lost nothing just so stood the last
//! burst.
//!
//! The split of a fleet that has just started was chosen by nobody. Until something is lost it leans:
//! decode engines that are to spare prefill. An engine that goes back costs a chunk, one that is
//! fetched in a burst costs streams.
//!
//! It must never take the real backlog for a split's: one that was never tried is
//! judged by the same fluid as the one in force.

use crate::cost::DecodeModel;
use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Tokens};

use crate::planner::aptitude::Splits;

/// What happened since the last look, and what engines are like.
#[derive(Clone, Debug)]
pub(super) struct Tick {
    /// Since the last look.
    pub(super) elapsed: Seconds,
    /// Usable engines that may have either role.
    pub(super) engines: usize,
    /// Prefill work that arrived, in engine-seconds.
    pub(super) work: f64,
    /// Prefill work that arrived over about one TTFT, this tick's included: see [`Tick::lingers`].
    pub(super) recent_work: f64,
    /// Prefill work that arrives a second: a mean over the demand window.
    pub(super) work_rate: f64,
    /// Prefill work of a mean request.
    pub(super) mean_work: f64,
    /// Streams that there will be if requests go on arriving as they do: by Little's law, at the TPOT
    /// target.
    pub(super) due: f64,
    /// Requests that arrived.
    pub(super) requests: f64,
    /// Requests that arrive a second: a mean over the demand window.
    pub(super) request_rate: f64,
    /// Tokens of a mean answer.
    pub(super) mean_output: f64,
    /// How long demand is watched before it is known.
    pub(super) window: Seconds,
    /// What a role switch takes that engines make themselves once they are idle; `None`: the proxy
    /// alone decides, and nothing is drained.
    pub(super) switch: Option<Seconds>,
    /// Streams in the group.
    pub(super) streams: f64,
    /// What each split serves within the targets.
    pub(super) splits: Splits,
    /// KV tokens of a mean stream.
    pub(super) mean_kv: Tokens,
    /// The mean engine's decode step.
    pub(super) decode: DecodeModel,
    /// How long one prefill chunk takes.
    pub(super) chunk: Seconds,
    /// The TTFT target.
    pub(super) ttft: Seconds,
    /// The TPOT target.
    pub(super) tpot: Seconds,
    /// Share of a decode engine's idle time that short prefills use.
    pub(super) spill: f64,
    /// How long the past counts.
    pub(super) memory: Seconds,
}

/// The shadows of one group. Costs are in requests lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shadows {
    /// Prefill work that arrived over about one TTFT.
    recent_work: f64,
    /// By split, from one prefill engine on.
    splits: Vec<Fluid>,
    /// The same under more demand: see [`STRESS`].
    stressed: Vec<Stressed>,
    followers: Vec<Follower>,
    /// Which follower is followed.
    leader: usize,
    /// The split was changed by somebody else: every follower starts from there.
    moved: bool,
    /// The split in force was chosen, by what was lost or by an operator. Until then it leans.
    chosen: bool,
    /// For how long demand has been seen.
    watched: Seconds,
    /// The largest share of the group that streams filled, or were due to fill.
    filled: f64,
}

/// The work of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Fluid {
    /// Prefill work that waits, in engine-seconds.
    prefill: f64,
    /// Prefill work that came too late, over about one TTFT.
    late: f64,
}

/// One split under more demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stressed {
    fluid: Fluid,
    /// Requests it has lost; what is long past counts less.
    lost: f64,
}

/// One patience.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Follower {
    /// Its factor on the cost of moving.
    patience: f64,
    /// By split: how many requests more it has lost than that split, since that one began to be
    /// better.
    regret: Vec<f64>,
    /// Where it is: prefill engines.
    at: usize,
    /// What it has lost, moves included, but for the last one: that is paid when it is left.
    lost: f64,
    /// What the last move cost.
    owed: f64,
}

/// What the shadows say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Advice {
    /// Prefill engines to have.
    pub(super) prefills: usize,
    /// The patience that was followed.
    pub(super) patience: f64,
    /// What that follower has lost: see [`Follower::lost`].
    pub(super) lost: f64,
    /// What the move costs, in requests lost.
    pub(super) move_costs: f64,
    /// Nothing was lost: decode engines are to spare.
    pub(super) leans: bool,
}

/// What it costs to change the role of one engine, in requests lost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    to_prefill: f64,
    to_decode: f64,
}

/// Of the streams that chunks without a pause would lose, a flip costs as many requests as this share:
/// placement keeps prompts from them while they have no slack, so it is prompts that are late. Seen in
/// the simulator; a third or twice as much changes no figure of docs/evaluation.md by more than half a
/// point.
const HELD_UP: f64 = 0.5;
/// Splits whose losses differ by less than this share of the requests are as good as each other.
const NOISE: f64 = 0.002;
/// Where to move is chosen with so much more demand in mind than there was. Twice as much changes
/// no figure of docs/evaluation.md by more than half a point.
const STRESS: f64 = 1.5;
/// No move is free, or the fleet would follow every flutter.
const MOVE_MIN: f64 = 0.5;
/// From moving as soon as it pays to never moving again once a split has proved best.
const PATIENCES: [f64; 4] = [1.0, 3.0, 10.0, 30.0];

impl Shadows {
    /// Follow every split for one more tick; `at` prefill engines are in force.
    pub(super) fn follow(&mut self, mut tick: Tick, at: usize) -> Advice {
        let splits = tick.engines - 1;
        if self.splits.len() != splits {
            self.restart(splits, at);
        }
        let costs = tick.costs(at);
        let keep = (-tick.elapsed.get() / tick.memory.get().max(1e-3)).exp();
        self.recent_work = self.recent_work * tick.lingers() + tick.work;
        tick.recent_work = self.recent_work;
        if std::mem::take(&mut self.moved) {
            self.followers.iter_mut().for_each(|follower| follower.start_from(at));
            self.chosen = true;
        }
        self.watched += tick.elapsed;
        self.filled = self.filled.max(tick.streams.max(tick.due) / tick.splits.places[0].max(1.0));
        let stress = tick.stressed();
        for (slot, split) in self.stressed.iter_mut().enumerate() {
            split.lost = split.lost * keep + stress.losses(slot + 1, &mut split.fluid);
        }
        let Shadows { splits, stressed, followers, leader, chosen, watched, filled, .. } = self;
        let losses: Vec<f64> =
            splits.iter_mut().enumerate().map(|(i, fluid)| tick.losses(i + 1, fluid)).collect();
        for follower in followers.iter_mut() {
            if let Some(to) = follower.follow(&losses, costs, keep, NOISE * tick.requests) {
                follower.move_to(follower.farther(to, stressed, costs), costs);
                *chosen = true;
            }
        }
        if !*chosen && *watched < tick.window {
            let leans = tick.leans(*filled * (tick.window / *watched));
            if leans > followers[*leader].at {
                followers.iter_mut().for_each(|follower| follower.start_from(leans));
            }
        }
        // Another one takes the lead when it has lost less, the way to where it is included.
        let cost = |slot: &usize| followers[*slot].lost + costs.of(at, followers[*slot].at);
        let lead = followers[*leader].lost;
        let better = (0..followers.len()).filter(|slot| cost(slot) < lead);
        if let Some(better) = better.min_by(|a, b| cost(a).total_cmp(&cost(b))) {
            *leader = better;
        }
        let leader = &followers[*leader];
        Advice {
            prefills: leader.at,
            patience: leader.patience,
            lost: leader.lost,
            move_costs: costs.of(at, leader.at),
            leans: !*chosen,
        }
    }

    /// Somebody else changed the split: the next [`follow`](Self::follow) says to what. What splits
    /// cost is still known.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// The group's size changed: what was learned of other splits no longer holds.
    fn restart(&mut self, splits: usize, at: usize) {
        self.splits = vec![Fluid::default(); splits];
        self.stressed = vec![Stressed::default(); splits];
        let at = at.clamp(1, splits.max(1));
        let follower =
            |patience| Follower { patience, regret: vec![0.0; splits], at, lost: 0.0, owed: 0.0 };
        self.leader = 0;
        self.followers = PATIENCES.into_iter().map(follower).collect();
    }
}

impl Follower {
    fn start_from(&mut self, split: usize) {
        self.at = split;
        self.owed = 0.0;
        self.regret.fill(0.0);
    }

    /// One more tick: the split to move to, if one is worth it.
    fn follow(&mut self, losses: &[f64], costs: Costs, keep: f64, noise: f64) -> Option<usize> {
        let here = losses.get(self.at - 1).copied().unwrap_or(0.0);
        for (regret, there) in self.regret.iter_mut().zip(losses) {
            *regret = (*regret * keep + here - there - noise).max(0.0);
        }
        self.lost = self.lost * keep + here;
        let worth_it = |split: &usize| {
            let price = costs.of(self.at, *split);
            price > 0.0 && self.regret[*split - 1] >= self.patience * price
        };
        let gain = |split: &usize| self.regret[*split - 1] - costs.of(self.at, *split);
        (1..=losses.len()).filter(worth_it).max_by(|a, b| gain(a).total_cmp(&gain(b)))
    }

    /// The split beyond `to` that has lost no more and would have stood more demand, if that is worth
    /// the way; else `to`.
    fn farther(&self, to: usize, stressed: &[Stressed], costs: Costs) -> usize {
        let as_good = |split: &usize| self.regret[*split - 1] >= self.regret[to - 1];
        let cost = |split: usize| stressed[split - 1].lost + costs.of(to, split);
        let nearer = |a: &usize, b: &usize| cost(*a).total_cmp(&cost(*b));
        let beyond = match to > self.at {
            true => (to..=stressed.len()).take_while(as_good).min_by(nearer),
            false => (1..=to).rev().take_while(as_good).min_by(nearer),
        };
        beyond.unwrap_or(to)
    }

    fn move_to(&mut self, to: usize, costs: Costs) {
        self.lost += self.owed;
        let owed = costs.of(self.at, to);
        self.start_from(to);
        self.owed = owed;
    }
}

impl Costs {
    /// Of going from one number of prefill engines to another.
    fn of(self, from: usize, to: usize) -> f64 {
        let each = if to > from { self.to_prefill } else { self.to_decode };
        each * to.abs_diff(from) as f64
    }
}

impl Tick {
    /// The same with more demand.
    fn stressed(&self) -> Tick {
        Tick {
            work: self.work * STRESS,
            recent_work: self.recent_work * STRESS,
            work_rate: self.work_rate * STRESS,
            due: self.due * STRESS,
            streams: self.streams * STRESS,
            splits: self.splits.clone(),
            ..*self
        }
    }

    /// Requests that a split with so many prefill engines loses in this tick. Those it loses are
    /// served when nothing else waits: they leave the fluid.
    fn losses(&self, prefills: usize, fluid: &mut Fluid) -> f64 {
        let decodes = (self.engines - prefills) as f64;
        let elapsed = self.elapsed.get();
        let places = self.splits.places[prefills];
        let step = self.step(self.due.min(places) / decodes);
        let idle = (1.0 - step / self.tpot.get()).max(0.0);

        let serves = self.splits.serves[prefills] + self.spill * decodes * idle;
        fluid.prefill = (fluid.prefill + self.work - serves * elapsed).max(0.0);
        let in_time = serves * (self.ttft.get() - self.mean_work).max(0.2 * self.ttft.get());
        let late = (fluid.prefill - in_time).max(0.0);
        fluid.prefill -= late;
        fluid.late = fluid.late * self.lingers() + late;
        // What is late already, and what will be if work goes on arriving as it does.
        let late = fluid.late / self.recent_work.max(1e-9);
        let to_be_late = 1.0 - serves / self.work_rate.max(1e-9);
        let untimely = self.requests * shed(late.max(to_be_late).clamp(0.0, 1.0));

        // The streams that the present requests will become must find places; and those there are
        // would have to decode in any split.
        let crowd = self.soon().max(self.streams).max(places).max(1e-9);
        let crowded_out = self.requests * (1.0 - places / crowd);
        untimely + crowded_out
    }

    /// Streams that there will be a demand window from now: as far ahead as is looked back. Answers of
    /// a thousand tokens fill a fleet in the better part of a minute, and may have ended coming then.
    fn soon(&self) -> f64 {
        let life = (self.mean_output * self.tpot.get()).max(1e-3);
        let near = 1.0 - (-self.window.get() / life).exp();
        self.streams.min(self.due) + (self.due - self.streams).max(0.0) * near
    }

    /// The most prefill engines that leave places for half as many streams again as fill a share
    /// `filled` of the group. Engines that switch by themselves would be away for it.
    fn leans(&self, filled: f64) -> usize {
        let places = &self.splits.places;
        let enough = |prefills: &usize| places[*prefills] >= STRESS * filled * places[0];
        let stay = self.switch.is_some();
        (1..self.engines).rev().filter(|_| !stay).find(enough).unwrap_or(1)
    }

    /// How long the last of a decode engine's streams goes on, in seconds. Of n remaining lengths that
    /// are exponential with mean m the longest is m·(ln n + 0.58).
    fn last_stream(&self, prefills: usize) -> f64 {
        let decodes = self.engines.saturating_sub(prefills).max(1) as f64;
        let streams = (self.streams / decodes).max(1.0);
        self.mean_output * self.tpot.get() * (streams.ln() + 0.58)
    }

    /// What remains of a sum over one TTFT.
    pub(super) fn lingers(&self) -> f64 {
        (-self.elapsed.get() / self.ttft.get().max(1e-3)).exp()
    }

    /// A decode step with so many streams, in seconds.
    fn step(&self, streams: f64) -> f64 {
        let kv = Tokens((streams * self.mean_kv.as_f64()) as u64);
        self.decode.step(streams as u32, kv).get()
    }

    /// What a change of role costs.
    ///
    /// An engine that leaves decode keeps its streams. One of them, anywhere in its answer, is lost if
    /// the chunks that hold up its remaining tokens take more than the slack its past tokens have
    /// earned. An engine that leaves prefill finishes a chunk. Neither is free: one request.
    ///
    /// One that switches by itself loses no stream, but is away until its last one has ended, and
    /// then for the switch; meanwhile the requests of its share may be lost.
    fn costs(&self, prefills: usize) -> Costs {
        if let Some(switch) = self.switch {
            let away = |drain: f64| {
                let lost = (drain + switch.get()) * self.request_rate / self.engines as f64;
                lost.max(MOVE_MIN)
            };
            return Costs {
                to_prefill: away(self.last_stream(prefills)),
                to_decode: away(self.ttft.get()),
            };
        }
        let decodes = self.engines.saturating_sub(prefills).max(1) as f64;
        let streams = self.streams / decodes;
        let slack = (self.tpot.get() - self.step(streams)).max(0.0);
        let hold_up = (self.chunk.get() - slack).max(0.0);
        let lost = if hold_up > 0.0 { hold_up / (hold_up + slack) } else { 0.0 };
        Costs { to_prefill: (streams * lost * HELD_UP).max(MOVE_MIN), to_decode: MOVE_MIN }
    }
}

/// The share of requests that must go if a share `work` of their work is to go and the longest go
/// first, which is what becomes of them in a queue by deadline with the hopeless last. For
/// exponential sizes the longest share q holds q·(1 - ln q) of the work.
fn shed(work: f64) -> f64 {
    if work <= 0.0 || work >= 1.0 {
        return work;
    }
    let mut share = work;
    for _ in 0..6 {
        share = work / (1.0 - share.max(1e-12).ln());
    }
    share
}
