//! Hit share: the share of the prefix index's predicted hits that is real on one engine. Sources, in
//! order of preference: the engine's usage reports, its counters, the durations of its prefills.

use crate::cost::{HitEvidence, HitShare, PrefillBatch, PrefillModel};
use crate::learn::PrefillSample;
use crate::learn::steps::Hypotheses;
use tidegate_types::{Moment, Seconds, Tokens};

/// Time without a report after which the next source is used: the engine may have restarted with
/// other flags.
const SOURCE_EXPIRES: Seconds = Seconds(60.0);
/// Smallest predicted hit that is evaluated: engine blocks have 16 to 128 tokens.
const HIT_MIN: Tokens = Tokens(128);
/// Fewest predicted tokens between two evaluations of the counters, which also count requests that
/// other clients send to the engine.
const COUNTED_MIN: f64 = 1024.0;
/// Largest weight of one counter evaluation, in prefills.
const COUNTED_WEIGHT_MAX: f64 = 5.0;
/// Distance of the share from 0 or 1 below which the computed tokens of a prompt count as known.
const CERTAIN_WITHIN: f64 = 0.15;
/// Timed prefills with an unambiguous cache state after which the cost model is trusted: the
/// regression moves with the fourth observation.
const TRUSTED_AFTER: usize = 4;

/// Source of the measured share of real prefix-cache hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HitSource {
    /// Nothing observed yet: predictions are used unchanged.
    Prior,
    /// Durations of prefills.
    Durations,
    /// The engine's counters.
    Counters,
    /// Cached tokens in the usage of the engine's answers.
    Usage,
}

impl HitSource {
    /// Every source, in the order of its discriminant.
    pub const ALL: [HitSource; 4] =
        [HitSource::Prior, HitSource::Durations, HitSource::Counters, HitSource::Usage];

    /// Returns the name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            HitSource::Prior => "prior",
            HitSource::Durations => "durations",
            HitSource::Counters => "counters",
            HitSource::Usage => "usage",
        }
    }
}

/// Estimates the hit share of one engine.
#[derive(Debug)]
pub(super) struct HitShareEstimator {
    share: HitShare,
    source: HitSource,
    reported_at: Option<Moment>,
    counted_at: Option<Moment>,
    /// The engine's counter at the previous evaluation.
    hits: Option<f64>,
    /// Predicted hits since then: tokens, prefills.
    predicted: (f64, f64),
    /// Prefills with an unambiguous cache state and their durations, collected while the cost model
    /// is the default prior.
    unambiguous: Vec<(PrefillBatch, Seconds)>,
    trusted: bool,
}

impl HitShareEstimator {
    /// Returns the estimator before the first evidence. `trusted`: the settings state the cost of a
    /// prefill.
    pub fn new(trusted: bool) -> HitShareEstimator {
        HitShareEstimator {
            share: HitShare::default(),
            source: HitSource::Prior,
            reported_at: None,
            counted_at: None,
            hits: None,
            predicted: (0.0, 0.0),
            unambiguous: Vec::new(),
            trusted,
        }
    }

    /// Returns the share (0 to 1) and its source.
    pub fn share(&self) -> (f64, HitSource) {
        (self.share.share(), self.source)
    }

    /// Counts the predicted hit of a prefilled prompt.
    pub fn predicted(&mut self, predicted_hit: Tokens) {
        if predicted_hit >= HIT_MIN {
            self.predicted.0 += predicted_hit.as_f64();
            self.predicted.1 += 1.0;
        }
    }

    /// Returns the computed tokens of a prompt under each hypothesis about the cache.
    pub fn hypotheses(&self, prefill: &PrefillSample) -> Hypotheses {
        let last = prefill.prompt - Tokens(1);
        if let Some(reported_hit) = prefill.reported_hit {
            return Hypotheses::known(prefill.prompt, reported_hit.min(last));
        }
        let predicted_hit = prefill.predicted_hit.min(last);
        let believed = Tokens((predicted_hit.as_f64() * self.share.share()) as u64);
        Hypotheses::of(prefill.prompt, predicted_hit, believed)
    }

    /// Takes a usage report: `cached` of `predicted_hit` predicted tokens were cached.
    pub fn reported_hit(&mut self, predicted_hit: Tokens, cached: Tokens, now: Moment) {
        self.reported_at = Some(now);
        if predicted_hit >= HIT_MIN {
            self.source = HitSource::Usage;
            self.share.observe(cached.as_f64() / predicted_hit.as_f64(), 1.0);
        }
    }

    /// Takes the current value of the engine's counter of cached tokens.
    pub fn counted(&mut self, hits: f64, now: Moment) {
        let before = self.hits.replace(hits);
        let (predicted_hit, prefills) = self.predicted;
        // The counter restarts at 0 with the engine.
        let Some(before) = before.filter(|before| *before <= hits) else { return };
        if predicted_hit < COUNTED_MIN {
            return;
        }
        self.predicted = (0.0, 0.0);
        self.counted_at = Some(now);
        if !is_recent(self.reported_at, now) {
            self.source = HitSource::Counters;
            self.share.observe((hits - before) / predicted_hit, prefills.min(COUNTED_WEIGHT_MAX));
        }
    }

    /// Evaluates the duration of a step as evidence about the cache. Returns the batch from which the
    /// cost regression may learn; `None` if the cached tokens are uncertain.
    pub fn judge(
        &mut self,
        prompts: &Hypotheses,
        model: &PrefillModel,
        took: Seconds,
        now: Moment,
    ) -> Option<PrefillBatch> {
        let (full, hit) = (prompts.full.predicted(model), prompts.hit.predicted(model));
        let scale = self.scale(model);
        let evidence = match prompts.agree() {
            true => HitEvidence::Unclear,
            false => HitEvidence::of_duration(full * scale, hit * scale, took),
        };
        match evidence {
            HitEvidence::Unclear => {
                self.note_unambiguous(prompts.believed, took);
                Some(prompts.believed)
            }
            // Neither hypothesis explains the duration: the model is wrong. While the share is the
            // prior, the regression learns from the nearer hypothesis.
            HitEvidence::Slower if self.source == HitSource::Prior => Some(prompts.full),
            HitEvidence::Faster if self.source == HitSource::Prior => Some(prompts.hit),
            HitEvidence::Slower | HitEvidence::Faster => {
                self.is_certain().then_some(prompts.believed)
            }
            HitEvidence::Share(share) => {
                let better = is_recent(self.reported_at, now) || is_recent(self.counted_at, now);
                if !better && (self.trusted || !self.unambiguous.is_empty()) {
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

    /// Adopts a share of 0 or 1 from the comparison of both hypotheses, unless the learned share is
    /// near it or a better source is recent. Returns whether it did.
    pub fn correct_share(&mut self, share: f64, now: Moment) -> bool {
        let better = is_recent(self.reported_at, now) || is_recent(self.counted_at, now);
        let is_near = (self.share.share() - share).abs() < CERTAIN_WITHIN;
        if better || is_near {
            return false;
        }
        self.source = HitSource::Durations;
        self.share = HitShare::known(share);
        true
    }

    /// Returns whether the share is so close to 0 or 1 that the computed tokens of a prompt are known.
    fn is_certain(&self) -> bool {
        !(CERTAIN_WITHIN..=1.0 - CERTAIN_WITHIN).contains(&self.share.share())
    }

    /// Returns the factor on the model's predictions. A default prior may be wrong by an order of
    /// magnitude; until the regression has moved, the median ratio of the first unambiguous prefills
    /// corrects it.
    fn scale(&self, model: &PrefillModel) -> f64 {
        let ratio = |(batch, took): &(PrefillBatch, Seconds)| *took / batch.predicted(model);
        let mut ratios: Vec<f64> = self.unambiguous.iter().map(ratio).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        match ratios.get(ratios.len().saturating_sub(1) / 2) {
            Some(median) if !self.trusted => *median,
            _ => 1.0,
        }
    }

    /// Records a prefill whose cache state is unambiguous.
    fn note_unambiguous(&mut self, batch: PrefillBatch, took: Seconds) {
        if self.trusted || batch.tokens() == Tokens::ZERO || took <= Seconds::ZERO {
            return;
        }
        self.unambiguous.push((batch, took));
        self.trusted = self.unambiguous.len() >= TRUSTED_AFTER;
    }
}

fn is_recent(at: Option<Moment>, now: Moment) -> bool {
    at.is_some_and(|at| now - at < SOURCE_EXPIRES)
}
