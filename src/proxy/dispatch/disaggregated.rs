//! A prefill leg on one backend, then a decode leg on another.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{Handoff, LegBody, Scan};
use tidegate_types::{Moment, Tokens};

use crate::backends::fleet::{Backend, Stage};
use crate::dispatch::answer::{self, Opened, OpenedBody};
use crate::dispatch::blame;
use crate::dispatch::colocated;
use crate::dispatch::leg::{self, PREFILL_ANSWER_MAX};
use crate::dispatch::place::{self, Predicted};
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::Course;
use crate::dispatch::watch::watched;
use crate::upstream::failure::{Leg, LegProblem};
use crate::upstream::verdict::Verdict;
use crate::upstream::{Answer, Head, read_all};

/// Decode backends tried with one hand-off while nothing of it has been sent.
const DECODE_TRIES_MAX: u32 = 3;

/// A prefill leg, then a decode leg on the backend that has room when the prefill is done.
pub(crate) async fn run(
    serving: &Serving<'_>,
    reservation: Reservation,
    predicted: Predicted,
    prefill: Bytes,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&reservation.backend);
    course.notes.predicted = Some(predicted);
    course.notes.prefill_on = Some(Arc::clone(&backend));
    course.notes.split = true;
    course.live.prefills_on(backend.id);
    let missed = |problem| leg::miss(&backend, Leg::Prefill, problem);
    let sent = serving.proxy.clock.now();
    let prefilled = pin!(prefilled(serving, &backend, prefill.into(), course.notes.attempts));
    let prefilled =
        watched(serving, [Some(&backend), None], predicted.ahead + predicted.prefill, prefilled)
            .await;
    let Some((head, body)) = prefilled.map_err(missed)? else {
        return colocated::unedited(serving, reservation, predicted, true, course).await;
    };
    serving.proxy.signals.answered(backend.id, &head.headers);
    if !head.status.is_success() {
        // The engine's verdict on the request itself: the same everywhere.
        return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
    }
    let handoff = backend.family.read_prefill(&body).map_err(|e| missed(e.into()))?;
    course.notes.prefill_usage = handoff.usage;
    let now = serving.proxy.clock.now();
    let told = handoff.usage.and_then(|usage| usage.cached);
    course.notes.prefilled_at = Some(now);
    leg::note_prefill(serving, &backend, predicted, sent, now, told);
    backend.health.succeeded(now);
    if let (Some(answer), Some(scan)) = (&handoff.finished, &course.accepted.scan) {
        let (head, body) = finished(&backend, head, answer, scan).map_err(missed)?;
        return Ok(leg::opened(serving, head, body, reservation));
    }
    drop(reservation);
    course.live.set_stage(Stage::Handover);
    let lease = backend.family.handoff_deadline().min(serving.proxy.handoff_max);
    decode(serving, &backend, &handoff, now + lease, course).await
}

/// The prefill's answer is the client's: as it is, or as the stream that was asked for.
pub(crate) fn finished(
    backend: &Backend,
    mut head: Head,
    answer: &Bytes,
    scan: &Scan,
) -> Result<(Head, OpenedBody), LegProblem> {
    if !scan.stream {
        return Ok((head, OpenedBody::Complete(answer.clone())));
    }
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    head.headers.insert(CONTENT_TYPE, events);
    Ok((head, OpenedBody::Complete(backend.family.as_stream(answer, scan)?)))
}

async fn decode(
    serving: &Serving<'_>,
    from: &Backend,
    handoff: &Handoff,
    deadline: Moment,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let mut handover = leg::handover(serving, from);
    let mut tries = 0;
    loop {
        tries += 1;
        let reservation = place::find_decode(serving.proxy, &handover, deadline).await?;
        let backend = Arc::clone(&reservation.backend);
        let missed = |problem| leg::miss(&backend, Leg::Decode, problem);
        leg::note_decode(serving, course, &backend, None);
        let in_time = serving.proxy.clock.now() < deadline;
        course.notes.cached = None;
        let takes = backend.id != from.id && backend.may_decode();
        let mut hangs_on = None;
        let leg = match &course.accepted.scan {
            Some(scan) if in_time && takes => {
                // The decode engine would call all of it cached.
                course.notes.cached =
                    handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO));
                let body = &serving.inbound.body;
                hangs_on = Some(from);
                from.family.decode_leg(body, scan, handoff, from.key.as_deref())
            }
            // Without the hand-off: once the lease may have run out a late read of freed blocks
            // would be worse than a second prefill, and the prefill engine has the prefix cached.
            _ => serving.inbound.body.clone().into(),
        };
        let hand_off = serving.proxy.placement.transfer.predict(serving.job.prompt);
        match leg::answered(
            serving,
            &backend,
            hangs_on,
            hand_off,
            leg,
            course.notes.attempts,
            &|| (),
        )
        .await
        {
            Ok((head, body)) => {
                serving.proxy.note_prefix(backend.id, serving.accepted);
                return Ok(leg::opened(serving, head, body, reservation));
            }
            // The engine never saw the hand-off: it is still good for another one.
            Err(LegProblem::Exchange(error))
                if error.before_sending() && tries < DECODE_TRIES_MAX =>
            {
                let problem = LegProblem::from(error);
                if problem.is_unreachable() {
                    blame::unreachable(serving.proxy, &backend, &problem);
                }
                handover.excluded.insert(backend.id);
            }
            Err(problem) => return Err(missed(problem)),
        }
    }
}

/// Send a prefill leg and read its answer. `None`: the engine has refused it, perhaps for its edits.
async fn prefilled(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
) -> Result<Option<(Head, Bytes)>, LegProblem> {
    let Answer { mut head, body } =
        leg::send_unbounded(serving, backend, leg, attempt, &|| ()).await?;
    if leg::may_be_the_edits(backend, head.status.as_u16()) {
        return Ok(None);
    }
    if answer::is_retryable(head.status) {
        return Err(Verdict::read(head, body).await.into());
    }
    let body = answer::decoded(&mut head, body)?;
    let body = read_all(body, PREFILL_ANSWER_MAX).await?;
    Ok(Some((head, body)))
}
