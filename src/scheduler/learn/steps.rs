//! Assigns prefills to engine steps. Prompts of one step end together: the observed duration of each
//! is that of the step, and the tokens of the step are their sum.

use crate::cost::PrefillBatch;
use crate::inflight::ConcurrentStreams;
use crate::learn::PrefillSample;
use tidegate_types::{Moment, Seconds, Tokens};

/// Largest gap between the ends of two prefills of one step, as a share of the fixed cost of a decode
/// step. First tokens of one step arrive one after the other; ends of different steps are at least a
/// step apart.
const GAP_SHARE: f64 = 0.25;
/// Bounds of that gap. First tokens of one step are about 20 µs apart, on a busy machine 1 to 2 ms.
const GAP_MIN: Seconds = Seconds(0.0005);
const GAP_MAX: Seconds = Seconds(0.003);
/// All first tokens of a step arrive within this many gaps.
const GAPS_MAX: f64 = 4.0;
/// Longest delay between the end of a prefill and its observation: a few plan intervals.
const DELIVERED_WITHIN: Seconds = Seconds(0.02);

/// Computed tokens of one or several prompts under each hypothesis about the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Hypotheses {
    /// No predicted hit is real: all tokens are computed.
    pub full: PrefillBatch,
    /// All predicted hits are real.
    pub hit: PrefillBatch,
    /// The learned share of the predicted hits is real.
    pub believed: PrefillBatch,
}

/// One engine step: its prompts and its duration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Prompt tokens computed in the step, by hypothesis about the cache.
    pub prompts: Hypotheses,
    /// From the end of the preceding prefills, or from sending the first prompt if that is later,
    /// to the end.
    pub took: Seconds,
    /// Whether a prompt was already waiting at the end of the preceding prefills, so that the step
    /// began without delay.
    pub follows: bool,
    /// Decode streams in the same step.
    pub beside: ConcurrentStreams,
}

/// Steps with prefills of one backend.
#[derive(Debug, Default)]
pub(super) struct Steps {
    forming: Option<Forming>,
    /// End of the preceding prefills.
    before: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Forming {
    prompts: Hypotheses,
    sent: Moment,
    first_end: Moment,
    last_end: Moment,
    beside: ConcurrentStreams,
}

impl Hypotheses {
    /// A prompt with `predicted_hit` predicted tokens, of which `believed` are expected to be cached.
    pub fn of(prompt: Tokens, predicted_hit: Tokens, believed: Tokens) -> Hypotheses {
        let batch = |cached: Tokens| PrefillBatch::of(prompt - cached, cached);
        Hypotheses {
            full: batch(Tokens::ZERO),
            hit: batch(predicted_hit),
            believed: batch(believed),
        }
    }

    /// A prompt with a known number of cached tokens.
    pub fn known(prompt: Tokens, cached: Tokens) -> Hypotheses {
        let batch = PrefillBatch::of(prompt - cached, cached);
        Hypotheses { full: batch, hit: batch, believed: batch }
    }

    /// Returns whether all hypotheses agree: no predicted hit, or the cached tokens are known.
    pub fn agree(&self) -> bool {
        self.full == self.hit
    }

    fn add(&mut self, other: &Hypotheses) {
        self.full.add(other.full);
        self.hit.add(other.hit);
        self.believed.add(other.believed);
    }
}

impl Steps {
    /// Adds a prefill that ended. Returns the preceding step if this prefill belongs to a new one.
    /// `base` is the fixed cost of a decode step.
    pub fn join(
        &mut self,
        prefill: &PrefillSample,
        prompt: Hypotheses,
        base: Seconds,
    ) -> Option<Step> {
        if let Some(forming) = &mut self.forming
            && prefill.ended - forming.last_end <= gap(base)
            && prefill.ended - forming.first_end <= gap(base) * GAPS_MAX
        {
            forming.prompts.add(&prompt);
            if prefill.sent < forming.sent {
                (forming.sent, forming.beside) = (prefill.sent, prefill.beside);
            }
            forming.last_end = forming.last_end.max(prefill.ended);
            return None;
        }
        let done = self.end();
        self.forming = Some(Forming {
            prompts: prompt,
            sent: prefill.sent,
            first_end: prefill.ended,
            last_end: prefill.ended,
            beside: prefill.beside,
        });
        done
    }

    /// Returns the forming step if no further prompt can belong to it at `now`.
    pub fn ended_before(&mut self, now: Moment, base: Seconds) -> Option<Step> {
        let due = |forming: &Forming| now - forming.last_end > gap(base) + DELIVERED_WITHIN;
        if self.forming.as_ref().is_some_and(due) { self.end() } else { None }
    }

    fn end(&mut self) -> Option<Step> {
        let Forming { prompts, sent, last_end, beside, .. } = self.forming.take()?;
        let follows = sent <= self.before;
        let took = last_end - sent.max(self.before);
        self.before = self.before.max(last_end);
        Some(Step { prompts, took, follows, beside })
    }
}

fn gap(base: Seconds) -> Seconds {
    (base * GAP_SHARE).max(GAP_MIN).min(GAP_MAX)
}
