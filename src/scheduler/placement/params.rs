//! Parameters of placement: the targets and what an operator may set. Constants are in
//! [`tuning`](crate::tuning).

use crate::tuning::{
    BATCH_ENGINE_SHARE, BATCH_QUEUE_SHARE, LATE_CLASS_SHARE, PREFILL_BACKLOG_MAX, SHORT_PROMPT,
    TRUNK_RESERVATION_SHARE,
};
use tidegate_types::{Seconds, Slo, Targets, Tokens};

/// Treatment of queued requests that can no longer meet their TTFT target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatePolicy {
    /// They move to the late class and are served with [`Params::late_class_share`].
    #[default]
    Serve,
    /// Load shedding: they are refused at once, with two exceptions, which are served in the late
    /// class: requests that could not meet the target on arrival (the prefill alone takes longer),
    /// and retries.
    Refuse,
}

/// Parameters of [`place`](crate::placement::place), [`place_decode`](crate::placement::place_decode) and
/// [`EdfQueue`](crate::placement::EdfQueue).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The targets. With an ITL target, a decode backend takes only prefills whose longest step stays
    /// within it.
    pub slo: Slo,
    /// Smallest TPOT target of the service classes; infinite without classes. Batch work leaves
    /// decode steps that meet it and the target of `slo`.
    pub class_tpot: Seconds,
    /// Share of an engine up to which it takes batch work. 0 to 1, default [`BATCH_ENGINE_SHARE`]; no
    /// setting.
    pub batch_engine_share: f64,
    /// Prefill backlog bound of a backend. Greater than 0, default [`PREFILL_BACKLOG_MAX`]. Work in
    /// progress counts in full until its end, so that a bound below one chunk keeps the engine busy.
    /// Short prompts are also admitted while all outstanding tokens fit into one step: see
    /// [`step_tokens_max`](Params::step_tokens_max).
    pub prefill_backlog_max: Seconds,
    /// Prompts with fewer uncached tokens are short: they are colocated, and admitted beyond the
    /// backlog bound. Default [`SHORT_PROMPT`].
    pub colocate_below: Tokens,
    /// Chunk: the engines' `max_num_batched_tokens`, the most prompt tokens of one step. Default
    /// 2,048. A value that is too large is safer than one that is too small.
    pub chunk: Tokens,
    /// Whether decode backends prefill beside their streams while the pool has prefill backends.
    /// Default true.
    pub spill: bool,
    /// Share of the placed prefill work that the late class receives while feasible requests are
    /// queued. 0 to 1, default [`LATE_CLASS_SHARE`]. Without queued feasible requests the late class
    /// is served without this limit.
    pub late_class_share: f64,
    /// Treatment of queued requests that can no longer meet their TTFT target. Default: serve.
    pub late: LatePolicy,
    /// Duration of the trunk reservation, as a share of a request's queue deadline. Until then, a
    /// late request leaves one prefill backend idle for feasible requests. Most late requests have
    /// long prompts, and one of them occupies an engine as long as several short ones. 0 to 1,
    /// default [`TRUNK_RESERVATION_SHARE`].
    pub trunk_reservation_share: f64,
    /// Most requests in an [`EdfQueue`](crate::placement::EdfQueue). Default 10,000, which the
    /// simulator uses. The proxy sets it from `queue.requests_max` and checks it before a request
    /// reaches its queue.
    pub queue_max: usize,
}

/// Returns the number of waiting requests of any kind from which on a request is refused, in a queue for
/// `most` requests: [`BATCH_QUEUE_SHARE`] of them for batch work.
pub fn queue_limit(most: usize, targets: &Targets) -> usize {
    if targets.is_batch() { (most as f64 * BATCH_QUEUE_SHARE) as usize } else { most }
}

impl Params {
    /// Returns the most outstanding prefill tokens, the prompt's own included, with which a prompt of
    /// `uncached` tokens may start beyond the backlog bound: one chunk for a short prompt, 0
    /// otherwise.
    pub fn step_tokens_max(&self, uncached: Tokens) -> Tokens {
        if uncached < self.colocate_below { self.chunk } else { Tokens::ZERO }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            class_tpot: Seconds(f64::INFINITY),
            batch_engine_share: BATCH_ENGINE_SHARE,
            prefill_backlog_max: PREFILL_BACKLOG_MAX,
            colocate_below: SHORT_PROMPT,
            chunk: Tokens(2048),
            spill: true,
            late_class_share: LATE_CLASS_SHARE,
            late: LatePolicy::Serve,
            trunk_reservation_share: TRUNK_RESERVATION_SHARE,
            queue_max: 10_000,
        }
    }
}
