//! Corrects the byte estimate of a model's prompts by the engine's own counts of sampled prompts. The
//! samples keep features and counts, no text. The factor is computed against the estimator in force, so
//! that corrections already learned from `usage` are not applied twice.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_engine::{Endpoint, Prompt};
use tidegate_scheduler::cost::{ByteEstimator, ByteFeatures};
use tidegate_types::Tokens;

use crate::Accepted;

/// Largest number of samples of a model.
pub const SAMPLES_MAX: usize = 16;
/// Change of the factor by one sample that counts as none.
const STEADY: f64 = 0.02;
/// Samples without a change after which no more are taken.
const STEADY_SAMPLES: usize = 3;
/// Factors outside of this range come from samples that the estimate does not describe.
const FACTORS: (f64, f64) = (0.1, 10.0);
/// Members of a message whose tokens the engine's `/tokenize` counts in another way than a request's.
const MEDIA: [&[u8]; 5] =
    [b"image_url\"", b"\"image\"", b"input_audio\"", b"audio_url\"", b"video_url\""];

/// The models' calibrations, by name.
pub type Calibrations = HashMap<Arc<str>, Calibration>;

/// Engine counts of sampled prompts of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    samples: Vec<(ByteFeatures, Tokens)>,
    /// Consecutive samples that did not change the factor.
    steady: usize,
}

impl Calibration {
    /// Adds the engine's count of a prompt.
    pub fn observe(&mut self, estimator: &ByteEstimator, features: ByteFeatures, counted: Tokens) {
        if self.samples.len() >= SAMPLES_MAX {
            return;
        }
        let before = self.factor(estimator);
        self.samples.push((features, counted));
        let after = self.factor(estimator);
        let is_first = self.samples.len() == 1;
        self.steady = match (after / before - 1.0).abs() <= STEADY && !is_first {
            true => self.steady + 1,
            false => 0,
        };
    }

    /// Returns whether further samples would not change the factor.
    pub fn is_settled(&self) -> bool {
        self.steady >= STEADY_SAMPLES || self.samples.len() >= SAMPLES_MAX
    }

    /// Returns the engine's tokens per estimated token; 1 without a sample.
    pub fn factor(&self, estimator: &ByteEstimator) -> f64 {
        let (mut counted, mut estimated) = (0.0, 0.0);
        for (features, tokens) in &self.samples {
            counted += tokens.as_f64();
            estimated += estimator.estimate(features).as_f64();
        }
        match estimated > 0.0 {
            true => (counted / estimated).clamp(FACTORS.0, FACTORS.1),
            false => 1.0,
        }
    }

    /// Returns the estimate of a prompt; at least 1, and 0 for an empty one.
    pub fn estimate(&self, estimator: &ByteEstimator, features: &ByteFeatures) -> Tokens {
        let estimate = estimator.estimate(features);
        if self.samples.is_empty() || estimate == Tokens::ZERO {
            return estimate;
        }
        Tokens((estimate.as_f64() * self.factor(estimator)).round().max(1.0) as u64)
    }
}

/// Estimators of prompts without a tokenizer.
#[derive(Clone, Copy)]
pub struct PromptEstimator<'a> {
    /// The estimate of every model, fitted to the `usage` of answers.
    pub bytes: &'a ByteEstimator,
    /// Corrections by model.
    pub calibrations: &'a Calibrations,
}

impl PromptEstimator<'_> {
    /// Returns the estimate of a prompt of a model.
    pub fn estimate(&self, model: Option<&str>, features: &ByteFeatures) -> Tokens {
        match model.and_then(|model| self.calibrations.get(model)) {
            Some(calibration) => calibration.estimate(self.bytes, features),
            None => self.bytes.estimate(features),
        }
    }
}

/// Returns the body with which the engine's `/tokenize` counts the prompt of an estimated request as it
/// would for the request itself; `None` where the two may differ.
pub fn tokenize_body(accepted: &Accepted, body: &[u8]) -> Option<Vec<u8>> {
    let (scan, model) = (accepted.scan.as_ref()?, accepted.model.as_deref()?);
    let is_plain = scan.value(body, "truncate_prompt_tokens").is_none()
        && scan.chat_template.is_none()
        && scan.chat_template_kwargs.is_none();
    if !is_plain {
        return None;
    }
    let mut sent = b"{\"model\":".to_vec();
    serde_json::to_writer(&mut sent, model).ok()?;
    let mut member = |name: &str, value: &[u8]| {
        sent.extend_from_slice(format!(",\"{name}\":").as_bytes());
        sent.extend_from_slice(value);
    };
    match (accepted.endpoint, scan.prompt) {
        (Endpoint::Completions, Prompt::Text(span)) => {
            let special = scan.add_special_tokens.unwrap_or(true);
            member("prompt", span.of(body));
            member("add_special_tokens", special.to_string().as_bytes());
        }
        (Endpoint::ChatCompletions, Prompt::Messages(span)) => {
            let messages = span.of(body);
            let has = |part: &&[u8]| messages.windows(part.len()).any(|window| window == *part);
            if MEDIA.iter().any(has) {
                return None;
            }
            member("messages", messages);
            if let Some(tools) = scan.tools {
                member("tools", tools.of(body));
            }
        }
        _ => return None,
    }
    sent.push(b'}');
    Some(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(words: usize) -> ByteFeatures {
        ByteFeatures::from_text("tide and time ".repeat(words).as_bytes())
    }

    fn tokens(estimator: &ByteEstimator, words: usize, factor: f64) -> Tokens {
        Tokens((estimator.estimate(&features(words)).as_f64() * factor).round() as u64)
    }

    #[test]
    fn equal_samples_settle_and_set_the_factor() {
        let (estimator, mut calibration) = (ByteEstimator::new(), Calibration::default());
        assert_eq!(calibration.factor(&estimator), 1.0);
        for words in [100, 200, 300] {
            assert!(!calibration.is_settled());
            calibration.observe(&estimator, features(words), tokens(&estimator, words, 2.5));
        }
        assert!(!calibration.is_settled(), "the first sample changes the factor");
        calibration.observe(&estimator, features(50), tokens(&estimator, 50, 2.5));
        assert!(calibration.is_settled());
        let estimate = calibration.estimate(&estimator, &features(1000));
        let expected = tokens(&estimator, 1000, 2.5);
        assert!(estimate.get().abs_diff(expected.get()) * 100 < expected.get(), "{estimate}");
        let empty = ByteFeatures::from_text(b"");
        assert_eq!(calibration.estimate(&estimator, &empty), Tokens::ZERO);
    }

    #[test]
    fn samples_that_differ_end_after_their_limit() {
        let (estimator, mut calibration) = (ByteEstimator::new(), Calibration::default());
        for sample in 0..SAMPLES_MAX {
            assert!(!calibration.is_settled(), "{sample}");
            // Each longer than all before it, with another ratio.
            let factor = if sample % 2 == 0 { 3.0 } else { 0.5 };
            let words = 10 << sample;
            let counted = tokens(&estimator, words, factor);
            calibration.observe(&estimator, features(words), counted);
        }
        assert!(calibration.is_settled());
    }

    #[test]
    fn what_the_estimator_has_learned_is_not_corrected_twice() {
        let (mut estimator, mut calibration) = (ByteEstimator::new(), Calibration::default());
        let prior = ByteEstimator::new();
        for words in [100, 200, 300, 400] {
            calibration.observe(&estimator, features(words), tokens(&prior, words, 2.0));
        }
        for words in 1..400 {
            estimator.observe(&features(words), tokens(&prior, words, 2.0));
        }
        let estimate = calibration.estimate(&estimator, &features(500));
        let expected = tokens(&prior, 500, 2.0);
        assert!(estimate.get().abs_diff(expected.get()) * 50 < expected.get(), "{estimate}");
    }
}
