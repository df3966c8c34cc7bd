//! How much of what the prefix index predicts of one engine is real. By the engine's own reports if
//! there are any, else by its counters, else by how long its prefills take.

use tidegate_scheduler::cost::{HitEvidence, HitShare, PrefillBatch, PrefillModel};
use tidegate_types::{Moment, Seconds, Tokens};

use super::steps::Hypotheses;
use crate::fleet::HitSource;
use crate::learn::ReadPrompt;

/// A better source that was silent for so long may be gone: an engine that restarted with other
/// flags, a page that is no longer there.
const SOURCE_LASTS: Seconds = Seconds(60.0);
/// Predicted tokens below this say little: an engine's blocks have 16 to 128 tokens.
const HELD_MIN: Tokens = Tokens(128);
/// Between two looks at the counters so many predicted tokens are needed: what else went to the
/// engine is counted there too.
const COUNTED_MIN: f64 = 1024.0;
/// One look at the counters counts for at most so many prefills.
const COUNTED_WEIGHT_MAX: f64 = 5.0;
/// Between this share and the rest of it, what was computed of a single prompt is not known.
const UNSURE: f64 = 0.15;
/// Prefills that must have been timed, without any doubt about the cache, before the cost model is
/// trusted to judge: the first fit moves with the fourth.
const TRUSTED_AFTER: usize = 4;

/// One engine's predicted hits against what came of them.
#[derive(Debug)]
pub struct CacheTruth {
    share: HitShare,
    source: HitSource,
    told_at: Option<Moment>,
    counted_at: Option<Moment>,
    /// The counter at the last look.
    hits: Option<f64>,
    /// Predicted since then: tokens and prefills.
    predicted: (f64, f64),
    /// Prefills without doubt about the cache, and what they took, while the cost model is a guess.
    doubtless: Vec<(PrefillBatch, Seconds)>,
    trusted: bool,
}

impl CacheTruth {
    /// Nothing was seen yet. `trusted`: the operator said what a prefill costs.
    pub fn new(trusted: bool) -> CacheTruth {
        CacheTruth {
            share: HitShare::default(),
            source: HitSource::Prior,
            told_at: None,
            counted_at: None,
            hits: None,
            predicted: (0.0, 0.0),
            doubtless: Vec::new(),
            trusted,
        }
    }

    /// The share to count on, and how it is known.
    pub fn share(&self) -> (f64, HitSource) {
        (self.share.share(), self.source)
    }

    /// A prompt was read of which the index said that `held` tokens are there.
    pub fn predicted(&mut self, held: Tokens) {
        if held >= HELD_MIN {
            self.predicted.0 += held.as_f64();
            self.predicted.1 += 1.0;
        }
    }

    /// What a prompt's prefill may have been.
    pub fn hypotheses(&self, read: &ReadPrompt) -> Hypotheses {
        let last = read.prompt - Tokens(1);
        if let Some(told) = read.told {
            return Hypotheses::known(read.prompt, told.min(last));
        }
        let held = read.held.min(last);
        let believed = Tokens((held.as_f64() * self.share.share()) as u64);
        Hypotheses::of(read.prompt, held, believed)
    }

    /// The engine reported that it had `cached` of `held` predicted tokens.
    pub fn told(&mut self, held: Tokens, cached: Tokens, now: Moment) {
        self.told_at = Some(now);
        if held >= HELD_MIN {
            self.source = HitSource::Usage;
            self.share.observe(cached.as_f64() / held.as_f64(), 1.0);
        }
    }

    /// The engine's counter of cached tokens stands at `hits`.
    pub fn counted(&mut self, hits: f64, now: Moment) {
        let before = self.hits.replace(hits);
        let (held, prefills) = self.predicted;
        // A restart begins again at 0.
        let Some(before) = before.filter(|before| *before <= hits) else { return };
        if held < COUNTED_MIN {
            return;
        }
        self.predicted = (0.0, 0.0);
        self.counted_at = Some(now);
        if !is_recent(self.told_at, now) {
            self.source = HitSource::Counters;
            self.share.observe((hits - before) / held, prefills.min(COUNTED_WEIGHT_MAX));
        }
    }

    /// The engine took `took` for some prompts: does that say how much was cached? Gives what the cost
    /// fit may learn it for, which is nothing while that is in doubt.
    pub fn judge(
        &mut self,
        prompts: &Hypotheses,
        model: &PrefillModel,
        took: Seconds,
        now: Moment,
    ) -> Option<PrefillBatch> {
        let (full, hit) = (prompts.full.predicted(model), prompts.hit.predicted(model));
        let scale = self.scale(model);
        let evidence = match prompts.are_one() {
            true => HitEvidence::Unclear,
            false => HitEvidence::of_duration(full * scale, hit * scale, took),
        };
        match evidence {
            HitEvidence::Unclear => {
                self.is_doubtless(prompts.believed, took);
                Some(prompts.believed)
            }
            // The model is wrong. Of what is believed of the cache, only the prior is no evidence.
            HitEvidence::Slower if self.source == HitSource::Prior => Some(prompts.full),
            HitEvidence::Faster if self.source == HitSource::Prior => Some(prompts.hit),
            HitEvidence::Slower | HitEvidence::Faster => self.is_sure().then_some(prompts.believed),
            HitEvidence::Share(share) => {
                let better = is_recent(self.told_at, now) || is_recent(self.counted_at, now);
                if !better && (self.trusted || !self.doubtless.is_empty()) {
                    self.source = HitSource::Durations;
                    self.share.observe(share, 1.0);
                }
                match share {
                    share if share <= 0.0 => Some(prompts.full),
                    share if share >= 1.0 => Some(prompts.hit),
                    _ => None,
                }
            }
        }
    }

    /// Is nearly all, or nearly nothing, of a predicted hit real?
    fn is_sure(&self) -> bool {
        !(UNSURE..=1.0 - UNSURE).contains(&self.share.share())
    }

    /// What predictions are to be multiplied by. While the model is a guess it may be wrong by an
    /// order of magnitude, which a few prefills without doubt tell before the fit has moved.
    fn scale(&self, model: &PrefillModel) -> f64 {
        let ratio = |(batch, took): &(PrefillBatch, Seconds)| *took / batch.predicted(model);
        let mut ratios: Vec<f64> = self.doubtless.iter().map(ratio).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        match ratios.get(ratios.len().saturating_sub(1) / 2) {
            Some(median) if !self.trusted => *median,
            _ => 1.0,
        }
    }

    /// A prefill that leaves no doubt about the cache.
    fn is_doubtless(&mut self, batch: PrefillBatch, took: Seconds) {
        if self.trusted || batch.tokens() == Tokens::ZERO || took <= Seconds::ZERO {
            return;
        }
        self.doubtless.push((batch, took));
        self.trusted = self.doubtless.len() >= TRUSTED_AFTER;
    }
}

fn is_recent(at: Option<Moment>, now: Moment) -> bool {
    at.is_some_and(|at| now - at < SOURCE_LASTS)
}
