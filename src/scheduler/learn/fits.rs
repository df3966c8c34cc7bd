//! The regressions of all backends.

use crate::cost::{
    ByteEstimator, DecodeFit, DecodeModel, OutputEstimate, PrefillFit, PrefillModel, TransferModel,
};
use crate::inflight::Balance;
use crate::learn::cache::{CacheTruth, HitSource};
use crate::learn::hand_offs::HandOffFits;
use crate::learn::rivals::Rivals;
use crate::learn::steps::{Hypotheses, Step, Steps};
use crate::learn::{PrefillSample, Sample};
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

/// Upper bound of the unknown waiting time, as a share of a prefill's measured time, up to which
/// the measurement is used as a point. Above it, the measurement only bounds the cost: a regression
/// through a phase of short prompts with waits predicted twice the true cost of long prompts.
const VAGUE: f64 = 0.1;
/// Timed decode steps required before the time of a non-streamed answer is divided into prefill and
/// decode.
const STEPS_KNOWN: u64 = 4;
/// That division counts as a measurement of the prefill while decode steps are at most this share
/// of the answer's time.
const STEPS_SHARE_MAX: f64 = 0.5;

/// The regressions of all backends.
pub struct Fits {
    backends: Vec<BackendFit>,
    hand_offs: HandOffFits,
    estimates: Estimates,
    /// `max_num_batched_tokens` of the engines.
    chunk: Tokens,
}

struct BackendFit {
    prefill: PrefillFit,
    /// Whether the prior is the default and no prefill has been measured precisely yet.
    guessed: bool,
    decode: DecodeFit,
    steps: Steps,
    cache: CacheTruth,
    rivals: Rivals,
    /// The backend's account at the previous sample.
    before: Option<Look>,
}

/// A sample of a backend's decode work.
#[derive(Clone, Copy)]
struct Look {
    at: Moment,
    emitted: Tokens,
    streams: u32,
}

impl Fits {
    /// Regressions that start from `priors`, one per backend slot.
    pub fn new(priors: Vec<Priors>, estimates: Estimates, chunk: Tokens) -> Fits {
        let backends = priors.into_iter().map(BackendFit::new).collect();
        Fits { backends, hand_offs: HandOffFits::default(), estimates, chunk }
    }

    /// Changes `max_num_batched_tokens` of the engines.
    pub fn set_chunk(&mut self, chunk: Tokens) {
        self.chunk = chunk;
    }

    /// Starts the regressions of a backend that joins, in place of those of the one that had its
    /// slot.
    pub fn join(&mut self, backend: BackendId, priors: Priors) {
        backend.put(&mut self.backends, BackendFit::new(priors));
    }

    /// Takes one observation received at `now`.
    pub fn take(&mut self, sample: Sample, now: Moment) {
        match sample {
            Sample::Prefill(read) => {
                let chunk = self.chunk;
                let fit = &mut self.backends[read.backend.index()];
                fit.cache.predicted(read.predicted_hit);
                let prompt = fit.cache.hypotheses(&read);
                let base = fit.decode.model().base;
                if let Some(step) = fit.steps.join(&read, prompt, base) {
                    fit.learn_step(step, chunk, now);
                }
            }
            Sample::Whole { read, output } => {
                let fit = &mut self.backends[read.backend.index()];
                fit.cache.predicted(read.predicted_hit);
                fit.learn_whole(&read, output, now);
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

    /// Learns from steps that ended long enough before `now` that no further prompt can belong to
    /// them.
    pub fn settle(&mut self, now: Moment) {
        for fit in &mut self.backends {
            let base = fit.decode.model().base;
            if let Some(step) = fit.steps.ended_before(now, base) {
                fit.learn_step(step, self.chunk, now);
            }
        }
    }

    /// Measured share (0 to 1) of predicted prefix-cache hits that are real on a backend, and its
    /// source.
    pub fn hit_share(&self, backend: BackendId) -> (f64, HitSource) {
        self.backends[backend.index()].cache.share()
    }

    /// Samples every backend's decode work, given the accounts by backend slot. The mean inter-token gap of a stream is elapsed time ×
    /// streams / tokens since the previous sample. Samples during which the backend prefilled, or
    /// its number of streams changed, are skipped.
    pub fn watch_decodes(&mut self, accounts: impl Iterator<Item = Balance>, now: Moment) {
        for (balance, fit) in accounts.zip(&mut self.backends) {
            let look = Look { at: now, emitted: balance.emitted, streams: balance.streams };
            let before = fit.before.replace(look);
            let Some(before) = before.filter(|_| balance.prefill_legs == 0) else { continue };
            let tokens = (look.emitted - before.emitted).as_f64();
            if before.streams == look.streams && look.streams > 0 && tokens > 0.0 {
                let gap = (now - before.at) * (f64::from(look.streams) / tokens);
                fit.decode.observe(look.streams, balance.kv, gap);
            }
        }
    }

    /// The learned costs of a backend. A backend without prior and observations takes the model of
    /// the first of `peers` that has observations: with a default that overestimates the cost it
    /// would receive no work to learn from.
    pub fn models(
        &self,
        backend: BackendId,
        peers: impl Iterator<Item = BackendId> + Clone,
    ) -> (PrefillModel, DecodeModel) {
        let fit = &self.backends[backend.index()];
        let mut peers = peers.map(|peer| &self.backends[peer.index()]);
        let (mut prefill, mut decode) = (fit.prefill.model(), fit.decode.model());
        if fit.prefill.observations() == 0 && prefill == PrefillModel::default() {
            let seen = peers.clone().find(|peer| peer.prefill.observations() > 0);
            prefill = seen.map_or(prefill, |peer| peer.prefill.model());
        }
        if fit.decode.observations() == 0 && decode == DecodeModel::default() {
            let seen = peers.find(|peer| peer.decode.observations() > 0);
            decode = seen.map_or(decode, |peer| peer.decode.model());
        }
        (prefill, decode)
    }

    /// Takes the groups of the routing table, by backend slot.
    pub fn regroup(&mut self, groups: impl Iterator<Item = GroupId> + Clone) {
        self.hand_offs.regroup(groups);
    }

    /// The learned cost of a hand-off within a group.
    pub fn transfer(&self, group: GroupId) -> TransferModel {
        self.hand_offs.model(group)
    }

    /// The learned length estimates.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }
}

impl BackendFit {
    fn new(priors: Priors) -> BackendFit {
        let guessed = priors.prefill == PrefillModel::default();
        BackendFit {
            prefill: PrefillFit::new(priors.prefill),
            guessed,
            decode: DecodeFit::new(priors.decode),
            steps: Steps::default(),
            cache: CacheTruth::new(!guessed),
            rivals: Rivals::new(priors.prefill),
            before: None,
        }
    }

    /// Learns from prompts that ended with one step. From the step's time it subtracts the share of
    /// the decode streams beside it and, if the first prompt may have waited for the end of a
    /// running decode step, half of that step's time.
    fn learn_step(&mut self, step: Step, chunk: Tokens, now: Moment) {
        let decode = self.decode.model();
        let beside = step.beside;
        let steps = step.prompts.full.tokens().get().div_ceil(chunk.get().max(1)) as f64;
        let shared = decode.beside_prefill(beside.streams, beside.kv) * steps;
        let waits = beside.streams > 0 && beside.mid_step && !step.follows;
        let wait = if waits { decode.step(beside.streams, beside.kv) } else { Seconds::ZERO };
        let alone = step.took - shared;
        if wait / 2.0 <= step.took * VAGUE {
            self.guessed = false;
            return self.learn(&step.prompts, alone - wait / 2.0, now);
        }
        if self.guessed && step.prompts.are_one() {
            // More precise than the default prior.
            self.prefill.observe_batch(&step.prompts.full, alone - wait / 2.0);
            return;
        }
        self.learn_between(&step.prompts, alone - wait, alone);
    }

    /// Learns from a non-streamed answer, whose total time bounds the prefill from above.
    fn learn_whole(&mut self, read: &PrefillSample, output: Tokens, now: Moment) {
        let prompt = self.cache.hypotheses(read);
        let took = read.ended - read.sent;
        let gaps = output.as_f64() - 1.0;
        let step = self.decode.model().step(1, read.prompt);
        let decode = step * gaps.max(0.0);
        let known = gaps <= 0.0 || self.decode.observations() >= STEPS_KNOWN;
        let alone = read.beside.streams == 0 && read.beside.mid_step;
        if alone && known && decode <= took * STEPS_SHARE_MAX {
            self.guessed = false;
            return self.learn(&prompt, took - decode, now);
        }
        // The prefill step takes at least as long as a decode step, so the upper bound is never
        // below the answer's mean step.
        let most = if known { took - decode } else { took };
        self.learn_between(&prompt, Seconds::ZERO, most.max(took / (gaps + 1.0).max(1.0)));
    }

    /// Learns that the engine computed `prompts` in `took`.
    fn learn(&mut self, prompts: &Hypotheses, took: Seconds, now: Moment) {
        if let Some(batch) = self.cache.judge(prompts, &self.prefill.model(), took, now) {
            self.prefill.observe_batch(&batch, took);
        }
        if let Some((share, fit)) = self.rivals.observe(prompts, took)
            && self.cache.is_corrected(share, now)
        {
            self.prefill = fit.clone();
        }
    }

    /// Learns that computing `prompts` took between `least` and `most`, for any number of cached
    /// tokens.
    fn learn_between(&mut self, prompts: &Hypotheses, least: Seconds, most: Seconds) {
        if !self.guessed {
            self.prefill.observe_between(&prompts.full, least, Seconds(f64::INFINITY));
        }
        self.prefill.observe_between(&prompts.hit, Seconds::ZERO, most);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
