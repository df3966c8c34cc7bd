//! What one backend would make of one job. Arithmetic only; which backends are candidates is decided
//! in place.rs.
//!
//! # Prompts share steps
//! An engine computes waiting prompts together, up to `chunk` tokens a step. A prompt is therefore
//! charged what it adds to the steps (`PrefillModel::joining`); the fixed cost of a step is added
//! once to all that is outstanding on a backend, not once a prompt. Short prompts that fit into one
//! step with those outstanding are admitted whatever the room in time is: the step takes little
//! longer with them, and without them the engine would need a step more.
//!
//! # How long a prefill holds up a decode engine
//! By docs/spec/engine-model.md#step-time a step that computes a chunk of the prompt beside `n`
//! decodes with `K` tokens
//! of KV takes `t_base + max(compute, t_weights) + K·t_kv`. Every stream still gets a token from
//! every such step, so the hold-up is per step: the prompt, together with the prefill tokens that
//! are outstanding there, makes `s = ⌈tokens / chunk⌉` steps that take
//!
//! ```text
//! mixed   = max(prefill, s·decode.base) + s·(n·t_seq + K·t_kv)
//! hold-up = mixed − s'·TPOT target
//! ```
//!
//! (`prefill` is what the cost model predicts of these prompts as one batch and has the chunks'
//! compute and fixed costs in it; `decode.base` is `t_base + t_weights`, which chunk and decodes
//! share; `s'` are the steps of the prompt alone: of those outstanding some may be over, and earn
//! nothing more.) After the last of these steps each stream is later than its target allows by at most the hold-up, and
//! never later before: a step that is longer than the target only adds. So a backend whose slack
//! covers the hold-up misses no TPOT by it, and with small chunks, or a prompt so short that its
//! step stays within the target, it costs nobody anything.
//!
//! One token's allowance of the slack is not for the hold-up: the step that runs now has to end
//! before the first chunk begins, and takes up to that. (Left out, it cost azure code at a chunk of
//! 512 eight points of TPOT attainment in the simulator, most by less than 2 ms a token.)

use crate::placement::{Job, Load, Params};
use tidegate_types::{BackendId, Seconds, Tokens};

/// A backend that could take a job, and how good that would be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) on: BackendId,
    /// Prefill work to reserve: what the prompt adds to the engine's steps.
    pub(super) predicted: Seconds,
    pub(super) cached: Tokens,
    /// Predicted time to the first token, from now.
    pub(super) ttft: Seconds,
    /// Predicted completion from now, with what it costs others; less is better.
    pub(super) rank: f64,
}

/// A job on one backend, before it is known in which form.
pub(super) struct Offer<'a> {
    pub(super) params: &'a Params,
    pub(super) job: &'a Job,
    pub(super) on: BackendId,
    pub(super) load: &'a Load,
    pub(super) cached: Tokens,
    /// What the prompt adds to the engine's steps.
    joining: Seconds,
    /// What the cache saves beyond what locality may count for.
    discounted: Seconds,
}

impl Candidate {
    /// Is `self` the better one, given how long the first token may take? Any that keeps the
    /// deadline beats any that does not.
    pub(super) fn beats(&self, other: &Candidate, left: Seconds) -> bool {
        let key = |candidate: &Candidate| (candidate.ttft > left, candidate.rank);
        let ((late, rank), (other_late, other_rank)) = (key(self), key(other));
        late.cmp(&other_late).then(rank.total_cmp(&other_rank)).is_lt()
    }

    /// Puts `self` into `best` if it is better.
    pub(super) fn compete(self, best: &mut Option<Candidate>, left: Seconds) {
        if best.as_ref().is_none_or(|best| self.beats(best, left)) {
            *best = Some(self);
        }
    }
}

impl<'a> Offer<'a> {
    pub(super) fn new(
        params: &'a Params,
        job: &'a Job,
        on: BackendId,
        load: &'a Load,
        cached: Tokens,
    ) -> Offer<'a> {
        let cached = Tokens(cached.get().min(job.prompt.get()));
        let joining = load.prefill_model.joining(job.prompt - cached, cached);
        let saved = load.prefill_model.joining(job.prompt, Tokens::ZERO) - joining;
        let discounted = (saved - params.locality_max).max(Seconds::ZERO);
        Offer { params, job, on, load, cached, joining, discounted }
    }

    pub(super) fn uncached(&self) -> Tokens {
        self.job.prompt - self.cached
    }

    /// May a prefill start there now?
    pub(super) fn has_prefill_room(&self) -> bool {
        let joined = self.load.prefill_tokens + self.uncached();
        let joins = joined <= self.params.joins_step_of(self.uncached());
        self.load.has_prefill_room(self.params.room) || joins
    }

    /// May one more stream start there within `share` of the TPOT target?
    pub(super) fn has_decode_room(&self) -> bool {
        let (job, params) = (self.job, self.params);
        self.load.streams < self.load.streams_max
            && self.load.has_memory_for(job.prompt, job.expected_output, params.kv_share)
            && self.load.has_step_room(job.prompt, self.admits())
    }

    /// The longest step with a new request in it. The reserve is a share of what streams may use:
    /// of the whole target it would be most of a tight one.
    fn admits(&self) -> Seconds {
        let base = self.load.decode_model.base;
        let spare = (self.params.slo.tpot - base).max(Seconds::ZERO);
        base + spare * self.params.admission
    }

    /// Does the slack of its streams, less the step that runs now, cover this prefill? A stream that
    /// has not begun has none, and may have begun by the time the prefill does.
    pub(super) fn has_slack(&self) -> bool {
        if self.params.hold_max < Seconds::ZERO {
            return false;
        }
        self.hold_up() <= self.slack().min(self.params.hold_max).max(Seconds::ZERO)
    }

    fn slack(&self) -> Seconds {
        match self.load.unbegun {
            0 => self.load.slack - self.params.slo.tpot,
            _ => Seconds::ZERO,
        }
    }

    /// Would this prompt alone give streams their tokens later than the target allows, those that run
    /// there or those that are handed over meanwhile? The latter not by the first step: it ends with
    /// their first token.
    pub(super) fn holds_up(&self) -> bool {
        let steps = self.steps_of(self.uncached());
        let alone = self.load.prefill_model.batch(self.joining);
        let any = self.load.streams > 0 || steps > 1.0;
        any && self.beside_streams(alone, steps) > self.params.slo.tpot * steps
    }

    /// The prefill leg alone; what follows elsewhere is added by [`handed_over`].
    pub(super) fn prefill(&self) -> Candidate {
        self.candidate(self.mixed(), Seconds::ZERO)
    }

    /// The whole request.
    pub(super) fn whole(&self) -> Candidate {
        let ttft = self.mixed();
        let output = self.job.expected_output.as_f64();
        self.candidate(ttft, self.load.step_with(self.job.prompt) * output)
    }

    fn candidate(&self, ttft: Seconds, decode: Seconds) -> Candidate {
        // A prefill backend has streams too, for a while after it was a decode backend.
        let harm = match self.load.streams {
            0 => Seconds::ZERO,
            _ => self.hold_up().max(Seconds::ZERO) * self.params.hold_weight,
        };
        let rank = (ttft + decode + harm + self.discounted).get();
        let (on, predicted, cached) = (self.on, self.joining, self.cached);
        Candidate { on, predicted, cached, ttft, rank }
    }

    /// Steps that so many prefill tokens make.
    fn steps_of(&self, tokens: Tokens) -> f64 {
        tokens.get().div_ceil(self.params.chunk.get().max(1)).max(1) as f64
    }

    /// Steps of the prompt together with the prefills that are outstanding there.
    fn steps(&self) -> f64 {
        self.steps_of(self.load.prefill_tokens + self.uncached())
    }

    /// All of that beside the streams that run there. See above.
    fn mixed(&self) -> Seconds {
        let load = self.load;
        let batch = match load.prefill > Seconds::ZERO {
            true => load.prefill + self.joining,
            false => load.prefill_model.batch(self.joining),
        };
        self.beside_streams(batch, self.steps())
    }

    /// Prefill work of so many steps beside the streams that run there.
    fn beside_streams(&self, prefill: Seconds, steps: f64) -> Seconds {
        let load = self.load;
        if load.streams == 0 {
            return prefill;
        }
        let shared = load.decode_model.base;
        let beside = load.decode_model.beside_prefill(load.streams, load.kv);
        prefill.max(shared * steps) + beside * steps
    }

    /// See above.
    fn hold_up(&self) -> Seconds {
        self.mixed() - self.params.slo.tpot * self.steps_of(self.uncached())
    }
}

/// A prefill candidate with its decode on a backend whose step then takes `step`. The KV comes in
/// the middle of another step.
pub(super) fn handed_over(
    params: &Params,
    job: &Job,
    prefill: Candidate,
    step: Seconds,
) -> Candidate {
    let ttft = prefill.ttft + params.transfer.predict(job.prompt) + step * 1.5;
    let after = ttft - prefill.ttft + step * job.expected_output.as_f64();
    Candidate { ttft, rank: prefill.rank + after.get(), ..prefill }
}
