//! Predicted completion of one job on one backend. Arithmetic only; `place.rs` decides which
//! backends are candidates.
//!
//! # Prompts share steps
//! An engine computes waiting prompts together, up to `chunk` tokens a step. A prompt is therefore
//! charged what it adds to the steps (`PrefillModel::added_time`); the fixed cost of a step is added
//! once per backend to the sum of the outstanding prompts. Short prompts that fit into one step
//! with the outstanding ones are admitted beyond the prefill backlog bound: the step takes little
//! longer with them, and without them the engine would need an additional step.
//!
//! # How long a prefill stalls a decode engine
//! By docs/spec/engine-model.md#step-time a step that computes a chunk of the prompt beside `n`
//! decodes with `K` tokens of KV takes `t_base + max(compute, t_weights) + K·t_kv`. Every stream
//! still emits one token per step, so the stall is counted per step. The prompt and the prefill
//! tokens that are outstanding on the backend make `s = ⌈tokens / chunk⌉` steps that take
//!
//! ```text
//! mixed = max(prefill, s·decode.base) + s·(n·t_seq + K·t_kv)
//! stall = mixed − s'·TPOT target
//! ```
//!
//! `prefill` is the cost model's prediction for these prompts as one batch and includes the compute
//! and fixed costs of the chunks. `decode.base` is `t_base + t_weights`, which chunk and decodes
//! share. `s'` are the steps of the prompt alone: some of the outstanding steps may be over and
//! earn no more slack. After the last of these steps each stream is behind its TPOT target by at
//! most the stall, and by no more at any earlier step, because a step longer than the target only
//! adds. A backend whose slack covers the stall therefore misses no TPOT because of this prompt.
//! The stall is 0 for small chunks, and for a prompt so short that its step stays within the
//! target.
//!
//! One TPOT of the slack is reserved for the step in progress, which must end before the first
//! chunk begins. Without this reserve azure code at a chunk of 512 lost eight points of TPOT
//! attainment in the simulator, most streams by less than 2 ms a token.

use crate::placement::{Load, Params, PrefillRequest};
use crate::tuning::{HEADROOM, SLACK_PRICE};
use tidegate_types::{BackendId, Seconds, Tokens};

/// A possible backend for a job, with its predicted cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) on: BackendId,
    /// Prefill work to reserve: the time that the prompt adds to the engine's steps.
    pub(super) predicted: Seconds,
    pub(super) cached: Tokens,
    /// Predicted time to the first token, from now.
    pub(super) ttft: Seconds,
    /// Predicted duration of a hand-off of the prompt from this backend.
    pub(super) hand_off: Seconds,
    /// Predicted completion from now plus the weighted cost to other streams, in seconds; less is
    /// better.
    pub(super) score: f64,
}

/// A job on one backend, before the choice between prefill leg and whole request.
pub(super) struct Evaluation<'a> {
    pub(super) params: &'a Params,
    pub(super) job: &'a PrefillRequest,
    pub(super) on: BackendId,
    pub(super) load: &'a Load,
    pub(super) cached: Tokens,
    /// Time that the prompt adds to the engine's steps.
    added_time: Seconds,
}

impl Candidate {
    /// Returns whether `self` is better than `other`, with `time_left` until the TTFT deadline: a
    /// candidate that keeps the deadline comes before any that does not, then the lower score.
    pub(super) fn beats(&self, other: &Candidate, time_left: Seconds) -> bool {
        let key = |candidate: &Candidate| (candidate.ttft > time_left, candidate.score);
        let ((late, score), (other_late, other_rank)) = (key(self), key(other));
        late.cmp(&other_late).then(score.total_cmp(&other_rank)).is_lt()
    }

    /// Puts `self` into `best` if it is better.
    pub(super) fn compete(self, best: &mut Option<Candidate>, time_left: Seconds) {
        if best.as_ref().is_none_or(|best| self.beats(best, time_left)) {
            *best = Some(self);
        }
    }
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(
        params: &'a Params,
        job: &'a PrefillRequest,
        on: BackendId,
        load: &'a Load,
        cached: Tokens,
    ) -> Evaluation<'a> {
        let cached = Tokens(cached.get().min(job.prompt.get()));
        let added_time = load.prefill_model.added_time(job.prompt - cached, cached);
        Evaluation { params, job, on, load, cached, added_time }
    }

    pub(super) fn uncached(&self) -> Tokens {
        self.job.prompt - self.cached
    }

    /// Returns whether a prefill may start on the backend now.
    pub(super) fn has_prefill_room(&self) -> bool {
        let joined = self.load.prefill_tokens + self.uncached();
        let joins = joined <= self.params.joins_step_of(self.uncached());
        self.load.has_prefill_room(self.params.room) || joins
    }

    /// Returns whether one more stream may start on the backend within the admission share of the
    /// TPOT target.
    pub(super) fn has_decode_room(&self) -> bool {
        let job = self.job;
        self.load.streams < self.load.streams_max
            && self.load.has_memory_for(job.prompt, job.expected_output)
            && self.load.has_step_room(job.prompt, self.admits())
    }

    /// Longest step with a new request in it. The headroom is a share of the target less the fixed
    /// cost of a step: a share of the whole target would use up most of a tight one.
    fn admits(&self) -> Seconds {
        let base = self.load.decode_model.base;
        let spare = (self.params.slo.tpot - base).max(Seconds::ZERO);
        base + spare * (1.0 - HEADROOM)
    }

    /// Returns whether the slack of the streams, less the step in progress, covers this prefill. A
    /// stream without a first token has no slack, and may emit its first token before the prefill
    /// starts.
    pub(super) fn has_slack(&self) -> bool {
        self.params.spill
            && self.stall() <= self.slack().min(self.params.slo.ttft).max(Seconds::ZERO)
            && self.keeps_itl()
    }

    /// Returns whether no step of this prefill lasts longer than the ITL target where it delays
    /// tokens of other streams.
    fn keeps_itl(&self) -> bool {
        let any = self.load.streams > 0 || self.steps_of(self.uncached()) > 1.0;
        self.params.slo.itl.is_none_or(|itl| !any || self.longest_step() <= itl)
    }

    /// Longest step of the prefill beside the running streams: its last full chunk, whose context is
    /// the longest.
    fn longest_step(&self) -> Seconds {
        let tokens = (self.load.prefill_tokens + self.uncached()).min(self.params.chunk);
        let model = &self.load.prefill_model;
        let chunk = model.batch(model.added_time(tokens, self.job.prompt - tokens));
        self.beside_streams(chunk, 1.0)
    }

    fn slack(&self) -> Seconds {
        match self.load.awaiting_first_token {
            0 => self.load.slack - self.params.slo.tpot,
            _ => Seconds::ZERO,
        }
    }

    /// Returns whether this prompt alone delays tokens beyond the TPOT target, of running streams
    /// or of streams whose hand-off ends meanwhile. The first step does not delay the latter: it
    /// ends with their first token.
    pub(super) fn stalls_streams(&self) -> bool {
        let steps = self.steps_of(self.uncached());
        let alone = self.load.prefill_model.batch(self.added_time);
        let any = self.load.streams > 0 || steps > 1.0;
        any && self.beside_streams(alone, steps) > self.params.slo.tpot * steps
    }

    /// The prefill leg alone; [`with_hand_off`] adds the hand-off and the decode.
    pub(super) fn prefill(&self) -> Candidate {
        self.candidate(self.mixed(), Seconds::ZERO)
    }

    /// The whole request.
    pub(super) fn colocated(&self) -> Candidate {
        let ttft = self.mixed();
        let output = self.job.expected_output.as_f64();
        self.candidate(ttft, self.load.step_with(self.job.prompt) * output)
    }

    fn candidate(&self, ttft: Seconds, decode: Seconds) -> Candidate {
        // A prefill backend has streams for a while after a flip from decode.
        let harm = match self.load.streams {
            0 => Seconds::ZERO,
            _ => self.stall().max(Seconds::ZERO) * SLACK_PRICE,
        };
        let score = (ttft + decode + harm).get();
        let (on, predicted, cached) = (self.on, self.added_time, self.cached);
        let hand_off = self.load.transfer_model.predict(self.job.prompt);
        Candidate { on, predicted, cached, ttft, hand_off, score }
    }

    /// Number of steps for this many prefill tokens.
    fn steps_of(&self, tokens: Tokens) -> f64 {
        tokens.get().div_ceil(self.params.chunk.get().max(1)).max(1) as f64
    }

    /// Steps of the prompt together with the outstanding prefills of the backend.
    fn steps(&self) -> f64 {
        self.steps_of(self.load.prefill_tokens + self.uncached())
    }

    /// Duration of those steps beside the running streams: `mixed` of the module documentation.
    fn mixed(&self) -> Seconds {
        let load = self.load;
        let batch = match load.prefill > Seconds::ZERO {
            true => load.prefill + self.added_time,
            false => load.prefill_model.batch(self.added_time),
        };
        self.beside_streams(batch, self.steps())
    }

    /// Duration of prefill work of `steps` steps beside the running streams.
    fn beside_streams(&self, prefill: Seconds, steps: f64) -> Seconds {
        let load = self.load;
        if load.streams == 0 {
            return prefill;
        }
        let shared = load.decode_model.base;
        let beside = load.decode_model.beside_prefill(load.streams, load.kv);
        prefill.max(shared * steps) + beside * steps
    }

    /// The stall: see the module documentation.
    fn stall(&self) -> Seconds {
        self.mixed() - self.params.slo.tpot * self.steps_of(self.uncached())
    }
}

/// Adds the hand-off, and the decode on a backend whose step then takes `step`.
pub(super) fn with_hand_off(job: &PrefillRequest, prefill: Candidate, step: Seconds) -> Candidate {
    let ttft = prefill.ttft + prefill.hand_off + step;
    let after = ttft - prefill.ttft + step * job.expected_output.as_f64();
    Candidate { ttft, score: prefill.score + after.get(), ..prefill }
}
