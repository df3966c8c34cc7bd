//! What legs cost, learned online, per backend; how long answers are, over all of them.

mod cache;
mod steps;

use tidegate_scheduler::cost::{DecodeFit, DecodeModel, PrefillFit, PrefillModel};
use tidegate_types::{BackendId, Moment, Seconds, Tokens};

use crate::fleet::{Estimates, Fleet, HitSource};
use crate::learn::{Observation, ReadPrompt};
use cache::CacheTruth;
use steps::{Hypotheses, Step, Steps};

/// What an operator knows of a backend's costs before any was observed.
#[derive(Clone, Copy, Debug)]
pub struct Priors {
    /// Of a prefill.
    pub prefill: PrefillModel,
    /// Of a decode step.
    pub decode: DecodeModel,
}

/// A prefill that may have waited for more than this share of its time, beyond the mean, is timed
/// too vaguely to tell what a longer one takes: from a phase of short prompts one line through the
/// waits made long ones twice as dear. It teaches bounds only.
const VAGUE: f64 = 0.1;
/// Decode steps that must have been timed before an answer that is not streamed is divided into its
/// prefill and its steps.
const STEPS_KNOWN: u64 = 4;
/// That division is taken for a measurement while the steps are at most this share of the time.
const STEPS_SHARE_MAX: f64 = 0.5;

/// All fits.
pub struct Fits {
    backends: Vec<BackendFit>,
    estimates: Estimates,
    /// The engines' `max_num_batched_tokens`.
    chunk: Tokens,
}

struct BackendFit {
    prefill: PrefillFit,
    /// No prior was configured, and no prefill was timed well.
    guessed: bool,
    decode: DecodeFit,
    steps: Steps,
    cache: CacheTruth,
    /// The account at the last look.
    before: Option<Look>,
}

/// A backend's decode work at one moment.
#[derive(Clone, Copy)]
struct Look {
    at: Moment,
    emitted: Tokens,
    streams: u32,
}

impl Fits {
    /// Fits that start from the operator's knowledge.
    pub fn new(priors: Vec<Priors>, estimates: Estimates, chunk: Tokens) -> Fits {
        let fit = |priors: Priors| {
            let guessed = priors.prefill == PrefillModel::default();
            BackendFit {
                prefill: PrefillFit::new(priors.prefill),
                guessed,
                decode: DecodeFit::new(priors.decode),
                steps: Steps::default(),
                cache: CacheTruth::new(!guessed),
                before: None,
            }
        };
        Fits { backends: priors.into_iter().map(fit).collect(), estimates, chunk }
    }

    /// One observation, which came at `now`.
    pub fn take(&mut self, observation: Observation, now: Moment) {
        match observation {
            Observation::Prefill(read) => {
                let chunk = self.chunk;
                let fit = &mut self.backends[read.backend.index()];
                fit.cache.predicted(read.held);
                let prompt = fit.cache.hypotheses(&read);
                let base = fit.decode.model().base;
                if let Some(step) = fit.steps.join(&read, prompt, base) {
                    fit.learn_step(step, chunk, now);
                }
            }
            Observation::Whole { read, output } => {
                let fit = &mut self.backends[read.backend.index()];
                fit.cache.predicted(read.held);
                fit.learn_whole(&read, output, now);
            }
            Observation::Hit { backend, held, cached } => {
                self.backends[backend.index()].cache.told(held, cached, now);
            }
            Observation::Counted { backend, hits } => {
                self.backends[backend.index()].cache.counted(hits, now);
            }
            Observation::Finished { max_tokens, counted, output, prompt, features } => {
                self.estimates.output.observe(max_tokens, counted, output);
                if let (Some(features), Some(prompt)) = (features, prompt) {
                    self.estimates.bytes.observe(&features, prompt);
                }
            }
            Observation::HealthChanged => {}
        }
    }

    /// Steps that no further prompt will be found to have ended with teach now.
    pub fn settle(&mut self, now: Moment) {
        for fit in &mut self.backends {
            let base = fit.decode.model().base;
            if let Some(step) = fit.steps.ended_before(now, base) {
                fit.learn_step(step, self.chunk, now);
            }
        }
    }

    /// The share of a predicted prefix-cache hit that is real on a backend, and how that is known.
    pub fn hit_share(&self, backend: BackendId) -> (f64, HitSource) {
        self.backends[backend.index()].cache.share()
    }

    /// Look at every backend's decode work since the last look. The mean gap between two tokens
    /// of one stream is the time that passed, times the streams, over the tokens. A backend that
    /// prefilled meanwhile, or whose streams came and went, teaches nothing about decode steps.
    pub fn watch_decodes(&mut self, fleet: &Fleet, now: Moment) {
        for (backend, fit) in fleet.backends.iter().zip(&mut self.backends) {
            let balance = backend.account.balance();
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

    /// A backend's costs as fitted so far. One of which nothing was said or seen yet is taken to be
    /// like its peers: with a guess that is dearer than what they turned out to cost, it would never
    /// be given anything to be judged by.
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

    /// Lengths as fitted so far.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }
}

impl BackendFit {
    /// Prompts that ended with the same step took the engine until then. The decodes beside them
    /// took their share of it, and the first prompt may have waited for the end of a decode step.
    fn learn_step(&mut self, step: Step, chunk: Tokens, now: Moment) {
        let decode = self.decode.model();
        let beside = step.beside;
        let steps = step.prompts.full.tokens().get().div_ceil(chunk.get().max(1)) as f64;
        let shared = decode.beside_prefill(beside.streams, beside.kv) * steps;
        let waits = beside.streams > 0 && beside.at_once && !step.follows;
        let wait = if waits { decode.step(beside.streams, beside.kv) } else { Seconds::ZERO };
        let alone = step.took - shared;
        if wait / 2.0 <= step.took * VAGUE {
            self.guessed = false;
            return self.learn(&step.prompts, alone - wait / 2.0, now);
        }
        if self.guessed && step.prompts.are_one() {
            // Better than the guess.
            self.prefill.observe_batch(&step.prompts.full, alone - wait / 2.0);
            return;
        }
        self.learn_between(&step.prompts, alone - wait, alone);
    }

    /// An answer that was not streamed: the prefill took no longer than all of it.
    fn learn_whole(&mut self, read: &ReadPrompt, output: Tokens, now: Moment) {
        let prompt = self.cache.hypotheses(read);
        let took = read.ended - read.sent;
        let gaps = output.as_f64() - 1.0;
        let step = self.decode.model().step(1, read.prompt);
        let decode = step * gaps.max(0.0);
        let known = gaps <= 0.0 || self.decode.observations() >= STEPS_KNOWN;
        let alone = read.beside.streams == 0 && read.beside.at_once;
        if alone && known && decode <= took * STEPS_SHARE_MAX {
            self.guessed = false;
            return self.learn(&prompt, took - decode, now);
        }
        // Each of its steps took as long as any decode step, the prefill's too.
        let most = if known { took - decode } else { took };
        self.learn_between(&prompt, Seconds::ZERO, most.max(took / (gaps + 1.0).max(1.0)));
    }

    /// The engine worked for `took` on these prompts.
    fn learn(&mut self, prompts: &Hypotheses, took: Seconds, now: Moment) {
        if let Some(batch) = self.cache.judge(prompts, &self.prefill.model(), took, now) {
            self.prefill.observe_batch(&batch, took);
        }
    }

    /// The engine worked between `least` and `most` on these prompts, whatever it had cached.
    fn learn_between(&mut self, prompts: &Hypotheses, least: Seconds, most: Seconds) {
        if !self.guessed {
            self.prefill.observe_between(&prompts.full, least, Seconds(f64::INFINITY));
        }
        self.prefill.observe_between(&prompts.hit, Seconds::ZERO, most);
    }
}

#[cfg(test)]
#[path = "fits/tests.rs"]
mod tests;
