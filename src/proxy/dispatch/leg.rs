//! One leg: sends it to an engine, reads its answer, notes its progress. Used by colocated.rs,
//! disaggregated.rs, concurrent_legs.rs and named_prefill.rs.

use http::StatusCode;
use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::pd_role::{SwitchPhase, read_status};
use tidegate_engine::{Family, LegBody, is_load};
use tidegate_filters::Accepted;
use tidegate_scheduler::inflight::Balance;
use tidegate_scheduler::learn::{HandOffSample, Sample};
use tidegate_scheduler::placement::{DecodeRequest, FleetLoads};
use tidegate_types::{Moment, Role, Seconds, Tokens};

use crate::backends::fleet::{Backend, KnownPrefixes};
use crate::dispatch::answer::{self, OpenedAnswer, OpenedBody};
use crate::dispatch::headers::AttemptIds;
use crate::dispatch::prefilling::PrefillInProgress;
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestProgress;
use crate::dispatch::watch::watched;
use crate::telemetry::control_events::ControlEvent;
use crate::upstream::failure::{LegFailure, LegKind, LegProblem};
use crate::upstream::{EngineAnswer, Head, read_all};

/// Largest answer to a prefill leg, in bytes. Its hand-off names every KV block of the prompt: about
/// 8 bytes per block of 16 tokens, 0.5 MB for a million tokens.
pub(crate) const PREFILL_ANSWER_MAX: usize = 8 << 20;
/// Largest refusal by an engine with enforced roles, in bytes.
const REFUSAL_MAX: usize = 64 << 10;

/// Sends a leg and reads its answer up to its first byte, within the first-byte time-out. `with`: the
/// other engine that the leg depends on. `on_connected` is called before the leg is written to its
/// connection.
pub(crate) async fn answered(
    serving: &Serving<'_>,
    backend: &Backend,
    with: Option<&Backend>,
    predicted: Seconds,
    leg: LegBody,
    attempt: u32,
    on_connected: &(dyn Fn() + Sync),
) -> Result<(Head, OpenedBody), LegProblem> {
    let answered = pin!(async {
        let answer =
            send_unbounded(serving, backend, Role::Decode, leg, attempt, on_connected).await?;
        answer::open(answer, serving.accepted.endpoint).await
    });
    let predicted = predicted + serving.decode_time(backend);
    watched(serving, [Some(backend), with], predicted, answered).await
}

/// Sends a leg; the time to its head is not limited here (see watch.rs). `role`: the role that an engine
/// with enforced roles must have.
pub(crate) async fn send_unbounded(
    serving: &Serving<'_>,
    backend: &Backend,
    role: Role,
    leg: LegBody,
    attempt: u32,
    on_connected: &(dyn Fn() + Sync),
) -> Result<EngineAnswer, LegProblem> {
    let accepted = serving.accepted;
    let request_id = request_id(&accepted.request_id, attempt);
    let address = backend.pool.address();
    let (mut epoch, mut is_second) = (backend.epoch.get(), false);
    loop {
        let admission = epoch.map(|epoch| (role, epoch));
        let identity = AttemptIds { admission, ..identity(&request_id, accepted) };
        let request = || {
            on_connected();
            serving.inbound.leg(address, identity, &leg)
        };
        let answer = backend.pool.send_unbounded(request).await?;
        let refused = answer.head.status == StatusCode::CONFLICT
            && backend.family == Family::VllmPdRole
            && backend.family.splits(accepted.endpoint);
        if !refused {
            return Ok(answer);
        }
        // Refused before inference: the epoch is that of a restarted engine, or another gateway has
        // requested a switch. Boxed, because it is rare.
        let body = Box::pin(read_all(answer.body, REFUSAL_MAX)).await?;
        let status = read_status(&body).filter(|status| status.phase == SwitchPhase::Ready);
        let Some(status) = status.filter(|status| status.role == role) else {
            return Err(LegProblem::NotAdmitted(role));
        };
        // Sent again once: an engine may name another epoch each time.
        if is_second || epoch == Some(status.epoch) {
            return Err(LegProblem::NotAdmitted(role));
        }
        backend.epoch.set(status.epoch);
        (epoch, is_second) = (Some(status.epoch), true);
    }
}

/// Returns the request id of an attempt. Engines key their work by it, so that each attempt has its own.
pub(crate) fn request_id(given: &str, attempt: u32) -> Cow<'_, str> {
    match attempt {
        0 | 1 => Cow::Borrowed(given),
        n => Cow::Owned(format!("{given}-retry{}", n - 1)),
    }
}

/// Returns the ids of one attempt.
pub(crate) fn identity<'a>(request_id: &'a str, accepted: &'a Accepted) -> AttemptIds<'a> {
    AttemptIds { request_id, traceparent: accepted.traceparent.as_ref(), admission: None }
}

/// Returns an answer whose first byte has arrived, and records the backend's success.
pub(crate) fn opened(
    serving: &Serving<'_>,
    head: Head,
    body: OpenedBody,
    reservation: Reservation,
) -> OpenedAnswer {
    if reservation.backend.health.succeeded(serving.proxy.clock.now()) {
        serving.proxy.report(ControlEvent::HealthChanged);
    }
    OpenedAnswer { head, body, reservation }
}

/// Notes the backend of a decode or colocated leg, with its predicted decode step.
pub(crate) fn note_decode(
    serving: &Serving<'_>,
    progress: &mut RequestProgress<'_>,
    backend: &Arc<Backend>,
    predicted: Option<Predicted>,
) {
    let balance = backend.account.total();
    let table = serving.proxy.fleet.table();
    let decode = &table.entry(backend.id).decode;
    let step = decode.step(balance.streams.max(1), balance.kv);
    progress.decodes_on(backend, predicted, step);
}

/// Reports a prefill that ended at `now`.
pub(crate) fn note_prefill(
    serving: &Serving<'_>,
    backend: &Arc<Backend>,
    predicted: Predicted,
    sent: Moment,
    now: Moment,
    reported_hit: Option<Tokens>,
) {
    let prefilling = PrefillInProgress { backend: Arc::clone(backend), predicted, sent };
    prefilling.ended(serving.proxy, serving.accepted, serving.job.prompt, now, reported_hit);
}

/// A decode leg that depends on a hand-off.
pub(crate) struct HandOffLeg {
    /// Prompt tokens that the backend is expected to lack.
    tokens: Tokens,
    sent: Moment,
    balance: Balance,
}

impl HandOffLeg {
    /// A leg that is about to be sent to `backend`.
    pub(crate) fn new(serving: &Serving<'_>, backend: &Backend) -> HandOffLeg {
        let table = serving.proxy.fleet.table();
        let view = serving.proxy.view(&table, KnownPrefixes::One(&serving.matches));
        HandOffLeg {
            tokens: serving.job.prompt - view.cached(&serving.job, backend.id),
            sent: view.now,
            balance: backend.account.total(),
        }
    }

    /// Returns the predicted duration of the hand-off to `backend`.
    pub(crate) fn predicted(serving: &Serving<'_>, backend: &Backend) -> Seconds {
        serving.proxy.fleet.table().entry(backend.id).transfer.predict(serving.job.prompt)
    }

    /// Reports the duration to the control loop if the answer is a stream with a token. An answer
    /// that is not streamed arrives at the end of its decode, which hides the duration of the
    /// hand-off.
    pub(crate) fn answered(&self, serving: &Serving<'_>, backend: &Backend, body: &OpenedBody) {
        let OpenedBody::Events(begun) = body else { return };
        if begun.seen.tokens == 0 {
            return;
        }
        serving.proxy.report(Sample::HandOff(HandOffSample {
            backend: backend.id,
            tokens: self.tokens,
            took: serving.proxy.clock.now() - self.sent,
            streams: self.balance.streams,
            kv: self.balance.kv,
            prefilling: self.balance.prefill_legs > 0,
        }));
    }
}

/// Returns a leg's failure, after which another backend may be tried.
pub(crate) fn miss(backend: &Backend, leg: LegKind, problem: LegProblem) -> AttemptError {
    // The engine may have been restarted, with other ranks.
    backend.bootstrap.forget();
    let (on, backend) = match &problem {
        LegProblem::Abandoned { on, backend, .. } => (*on, Arc::clone(backend)),
        _ => (backend.id, Arc::clone(&backend.name)),
    };
    AttemptError::Retryable(LegFailure { on, backend, leg, problem })
}

/// Returns whether the engine may have refused a prefill leg with this status because of its edits.
pub(crate) fn may_be_the_edits(backend: &Backend, status: u16) -> bool {
    let of_the_body = matches!(status, 400 | 422 | 500..=599);
    of_the_body && !is_load(status) && backend.family.serves_colocated()
}

/// Returns the decode request that follows a prefill. The prefill engine is excluded: an engine refuses
/// to read its own blocks and keeps them until the lease ends, so it decodes only if no other can.
pub(crate) fn decode_request(serving: &Serving<'_>, from: &Backend) -> DecodeRequest {
    let mut excluded = serving.job.excluded;
    for failed in from.trials.failed().iter() {
        excluded.insert(failed.to);
    }
    // Last, as a full list drops its oldest entry.
    excluded.insert(from.id);
    DecodeRequest {
        id: serving.job.id,
        pool: serving.job.pool,
        from: from.id,
        targets: serving.job.targets,
        kv: serving.job.prompt,
        expected_output: serving.job.expected_output,
        seed: serving.job.seed,
        excluded,
    }
}
