//! Concurrent legs, for engines that contact each other (SGLang, Mooncake, Offloading, TensorRT-LLM's
//! generation first). The decode engine is chosen before either leg is sent. The client gets the
//! decode leg's answer; the prefill leg's answer is read and dropped.
//!
//! A leg that fails before the first byte cancels the other, and so does a client that leaves. The
//! start of the decode does not cancel the prefill leg, which may still be sending KV blocks.

use bytes::Bytes;
use std::sync::Arc;
use tidegate_engine::{ConcurrentLegs, LegBody};
use tidegate_types::{Moment, Seconds, Tokens};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

use crate::backends::fleet::Backend;
use crate::dispatch::answer::{self, Opened, OpenedBody};
use crate::dispatch::colocated;
use crate::dispatch::leg::{self, PREFILL_ANSWER_MAX};
use crate::dispatch::place::{self, Predicted};
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::Course;
use crate::upstream::failure::{Failure, Leg, LegProblem};
use crate::upstream::read_all;
use crate::upstream::verdict::Verdict;
use crate::upstream::{Answer, ExchangeError, Head};

/// Longest time from the head of a prefill leg's answer to its end; the leg is then closed. The time
/// to the head has the limit of any answer, because a long prompt is no failure.
const DRAIN_MAX: Seconds = Seconds(30.0);

/// Closes the prefill leg when dropped, unless it was detached.
pub(crate) struct Linked(Option<AbortHandle>);

impl Linked {
    pub(crate) fn new<T>(leg: &JoinHandle<T>) -> Linked {
        Linked(Some(leg.abort_handle()))
    }

    pub(crate) fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if let Some(leg) = &self.0 {
            leg.abort();
        }
    }
}

type Prefilled = Result<(Head, Bytes), LegProblem>;

/// Runs both legs. The prefill backend is already reserved; the decode backend is reserved here.
pub(crate) async fn run(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    pair: ConcurrentLegs,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let from = Arc::clone(&reservation.backend);
    let Some(decode_seat) = reserve_decode(serving, &from).await? else {
        reservation.open_stream(serving.job.prompt);
        return colocated::whole(serving, reservation, predicted, course).await;
    };
    let to = Arc::clone(&decode_seat.backend);
    note_backends(serving, course, &from, &to, predicted);

    let sent = serving.proxy.clock.now();
    let ConcurrentLegs { prefill, decode, decode_first } = pair;
    let go = start_signal(decode_first);
    let attempt = course.notes.attempts;
    let mut prefill = start_prefill(serving, &reservation, prefill, attempt, Arc::clone(&go));
    let linked = Linked::new(&prefill);
    let leaves = || go.notify_one();
    let ahead = predicted.ahead + predicted.prefill;
    // Boxed, so that it can be dropped where the request runs whole after all.
    let mut decode =
        Box::pin(leg::answered(serving, &to, Some(&from), ahead, decode, attempt, &leaves));
    // What one says of the other's failure is not known: its ranks are asked for again.
    let missed = |on: &Backend, leg, problem| {
        from.bootstrap.forget();
        leg::miss(on, leg, problem)
    };
    let (head, body) = tokio::select! {
        // The prefill's answer is more specific: it is polled first.
        biased;
        answered = &mut prefill => {
            let answered = answered.unwrap_or_else(|_| Err(ExchangeError::Closed.into()));
            if is_disliked(&from, &answered) {
                drop((decode, decode_seat));
                // The decode engine may have caused the failure.
                let learns = to.health.is_well();
                return colocated::unedited(serving, reservation, predicted, learns, course).await;
            }
            let (head, body) = answered.map_err(|problem| missed(&from, Leg::Prefill, problem))?;
            if !head.status.is_success() {
                // The engine's verdict on the request itself: the same everywhere.
                return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
            }
            drop(reservation);
            note_answered(serving, course, &from, predicted, sent, &body);
            decode.await.map_err(|problem| missed(&to, Leg::Decode, problem))?
        }
        opened = &mut decode => {
            let opened = opened.map_err(|problem| missed(&to, Leg::Decode, problem))?;
            if opened.1.has_tokens() {
                let now = serving.proxy.clock.now();
                course.notes.prefilled_at = Some(now);
                leg::note_prefill(serving, &from, predicted, sent, now, None);
                drop(reservation);
            } else {
                hold_until_prefilled(prefill, reservation);
            }
            if opened.0.status.is_success() {
                linked.let_go();
            }
            opened
        }
    };
    serving.proxy.note_prefix(to.id, serving.accepted);
    Ok(leg::opened(serving, head, body, decode_seat))
}

/// Notes where both legs run and what placement predicted.
fn note_backends(
    serving: &Serving<'_>,
    course: &mut Course<'_>,
    from: &Arc<Backend>,
    to: &Arc<Backend>,
    predicted: Predicted,
) {
    course.notes.prefill_on = Some(Arc::clone(from));
    course.live.prefills_on(from.id);
    (course.notes.cached, course.notes.split) = (None, true);
    leg::note_decode(serving, course, to, Some(predicted));
}

/// Starts the prefill leg: at once, or with `decode_first` when the decode leg has a connection.
fn start_signal(decode_first: bool) -> Arc<Notify> {
    let go = Arc::new(Notify::new());
    if !decode_first {
        go.notify_one();
    }
    go
}

/// Reserves the decode backend. `None`: only the prefill's own engine is left, and the request runs
/// colocated, because an engine cannot rendezvous with itself.
async fn reserve_decode(
    serving: &Serving<'_>,
    from: &Backend,
) -> Result<Option<Reservation>, Failure> {
    let handover = leg::handover(serving, from);
    let deadline = serving.proxy.clock.now() + serving.proxy.handoff_max;
    let decode = place::find_decode(serving.proxy, &handover, deadline).await?;
    if decode.backend.id != from.id && decode.backend.may_decode() {
        Ok(Some(decode))
    } else if from.family.serves_colocated() {
        Ok(None)
    } else {
        Err(Failure::NoBackend)
    }
}

/// The stream has begun before a token: the prefill still runs, and keeps its reservation.
fn hold_until_prefilled(prefill: JoinHandle<Prefilled>, reservation: Reservation) {
    tokio::spawn(async move {
        drop(prefill.await);
        drop(reservation);
    });
}

/// Has the engine refused the leg, perhaps for its edits?
fn is_disliked(from: &Backend, answered: &Prefilled) -> bool {
    let status = match answered {
        Ok((head, _)) => Some(head.status.as_u16()),
        Err(problem) => problem.verdict().and_then(|verdict| verdict.status),
    };
    status.is_some_and(|status| leg::may_be_the_edits(from, status))
}

/// Notes a prefill whose answer was read to its end.
fn note_answered(
    serving: &Serving<'_>,
    course: &mut Course<'_>,
    from: &Arc<Backend>,
    predicted: Predicted,
    sent: Moment,
    answer: &[u8],
) {
    let now = serving.proxy.clock.now();
    course.notes.prefilled_at = Some(now);
    leg::note_prefill(serving, from, predicted, sent, now, None);
    from.health.succeeded(now);
    note_cached(course, from, answer);
}

/// What the prefill engine had cached, where the decode engine would call all of it cached.
fn note_cached(course: &mut Course<'_>, from: &Backend, answer: &[u8]) {
    if !from.family.reports_transfer_as_cached() {
        return;
    }
    if let Ok(handoff) = from.family.read_prefill(answer) {
        course.notes.prefill_usage = handoff.usage;
        course.notes.cached = handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO));
    }
}

/// A task of its own, so that it can outlive the wait for the decode's first token.
fn start_prefill(
    serving: &Serving<'_>,
    reservation: &Reservation,
    body: LegBody,
    attempt: u32,
    go: Arc<Notify>,
) -> JoinHandle<Prefilled> {
    let backend = Arc::clone(&reservation.backend);
    let inbound = serving.inbound.beside();
    let accepted = Arc::clone(serving.accepted);
    let drain = serving.proxy.silence_max.max(DRAIN_MAX).to_duration();
    let leg = async move {
        let request_id = leg::request_id(&accepted.request_id, attempt);
        let address = backend.pool.address();
        let identity = leg::identity(&request_id, &accepted);
        let answer = backend.pool.send(|| inbound.leg(address, identity, &body)).await?;
        let Answer { mut head, body } = answer;
        if answer::is_retryable(head.status) {
            return Err(Verdict::read(head, body).await.into());
        }
        let body = answer::decoded(&mut head, body)?;
        let read = read_all(body, PREFILL_ANSWER_MAX);
        let in_time = tokio::time::timeout(drain, read).await;
        Ok((head, in_time.unwrap_or_else(|_| Err(ExchangeError::Closed.into()))?))
    };
    tokio::spawn(async move {
        go.notified().await;
        leg.await
    })
}
