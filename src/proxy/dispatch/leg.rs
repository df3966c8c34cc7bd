//! One leg: sent to an engine, its answer read, its course noted. All ways to run a request are made
//! from it: colocated.rs, disaggregated.rs, concurrent_legs.rs.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{LegBody, is_load};
use tidegate_filters::Accepted;
use tidegate_scheduler::placement::DecodeRequest;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::backends::fleet::Backend;
use crate::dispatch::answer::{self, Opened, OpenedBody};
use crate::dispatch::headers::Identity;
use crate::dispatch::place::Predicted;
use crate::dispatch::prefilling::Prefilling;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::Course;
use crate::dispatch::watch::watched;
use crate::telemetry::control_events::ControlEvent;
use crate::upstream::failure::{Leg, LegFailure, LegProblem};
use crate::upstream::{Answer, Head};

/// The largest answer to a prefill: its hand-off names every KV block of the prompt, about 8 bytes
/// a block of 16 tokens, so a million tokens need half a megabyte.
pub(crate) const PREFILL_ANSWER_MAX: usize = 8 << 20;

/// Send a leg and read its answer up to its first byte, as long as an engine may take to that: it
/// sends the head long before. `with`: the other engine that it hangs on. `leaves` is called when
/// there is a connection and the leg is about to be on it.
pub(crate) async fn answered(
    serving: &Serving<'_>,
    backend: &Backend,
    with: Option<&Backend>,
    predicted: Seconds,
    leg: LegBody,
    attempt: u32,
    leaves: &(dyn Fn() + Sync),
) -> Result<(Head, OpenedBody), LegProblem> {
    let answered = pin!(async {
        let answer = send_unbounded(serving, backend, leg, attempt, leaves).await?;
        answer::open(answer, serving.accepted.endpoint).await
    });
    let predicted = predicted + serving.in_one_piece(backend.id);
    watched(serving, [Some(backend), with], predicted, answered).await
}

/// Sends a leg; the time to its head is not limited here (see watch.rs).
pub(crate) async fn send_unbounded(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
    leaves: &(dyn Fn() + Sync),
) -> Result<Answer, LegProblem> {
    let accepted = serving.accepted;
    let request_id = request_id(&accepted.request_id, attempt);
    let identity = identity(&request_id, accepted);
    let address = backend.pool.address();
    let request = || {
        leaves();
        serving.inbound.leg(address, identity, &leg)
    };
    Ok(backend.pool.send_unbounded(request).await?)
}

/// Engines key their work by this id: a second attempt must not meet the first.
pub(crate) fn request_id(given: &str, attempt: u32) -> Cow<'_, str> {
    match attempt {
        0 | 1 => Cow::Borrowed(given),
        n => Cow::Owned(format!("{given}-retry{}", n - 1)),
    }
}

pub(crate) fn identity<'a>(request_id: &'a str, accepted: &'a Accepted) -> Identity<'a> {
    Identity { request_id, traceparent: accepted.traceparent.as_ref() }
}

pub(crate) fn opened(
    serving: &Serving<'_>,
    head: Head,
    body: OpenedBody,
    reservation: Reservation,
) -> Opened {
    if reservation.backend.health.succeeded(serving.proxy.clock.now()) {
        serving.proxy.report(ControlEvent::HealthChanged);
    }
    Opened { head, body, reservation }
}

pub(crate) fn note_decode(
    serving: &Serving<'_>,
    course: &mut Course<'_>,
    backend: &Arc<Backend>,
    predicted: Option<Predicted>,
) {
    let balance = backend.account.balance();
    let table = serving.proxy.fleet.table();
    let decode = &table.entry(backend.id).decode;
    course.notes.step = Some(decode.step(balance.streams.max(1), balance.kv));
    course.notes.predicted = predicted.or(course.notes.predicted);
    course.notes.decode_on = Some(Arc::clone(backend));
    course.live.decodes_on(backend.id);
}

/// The prompt was read, just now.
pub(crate) fn note_prefill(
    serving: &Serving<'_>,
    backend: &Arc<Backend>,
    predicted: Predicted,
    sent: Moment,
    now: Moment,
    told: Option<Tokens>,
) {
    let prefilling = Prefilling { backend: Arc::clone(backend), predicted, sent };
    prefilling.ended(serving.proxy, serving.accepted, serving.job.prompt, now, told);
}

/// A leg failed: another backend may still save the request.
pub(crate) fn miss(backend: &Backend, leg: Leg, problem: LegProblem) -> Miss {
    // It may have been started again.
    backend.bootstrap.forget();
    let (on, backend) = match &problem {
        LegProblem::Abandoned { on, backend, .. } => (*on, Arc::clone(backend)),
        _ => (backend.id, Arc::clone(&backend.name)),
    };
    Miss::Elsewhere(LegFailure { on, backend, leg, problem })
}

/// May it be the edits of a prefill leg that the engine has refused with this status?
pub(crate) fn may_be_the_edits(backend: &Backend, status: u16) -> bool {
    let of_the_body = matches!(status, 400 | 422 | 500..=599);
    of_the_body && !is_load(status) && backend.family.serves_colocated()
}

/// The decode request that follows a prefill. An engine refuses to read its own blocks and keeps them
/// until the lease ends, so the prefill engine decodes only if no other can.
pub(crate) fn handover(serving: &Serving<'_>, from: &Backend) -> DecodeRequest {
    let mut excluded = serving.job.excluded;
    excluded.insert(from.id);
    DecodeRequest {
        id: serving.job.id,
        pool: serving.job.pool,
        from: from.id,
        kv: serving.job.prompt,
        expected_output: serving.job.expected_output,
        ttft_deadline: serving.job.ttft_deadline,
        seed: serving.job.seed,
        excluded,
    }
}
