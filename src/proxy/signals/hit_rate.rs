//! Accuracy of predicted prefix-cache hits: the tokens that placement counted on, compared with
//! those that the engine reported.

use metrics::{Counter, Histogram, counter, histogram};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_engine::Usage;
use tidegate_types::Tokens;

use crate::telemetry::metrics::Metrics;

/// Predictions for one backend.
pub struct HitRate {
    /// vLLM omits the number when it is 0: a missing number counts as 0 once the engine has
    /// reported one.
    reports_zero: AtomicBool,
    prompt: Counter,
    predicted: Counter,
    cached: Counter,
    /// By source of the prediction: `record`, `events`.
    error: [Histogram; 2],
}

impl HitRate {
    /// Counters of a backend called `name`.
    pub fn new(name: &str, metrics: &Metrics) -> HitRate {
        let backend = || name.to_owned();
        metrics.of_backend(name, || {
            let error = |source: &'static str| {
                histogram!("tidegate_prefix_hit_rate_error", "backend" => backend(), "source" => source)
            };
            HitRate {
                reports_zero: AtomicBool::new(false),
                prompt: counter!("tidegate_prefix_prompt_tokens_total", "backend" => backend()),
                predicted: counter!("tidegate_prefix_predicted_tokens_total", "backend" => backend()),
                cached: counter!("tidegate_prefix_cached_tokens_total", "backend" => backend()),
                error: ["record", "events"].map(error),
            }
        })
    }

    /// Records a prefilled prompt with `predicted` cached tokens. Returns how many were cached, if
    /// the engine reports it.
    pub fn observe(&self, predicted: Tokens, usage: &Usage, from_events: bool) -> Option<Tokens> {
        if usage.cached.is_some_and(|cached| cached > Tokens::ZERO) {
            self.reports_zero.store(true, Relaxed);
        }
        let cached = match usage.cached {
            Some(cached) => cached,
            None if self.reports_zero.load(Relaxed) => Tokens::ZERO,
            None => return None,
        };
        if usage.prompt == Tokens::ZERO {
            return None;
        }
        let predicted = predicted.min(usage.prompt);
        self.prompt.increment(usage.prompt.get());
        self.predicted.increment(predicted.get());
        self.cached.increment(cached.get());
        let error = (predicted.as_f64() - cached.as_f64()) / usage.prompt.as_f64();
        self.error[usize::from(from_events)].record(error);
        Some(cached)
    }
}
