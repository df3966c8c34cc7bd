//! Disaggregated request: a prefill leg on one backend, then a decode leg on another.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{Handoff, LegBody, Scan};
use tidegate_types::{Moment, Role, Tokens};

use crate::backends::fleet::{Backend, Stage};
use crate::dispatch::answer::{self, OpenedAnswer, OpenedBody};
use crate::dispatch::blame;
use crate::dispatch::colocated;
use crate::dispatch::leg::{self, HandOffLeg, PREFILL_ANSWER_MAX};
use crate::dispatch::place;
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestProgress;
use crate::dispatch::watch::watched;
use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::failure::{LegKind, LegProblem};
use crate::upstream::{EngineAnswer, Head, read_all};

/// Decode backends tried with one hand-off, as long as none of them has received it.
const DECODE_TRIES_MAX: u32 = 3;

/// Runs the prefill leg, then the decode leg on a backend chosen at the end of the prefill.
pub(crate) async fn run(
    serving: &Serving<'_>,
    reservation: Reservation,
    predicted: Predicted,
    prefill: Bytes,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let backend = Arc::clone(&reservation.backend);
    progress.prefills_on(&backend, predicted);
    let missed = |problem| leg::miss(&backend, LegKind::Prefill, problem);
    let sent = serving.proxy.clock.now();
    let prefilled = pin!(prefilled(serving, &backend, prefill.into(), progress.attempts()));
    let prefilled =
        watched(serving, [Some(&backend), None], predicted.ahead + predicted.prefill, prefilled)
            .await;
    let Some((head, body)) = prefilled.map_err(missed)? else {
        return colocated::unedited(serving, reservation, predicted, true, progress).await;
    };
    serving.proxy.signals.answered(backend.id, &head.headers);
    if !head.status.is_success() {
        // A client error: another engine would answer the same.
        return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
    }
    let handoff = backend.family.read_prefill(&body).map_err(|e| missed(e.into()))?;
    progress.prefill_reported(handoff.usage);
    let now = serving.proxy.clock.now();
    let reported_hit = handoff.usage.and_then(|usage| usage.cached);
    progress.prefilled(now);
    leg::note_prefill(serving, &backend, predicted, sent, now, reported_hit);
    backend.health.succeeded(now);
    if let (Some(answer), Some(scan)) = (&handoff.finished, &progress.accepted.scan) {
        let (head, body) = finished(&backend, head, answer, scan).map_err(missed)?;
        return Ok(leg::opened(serving, head, body, reservation));
    }
    drop(reservation);
    progress.live.set_stage(Stage::HandOff);
    let lease = backend.family.handoff_deadline().min(serving.settings().values.queue.handoff);
    decode(serving, &backend, &handoff, now + lease, progress).await
}

/// Returns a complete prefill answer in the form that the client requested: whole or as a stream.
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
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let mut decode_request = leg::decode_request(serving, from);
    let mut tries = 0;
    loop {
        tries += 1;
        let settings = serving.settings();
        let reservation =
            place::find_decode(serving.proxy, settings, &decode_request, deadline).await?;
        let backend = Arc::clone(&reservation.backend);
        let missed = |problem| leg::miss(&backend, LegKind::Decode, problem);
        leg::note_decode(serving, progress, &backend, None);
        let in_time = serving.proxy.clock.now() < deadline;
        progress.cached(None);
        let takes =
            backend.id != from.id && backend.may_decode() && from.trials.may_reach(backend.id);
        let mut depends_on = None;
        let leg = match &progress.accepted.scan {
            Some(scan) if in_time && takes => {
                // The decode engine would report all of the prompt as cached.
                progress.cached(handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO)));
                let body = &serving.inbound.body;
                depends_on = Some(from);
                from.family.decode_leg(body, scan, handoff, from.key.as_deref())
            }
            // Sent without the hand-off, whose lease may have expired: reading freed blocks would
            // give a wrong answer. The decode engine computes the prompt again.
            _ => serving.inbound.body.clone().into(),
        };
        let hand_off = HandOffLeg::predicted(serving, &backend);
        let measured = depends_on.map(|_| HandOffLeg::new(serving, &backend));
        match leg::answered(
            serving,
            &backend,
            depends_on,
            hand_off,
            leg,
            progress.attempts(),
            &|| (),
        )
        .await
        {
            Ok((head, body)) => {
                if let Some(leg) = measured {
                    leg.answered(serving, &backend, &body);
                }
                serving.proxy.note_prefix(backend.id, serving.accepted);
                return Ok(leg::opened(serving, head, body, reservation));
            }
            // The hand-off was not sent and can be used by another engine.
            Err(LegProblem::Exchange(error))
                if error.before_sending() && tries < DECODE_TRIES_MAX =>
            {
                let problem = LegProblem::from(error);
                if problem.is_unreachable() {
                    blame::unreachable(serving.proxy, &backend, &problem);
                }
                decode_request.excluded.insert(backend.id);
            }
            Err(problem) => return Err(missed(problem)),
        }
    }
}

/// Sends a prefill leg and reads its answer. `None`: the engine has refused it, possibly because of
/// its edits.
async fn prefilled(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
) -> Result<Option<(Head, Bytes)>, LegProblem> {
    let EngineAnswer { mut head, body } =
        leg::send_unbounded(serving, backend, Role::Prefill, leg, attempt, &|| ()).await?;
    if leg::may_be_the_edits(backend, head.status.as_u16()) {
        return Ok(None);
    }
    if answer::is_retryable(head.status) {
        return Err(ErrorAnswer::read(head, body).await.into());
    }
    let body = answer::decoded(&mut head, body)?;
    let body = read_all(body, PREFILL_ANSWER_MAX).await?;
    Ok(Some((head, body)))
}
