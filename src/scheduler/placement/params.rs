//! What an operator may set of placement. Plain values; the defaults are for
//! docs/spec/engine-model.md's
//! physics.

use crate::cost::TransferModel;
use tidegate_types::{Seconds, Slo, Tokens};

/// Parameters of [`place`](crate::placement::place), [`place_decode`](crate::placement::place_decode) and
/// [`DeadlineQueue`](crate::placement::DeadlineQueue).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// What clients were promised.
    pub slo: Slo,
    /// Prefill work that may wait on a backend: the time it takes to hear that it ended and to send
    /// the next, so that the engine never runs dry and the queue stays ours. Work is counted until
    /// it is done, so less than a chunk is enough, and more costs bursts their order: azure code at
    /// twice its rate loses a point at 0.15 s. Greater than 0. Short prompts also start while all
    /// that is outstanding fits into one step: see [`joins_step_of`](Params::joins_step_of).
    pub room: Seconds,
    /// Prompts with fewer uncached tokens are never split: a hand-off costs more.
    pub whole_below: Tokens,
    /// The engines' `max_num_batched_tokens`: how many prompt tokens hold up a decode step. If in
    /// doubt rather more.
    pub chunk: Tokens,
    /// What a hand-off costs.
    pub transfer: TransferModel,
    /// The longest a decode backend is ever held up for a prefill, however much slack it has:
    /// streams that are handed over meanwhile have none yet. Below 0: decode backends take no
    /// prompt at all while there are prefill backends.
    pub hold_max: Seconds,
    /// What holding up streams by a second within their slack counts for, in seconds of the
    /// request's own completion. 0 uses slack freely; large values save it for bursts.
    pub hold_weight: f64,
    /// What a second of prefill work in the way of a stream that is handed to a decode backend, or of
    /// slack that it takes from those there, counts for in seconds of its own completion. A stream
    /// that begins has no slack and so leaves none to the others: it goes where another has just
    /// begun, and other backends can take prompts. 1 or more.
    pub slack_weight: f64,
    /// The most that a cached prefix counts for in choosing a backend, so that one long shared
    /// prefix does not pull all load to one backend.
    pub locality_max: Seconds,
    /// Share of the TPOT target up to which new requests are admitted to decode; the rest is for
    /// prefills that are under way.
    pub admission: f64,
    /// Share of the KV memory that is given away; the rest is for streams that grow.
    pub kv_share: f64,
    /// Share of the prefill work placed that belongs to waiting requests which can no longer meet
    /// their TTFT, while others wait too. 0..1. Every hundredth costs those others about half as
    /// much attainment while the queue is long; the rest of the hopeless are served when it is short.
    pub hopeless_share: f64,
    /// A request that can no longer meet its TTFT leaves one engine that takes prefills idle for those
    /// that can, until it has waited for this share of its queue deadline. Long prompts are most of
    /// them, and one would hold an engine for as long as several others are given.
    pub hopeless_patience: f64,
    /// Requests that may wait in a [`DeadlineQueue`](crate::placement::DeadlineQueue).
    pub queue_max: usize,
    /// How far behind the first waiting request one is looked for that fits where it does not: a
    /// short one may.
    pub look_ahead: usize,
    /// Up to this many backends are all looked at; of more, this many by the job's seed, and
    /// further ones only while none has room.
    pub sample: usize,
}

/// Prompts with fewer uncached tokens than this are short: 32 of them fill a step of vLLM's default
/// chunk of 2,048 tokens, and one is less than the work that hides behind reading the weights once
/// (185 tokens for Llama-70B in docs/spec/engine-model.md).
const SHORT: Tokens = Tokens(64);

impl Params {
    /// Up to how many outstanding tokens, its own included, a prompt of `uncached` tokens may start
    /// although the room in time is used up: those of one step if it is short, else none.
    pub fn joins_step_of(&self, uncached: Tokens) -> Tokens {
        if uncached < SHORT { self.chunk } else { Tokens::ZERO }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            room: Seconds(0.050),
            whole_below: Tokens(64),
            chunk: Tokens(2048),
            transfer: TransferModel::default(),
            hold_max: Seconds(1.0),
            hold_weight: 1.0,
            slack_weight: 3.0,
            locality_max: Seconds(0.5),
            admission: 0.95,
            kv_share: 0.9,
            hopeless_share: 0.02,
            hopeless_patience: 0.5,
            queue_max: 10_000,
            look_ahead: 32,
            sample: 64,
        }
    }
}
