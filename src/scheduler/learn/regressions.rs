//! The regressions of all backends.

use crate::cost::{
    ByteEstimator, DecodeModel, DecodeRegression, OutputEstimate, PrefillModel, PrefillRegression,
    TransferModel,
};
use crate::inflight::Balance;
use crate::learn::cache::{HitShareEstimator, HitSource};
use crate::learn::decode_runs::DecodeRuns;
use crate::learn::hand_offs::HandOffRegressions;
use crate::learn::hypothesis_models::HypothesisModels;
use crate::learn::peers::{Cost, Learned, median};
use crate::learn::steps::{Hypotheses, Step, Steps};
use crate::learn::{PrefillSample, Sample};
use std::collections::BTreeMap;
use tidegate_types::{BackendId, GroupId, Moment, Seconds, Tokens};

/// Learned length estimates.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    /// Expected output tokens of a request.
    pub output: OutputEstimate,
    /// Tokens of a text without a tokenizer, from its bytes.
    pub bytes: ByteEstimator,
}

/// A backend's costs before the first observation, from the settings or the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Priors {
    /// Cost of a prefill.
    pub prefill: PrefillModel,
    /// Cost of a decode step.
    pub decode: DecodeModel,
}

/// Largest unknown waiting time, as a share of a prefill's measured time, with which the measurement
/// is a point observation. Above it the measurement is an interval observation. Without this limit, a
/// phase of short prompts with waits led to twice the true cost of long prompts.
const WAIT_SHARE_MAX: f64 = 0.1;
/// Fewest timed decode steps with which the time of a non-streamed answer is divided into prefill and
/// decode.
const STEPS_KNOWN: u64 = 4;
/// Largest share of decode in the time of a non-streamed answer with which the division is a point
/// observation of the prefill.
const STEPS_SHARE_MAX: f64 = 0.5;

/// Observations that move a regression away from its prior: `HELD_WEIGHT` in `robust_regression.rs`.
const MOVES_PRIOR_AFTER: u64 = 4;

/// The regressions of all backends.
pub struct CostRegressions {
    backends: Vec<BackendRegressions>,
    hand_offs: HandOffRegressions,
    estimates: Estimates,
    /// `max_num_batched_tokens` of the engines.
    chunk: Tokens,
}

struct BackendRegressions {
    priors: Priors,
    prefill: PrefillRegression,
    /// Whether the prior is the default and no prefill has been measured precisely yet.
    default_prior: bool,
    decode: DecodeRegression,
    steps: Steps,
    cache: HitShareEstimator,
    hypothesis_models: HypothesisModels,
    decode_runs: DecodeRuns,
}

impl CostRegressions {
    /// Regressions that start from `priors`, one per backend slot.
    pub fn new(priors: Vec<Priors>, estimates: Estimates, chunk: Tokens) -> CostRegressions {
        let backends = priors.into_iter().map(BackendRegressions::new).collect();
        CostRegressions { backends, hand_offs: HandOffRegressions::default(), estimates, chunk }
    }

    /// Changes `max_num_batched_tokens` of the engines.
    pub fn set_chunk(&mut self, chunk: Tokens) {
        self.chunk = chunk;
    }

    /// Starts the regressions of a backend that joins, in place of those of the one that had its
    /// slot.
    pub fn join(&mut self, backend: BackendId, priors: Priors) {
        backend.put(&mut self.backends, BackendRegressions::new(priors));
    }

    /// Takes one observation received at `now`.
    pub fn observe(&mut self, sample: Sample, now: Moment) {
        match sample {
            Sample::Prefill(prefill) => {
                let chunk = self.chunk;
                let backend = &mut self.backends[prefill.backend.index()];
                backend.cache.predicted(prefill.predicted_hit);
                let prompt = backend.cache.hypotheses(&prefill);
                let base = backend.decode.model().base;
                if let Some(step) = backend.steps.join(&prefill, prompt, base) {
                    backend.learn_step(step, chunk, now);
                }
            }
            Sample::Colocated { prefill, output } => {
                let backend = &mut self.backends[prefill.backend.index()];
                backend.cache.predicted(prefill.predicted_hit);
                backend.learn_colocated(&prefill, output, now);
            }
            Sample::Hit { backend, predicted_hit, cached } => {
                self.backends[backend.index()].cache.reported_hit(predicted_hit, cached, now);
            }
            Sample::Counted { backend, hits } => {
                self.backends[backend.index()].cache.counted(hits, now);
            }
            Sample::HandOff(sample) => {
                let decode = self.backends[sample.backend.index()].decode.model();
                self.hand_offs.observe(&sample, &decode);
            }
            Sample::Finished { max_tokens, counted, output, prompt, features } => {
                self.estimates.output.observe(max_tokens, counted, output);
                if let (Some(features), Some(prompt)) = (features, prompt) {
                    self.estimates.bytes.observe(&features, prompt);
                }
            }
        }
    }

    /// Observes the steps to which no further prompt can belong at `now`.
    pub fn end_steps(&mut self, now: Moment) {
        for backend in &mut self.backends {
            let base = backend.decode.model().base;
            if let Some(step) = backend.steps.ended_before(now, base) {
                backend.learn_step(step, self.chunk, now);
            }
        }
    }

    /// Returns the share (0 to 1) of predicted prefix cache hits that is real on a backend, and its
    /// source.
    pub fn hit_share(&self, backend: BackendId) -> (f64, HitSource) {
        self.backends[backend.index()].cache.share()
    }

    /// Samples the decode work of every backend, given the accounts by backend slot. To be called
    /// every few milliseconds, because a step is timed by the samples before and after its end.
    pub fn sample_decodes(
        &mut self,
        accounts: impl Iterator<Item = (Balance, Balance)>,
        now: Moment,
    ) {
        for ((own, others), backend) in accounts.zip(&mut self.backends) {
            if let Some(steps) = backend.decode_runs.sample(&own, &others, now) {
                backend.decode.observe(steps.streams, steps.kv, steps.gap);
            }
        }
    }

    /// Returns the learned costs of a backend. While it has fewer than [`MOVES_PRIOR_AFTER`]
    /// observations of one kind of work, the cost of that kind is its prior with the median
    /// correction of `peers`: an engine with too high a prior would receive no work from which to
    /// learn. The slowness of the backend at the other kind of work is a factor on that cost,
    /// because a throttled GPU is slow at both.
    pub fn models(
        &self,
        backend: BackendId,
        peers: impl Iterator<Item = BackendId> + Clone,
    ) -> (PrefillModel, DecodeModel) {
        let peers = Peers::of(peers.map(|peer| &self.backends[peer.index()]));
        self.backends[backend.index()].models(&peers)
    }

    /// Returns the learned costs of all backends by slot, each with its group as peers: equal to
    /// [`CostRegressions::models`], in linear time.
    pub fn costs(&self, groups: &[GroupId]) -> Vec<(PrefillModel, DecodeModel)> {
        let mut members: BTreeMap<GroupId, Vec<&BackendRegressions>> = BTreeMap::new();
        for (group, backend) in groups.iter().zip(&self.backends) {
            members.entry(*group).or_default().push(backend);
        }
        let peers: BTreeMap<GroupId, Peers> = members
            .into_iter()
            .map(|(group, members)| (group, Peers::of(members.into_iter())))
            .collect();
        let costs = groups.iter().zip(&self.backends);
        costs.map(|(group, backend)| backend.models(&peers[group])).collect()
    }

    /// Takes the groups of the routing table, by backend slot.
    pub fn regroup(&mut self, groups: impl Iterator<Item = GroupId> + Clone) {
        self.hand_offs.regroup(groups);
    }

    /// Returns the learned cost of a hand-off within a group.
    pub fn transfer(&self, group: GroupId) -> TransferModel {
        self.hand_offs.model(group)
    }

    /// Returns the learned length estimates.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }
}

/// The median peers of a group at both kinds of work.
struct Peers {
    prefill: Option<Learned<PrefillModel>>,
    decode: Option<Learned<DecodeModel>>,
}

impl Peers {
    fn of<'a>(members: impl Iterator<Item = &'a BackendRegressions> + Clone) -> Peers {
        Peers {
            prefill: median(members.clone().filter_map(BackendRegressions::learned_prefill)),
            decode: median(members.filter_map(BackendRegressions::learned_decode)),
        }
    }
}

impl BackendRegressions {
    /// See [`CostRegressions::models`].
    fn models(&self, peers: &Peers) -> (PrefillModel, DecodeModel) {
        let (prefill, decode) = (self.learned_prefill(), self.learned_decode());
        let Priors { prefill: prefill_prior, decode: decode_prior } = self.priors;
        (
            cost(prefill_prior, prefill, peers.prefill, slowness(decode, peers.decode)),
            cost(decode_prior, decode, peers.decode, slowness(prefill, peers.prefill)),
        )
    }

    /// Returns the prefill cost; `None` before [`MOVES_PRIOR_AFTER`] observations.
    fn learned_prefill(&self) -> Option<Learned<PrefillModel>> {
        let learned = Learned { prior: self.priors.prefill, model: self.prefill.model() };
        (self.prefill.observations() >= MOVES_PRIOR_AFTER).then_some(learned)
    }

    /// Returns the decode cost; `None` before [`MOVES_PRIOR_AFTER`] observations.
    fn learned_decode(&self) -> Option<Learned<DecodeModel>> {
        let learned = Learned { prior: self.priors.decode, model: self.decode.model() };
        (self.decode.observations() >= MOVES_PRIOR_AFTER).then_some(learned)
    }

    fn new(priors: Priors) -> BackendRegressions {
        let default_prior = priors.prefill == PrefillModel::default();
        BackendRegressions {
            priors,
            prefill: PrefillRegression::new(priors.prefill),
            default_prior,
            decode: DecodeRegression::new(priors.decode),
            steps: Steps::default(),
            cache: HitShareEstimator::new(!default_prior),
            hypothesis_models: HypothesisModels::new(priors.prefill),
            decode_runs: DecodeRuns::default(),
        }
    }

    /// Observes a step with prefills. The time of its decode streams is subtracted and, if the first
    /// prompt may have waited for the end of a decode step, half of that step's time.
    fn learn_step(&mut self, step: Step, chunk: Tokens, now: Moment) {
        let decode = self.decode.model();
        let beside = step.beside;
        let steps = step.prompts.full.tokens().get().div_ceil(chunk.get().max(1)) as f64;
        let shared = decode.beside_prefill(beside.streams, beside.kv) * steps;
        let waits = beside.streams > 0 && beside.mid_step && !step.follows;
        let wait = if waits { decode.step(beside.streams, beside.kv) } else { Seconds::ZERO };
        let alone = step.took - shared;
        if wait / 2.0 <= step.took * WAIT_SHARE_MAX {
            self.default_prior = false;
            return self.learn(&step.prompts, alone - wait / 2.0, now);
        }
        if self.default_prior && step.prompts.agree() {
            // An imprecise observation is better than the default prior.
            self.prefill.observe_batch(&step.prompts.full, alone - wait / 2.0);
            return;
        }
        self.learn_between(&step.prompts, alone - wait, alone);
    }

    /// Observes a non-streamed answer. Its total time is an upper bound of the prefill.
    fn learn_colocated(&mut self, prefill: &PrefillSample, output: Tokens, now: Moment) {
        let prompt = self.cache.hypotheses(prefill);
        let took = prefill.ended - prefill.sent;
        let gaps = output.as_f64() - 1.0;
        let step = self.decode.model().step(1, prefill.prompt);
        let decode = step * gaps.max(0.0);
        let known = gaps <= 0.0 || self.decode.observations() >= STEPS_KNOWN;
        let alone = prefill.beside.streams == 0 && prefill.beside.mid_step;
        if alone && known && decode <= took * STEPS_SHARE_MAX {
            self.default_prior = false;
            return self.learn(&prompt, took - decode, now);
        }
        // A prefill step takes at least as long as a decode step: the upper bound is at least the
        // mean step of the answer.
        let most = if known { took - decode } else { took };
        self.learn_between(&prompt, Seconds::ZERO, most.max(took / (gaps + 1.0).max(1.0)));
    }

    /// Adds a point observation: the engine computed `prompts` in `took`.
    fn learn(&mut self, prompts: &Hypotheses, took: Seconds, now: Moment) {
        if let Some(batch) = self.cache.judge(prompts, &self.prefill.model(), took, now) {
            self.prefill.observe_batch(&batch, took);
        }
        if let Some((share, regression)) = self.hypothesis_models.observe(prompts, took)
            && self.cache.correct_share(share, now)
        {
            self.prefill = regression.clone();
        }
    }

    /// Adds an interval observation: the engine computed `prompts` in `least` to `most`. The lower
    /// bound applies if nothing was cached, the upper bound if all predicted hits were real.
    fn learn_between(&mut self, prompts: &Hypotheses, least: Seconds, most: Seconds) {
        if !self.default_prior {
            self.prefill.observe_between(&prompts.full, least, Seconds(f64::INFINITY));
        }
        self.prefill.observe_between(&prompts.hit, Seconds::ZERO, most);
    }
}

/// Returns the cost of one kind of work: the backend's own, else its prior with the correction of the
/// median peer times its slowness, else its prior.
fn cost<M: Cost>(prior: M, own: Option<Learned<M>>, peer: Option<Learned<M>>, slowness: f64) -> M {
    match (own, peer) {
        (Some(own), _) => own.model,
        (None, Some(peer)) => peer.correct(prior).scaled(slowness),
        (None, None) => prior,
    }
}

fn slowness<M: Cost>(own: Option<Learned<M>>, peer: Option<Learned<M>>) -> f64 {
    own.zip(peer).map_or(1.0, |(own, peer)| own.slowness(&peer))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
