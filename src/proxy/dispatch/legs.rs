//! Runs a request's legs on the engines. `attempts.rs` retries a leg that fails before its first
//! byte.
//!
//! The engine family defines the legs; this file is independent of protocols. A leg's future owns its
//! connection and its reservation: dropping it closes the connection and settles the reservation.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_engine::{Handoff, LegBody, Legs, RendezvousInfo, Scan, is_load};
use tidegate_filters::Accepted;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{Handover, Job};
use tidegate_types::{BackendId, Moment, Seconds, Tokens};

use crate::backends::bootstrap;
use crate::backends::fleet::{Backend, Stage};
use crate::dispatch::answer::{self, Opened, OpenedBody};
use crate::dispatch::blame;
use crate::dispatch::concurrent_legs;
use crate::dispatch::context::Proxy;
use crate::dispatch::headers::Identity;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::place::{self, Placed, Predicted};
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::Course;
use crate::dispatch::watch::watched;
use crate::runtime::budget::Held;
use crate::runtime::lanes::INLINE_MAX;
use crate::telemetry::observations::{Observation, ReadPrompt};
use crate::upstream::failure::{Failure, Leg, LegFailure, LegProblem};
use crate::upstream::read_all;
use crate::upstream::verdict::Verdict;
use crate::upstream::{Answer, Head};

/// The largest answer to a prefill: its hand-off names every KV block of the prompt, about 8 bytes
/// a block of 16 tokens, so a million tokens need half a megabyte.
pub(crate) const PREFILL_ANSWER_MAX: usize = 8 << 20;
/// Most edited copies of a body at once: both legs of a request with concurrent legs.
const LEG_COPIES_MAX: usize = 2;
/// Decode backends tried with one hand-off while nothing of it has been sent.
const DECODE_TRIES_MAX: u32 = 3;

/// A request with the inputs of its legs.
pub struct Serving<'a> {
    /// What all requests share.
    pub proxy: &'a Arc<Proxy>,
    /// The client's request.
    pub inbound: &'a Inbound,
    /// Results of the filters.
    pub accepted: &'a Arc<Accepted>,
    /// What to place.
    pub job: Job,
    /// Who holds its prefix.
    pub matches: Matches,
    /// Set while it waits for a leg that is late.
    pub late: AtomicBool,
}

impl Serving<'_> {
    /// Wait for a leg's lateness, which is looked for in this task.
    pub(crate) async fn is_late(&self) {
        std::future::poll_fn(|_| match self.late.swap(false, Relaxed) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
    }

    /// How long a backend may take to decode it, if its answer comes in one piece.
    pub(crate) fn in_one_piece(&self, on: BackendId) -> Seconds {
        let scan = self.accepted.scan.as_ref();
        if scan.is_some_and(|scan| scan.stream) || !self.accepted.endpoint.generates() {
            return Seconds::ZERO;
        }
        let proxy = self.proxy;
        let balance = proxy.fleet.backend(on).account.balance();
        let step = proxy.fleet.table().entry(on).decode.step(balance.streams.max(1), balance.kv);
        let most = scan.and_then(|scan| scan.max_tokens);
        step * most.unwrap_or(self.job.expected_output).as_f64()
    }

    /// What kind of request it is, for what engines think of its prefill leg.
    pub(crate) fn shape(&self) -> Option<u64> {
        self.accepted.scan.as_ref().map(|scan| scan.shape(&self.inbound.body))
    }
}

/// Why an attempt ended without an answer for the client.
pub(crate) enum Miss {
    /// Another backend may succeed.
    Elsewhere(LegFailure),
    /// A retry cannot succeed.
    Final(Failure),
}

impl From<Failure> for Miss {
    fn from(failure: Failure) -> Miss {
        Miss::Final(failure)
    }
}

/// Runs a request's legs, beginning on its reserved backend.
pub(crate) async fn attempt(
    serving: &Serving<'_>,
    placed: Placed,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    match placed {
        Placed::Whole(reservation, predicted) => {
            whole(serving, reservation, predicted, course).await
        }
        Placed::Prefill(reservation, predicted) => {
            let backend = Arc::clone(&reservation.backend);
            let scan = course.accepted.scan.as_ref();
            let endpoint = course.accepted.endpoint;
            let body = &serving.inbound.body;
            let Some(_copies) = room_for_copies(serving, &backend) else {
                return whole_instead(serving, reservation, predicted, course).await;
            };
            let id = fastrand::u64(..);
            let peer = bootstrap::peer(&backend, id).await;
            let peer = peer.map_err(|problem| miss(&backend, Leg::Prefill, problem))?;
            let rendezvous = RendezvousInfo {
                host: backend.pool.address().authority.host(),
                port: backend.meeting_port,
                id,
                peer: peer.as_ref(),
                key: backend.key.as_deref(),
            };
            match scan.map(|scan| backend.family.legs(endpoint, body, scan, &rendezvous)) {
                Some(Legs::PrefillFirst { prefill }) => {
                    // Boxed, as below: every request would keep room for it, and be moved with it.
                    Box::pin(split(serving, reservation, predicted, prefill, course)).await
                }
                Some(Legs::Concurrent(pair)) => {
                    Box::pin(concurrent_legs::run(serving, reservation, predicted, pair, course))
                        .await
                }
                // The family cannot split this request: it runs colocated on this backend.
                Some(Legs::Colocated) | None => {
                    whole(serving, reservation, predicted, course).await
                }
            }
        }
    }
}

/// Reserves body budget for the edited copies of a large body in its legs. `None`: they do not fit, and
/// the request can run colocated.
fn room_for_copies(serving: &Serving<'_>, backend: &Backend) -> Option<Option<Held>> {
    let body = serving.inbound.body.len();
    if body <= INLINE_MAX {
        return Some(None);
    }
    match serving.proxy.bodies.try_hold(body.saturating_mul(LEG_COPIES_MAX)) {
        Some(held) => Some(Some(held)),
        None => (!backend.family.serves_colocated()).then_some(None),
    }
}

/// Runs a request colocated on its prefill backend.
async fn whole_instead(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    reservation.open_stream(serving.job.prompt);
    whole(serving, reservation, predicted, course).await
}

/// Runs one leg with the client's request unchanged.
pub(crate) async fn whole(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&reservation.backend);
    note_decode(course, &backend, Some(predicted));
    (course.notes.cached, course.notes.prefill_usage, course.notes.whole) = (None, None, None);
    let missed = |problem| miss(&backend, Leg::Whole, problem);
    let sent = serving.proxy.clock.now();
    let leg = serving.inbound.body.clone().into();
    let ahead = predicted.ahead + predicted.prefill;
    // Pinned here, and not where it is awaited, or there would be room for two of it.
    let mut answered =
        pin!(answered(serving, &backend, None, ahead, leg, course.notes.attempts, &|| ()));
    let streams = course.accepted.scan.as_ref().is_some_and(|scan| scan.stream);
    let (head, body) = match streams {
        true => answered.as_mut().await,
        // Nothing tells when this prefill ends: its account is settled when it should have.
        false => {
            let due = sent + predicted.ahead + predicted.prefill;
            serving.proxy.timer_coalescing.keep();
            let due = pin!(tokio::time::sleep_until(serving.proxy.clock.coarse_instant(due)));
            tokio::select! {
                biased;
                opened = answered.as_mut() => opened,
                () = due => {
                    reservation.presumed_begun();
                    answered.as_mut().await
                }
            }
        }
    }
    .map_err(missed)?;
    let now = serving.proxy.clock.now();
    if let OpenedBody::Events(_) = &body {
        if body.has_tokens() {
            reservation.prefilled();
            note_prefill(serving, &backend, predicted, sent, now, None);
        } else {
            let backend = Arc::clone(&backend);
            course.notes.prefilling = Some(Prefilling { backend, predicted, sent });
        }
    } else if head.status.is_success() {
        if let OpenedBody::Complete(_) = &body {
            // The engine's count of the output divides it into prefill and steps, once it is read.
            let all = Prefilling { backend: Arc::clone(&backend), predicted, sent };
            course.notes.whole = Some(all.read(serving.job.prompt, now, None));
        }
        serving.proxy.note_prefix(backend.id, serving.accepted);
    }
    Ok(opened(serving, head, body, reservation))
}

/// Runs a prefill leg, then a decode leg on a backend with capacity when the prefill has ended.
async fn split(
    serving: &Serving<'_>,
    reservation: Reservation,
    predicted: Predicted,
    prefill: Bytes,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&reservation.backend);
    course.notes.predicted = Some(predicted);
    course.notes.prefill_on = Some(Arc::clone(&backend));
    course.live.prefills_on(backend.id);
    let missed = |problem| miss(&backend, Leg::Prefill, problem);
    let sent = serving.proxy.clock.now();
    let prefilled = pin!(prefilled(serving, &backend, prefill.into(), course.notes.attempts));
    let prefilled =
        watched(serving, [Some(&backend), None], predicted.ahead + predicted.prefill, prefilled)
            .await;
    let Some((head, body)) = prefilled.map_err(missed)? else {
        return unedited(serving, reservation, predicted, true, course).await;
    };
    serving.proxy.signals.answered(backend.id, &head.headers);
    if !head.status.is_success() {
        // The engine rejects the request itself; other engines would reject it too.
        return Ok(opened(serving, head, OpenedBody::Complete(body), reservation));
    }
    let handoff = backend.family.read_prefill(&body).map_err(|e| missed(e.into()))?;
    course.notes.prefill_usage = handoff.usage;
    let now = serving.proxy.clock.now();
    let told = handoff.usage.and_then(|usage| usage.cached);
    note_prefill(serving, &backend, predicted, sent, now, told);
    backend.health.succeeded(now);
    if let (Some(answer), Some(scan)) = (&handoff.finished, &course.accepted.scan) {
        let (head, body) = finished(&backend, head, answer, scan).map_err(missed)?;
        return Ok(opened(serving, head, body, reservation));
    }
    drop(reservation);
    course.live.set_stage(Stage::Handover);
    let lease = backend.family.handoff_deadline().min(serving.proxy.handoff_max);
    decode(serving, &backend, &handoff, now + lease, course).await
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
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let mut handover = handover(serving, from);
    let mut tries = 0;
    loop {
        tries += 1;
        let reservation = place::find_decode(serving.proxy, &handover, deadline).await?;
        let backend = Arc::clone(&reservation.backend);
        let missed = |problem| miss(&backend, Leg::Decode, problem);
        note_decode(course, &backend, None);
        let in_time = serving.proxy.clock.now() < deadline;
        course.notes.cached = None;
        let takes = backend.id != from.id && backend.may_decode();
        let mut hangs_on = None;
        let leg = match &course.accepted.scan {
            Some(scan) if in_time && takes => {
                // The decode engine would report all prompt tokens as cached.
                course.notes.cached =
                    handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO));
                let body = &serving.inbound.body;
                hangs_on = Some(from);
                from.family.decode_leg(body, scan, handoff, from.key.as_deref())
            }
            // Without the hand-off: once the lease may have run out a late read of freed blocks
            // would be worse than a second prefill, and who has prefilled has the prefix cached.
            _ => serving.inbound.body.clone().into(),
        };
        let hand_off = serving.proxy.placement.transfer.predict(serving.job.prompt);
        match answered(serving, &backend, hangs_on, hand_off, leg, course.notes.attempts, &|| ())
            .await
        {
            Ok((head, body)) => {
                serving.proxy.note_prefix(backend.id, serving.accepted);
                return Ok(opened(serving, head, body, reservation));
            }
            // The engine did not see the hand-off, so another engine can use it.
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

/// Send a prefill leg and read its answer. `None`: the engine has refused it, perhaps for its edits.
async fn prefilled(
    serving: &Serving<'_>,
    backend: &Backend,
    leg: LegBody,
    attempt: u32,
) -> Result<Option<(Head, Bytes)>, LegProblem> {
    let Answer { mut head, body } = send_unbounded(serving, backend, leg, attempt, &|| ()).await?;
    if may_be_the_edits(backend, head.status.as_u16()) {
        return Ok(None);
    }
    if answer::is_retryable(head.status) {
        return Err(Verdict::read(head, body).await.into());
    }
    let body = answer::decoded(&mut head, body)?;
    let body = read_all(body, PREFILL_ANSWER_MAX).await?;
    Ok(Some((head, body)))
}

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
    let address = backend.pool.address();
    let request = || {
        leaves();
        serving.inbound.leg(address, identity, &leg)
    };
    Ok(backend.pool.send_unbounded(request).await?)
}

/// Engines key their work by this id, so each attempt has its own.
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
        serving.proxy.learn(Observation::HealthChanged);
    }
    Opened { head, body, reservation }
}

pub(crate) fn note_decode(
    course: &mut Course<'_>,
    backend: &Arc<Backend>,
    predicted: Option<Predicted>,
) {
    course.notes.predicted = predicted.or(course.notes.predicted);
    course.notes.decode_on = Some(Arc::clone(backend));
    course.live.decodes_on(backend.id);
}

/// A prefill whose end is still to be seen: its stream has begun with something else than a token.
pub struct Prefilling {
    /// Where it runs.
    pub backend: Arc<Backend>,
    /// What placement expected.
    pub predicted: Predicted,
    /// When its leg was sent.
    pub sent: Moment,
}

impl Prefilling {
    /// The prompt was read: what it took is a lesson, and its prefix is there now. `told`: the tokens
    /// that the engine says it had cached.
    pub fn ended(
        &self,
        proxy: &Arc<Proxy>,
        accepted: &Arc<Accepted>,
        prompt: Tokens,
        now: Moment,
        told: Option<Tokens>,
    ) {
        proxy.learn(Observation::Prefill(self.read(prompt, now, told)));
        proxy.note_prefix(self.backend.id, accepted);
    }

    fn read(&self, prompt: Tokens, ended: Moment, told: Option<Tokens>) -> ReadPrompt {
        let Predicted { held, beside, .. } = self.predicted;
        let (backend, sent) = (self.backend.id, self.sent);
        ReadPrompt { backend, prompt, held, told, sent, ended, beside }
    }
}

/// The prefill has just ended.
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
    // The engine may have restarted.
    backend.bootstrap.forget();
    let (on, backend) = match &problem {
        LegProblem::Abandoned { on, backend, .. } => (*on, Arc::clone(backend)),
        _ => (backend.id, Arc::clone(&backend.name)),
    };
    Miss::Elsewhere(LegFailure { on, backend, leg, problem })
}

/// An engine has refused a prefill leg, perhaps for what tidegate has changed in it: it gets the
/// client's own request. If it serves that, requests of this shape are not split for a while.
pub(crate) async fn unedited(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    learns: bool,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    reservation.open_stream(serving.job.prompt);
    // The engine knows the leg's id already.
    course.notes.attempts += 1;
    let opened = whole(serving, reservation, predicted, course).await?;
    let learns = learns && opened.head.status.is_success();
    if let Some(shape) = serving.shape().filter(|_| learns) {
        serving.proxy.shapes.learn(shape, serving.proxy.clock.now());
    }
    Ok(opened)
}

/// Returns whether this status may be a refusal of the edits in a prefill leg.
pub(crate) fn may_be_the_edits(backend: &Backend, status: u16) -> bool {
    let of_the_body = matches!(status, 400 | 422 | 500..=599);
    of_the_body && !is_load(status) && backend.family.serves_colocated()
}
