//! Parameters of placement: the targets and what an operator may set. Constants are in
//! [`tuning`](crate::tuning).

use crate::tuning::{LATE_CLASS_SHARE, PREFILL_BACKLOG_MAX, SHORT_PROMPT, TRUNK_RESERVATION_SHARE};
use tidegate_types::{Seconds, Slo, Tokens};

/// What becomes of a waiting request that can no longer meet its TTFT target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatePolicy {
    /// It moves to the late class and is served with [`Params::late_class_share`].
    #[default]
    Serve,
    /// Load shedding: it is refused at once. Two kinds of requests are served all the same: those
    /// that could not meet the target on arrival (prompts whose prefill alone takes longer), and
    /// retries.
    Refuse,
}

/// Parameters of [`place`](crate::placement::place), [`place_decode`](crate::placement::place_decode) and
/// [`EdfQueue`](crate::placement::EdfQueue).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The targets. With an ITL target, a decode backend takes only prefills whose longest step
    /// keeps it.
    pub slo: Slo,
    /// Prefill backlog bound of a backend. Greater than 0, default [`PREFILL_BACKLOG_MAX`]. Work
    /// counts until it is done, so less than one chunk suffices to keep the engine busy. Short
    /// prompts are also admitted while all outstanding tokens fit into one step: see
    /// [`joins_step_of`](Params::joins_step_of).
    pub prefill_backlog_max: Seconds,
    /// Prompts with fewer uncached tokens are short: they are never split, and join a step. Default
    /// [`SHORT_PROMPT`].
    pub whole_below: Tokens,
    /// The engines' `max_num_batched_tokens`: the prompt tokens that one mixed step computes.
    /// Default 2,048. If unknown, choose a larger value.
    pub chunk: Tokens,
    /// Whether decode backends prefill beside their streams while the pool has prefill backends.
    /// Default true.
    pub spill: bool,
    /// Share of the placed prefill work that goes to the late class (waiting requests that can no
    /// longer meet their TTFT) while feasible requests wait too. 0 to 1, default
    /// [`LATE_CLASS_SHARE`]. The rest of the late class is served when the queue is short.
    pub late_class_share: f64,
    /// What becomes of a waiting request that can no longer meet its TTFT target. Default: serve.
    pub late: LatePolicy,
    /// Duration of the trunk reservation, as a share of a request's queue deadline: until then, a
    /// request that can no longer meet its TTFT leaves one prefill backend idle for requests that
    /// can. Most late requests have long prompts, and one of them occupies an engine as long as
    /// several short ones. Default [`TRUNK_RESERVATION_SHARE`].
    pub trunk_reservation_share: f64,
    /// Most requests that wait in a [`EdfQueue`](crate::placement::EdfQueue). Default 10,000.
    pub queue_max: usize,
}

impl Params {
    /// Returns the bound of outstanding prefill tokens, the prompt's own included, up to which a
    /// prompt of `uncached` tokens may start beyond the backlog bound: one step for a short prompt,
    /// 0 otherwise. The step takes little longer with it.
    pub fn joins_step_of(&self, uncached: Tokens) -> Tokens {
        if uncached < self.whole_below { self.chunk } else { Tokens::ZERO }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            prefill_backlog_max: PREFILL_BACKLOG_MAX,
            whole_below: SHORT_PROMPT,
            chunk: Tokens(2048),
            spill: true,
            late_class_share: LATE_CLASS_SHARE,
            late: LatePolicy::Serve,
            trunk_reservation_share: TRUNK_RESERVATION_SHARE,
            queue_max: 10_000,
        }
    }
}
