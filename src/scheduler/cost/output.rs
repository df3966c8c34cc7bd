//! Expected output tokens of a request, learned from finished requests.

use crate::tuning::OUTPUT_PRIOR;
use tidegate_types::Tokens;

/// Number of limit classes: one per power of two of `max_tokens`, and one for requests without a
/// limit.
const LIMITS: usize = 34;
const UNLIMITED: usize = LIMITS - 1;
/// Number of prompt classes: one per power of two of the prompt tokens, up to eight million.
const PROMPTS: usize = 24;
/// Number of recent requests that a mean covers. Other values were not tried.
const MEMORY: f64 = 200.0;
/// Weight of the parent's mean, in requests of the class. Other values were not tried.
const PARENT_WEIGHT: f64 = 8.0;
/// Largest accepted count, above any answer; larger ones come from a faulty engine.
const EMITTED_MAX: u64 = 10_000_000;

/// Expected output tokens given `max_tokens` and the prompt length of a request. Hierarchical
/// shrinkage: the mean of a class with few requests is shrunk towards the mean of its limit, that
/// towards the mean of all, and that towards the prior. Applications differ in limit and prompt
/// length, so that a shift in their mix needs no new learning.
#[derive(Clone, Debug)]
pub struct OutputEstimate {
    prior: f64,
    all: Mean,
    limits: Vec<ByLimit>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ByLimit {
    all: Mean,
    prompts: [Mean; PROMPTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    count: f64,
}

impl Default for OutputEstimate {
    fn default() -> OutputEstimate {
        OutputEstimate::new(OUTPUT_PRIOR)
    }
}

impl OutputEstimate {
    /// Returns an estimate that starts from `prior`.
    pub fn new(prior: Tokens) -> OutputEstimate {
        OutputEstimate {
            prior: prior.as_f64(),
            all: Mean::default(),
            limits: vec![ByLimit::default(); LIMITS],
        }
    }

    /// Adds a request with this limit and prompt that ended after `emitted` tokens. Requests without
    /// output are ignored.
    pub fn observe(&mut self, max_tokens: Option<Tokens>, prompt: Tokens, emitted: Tokens) {
        if emitted == Tokens::ZERO || emitted.get() > EMITTED_MAX {
            return;
        }
        let emitted = emitted.as_f64();
        let limit = &mut self.limits[limit_class(max_tokens)];
        self.all.take(emitted);
        limit.all.take(emitted);
        limit.prompts[prompt_class(prompt)].take(emitted);
    }

    /// Returns the expected output of a request with this limit and prompt: at least 1, at most the
    /// limit.
    pub fn expect(&self, max_tokens: Option<Tokens>, prompt: Tokens) -> Tokens {
        let limit = &self.limits[limit_class(max_tokens)];
        let all = limit.all.over(self.all.over(self.prior));
        let mean = limit.prompts[prompt_class(prompt)].over(all).round().max(1.0);
        let limit = max_tokens.map_or(u64::MAX, |limit| limit.get().max(1));
        Tokens((mean as u64).min(limit))
    }
}

impl Mean {
    fn take(&mut self, value: f64) {
        self.count = (self.count + 1.0).min(MEMORY);
        self.value += (value - self.value) / self.count;
    }

    /// Returns this mean, shrunk towards `fallback` while it has few requests.
    fn over(&self, fallback: f64) -> f64 {
        let weight = PARENT_WEIGHT * (1.0 - self.count / MEMORY);
        (self.value * self.count + fallback * weight) / (self.count + weight)
    }
}

fn prompt_class(prompt: Tokens) -> usize {
    (prompt.get().max(1).ilog2() as usize).min(PROMPTS - 1)
}

fn limit_class(max_tokens: Option<Tokens>) -> usize {
    match max_tokens {
        Some(limit) => (limit.get().max(1).ilog2() as usize).min(UNLIMITED - 1),
        None => UNLIMITED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seen: &[(Option<u64>, u64)], ask: Option<u64>, expected: u64) {
        let mut estimate = OutputEstimate::new(Tokens(200));
        for (limit, emitted) in seen {
            for _ in 0..2000 {
                estimate.observe(limit.map(Tokens), Tokens(500), Tokens(*emitted));
            }
        }
        let got = estimate.expect(ask.map(Tokens), Tokens(500)).get();
        assert!(got.abs_diff(expected) * 20 <= expected, "{seen:?} {ask:?}: {got}");
    }

    #[test]
    fn the_estimate_depends_on_the_limit() {
        check(&[], None, 200);
        check(&[], Some(16), 16);
        check(&[], Some(0), 1);
        check(&[(Some(100), 80), (Some(4000), 900)], Some(120), 80);
        check(&[(Some(100), 80), (Some(4000), 900)], Some(3000), 900);
    }

    #[test]
    fn the_estimate_depends_on_the_prompt_length() {
        let mut estimate = OutputEstimate::new(Tokens(200));
        for (prompt, emitted) in [(8000, 40), (150, 900)] {
            (0..500).for_each(|_| estimate.observe(None, Tokens(prompt), Tokens(emitted)));
        }
        assert_eq!(estimate.expect(None, Tokens(7000)), Tokens(40));
        assert_eq!(estimate.expect(None, Tokens(200)), Tokens(900));
    }

    #[test]
    fn an_unseen_class_takes_the_mean_of_all() {
        check(&[(None, 40)], Some(1000), 40);
    }

    #[test]
    fn a_mean_follows_a_change_of_output_lengths() {
        check(&[(None, 1000), (None, 50)], None, 50);
    }
}
