//! A request whose gateway has named the prefill target (llm-d): the prefill leg runs there, the decode
//! leg on this sidecar's own engine. The gateway has placed the request: it bypasses the EDF queue and is
//! not retried on other engines.

use bytes::Bytes;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{ConcurrentLegs, Handoff, LegBody, Legs, RendezvousInfo};
use tidegate_filters::Accepted;
use tidegate_types::{BackendId, Role, Seconds, Tokens};
use tokio::time::sleep_until;

use crate::backends::fleet::{Backend, KnownPrefixes, Stage};
use crate::dispatch::answer::{self, OpenedAnswer, OpenedBody};
use crate::dispatch::attempts;
use crate::dispatch::colocated;
use crate::dispatch::concurrent_legs::LinkedLeg;
use crate::dispatch::disaggregated;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::leg::{self, HandOffLeg, PREFILL_ANSWER_MAX};
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::{RequestProgress, RequestRecord};
use crate::dispatch::sidecar::Sidecar;
use crate::telemetry::metrics::NAMED_PREFILL_TARGET;
use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::failure::{Failure, LegFailure, LegKind, LegProblem};
use crate::upstream::{EngineAnswer, ExchangeError, Head, Pool, read_all};

/// Interval between two attempts to reserve a stream: about an engine step.
const RETRY_INTERVAL: Seconds = Seconds(0.01);

/// Runs the request, with its prefill at `target`.
///
/// # Errors
/// [`Failure`] if the own engine is unusable, has no free stream in time, or fails.
pub(crate) async fn serve(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Arc<Pool>,
    record: &mut RequestRecord,
) -> Result<OpenedAnswer, Failure> {
    let (reservation, predicted) = reserve(serving).await?;
    record.placed(serving.proxy.clock.now(), None);
    let reserved = (reservation, predicted);
    let ran = run(serving, sidecar, target, reserved, &mut record.progress()).await;
    match ran {
        Ok(opened) => Ok(opened),
        Err(AttemptError::Final(failure)) => Err(failure),
        Err(AttemptError::Retryable(missed)) => Err(failed(serving, record, missed)),
    }
}

/// Returns the error for the client: the engine's own, if it answered one.
fn failed(serving: &Serving<'_>, record: &RequestRecord, missed: LegFailure) -> Failure {
    attempts::log(record, serving.proxy, &missed);
    match missed.problem {
        LegProblem::Answered(answer) => Failure::EngineError { backend: missed.backend, answer },
        problem => Failure::Exhausted {
            attempts: record.attempts(),
            last: LegFailure { problem, ..missed },
        },
    }
}

/// Reserves a stream on the own engine, the first usable backend of the pool. Waits until the queue
/// deadline.
async fn reserve(serving: &Serving<'_>) -> Result<(Reservation, Predicted), Failure> {
    let Serving { proxy, job, .. } = serving;
    loop {
        let own = own_engine(serving).ok_or(Failure::NoBackend)?;
        if let Some(reserved) = try_reserve(serving, &own) {
            return Ok(reserved);
        }
        let now = proxy.clock.now();
        if now >= job.queue_deadline {
            return Err(Failure::QueueDeadline { waited: now - job.arrived });
        }
        proxy.timer_coalescing.keep();
        sleep_until(proxy.clock.coarse_instant(now + RETRY_INTERVAL)).await;
    }
}

fn own_engine(serving: &Serving<'_>) -> Option<Arc<Backend>> {
    let fleet = &serving.proxy.fleet;
    let table = fleet.table();
    let usable = |id: &&BackendId| {
        let drains = table.entry(**id).role == Role::Draining;
        fleet.backend(**id).health.is_usable() && !drains
    };
    table.backends(serving.job.pool).iter().find(usable).map(|id| Arc::clone(&fleet.backend(*id)))
}

fn try_reserve(serving: &Serving<'_>, own: &Arc<Backend>) -> Option<(Reservation, Predicted)> {
    let Serving { proxy, job, matches, .. } = serving;
    let table = proxy.fleet.table();
    let view = proxy.view(&table, KnownPrefixes::One(matches));
    let predicted = serving.predict(&view, own);
    let stream = own.account.try_open_stream(job.prompt, &job.targets, view.streams_max(own.id))?;
    let signal = Arc::clone(proxy.queue.signal());
    let reservation = Reservation::new(Arc::clone(own), None, Some(stream), signal);
    Some((reservation, predicted))
}

async fn run(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Arc<Pool>,
    (reservation, predicted): (Reservation, Predicted),
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let own = Arc::clone(&reservation.backend);
    let rendezvous = RendezvousInfo {
        host: target.address().authority.host(),
        port: own.rendezvous_port,
        id: fastrand::u64(..),
        peer: None,
        key: own.key.as_deref(),
    };
    let scan = progress.accepted.scan.as_ref();
    let body = &serving.inbound.body;
    let endpoint = progress.accepted.endpoint;
    let legs = match scan.filter(|_| own.family.peer_query().is_none()) {
        Some(scan) => own.family.legs(endpoint, body, scan, &rendezvous),
        None => Legs::Colocated,
    };
    match legs {
        Legs::PrefillFirst { prefill } => {
            let reserved = (reservation, predicted);
            prefill_first(serving, sidecar, target, prefill, reserved, progress).await
        }
        Legs::Concurrent(pair) => {
            concurrent(serving, target, pair, reservation, predicted, progress).await
        }
        // The family cannot split this request: it runs colocated on the own engine.
        Legs::Colocated => colocated::send(serving, reservation, predicted, progress).await,
    }
}

async fn prefill_first(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Pool,
    prefill: Bytes,
    (reservation, predicted): (Reservation, Predicted),
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let own = Arc::clone(&reservation.backend);
    let leg = LegBody::from(prefill);
    let (head, body) = match prefilled(serving, sidecar, target, &leg).await {
        Ok(answer) => answer,
        Err(problem) => {
            // The prompt is computed by the own engine instead.
            note_failure(serving, &own, problem);
            progress.next_attempt();
            return colocated::send(serving, reservation, predicted, progress).await;
        }
    };
    if !head.status.is_success() {
        // A client error: the decode engine would answer the same.
        return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
    }
    let missed = |problem| leg::miss(&own, LegKind::Prefill, problem);
    let handoff = own.family.read_prefill(&body).map_err(|error| missed(error.into()))?;
    progress.prefill_reported(handoff.usage);
    if let (Some(answer), Some(scan)) = (&handoff.finished, &progress.accepted.scan) {
        let finished = disaggregated::finished(&own, head, answer, scan);
        let (head, body) = finished.map_err(missed)?;
        return Ok(leg::opened(serving, head, body, reservation));
    }
    progress.live.set_stage(Stage::HandOff);
    decode(serving, &handoff, reservation, progress).await
}

/// Sends the prefill leg and retries transient failures.
async fn prefilled(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Pool,
    leg: &LegBody,
) -> Result<(Head, Bytes), LegProblem> {
    let mut attempt = 0;
    loop {
        let problem =
            match send_prefill(serving.inbound, serving.accepted, target, leg, attempt + 1).await {
                Err(problem) if is_transient(&problem) && attempt < sidecar.retries => problem,
                answered => return answered,
            };
        attempt += 1;
        tracing::debug!(target = %target.address(), attempt, "prefill attempt failed: {problem}");
        tokio::time::sleep(sidecar.backoff.to_duration()).await;
    }
}

fn is_transient(problem: &LegProblem) -> bool {
    match problem.error_answer() {
        Some(answer) => matches!(answer.status, Some(502..=504)),
        None => matches!(problem, LegProblem::Exchange(_)),
    }
}

async fn send_prefill(
    inbound: &Inbound,
    accepted: &Accepted,
    target: &Pool,
    leg: &LegBody,
    attempt: u32,
) -> Result<(Head, Bytes), LegProblem> {
    let request_id = leg::request_id(&accepted.request_id, attempt);
    let identity = leg::identity(&request_id, accepted);
    let answer = target.send(|| inbound.leg(target.address(), identity, leg)).await?;
    let EngineAnswer { mut head, body } = answer;
    if answer::is_retryable(head.status) {
        return Err(ErrorAnswer::read(head, body).await.into());
    }
    let body = answer::decoded(&mut head, body)?;
    Ok((head, read_all(body, PREFILL_ANSWER_MAX).await?))
}

/// Logs and counts a failed prefill. It is not evidence against the own engine.
fn note_failure(serving: &Serving<'_>, own: &Backend, problem: LegProblem) {
    // A fixed name: the addresses of the targets are unbounded.
    let backend = NAMED_PREFILL_TARGET.into();
    let failure = LegFailure { on: own.id, backend, leg: LegKind::Prefill, problem };
    tracing::warn!(request = &*serving.accepted.request_id, "{failure}");
    serving.proxy.metrics.leg_failed(&failure);
}

/// The decode leg with the hand-off, on the own engine.
async fn decode(
    serving: &Serving<'_>,
    handoff: &Handoff,
    reservation: Reservation,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let own = Arc::clone(&reservation.backend);
    leg::note_decode(serving, progress, &own, None);
    // The decode engine would report all of the prompt as cached.
    progress.cached(handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO)));
    let body = &serving.inbound.body;
    let leg = match &progress.accepted.scan {
        Some(scan) => own.family.decode_leg(body, scan, handoff, own.key.as_deref()),
        None => body.clone().into(),
    };
    let hand_off = HandOffLeg::predicted(serving, &own);
    let measured = HandOffLeg::new(serving, &own);
    let attempt = progress.attempts();
    let answered = leg::answered(serving, &own, None, hand_off, leg, attempt, &|| ()).await;
    let (head, body) = answered.map_err(|problem| leg::miss(&own, LegKind::Decode, problem))?;
    measured.answered(serving, &own, &body);
    serving.proxy.note_prefix(own.id, serving.accepted);
    Ok(leg::opened(serving, head, body, reservation))
}

/// Runs both legs concurrently; the engines contact each other. The client gets the decode leg's answer.
async fn concurrent(
    serving: &Serving<'_>,
    target: &Arc<Pool>,
    pair: ConcurrentLegs,
    reservation: Reservation,
    predicted: Predicted,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let own = Arc::clone(&reservation.backend);
    leg::note_decode(serving, progress, &own, Some(predicted));
    let ConcurrentLegs { prefill, decode, .. } = pair;
    let attempt = progress.attempts();
    let ahead = predicted.ahead + predicted.prefill;
    let mut decoding = pin!(leg::answered(serving, &own, None, ahead, decode, attempt, &|| ()));
    // A task of its own: the prefill engine may still be sending blocks after the first token.
    let (inbound, accepted) = (serving.inbound.without_share(), Arc::clone(serving.accepted));
    let target = Arc::clone(target);
    let mut prefilling =
        tokio::spawn(
            async move { send_prefill(&inbound, &accepted, &target, &prefill, attempt).await },
        );
    let linked = LinkedLeg::new(&prefilling);
    let missed = |problem| leg::miss(&own, LegKind::Decode, problem);
    let (head, body) = tokio::select! {
        biased;
        prefilled = &mut prefilling => {
            let prefilled = prefilled.unwrap_or_else(|_| Err(ExchangeError::Closed.into()));
            // After a failure the decode engine would wait for the KV until its own time-out.
            let (head, body) = prefilled.map_err(|problem| leg::miss(&own, LegKind::Prefill, problem))?;
            match head.status.is_success() {
                true => decoding.await.map_err(missed)?,
                false => (head, OpenedBody::Complete(body)),
            }
        }
        decoded = decoding.as_mut() => {
            let decoded = decoded.map_err(missed)?;
            linked.detach();
            decoded
        }
    };
    serving.proxy.note_prefix(own.id, serving.accepted);
    Ok(leg::opened(serving, head, body, reservation))
}
