//! Two cost models of one engine, one for each hypothesis about its prefix cache: no predicted hit is
//! real, or every one is. Both learn from the same prefills; the one with the smaller prediction error
//! shows which hypothesis holds. A single model that learns under the share believed so far can settle on
//! a wrong pair of share and cost that explain each other.

use crate::cost::{PrefillBatch, PrefillModel, PrefillRegression};
use crate::learn::steps::Hypotheses;
use tidegate_types::Seconds;

/// Weight of the past errors in the moving mean: the last ten prefills dominate.
const KEEPS: f64 = 0.9;
/// Prefills with a predicted hit before the models are compared: the fits move with the fourth
/// observation, and the errors before that fade.
const COMPARED_AFTER: u32 = 16;
/// Largest mean error of a model that is taken as right. Prefills of equal size vary by a tenth.
const ERROR_MAX: f64 = 0.12;
/// The other model's error must exceed it by this factor.
const CLEAR: f64 = 2.0;
/// Cap of one error (natural logarithm of the ratio), so that one outlier decides nothing.
const OUTLIER: f64 = 1.0;

/// The models of both hypotheses.
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

    /// Learns that `prompts` took `took`. Returns the share of predicted hits that is real, 0 or 1, and
    /// the cost model learned under it, once one hypothesis is clearly right.
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
