//! Which prefills an engine computed together. Prompts that fit into one step end with it: each of
//! them is seen to take the whole step, and the step's tokens are the sum of theirs.

use tidegate_scheduler::cost::PrefillBatch;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::learn::{Beside, ReadPrompt};

/// A prefill that ends so much of a decode step's fixed cost after another one ended with the same
/// step: first tokens of one step reach the proxy one after the other, and two ends of steps are a
/// step apart.
const GAP_SHARE: f64 = 0.25;
/// Between two first tokens of one step lie some 20 us, on a busy machine a millisecond or two.
const GAP_MIN: Seconds = Seconds(0.0005);
const GAP_MAX: Seconds = Seconds(0.003);
/// All first tokens of one step come within so many of these gaps.
const GAPS_MAX: f64 = 4.0;
/// Observations are up to a few plan intervals old when they are heard.
const HEARD_WITHIN: Seconds = Seconds(0.02);

/// The tokens of some prompts, by what was cached of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hypotheses {
    /// Nothing of what the index said: all tokens are computed.
    pub full: PrefillBatch,
    /// All of what the index said.
    pub hit: PrefillBatch,
    /// The share of it that is believed.
    pub believed: PrefillBatch,
}

/// Some prompts, and how long the engine worked on them.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Their tokens.
    pub prompts: Hypotheses,
    /// From the end of the prefills before, or from the sending of the first, to the end.
    pub took: Seconds,
    /// One of them was there when the prefills before ended: the engine began at once.
    pub follows: bool,
    /// The streams that ran beside.
    pub beside: Beside,
}

/// One backend's steps with prefills.
#[derive(Debug, Default)]
pub struct Steps {
    forming: Option<Forming>,
    /// When the prefills before ended.
    before: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Forming {
    prompts: Hypotheses,
    sent: Moment,
    first_end: Moment,
    last_end: Moment,
    beside: Beside,
}

impl Hypotheses {
    /// One prompt of which `believed` tokens are cached if the index said `held`.
    pub fn of(prompt: Tokens, held: Tokens, believed: Tokens) -> Hypotheses {
        let batch = |cached: Tokens| PrefillBatch::of(prompt - cached, cached);
        Hypotheses { full: batch(Tokens::ZERO), hit: batch(held), believed: batch(believed) }
    }

    /// One prompt of which `cached` tokens were cached.
    pub fn known(prompt: Tokens, cached: Tokens) -> Hypotheses {
        let batch = PrefillBatch::of(prompt - cached, cached);
        Hypotheses { full: batch, hit: batch, believed: batch }
    }

    /// Is there but one: did the index say nothing, or is it known what was cached?
    pub fn are_one(&self) -> bool {
        self.full == self.hit
    }

    fn add(&mut self, other: &Hypotheses) {
        self.full.add(other.full);
        self.hit.add(other.hit);
        self.believed.add(other.believed);
    }
}

impl Steps {
    /// A prefill ended. Gives the step before it, if it ended with another one. `base` is the
    /// fixed cost of a decode step.
    pub fn join(&mut self, read: &ReadPrompt, prompt: Hypotheses, base: Seconds) -> Option<Step> {
        if let Some(forming) = &mut self.forming
            && read.ended - forming.last_end <= gap(base)
            && read.ended - forming.first_end <= gap(base) * GAPS_MAX
        {
            forming.prompts.add(&prompt);
            if read.sent < forming.sent {
                (forming.sent, forming.beside) = (read.sent, read.beside);
            }
            forming.last_end = forming.last_end.max(read.ended);
            return None;
        }
        let done = self.end();
        self.forming = Some(Forming {
            prompts: prompt,
            sent: read.sent,
            first_end: read.ended,
            last_end: read.ended,
            beside: read.beside,
        });
        done
    }

    /// The step that ended so long before `now` that no other prompt can have ended with it.
    pub fn ended_before(&mut self, now: Moment, base: Seconds) -> Option<Step> {
        let due = |forming: &Forming| now - forming.last_end > gap(base) + HEARD_WITHIN;
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
