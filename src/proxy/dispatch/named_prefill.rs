//! A request whose gateway has named the prefill target (llm-d): the prefill leg goes there, the decode
//! leg to this sidecar's own engine. The gateway has placed it: no EDF queue, and no other engine.

use bytes::Bytes;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::{ConcurrentLegs, Handoff, LegBody, Legs, RendezvousInfo};
use tidegate_filters::Accepted;
use tidegate_scheduler::placement::Fleet;
use tidegate_types::{BackendId, Role, Seconds, Tokens};
use tokio::time::sleep_until;

use crate::backends::fleet::{Backend, Known, Stage};
use crate::dispatch::answer::{self, Opened, OpenedBody};
use crate::dispatch::attempts;
use crate::dispatch::colocated;
use crate::dispatch::concurrent_legs::Linked;
use crate::dispatch::disaggregated;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::leg::{self, PREFILL_ANSWER_MAX};
use crate::dispatch::place::Predicted;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::{Course, RequestRecord};
use crate::dispatch::sidecar::Sidecar;
use crate::telemetry::control_events::ConcurrentStreams;
use crate::upstream::failure::{Failure, Leg, LegFailure, LegProblem};
use crate::upstream::verdict::Verdict;
use crate::upstream::{Answer, ExchangeError, Head, Pool, read_all};

/// Interval between two attempts to reserve a stream: about an engine step.
const LOOK_EVERY: Seconds = Seconds(0.01);
/// Label of prefill targets in metrics and logs: their addresses are unbounded.
const TARGET: &str = "named-prefill-target";

/// Runs the request, with its prefill at `target`.
///
/// # Errors
/// [`Failure`] if the own engine is unusable, has no free stream in time, or fails.
pub(crate) async fn serve(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Arc<Pool>,
    record: &mut RequestRecord,
) -> Result<Opened, Failure> {
    let (reservation, predicted) = seat(serving).await?;
    record.placed_at.get_or_insert(serving.proxy.clock.now());
    record.notes.attempts += 1;
    let seated = (reservation, predicted);
    let ran = run(serving, sidecar, target, seated, &mut record.course()).await;
    match ran {
        Ok(opened) => Ok(opened),
        Err(Miss::Final(failure)) => Err(failure),
        Err(Miss::Elsewhere(missed)) => Err(failed(serving, record, missed)),
    }
}

/// The client gets an engine's own error, where there is one.
fn failed(serving: &Serving<'_>, record: &RequestRecord, missed: LegFailure) -> Failure {
    attempts::log(record, serving.proxy, &missed);
    match missed.problem {
        LegProblem::Answered(verdict) => Failure::Judged { backend: missed.backend, verdict },
        problem => Failure::Exhausted {
            attempts: record.notes.attempts,
            last: LegFailure { problem, ..missed },
        },
    }
}

/// Waits for a stream of the own engine: the first usable one that takes this model.
async fn seat(serving: &Serving<'_>) -> Result<(Reservation, Predicted), Failure> {
    let Serving { proxy, job, .. } = serving;
    loop {
        let own = own(serving).ok_or(Failure::NoBackend)?;
        if let Some(seated) = try_seat(serving, &own) {
            return Ok(seated);
        }
        let now = proxy.clock.now();
        if now >= job.queue_deadline {
            return Err(Failure::QueueDeadline { waited: now - job.arrived });
        }
        proxy.timer_coalescing.keep();
        sleep_until(proxy.clock.coarse_instant(now + LOOK_EVERY)).await;
    }
}

fn own(serving: &Serving<'_>) -> Option<Arc<Backend>> {
    let fleet = &serving.proxy.fleet;
    let table = fleet.table();
    let usable = |id: &&BackendId| {
        let drains = table.entry(**id).role == Role::Draining;
        fleet.backend(**id).health.is_usable() && !drains
    };
    table.backends(serving.job.pool).iter().find(usable).map(|id| Arc::clone(fleet.backend(*id)))
}

fn try_seat(serving: &Serving<'_>, own: &Arc<Backend>) -> Option<(Reservation, Predicted)> {
    let Serving { proxy, job, matches, .. } = serving;
    let table = proxy.fleet.table();
    let view = proxy.view(&table, Known::One(matches));
    let (predicted_hit, cached) = (view.held(job, own.id), view.cached(job, own.id));
    let prefill = table.entry(own.id).prefill.predict(job.prompt - cached, cached);
    let before = own.account.balance();
    let beside = ConcurrentStreams {
        streams: before.streams,
        kv: before.kv,
        mid_step: before.prefill_legs == 0,
    };
    let stream = own.account.try_open_stream(job.prompt, view.streams_max(own.id))?;
    let signal = Arc::clone(proxy.queue.signal());
    let reservation = Reservation::new(Arc::clone(own), None, Some(stream), signal);
    Some((reservation, Predicted { prefill, ahead: before.prefill, predicted_hit, cached, beside }))
}

async fn run(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Arc<Pool>,
    (reservation, predicted): (Reservation, Predicted),
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let own = Arc::clone(&reservation.backend);
    let rendezvous = RendezvousInfo {
        host: target.address().authority.host(),
        port: own.meeting_port,
        id: fastrand::u64(..),
        peer: None,
        key: own.key.as_deref(),
    };
    let scan = course.accepted.scan.as_ref();
    let body = &serving.inbound.body;
    let endpoint = course.accepted.endpoint;
    let legs = match scan.filter(|_| own.family.peer_query().is_none()) {
        Some(scan) => own.family.legs(endpoint, body, scan, &rendezvous),
        None => Legs::Colocated,
    };
    match legs {
        Legs::PrefillFirst { prefill } => {
            let seated = (reservation, predicted);
            prefill_first(serving, sidecar, target, prefill, seated, course).await
        }
        Legs::Concurrent(pair) => {
            concurrent(serving, target, pair, reservation, predicted, course).await
        }
        // What the family cannot split runs on the own engine.
        Legs::Colocated => colocated::whole(serving, reservation, predicted, course).await,
    }
}

async fn prefill_first(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Pool,
    prefill: Bytes,
    (reservation, predicted): (Reservation, Predicted),
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let own = Arc::clone(&reservation.backend);
    let leg = LegBody::from(prefill);
    let (head, body) = match prefilled(serving, sidecar, target, &leg).await {
        Ok(answer) => answer,
        Err(problem) => {
            // The own engine can compute the prefill too.
            note_failure(serving, &own, problem);
            course.notes.attempts += 1;
            return colocated::whole(serving, reservation, predicted, course).await;
        }
    };
    if !head.status.is_success() {
        // The engine's verdict on the request itself.
        return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
    }
    let missed = |problem| leg::miss(&own, Leg::Prefill, problem);
    let handoff = own.family.read_prefill(&body).map_err(|error| missed(error.into()))?;
    course.notes.prefill_usage = handoff.usage;
    if let (Some(answer), Some(scan)) = (&handoff.finished, &course.accepted.scan) {
        let finished = disaggregated::finished(&own, head, answer, scan);
        let (head, body) = finished.map_err(missed)?;
        return Ok(leg::opened(serving, head, body, reservation));
    }
    course.live.set_stage(Stage::Handover);
    decode(serving, &handoff, reservation, course).await
}

/// Sends the prefill leg, again after a failure that another attempt may not meet.
async fn prefilled(
    serving: &Serving<'_>,
    sidecar: &Sidecar,
    target: &Pool,
    leg: &LegBody,
) -> Result<(Head, Bytes), LegProblem> {
    let mut attempt = 0;
    loop {
        let problem = match ask(serving.inbound, serving.accepted, target, leg, attempt + 1).await {
            Err(problem) if is_transient(&problem) && attempt < sidecar.retries => problem,
            answered => return answered,
        };
        attempt += 1;
        tracing::debug!(target = %target.address(), attempt, "prefill: {problem}");
        tokio::time::sleep(sidecar.backoff.to_duration()).await;
    }
}

fn is_transient(problem: &LegProblem) -> bool {
    match problem.verdict() {
        Some(verdict) => matches!(verdict.status, Some(502..=504)),
        None => matches!(problem, LegProblem::Exchange(_)),
    }
}

async fn ask(
    inbound: &Inbound,
    accepted: &Accepted,
    target: &Pool,
    leg: &LegBody,
    attempt: u32,
) -> Result<(Head, Bytes), LegProblem> {
    let request_id = leg::request_id(&accepted.request_id, attempt);
    let identity = leg::identity(&request_id, accepted);
    let answer = target.send(|| inbound.leg(target.address(), identity, leg)).await?;
    let Answer { mut head, body } = answer;
    if answer::is_retryable(head.status) {
        return Err(Verdict::read(head, body).await.into());
    }
    let body = answer::decoded(&mut head, body)?;
    Ok((head, read_all(body, PREFILL_ANSWER_MAX).await?))
}

/// Reports a failed prefill in the log and the metrics; it is no evidence about the own engine.
fn note_failure(serving: &Serving<'_>, own: &Backend, problem: LegProblem) {
    let backend = TARGET.into();
    let failure = LegFailure { on: own.id, backend, leg: Leg::Prefill, problem };
    tracing::warn!(request = &*serving.accepted.request_id, "{failure}");
    serving.proxy.metrics.leg_failed(&failure);
}

/// The decode leg with the hand-off, on the own engine.
async fn decode(
    serving: &Serving<'_>,
    handoff: &Handoff,
    reservation: Reservation,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let own = Arc::clone(&reservation.backend);
    leg::note_decode(serving, course, &own, None);
    // The decode engine would call all of the prompt cached.
    course.notes.cached = handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO));
    let body = &serving.inbound.body;
    let leg = match &course.accepted.scan {
        Some(scan) => own.family.decode_leg(body, scan, handoff, own.key.as_deref()),
        None => body.clone().into(),
    };
    let hand_off = serving.proxy.placement.transfer.predict(serving.job.prompt);
    let attempt = course.notes.attempts;
    let answered = leg::answered(serving, &own, None, hand_off, leg, attempt, &|| ()).await;
    let (head, body) = answered.map_err(|problem| leg::miss(&own, Leg::Decode, problem))?;
    serving.proxy.note_prefix(own.id, serving.accepted);
    Ok(leg::opened(serving, head, body, reservation))
}

/// Both legs at once: the engines find each other. The answer is the decode leg's.
async fn concurrent(
    serving: &Serving<'_>,
    target: &Arc<Pool>,
    pair: ConcurrentLegs,
    reservation: Reservation,
    predicted: Predicted,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let own = Arc::clone(&reservation.backend);
    leg::note_decode(serving, course, &own, Some(predicted));
    let ConcurrentLegs { prefill, decode, .. } = pair;
    let attempt = course.notes.attempts;
    let ahead = predicted.ahead + predicted.prefill;
    let mut decoding = pin!(leg::answered(serving, &own, None, ahead, decode, attempt, &|| ()));
    // A task of its own: the prefill engine may still be sending blocks after the first token.
    let (inbound, accepted) = (serving.inbound.beside(), Arc::clone(serving.accepted));
    let target = Arc::clone(target);
    let mut prefilling =
        tokio::spawn(async move { ask(&inbound, &accepted, &target, &prefill, attempt).await });
    let linked = Linked::new(&prefilling);
    let missed = |problem| leg::miss(&own, Leg::Decode, problem);
    let (head, body) = tokio::select! {
        biased;
        prefilled = &mut prefilling => {
            let prefilled = prefilled.unwrap_or_else(|_| Err(ExchangeError::Closed.into()));
            // After a failure the decode engine would wait for the KV until its own time-out.
            let (head, body) = prefilled.map_err(|problem| leg::miss(&own, Leg::Prefill, problem))?;
            match head.status.is_success() {
                true => decoding.await.map_err(missed)?,
                false => (head, OpenedBody::Complete(body)),
            }
        }
        decoded = decoding.as_mut() => {
            let decoded = decoded.map_err(missed)?;
            linked.let_go();
            decoded
        }
    };
    serving.proxy.note_prefix(own.id, serving.accepted);
    Ok(leg::opened(serving, head, body, reservation))
}
