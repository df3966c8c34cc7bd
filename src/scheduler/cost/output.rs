//! How many tokens a request will emit. Learned from requests that ended; never asks why.

use tidegate_types::Tokens;

/// One class a power of two of `max_tokens`, the last one for requests without a limit.
const LIMITS: usize = 34;
const UNLIMITED: usize = LIMITS - 1;
/// One class a power of two of the prompt's tokens, up to eight million.
const PROMPTS: usize = 24;
/// A mean follows its last this many requests.
const MEMORY: f64 = 200.0;
/// A class's mean counts as much as the mean above it once it has this many requests.
const TRUST_AT: f64 = 8.0;
/// Longer than any answer; larger counts are a broken engine's.
const EMITTED_MAX: u64 = 10_000_000;

/// Expected output tokens given a request's `max_tokens` and its prompt's length: the mean of its
/// class, leaning while it has seen few on the mean of its limit, that on the mean of all, and that
/// on the prior. Applications differ in both: a document is summed up in a sentence, a short
/// question starts an essay. When the mix shifts, the classes know at once.
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

impl OutputEstimate {
    /// Expects `prior` until it has seen some.
    pub fn new(prior: Tokens) -> OutputEstimate {
        OutputEstimate {
            prior: prior.as_f64(),
            all: Mean::default(),
            limits: vec![ByLimit::default(); LIMITS],
        }
    }

    /// A request with this limit and prompt ended by itself after `emitted` tokens. One that emitted
    /// nothing tells nothing.
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

    /// What a request with this limit and prompt will probably emit: at least 1, at most its limit.
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

    /// This mean, shrunk towards `fallback` while it rests on little.
    fn over(&self, fallback: f64) -> f64 {
        let lean = TRUST_AT * (1.0 - self.count / MEMORY);
        (self.value * self.count + fallback * lean) / (self.count + lean)
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
    fn an_answer_is_expected_by_the_limit_it_was_given() {
        check(&[], None, 200);
        check(&[], Some(16), 16);
        check(&[], Some(0), 1);
        check(&[(Some(100), 80), (Some(4000), 900)], Some(120), 80);
        check(&[(Some(100), 80), (Some(4000), 900)], Some(3000), 900);
    }

    #[test]
    fn a_shift_between_two_applications_is_known_at_once() {
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
    fn new_behaviour_replaces_the_old() {
        check(&[(None, 1000), (None, 50)], None, 50);
    }
}
