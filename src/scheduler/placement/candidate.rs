//! Predicted completion of one request on one backend. Arithmetic only; `place.rs` decides which
//! backends are candidates.
//!
//! # Batching of prompts
//! An engine computes waiting prompts together, up to `chunk` tokens per step. A prompt is therefore
//! charged the time that it adds to the steps (`PrefillModel::added_time`); the fixed cost of a step
//! is added once per backend to the sum of the outstanding prompts. Short prompts that fit into one
//! step with the outstanding ones are admitted beyond the prefill backlog bound: they lengthen that
//! step less than an additional step would take.
//!
//! # Stall of decode streams by a prefill
//! By docs/spec/engine-model.md#step-time a step that computes a chunk of the prompt beside `n`
//! decodes with `K` tokens of KV takes `t_base + max(compute, t_weights) + K·t_kv`. Every stream
//! emits one token per step, so the stall is counted per step. The prompt and the prefill tokens
//! that are outstanding on the backend form `s = ⌈tokens / chunk⌉` steps with a total duration of
//!
//! ```text
//! mixed = max(prefill, s·decode.base) + s·(n·t_seq + K·t_kv)
//! stall = mixed − s'·smallest TPOT target of the streams
//! ```
//!
//! `prefill` is the cost model's prediction for these prompts as one batch and includes the compute
//! and fixed costs of the chunks. `decode.base` is `t_base + t_weights`, which chunk and decodes
//! share. `s'` is the number of steps of the prompt alone: some of the outstanding steps may already
//! have run, and each remaining step earns one TPOT of slack. After the last of these steps each
//! stream has lost at most the stall, and less after any earlier step, because each step longer than
//! the target adds to it. On a backend whose smallest slack covers the stall, no stream misses its
//! TPOT target because of this prompt. The stall is at most 0 if every step stays within the target.
//!
//! One TPOT of the slack is reserved for the step in progress, which ends before the first chunk
//! starts. Without this reserve, azure code at chunk 512 lost 8 points of TPOT attainment in the
//! simulator; most streams missed the target by less than 2 ms per token.

use crate::placement::fleet::TpotLimit;
use crate::placement::{BackendLoad, Params, PrefillRequest};
use crate::tuning::{HEADROOM, HOLDER_SAVES, SLACK_PRICE};
use tidegate_types::{BackendId, Role, Seconds, Tokens};

/// A backend that can take the first leg of a request, with the predicted cost.
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
    /// Predicted completion from now plus [`SLACK_PRICE`] per second of stall of other streams, in
    /// seconds; the lowest score wins.
    pub(super) score: f64,
}

/// Prediction of capacity, slack and cost for a request on one backend. Both kinds of first leg
/// (prefill only, colocated) are derived from it.
pub(super) struct Evaluation<'a> {
    pub(super) params: &'a Params,
    pub(super) job: &'a PrefillRequest,
    pub(super) on: BackendId,
    pub(super) load: &'a BackendLoad,
    pub(super) cached: Tokens,
    limit: TpotLimit,
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

    /// Replaces `best` by `self` if `self` is better.
    pub(super) fn compete(self, best: &mut Option<Candidate>, time_left: Seconds) {
        if best.as_ref().is_none_or(|best| self.beats(best, time_left)) {
            *best = Some(self);
        }
    }
}

impl<'a> Evaluation<'a> {
    /// Evaluates the backend `on` with `time_left` until the TTFT deadline.
    pub(super) fn new(
        params: &'a Params,
        job: &'a PrefillRequest,
        (on, load): (BackendId, &'a BackendLoad),
        cached: Tokens,
        time_left: Seconds,
    ) -> Evaluation<'a> {
        let cached = Tokens(cached.get().min(job.prompt.get()));
        let added_time = load.prefill_model.added_time(job.prompt - cached, cached);
        let limit = TpotLimit::at(time_left, &job.targets);
        Evaluation { params, job, on, load, cached, limit, added_time }
    }

    pub(super) fn uncached(&self) -> Tokens {
        self.job.prompt - self.cached
    }

    /// Returns whether a prefill may start on the backend now. One of batch work needs an engine
    /// without prefill work.
    pub(super) fn has_prefill_capacity(&self) -> bool {
        if self.job.is_batch() {
            return self.load.prefill <= Seconds::ZERO;
        }
        let joined = self.load.prefill_tokens + self.uncached();
        let joins = joined <= self.params.step_tokens_max(self.uncached());
        self.load.has_prefill_capacity(self.params.prefill_backlog_max) || joins
    }

    /// Returns whether one more stream fits within the TPOT target, the KV memory and the engine's
    /// own limit, less [`HEADROOM`].
    pub(super) fn has_decode_capacity(&self) -> bool {
        let (job, load) = (self.job, self.load);
        let size = (job.prompt, job.expected_output);
        load.admits_stream(self.params, &job.targets, size, self.limit, |tpot| {
            load.step_within(tpot, 1.0 - HEADROOM)
        })
    }

    /// Returns whether the slack of the streams, less the step in progress, covers the stall by this
    /// prefill.
    pub(super) fn has_slack(&self) -> bool {
        self.params.spill && self.stalls_within_slack()
    }

    fn stalls_within_slack(&self) -> bool {
        self.stall() <= self.slack().min(self.job.targets.slo.ttft).max(Seconds::ZERO)
            && self.keeps_itl()
    }

    /// Returns whether every step of this prefill that delays tokens of other streams stays within
    /// their smallest ITL target. Without a target it does.
    fn keeps_itl(&self) -> bool {
        let any = self.load.streams > 0 || self.steps_of(self.uncached()) > 1.0;
        // Without streams the target of this request stands for those whose hand-off ends meanwhile.
        let itl = match self.load.streams {
            0 => self.job.targets.slo.itl,
            _ => self.load.tightest.itl,
        };
        itl.is_none_or(|itl| !any || self.longest_step() <= itl)
    }

    /// Returns whether the backend may run the request colocated. Batch work may not delay other
    /// streams by more than their slack, and runs on a backend of the decode role only if it must be
    /// colocated. For other requests this is always true.
    pub(super) fn may_colocate_batch(&self, must_colocate: bool) -> bool {
        !self.job.is_batch()
            || (self.load.role != Role::Decode || must_colocate)
                && (self.load.streams == 0 || self.stalls_within_slack())
    }

    /// Returns the longest step of the prefill beside the running streams: its last full chunk, which
    /// has the longest context.
    fn longest_step(&self) -> Seconds {
        let tokens = (self.load.prefill_tokens + self.uncached()).min(self.params.chunk);
        let model = &self.load.prefill_model;
        let chunk = model.batch(model.added_time(tokens, self.job.prompt - tokens));
        self.beside_streams(chunk, 1.0)
    }

    /// Returns whether the prefix cache of the backend saves most of the prompt's prefill work.
    pub(super) fn holds_most(&self) -> bool {
        let uncached = self.load.prefill_model.added_time(self.job.prompt, Tokens::ZERO);
        self.added_time * HOLDER_SAVES < uncached
    }

    /// Returns whether a prefill backend also decodes this request: a hand-off would copy the KV that
    /// it holds, and a second copy evicts other prefixes. Its running streams must have slack.
    pub(super) fn keeps_decode(&self) -> bool {
        self.holds_most()
            && self.has_decode_capacity()
            && (self.load.streams == 0 || self.has_slack())
    }

    /// Returns the smallest slack less one TPOT for the step in progress; 0 if a stream has no first
    /// token yet: it has no slack, and may emit that token before the prefill starts.
    fn slack(&self) -> Seconds {
        match self.load.awaiting_first_token {
            0 => self.load.slack - self.streams_tpot(),
            _ => Seconds::ZERO,
        }
    }

    /// Returns whether this prompt alone delays tokens beyond the TPOT target: of running streams, or
    /// of streams whose hand-off ends during the prefill. The first step delays none of the latter,
    /// because it ends with their first token.
    pub(super) fn stalls_streams(&self) -> bool {
        let steps = self.steps_of(self.uncached());
        let alone = self.load.prefill_model.batch(self.added_time);
        let any = self.load.streams > 0 || steps > 1.0;
        any && self.beside_streams(alone, steps) > self.streams_tpot() * steps
    }

    /// Returns the candidate of the prefill leg alone; [`with_hand_off`] adds hand-off and decode.
    pub(super) fn prefill(&self) -> Candidate {
        self.candidate(self.mixed(), Seconds::ZERO)
    }

    /// Returns the candidate of the colocated request.
    pub(super) fn colocated(&self) -> Candidate {
        let ttft = self.mixed();
        let output = self.job.expected_output.as_f64();
        self.candidate(ttft, self.load.step_with(self.job.prompt) * output)
    }

    fn candidate(&self, ttft: Seconds, decode: Seconds) -> Candidate {
        // Prefill backends have streams too: those from before a flip.
        let stall_price = match self.load.streams {
            0 => Seconds::ZERO,
            _ => self.stall().max(Seconds::ZERO) * SLACK_PRICE,
        };
        let score = (ttft + decode + stall_price).get();
        let (on, predicted, cached) = (self.on, self.added_time, self.cached);
        let hand_off = self.load.transfer_model.predict(self.job.prompt);
        Candidate { on, predicted, cached, ttft, hand_off, score }
    }

    /// Returns the number of steps for this many prefill tokens.
    fn steps_of(&self, tokens: Tokens) -> f64 {
        tokens.get().div_ceil(self.params.chunk.get().max(1)).max(1) as f64
    }

    /// Returns the number of steps of the prompt together with the outstanding prefills.
    fn steps(&self) -> f64 {
        self.steps_of(self.load.prefill_tokens + self.uncached())
    }

    /// Returns the duration of those steps beside the running streams: `mixed` of the module
    /// documentation.
    fn mixed(&self) -> Seconds {
        let load = self.load;
        let batch = match load.prefill > Seconds::ZERO {
            true => load.prefill + self.added_time,
            false => load.prefill_model.batch(self.added_time),
        };
        self.beside_streams(batch, self.steps())
    }

    /// Returns the duration of prefill work of `steps` steps beside the running streams.
    fn beside_streams(&self, prefill: Seconds, steps: f64) -> Seconds {
        let load = self.load;
        if load.streams == 0 {
            return prefill;
        }
        let shared = load.decode_model.base;
        let beside = load.decode_model.beside_prefill(load.streams, load.kv);
        prefill.max(shared * steps) + beside * steps
    }

    /// Returns the TPOT target by which a stall is judged.
    fn streams_tpot(&self) -> Seconds {
        let own =
            if self.job.is_batch() { self.params.slo.tpot } else { self.job.targets.slo.tpot };
        self.load.streams_tpot(own)
    }

    /// Returns the stall of the module documentation.
    fn stall(&self) -> Seconds {
        self.mixed() - self.streams_tpot() * self.steps_of(self.uncached())
    }
}

/// Returns the candidate with hand-off and decode added, on a decode backend whose step takes `step`.
pub(super) fn with_hand_off(job: &PrefillRequest, prefill: Candidate, step: Seconds) -> Candidate {
    let ttft = prefill.ttft + prefill.hand_off + step;
    let after = ttft - prefill.ttft + step * job.expected_output.as_f64();
    Candidate { ttft, score: prefill.score + after.get(), ..prefill }
}
