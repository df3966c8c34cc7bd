//! Notes of a request's legs. Legs write them while they run and do not return them: when the
//! client disconnects, the legs are dropped, and the request is still logged.

use std::sync::Arc;
use tidegate_engine::Usage;
use tidegate_filters::Accepted;
use tidegate_scheduler::learn::PrefillSample;
use tidegate_scheduler::placement::Considered;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::backends::fleet::{Backend, InflightRequest};
use crate::dispatch::prefilling::PrefillInProgress;
use crate::dispatch::reservation::Predicted;

/// Notes of a request's legs. Fields are assigned in this module only.
#[derive(Default)]
pub struct LegNotes {
    /// Backends tried.
    pub(super) attempts: u32,
    /// Placement's prediction for the first leg.
    pub(super) predicted: Option<Predicted>,
    pub(super) prefill_on: Option<Arc<Backend>>,
    /// Backend of the decode or colocated leg.
    pub(super) decode_on: Option<Arc<Backend>>,
    /// Cached tokens that the prefill engine reported, for a disaggregated request.
    pub(super) cached: Option<Tokens>,
    /// Usage that the prefill engine of a disaggregated request reported.
    pub(super) prefill_usage: Option<Usage>,
    /// Sample of a colocated answer that was not streamed: prefill and decode together.
    pub(super) whole: Option<PrefillSample>,
    /// The prefill of a colocated leg whose stream began before its first token.
    pub(super) prefilling: Option<PrefillInProgress>,
    /// Candidates of the last placement.
    pub(super) considered: Option<Box<[Considered]>>,
    /// Whether prefill and decode ran on two engines.
    pub(super) split: bool,
    /// End of the prefill leg of a disaggregated request.
    pub(super) prefilled_at: Option<Moment>,
    /// Predicted decode step of the engine that decodes, including this request.
    pub(super) step: Option<Seconds>,
}

impl LegNotes {
    /// Notes of a hedge, which numbers its legs from `attempts` on.
    pub(crate) fn of_hedge(attempts: u32, considered: Option<Box<[Considered]>>) -> LegNotes {
        LegNotes { attempts, considered, ..LegNotes::default() }
    }

    /// Backend of the decode or colocated leg.
    pub(crate) fn decode_on(&self) -> Option<&Arc<Backend>> {
        self.decode_on.as_ref()
    }
}

/// Writer of a leg's notes: into the request's record, or into a hedge's own notes.
pub struct RequestProgress<'a> {
    pub(crate) accepted: &'a Accepted,
    pub(crate) live: &'a InflightRequest,
    pub(super) notes: &'a mut LegNotes,
}

impl<'a> RequestProgress<'a> {
    /// A writer into `notes`.
    pub(crate) fn new(
        accepted: &'a Accepted,
        live: &'a InflightRequest,
        notes: &'a mut LegNotes,
    ) -> RequestProgress<'a> {
        RequestProgress { accepted, live, notes }
    }

    /// Number of the current attempt, from 1.
    pub(crate) fn attempts(&self) -> u32 {
        self.notes.attempts
    }

    /// Begins another attempt on the same engine, whose request id must differ.
    pub(crate) fn next_attempt(&mut self) {
        self.notes.attempts += 1;
    }

    /// The prefill leg of a disaggregated request runs on `backend`.
    pub(crate) fn prefills_on(&mut self, backend: &Arc<Backend>, predicted: Predicted) {
        self.notes.prefill_on = Some(Arc::clone(backend));
        self.notes.predicted = Some(predicted);
        self.notes.split = true;
        self.live.prefills_on(backend.id);
    }

    /// The decode or colocated leg runs on `backend`, whose decode step is predicted as `step`.
    pub(crate) fn decodes_on(
        &mut self,
        backend: &Arc<Backend>,
        predicted: Option<Predicted>,
        step: Seconds,
    ) {
        self.notes.step = Some(step);
        self.notes.predicted = predicted.or(self.notes.predicted);
        self.notes.decode_on = Some(Arc::clone(backend));
        self.live.decodes_on(backend.id);
    }

    /// The request runs colocated: notes of earlier legs are cleared.
    pub(crate) fn runs_colocated(&mut self) {
        (self.notes.split, self.notes.prefilled_at) = (false, None);
        (self.notes.cached, self.notes.prefill_usage, self.notes.whole) = (None, None, None);
    }

    /// The prefill leg has ended.
    pub(crate) fn prefilled(&mut self, now: Moment) {
        self.notes.prefilled_at = Some(now);
    }

    /// The prefill engine has reported its usage.
    pub(crate) fn prefill_reported(&mut self, usage: Option<Usage>) {
        self.notes.prefill_usage = usage;
    }

    /// Sets the cached tokens in the client's usage, which replace the decode engine's count.
    pub(crate) fn cached(&mut self, cached: Option<Tokens>) {
        self.notes.cached = cached;
    }

    /// The stream of a colocated leg has begun before its first token.
    pub(crate) fn awaits_first_token(&mut self, prefilling: PrefillInProgress) {
        self.notes.prefilling = Some(prefilling);
    }

    /// A colocated answer has arrived whole.
    pub(crate) fn answered_whole(&mut self, sample: PrefillSample) {
        self.notes.whole = Some(sample);
    }
}
