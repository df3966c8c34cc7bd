//! Hypothesis test of the prefix cache of one engine: one cost regression assumes that no predicted
//! hit is real, the other that all are. Both learn from the same prefills, and the one with the
//! clearly smaller prediction error shows which hypothesis holds. A single regression can converge to
//! a wrong pair of hit share and cost that explains the durations.

use crate::cost::{PrefillBatch, PrefillModel, PrefillRegression};
use crate::learn::steps::Hypotheses;
use tidegate_types::Seconds;

/// Weight of past errors in the moving mean: about the last ten prefills determine it. Not tuned.
const KEEPS: f64 = 0.9;
/// Prefills with a predicted hit before the first comparison: the regressions move with the fourth
/// observation, and the weight of the errors before that must decay.
const COMPARED_AFTER: u32 = 16;
/// Largest mean error of an accepted hypothesis. Prefills of equal size vary by a tenth.
const ERROR_MAX: f64 = 0.12;
/// Least ratio of the other hypothesis's error to that of the accepted one.
const CLEAR: f64 = 2.0;
/// Largest value of one error, a natural logarithm, so that one outlier decides nothing.
const OUTLIER: f64 = 1.0;

/// The regressions of both hypotheses.
#[derive(Debug)]
pub(super) struct HypothesisModels {
    none: HypothesisModel,
    all: HypothesisModel,
    compared: u32,
}

#[derive(Debug)]
struct HypothesisModel {
    fit: PrefillRegression,
    /// Moving mean of |ln(measured / predicted)|.
    error: f64,
}

impl HypothesisModel {
    fn new(prior: PrefillModel) -> HypothesisModel {
        HypothesisModel { fit: PrefillRegression::new(prior), error: 0.0 }
    }

    fn judge(&mut self, batch: &PrefillBatch, took: Seconds) {
        let error = (took / batch.predicted(&self.fit.model())).ln().abs();
        let error = if error.is_finite() { error.min(OUTLIER) } else { OUTLIER };
        self.error = self.error * KEEPS + error * (1.0 - KEEPS);
    }

    fn clearly_beats(&self, other: &HypothesisModel) -> bool {
        self.error <= ERROR_MAX && other.error >= self.error * CLEAR
    }
}

impl HypothesisModels {
    /// Starts from the operator's prior.
    pub fn new(prior: PrefillModel) -> HypothesisModels {
        HypothesisModels {
            none: HypothesisModel::new(prior),
            all: HypothesisModel::new(prior),
            compared: 0,
        }
    }

    /// Adds an observation: the engine computed `prompts` in `took`. Returns the accepted hit share, 0
    /// or 1, and its regression, if one hypothesis is clearly better.
    pub fn observe(
        &mut self,
        prompts: &Hypotheses,
        took: Seconds,
    ) -> Option<(f64, &PrefillRegression)> {
        let distinguishable = !prompts.agree() && took > Seconds::ZERO;
        if distinguishable {
            self.none.judge(&prompts.full, took);
            self.all.judge(&prompts.hit, took);
            self.compared = self.compared.saturating_add(1);
        }
        self.none.fit.observe_batch(&prompts.full, took);
        self.all.fit.observe_batch(&prompts.hit, took);
        if !distinguishable || self.compared < COMPARED_AFTER {
            return None;
        }
        match (self.none.clearly_beats(&self.all), self.all.clearly_beats(&self.none)) {
            (true, false) => Some((0.0, &self.none.fit)),
            (false, true) => Some((1.0, &self.all.fit)),
            _ => None,
        }
    }
}
