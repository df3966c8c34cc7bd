//! Run a request's legs on the engines, and try elsewhere what failed before its first byte.
//!
//! The engine family says what the legs are; nothing here knows a protocol. A leg's future owns its
//! connection and its seat: dropping it closes the one and settles the other.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use std::borrow::Cow;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tidegate_cost::Matches;
use tidegate_engine::{Handoff, LegBody, Legs, Meeting, Scan};
use tidegate_filters::Accepted;
use tidegate_placement::{Handover, Job};
use tidegate_terms::{Moment, Tokens};

use crate::answer::{self, Opened, OpenedBody};
use crate::bootstrap;
use crate::failure::{Failure, Leg, LegFailure, LegProblem};
use crate::fleet::{Backend, Stage};
use crate::headers::Identity;
use crate::heartbeat;
use crate::inbound::Inbound;
use crate::learn::Observation;
use crate::paired;
use crate::place::{self, Placed, Predicted};
use crate::seat::Seat;
use crate::service::Proxy;
use crate::settle::Record;
use crate::upstream::{Answer, ExchangeError, Head};

/// The largest answer to a prefill: its hand-off names every KV block of the prompt, about 8 bytes
/// a block of 16 tokens, so a million tokens need half a megabyte.
pub(crate) const PREFILL_ANSWER_MAX: usize = 8 << 20;
/// Decode backends tried with one hand-off while nothing of it has been sent.
const DECODE_TRIES_MAX: u32 = 3;

/// A request with what its legs are made from.
pub struct Serving<'a> {
    /// What all requests share.
    pub proxy: &'a Arc<Proxy>,
    /// The client's request.
    pub inbound: &'a Inbound,
    /// What the filters found in it.
    pub accepted: &'a Arc<Accepted>,
    /// What to place.
    pub job: Job,
    /// Who holds its prefix.
    pub matches: Matches,
}

/// How an attempt ended without an answer for the client.
pub(crate) enum Miss {
    /// Another backend may still save it.
    Elsewhere(LegFailure),
    /// Nothing will.
    Final(Failure),
}

impl From<Failure> for Miss {
    fn from(failure: Failure) -> Miss {
        Miss::Final(failure)
    }
}

/// Bring the request to an answer whose first byte is here.
///
/// # Errors
/// [`Failure`] when no place was found, or when every attempt failed.
pub async fn serve(mut serving: Serving<'_>, record: &mut Record) -> Result<Opened, Failure> {
    loop {
        let placed = place::find(serving.proxy, &serving.job, &serving.matches).await?;
        record.placed_at.get_or_insert(serving.proxy.clock.now());
        record.attempts += 1;
        let missed = match attempt(&serving, placed, record).await {
            Ok(opened) => return Ok(opened),
            Err(Miss::Final(failure)) => return Err(failure),
            Err(Miss::Elsewhere(missed)) => missed,
        };
        tracing::warn!(request = %record.live.name, attempt = record.attempts, "{missed}");
        serving.proxy.metrics.leg_failed(&missed);
        if record.attempts >= serving.proxy.attempts_max {
            return Err(Failure::Exhausted { attempts: record.attempts, last: missed });
        }
        serving.job.excluded.insert(missed.on);
        record.live.set_stage(Stage::Queued);
    }
}

async fn attempt(
    serving: &Serving<'_>,
    placed: Placed,
    record: &mut Record,
) -> Result<Opened, Miss> {
    match placed {
        Placed::Whole(seat, predicted) => whole(serving, seat, predicted, record).await,
        Placed::Prefill(seat, predicted) => {
            let backend = Arc::clone(&seat.backend);
            let scan = record.accepted.scan.as_ref();
            let endpoint = record.accepted.endpoint;
            let body = &serving.inbound.body;
            let id = fastrand::u64(..);
            let peer = bootstrap::peer(&backend, id).await;
            let peer = peer.map_err(|problem| miss(&backend, Leg::Prefill, problem))?;
            let meeting = Meeting {
                host: backend.pool.address().authority.host(),
                port: backend.meeting_port,
                id,
                peer: peer.as_ref(),
                key: backend.key.as_deref(),
            };
            match scan.map(|scan| backend.family.legs(endpoint, body, scan, &meeting)) {
                Some(Legs::PrefillFirst { prefill }) => {
                    // Boxed, as below: every request would keep room for it, and be moved with it.
                    Box::pin(split(serving, seat, predicted, prefill, record)).await
                }
                Some(Legs::Together(pair)) => {
                    Box::pin(paired::run(serving, seat, predicted, pair, record)).await
                }
                // Its family cannot split this one after all: it runs whole where it is.
                Some(Legs::Whole) | None => whole(serving, seat, predicted, record).await,
            }
        }
    }
}

/// One leg, the client's request byte for byte.
pub(crate) async fn whole(
    serving: &Serving<'_>,
    mut seat: Seat,
    predicted: Predicted,
    record: &mut Record,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&seat.backend);
    note_decode(record, &backend, Some(predicted));
    (record.cached, record.prefill_usage) = (None, None);
    let missed = |problem| miss(&backend, Leg::Whole, problem);
    let sent = serving.proxy.clock.now();
    let leg = serving.inbound.body.clone().into();
    // Pinned here, and not where it is awaited, or there would be room for two of it.
    let mut answered = pin!(answered(serving, &backend, leg, record.attempts, &|| ()));
    let streams = record.accepted.scan.as_ref().is_some_and(|scan| scan.stream);
    let (head, body) = match streams {
        true => answered.as_mut().await,
        // Nothing tells when this prefill ends: its account is settled when it should have.
        false => {
            let due = sent + predicted.ahead + predicted.prefill;
            heartbeat::keep(serving.proxy);
            let due = pin!(tokio::time::sleep_until(serving.proxy.clock.coarse_instant(due)));
            tokio::select! {
                biased;
                opened = answered.as_mut() => opened,
                () = due => {
                    seat.prefilled();
                    answered.as_mut().await
                }
            }
        }
    }
    .map_err(missed)?;
    let now = serving.proxy.clock.now();
    if let OpenedBody::Events(_) = &body {
        seat.prefilled();
        note_prefill(serving, &backend, predicted, sent, now);
    } else if head.status.is_success() {
        // How long the prefill took is not seen, that the prompt was read is.
        serving.proxy.fleet.prefixes.insert(backend.id, &serving.accepted.prompt.chain);
    }
    Ok(opened(serving, head, body, seat))
}

/// A prefill leg, then a decode leg on the backend that has room when the prefill is done.
async fn split(
    serving: &Serving<'_>,
    seat: Seat,
    predicted: Predicted,
    prefill: Bytes,
    record: &mut Record,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&seat.backend);
    record.predicted = Some(predicted);
    record.prefill_on = Some(Arc::clone(&backend));
    record.live.prefills_on(backend.id);
    let missed = |problem| miss(&backend, Leg::Prefill, problem);
    let sent = serving.proxy.clock.now();
    let answer = send(serving, &backend, prefill.into(), record.attempts).await.map_err(missed)?;
    let Answer { head, body } = answer;
    if answer::is_retryable(head.status) {
        return Err(missed(LegProblem::Status(head.status)));
    }
    serving.proxy.signals.answered(backend.id, &head.headers);
    let body = answer::read_all(body, PREFILL_ANSWER_MAX).await.map_err(missed)?;
    if !head.status.is_success() {
        // The engine's verdict on the request itself: the same everywhere.
        return Ok(opened(serving, head, OpenedBody::Complete(body), seat));
    }
    let handoff = backend.family.read_prefill(&body).map_err(|e| missed(e.into()))?;
    record.prefill_usage = handoff.usage;
    let now = serving.proxy.clock.now();
    note_prefill(serving, &backend, predicted, sent, now);
    backend.health.succeeded(|| now);
    if let (Some(answer), Some(scan)) = (&handoff.finished, &record.accepted.scan) {
        let (head, body) = finished(&backend, head, answer, scan).map_err(missed)?;
        return Ok(opened(serving, head, body, seat));
    }
    drop(seat);
    record.live.set_stage(Stage::Handover);
    let lease = backend.family.handoff_deadline().min(serving.proxy.handoff_max);
    decode(serving, &backend, &handoff, now + lease, record).await
}

/// The prefill's answer is the client's: as it is, or as the stream that was asked for.
fn finished(
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
    record: &mut Record,
) -> Result<Opened, Miss> {
    let mut handover = handover(serving, from);
    let mut tries = 0;
    loop {
        tries += 1;
        let seat = place::find_decode(serving.proxy, &handover, deadline).await?;
        let backend = Arc::clone(&seat.backend);
        let missed = |problem| miss(&backend, Leg::Decode, problem);
        note_decode(record, &backend, None);
        let in_time = serving.proxy.clock.now() < deadline;
        record.cached = None;
        let takes = backend.id != from.id && backend.may_decode();
        let leg = match &record.accepted.scan {
            Some(scan) if in_time && takes => {
                // The decode engine would call all of it cached.
                record.cached = handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO));
                let body = &serving.inbound.body;
                from.family.decode_leg(body, scan, handoff, from.key.as_deref())
            }
            // Without the hand-off: once the lease may have run out a late read of freed blocks
            // would be worse than a second prefill, and who has prefilled has the prefix cached.
            _ => serving.inbound.body.clone().into(),
        };
        match answered(serving, &backend, leg, record.attempts, &|| ()).await {
            Ok((head, body)) => {
                serving.proxy.fleet.prefixes.insert(backend.id, &serving.accepted.prompt.chain);
                return Ok(opened(serving, head, body, seat));
            }
            // The engine never saw the hand-off: it is still good for another one.
            Err(LegProblem::Exchange(error))
                if error.before_sending() && tries < DECODE_TRIES_MAX =>
            {
                miss(&backend, Leg::Decode, error.into());
                handover.excluded.insert(backend.id);
            }
            Err(problem) => return Err(missed(problem)),
        }
    }
}

/// What has to be decoded. An engine refuses to read its own blocks, and keeps them until the lease
/// ends: it decodes what it has prefilled only if nobody else can.
pub(crate) fn handover(serving: &Serving<'_>, from: &Backend) -> Handover {
    let mut excluded = serving.job.excluded;
    excluded.insert(from.id);
    Handover {
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

/// Send a leg and wait for the head of its answer, as long as an engine may take.
async fn send(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
) -> Result<Answer, LegProblem> {
    let sent = pin!(send_unbounded(serving, backend, leg, attempt, &|| ()));
    in_time(backend.pool.first_byte_timeout(), sent).await
}

/// Send a leg and read its answer up to its first byte, as long as an engine may take to that: it
/// sends the head long before. `leaves` is called when there is a connection and the leg is about
/// to be on it.
pub(crate) async fn answered(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
    leaves: &(dyn Fn() + Sync),
) -> Result<(Head, OpenedBody), LegProblem> {
    let answered = pin!(async {
        let answer = send_unbounded(serving, backend, leg, attempt, leaves).await?;
        answer::open(answer, serving.accepted.endpoint).await
    });
    in_time(backend.pool.first_byte_timeout(), answered).await
}

/// By reference: an exchange is large, and would be copied with every call.
async fn in_time<T>(
    limit: Duration,
    exchange: Pin<&mut impl Future<Output = Result<T, LegProblem>>>,
) -> Result<T, LegProblem> {
    let done = tokio::time::timeout(limit, exchange).await;
    done.unwrap_or_else(|_| Err(ExchangeError::AnswerTimeout(limit).into()))
}

async fn send_unbounded(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
    leaves: &(dyn Fn() + Sync),
) -> Result<Answer, LegProblem> {
    let accepted = serving.accepted;
    let request_id = request_id(&accepted.request_id, attempt);
    let identity = identity(&request_id, accepted);
    let authority = &backend.pool.address().authority;
    let request = || {
        leaves();
        serving.inbound.leg(authority, identity, &leg)
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

pub(crate) fn opened(serving: &Serving<'_>, head: Head, body: OpenedBody, seat: Seat) -> Opened {
    if seat.backend.health.succeeded(|| serving.proxy.clock.now()) {
        serving.proxy.learn(Observation::HealthChanged);
    }
    Opened { head, body, seat }
}

pub(crate) fn note_decode(
    record: &mut Record,
    backend: &Arc<Backend>,
    predicted: Option<Predicted>,
) {
    record.predicted = predicted.or(record.predicted);
    record.decode_on = Some(Arc::clone(backend));
    record.live.decodes_on(backend.id);
}

/// The prompt was read: what it took is a lesson, and its prefix is there now.
pub(crate) fn note_prefill(
    serving: &Serving<'_>,
    backend: &Backend,
    predicted: Predicted,
    sent: Moment,
    now: Moment,
) {
    let uncached = serving.job.prompt - predicted.cached;
    if uncached > Tokens::ZERO {
        serving.proxy.learn(Observation::Prefill {
            backend: backend.id,
            uncached,
            cached: predicted.cached,
            took: backend.prefill_service(sent, now),
            beside: predicted.beside,
        });
    }
    serving.proxy.fleet.prefixes.insert(backend.id, &serving.accepted.prompt.chain);
}

/// A leg failed: what that says of its backend, and what it means for the request.
pub(crate) fn miss(backend: &Backend, leg: Leg, problem: LegProblem) -> Miss {
    // It may have been started again.
    backend.bootstrap.forget();
    let out = match &problem {
        LegProblem::Exchange(ExchangeError::Connect(_)) => backend.health.refused(),
        // A busy engine is not a broken one.
        LegProblem::Status(http::StatusCode::SERVICE_UNAVAILABLE)
        | LegProblem::Status(http::StatusCode::TOO_MANY_REQUESTS)
        | LegProblem::Unasked(_) => false,
        _ => backend.health.failed(),
    };
    if out {
        tracing::warn!(backend = %backend.name, "out of service: {problem}");
    }
    Miss::Elsewhere(LegFailure { on: backend.id, backend: Arc::clone(&backend.name), leg, problem })
}
