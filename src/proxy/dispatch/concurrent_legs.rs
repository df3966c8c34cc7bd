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
use crate::dispatch::answer::{self, OpenedAnswer, OpenedBody};
use crate::dispatch::colocated;
use crate::dispatch::leg::{self, PREFILL_ANSWER_MAX};
use crate::dispatch::place;
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestProgress;
use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::failure::{Failure, LegKind, LegProblem};
use crate::upstream::read_all;
use crate::upstream::{EngineAnswer, ExchangeError, Head};

/// Longest time from the head of a prefill leg's answer to its end; the leg is then closed. The time
/// to the head has the limit of any answer, because a long prompt is no failure.
const DRAIN_MAX: Seconds = Seconds(30.0);

/// Closes the prefill leg when dropped, unless it was detached.
pub(crate) struct LinkedLeg(Option<AbortHandle>);

impl LinkedLeg {
    pub(crate) fn new<T>(leg: &JoinHandle<T>) -> LinkedLeg {
        LinkedLeg(Some(leg.abort_handle()))
    }

    pub(crate) fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for LinkedLeg {
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
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let from = Arc::clone(&reservation.backend);
    let Some(decode_reservation) = reserve_decode(serving, &from).await? else {
        reservation.open_stream(serving.job.prompt, &serving.job.targets);
        return colocated::send(serving, reservation, predicted, progress).await;
    };
    let to = Arc::clone(&decode_reservation.backend);
    note_backends(serving, progress, &from, &to, predicted);

    let sent = serving.proxy.clock.now();
    let ConcurrentLegs { prefill, decode, decode_first } = pair;
    let go = start_signal(decode_first);
    let attempt = progress.attempts();
    let mut prefill = start_prefill(serving, &reservation, prefill, attempt, Arc::clone(&go));
    let linked = LinkedLeg::new(&prefill);
    let leaves = || go.notify_one();
    let ahead = predicted.ahead + predicted.prefill;
    // Boxed, so that it can be dropped before the colocated retry.
    let mut decode =
        Box::pin(leg::answered(serving, &to, Some(&from), ahead, decode, attempt, &leaves));
    // Either engine may have caused the failure. The prefill engine's ranks are queried again.
    let missed = |on: &Backend, leg, problem| {
        from.bootstrap.forget();
        leg::miss(on, leg, problem)
    };
    let (head, body) = tokio::select! {
        // The prefill's answer is polled first, because its error is more specific.
        biased;
        answered = &mut prefill => {
            let answered = answered.unwrap_or_else(|_| Err(ExchangeError::Closed.into()));
            if is_refused_for_edits(&from, &answered) {
                drop((decode, decode_reservation));
                // The decode engine may have caused the failure.
                let learns = to.health.is_healthy();
                return colocated::unedited(serving, reservation, predicted, learns, progress).await;
            }
            let (head, body) = answered.map_err(|problem| missed(&from, LegKind::Prefill, problem))?;
            if !head.status.is_success() {
                // A client error: another engine would answer the same.
                return Ok(leg::opened(serving, head, OpenedBody::Complete(body), reservation));
            }
            drop(reservation);
            note_answered(serving, progress, &from, predicted, sent, &body);
            decode.await.map_err(|problem| missed(&to, LegKind::Decode, problem))?
        }
        opened = &mut decode => {
            let opened = opened.map_err(|problem| missed(&to, LegKind::Decode, problem))?;
            if opened.1.has_tokens() {
                let now = serving.proxy.clock.now();
                progress.prefilled(now);
                leg::note_prefill(serving, &from, predicted, sent, now, None);
                drop(reservation);
            } else {
                hold_until_prefilled(prefill, reservation);
            }
            if opened.0.status.is_success() {
                linked.detach();
            }
            opened
        }
    };
    serving.proxy.note_prefix(to.id, serving.accepted);
    Ok(leg::opened(serving, head, body, decode_reservation))
}

/// Notes the backends of both legs and placement's prediction.
fn note_backends(
    serving: &Serving<'_>,
    progress: &mut RequestProgress<'_>,
    from: &Arc<Backend>,
    to: &Arc<Backend>,
    predicted: Predicted,
) {
    progress.prefills_on(from, predicted);
    progress.cached(None);
    leg::note_decode(serving, progress, to, Some(predicted));
}

/// Returns the signal that starts the prefill leg. It is set at once, or with `decode_first` when the
/// decode leg has a connection.
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
    let decode_request = leg::decode_request(serving, from);
    let deadline = serving.proxy.clock.now() + serving.settings().values.queue.handoff;
    let decode =
        place::find_decode(serving.proxy, serving.settings(), &decode_request, deadline).await?;
    let to = &decode.backend;
    if to.id != from.id && to.may_decode() && from.trials.may_reach(to.id) {
        Ok(Some(decode))
    } else if from.family.serves_colocated() {
        Ok(None)
    } else {
        Err(Failure::NoBackend)
    }
}

/// Keeps the prefill's reservation until its leg ends: the decode leg's stream can begin before
/// that.
fn hold_until_prefilled(prefill: JoinHandle<Prefilled>, reservation: Reservation) {
    tokio::spawn(async move {
        drop(prefill.await);
        drop(reservation);
    });
}

/// Returns whether the engine has refused the leg, possibly because of its edits.
fn is_refused_for_edits(from: &Backend, answered: &Prefilled) -> bool {
    let status = match answered {
        Ok((head, _)) => Some(head.status.as_u16()),
        Err(problem) => problem.error_answer().and_then(|answer| answer.status),
    };
    status.is_some_and(|status| leg::may_be_the_edits(from, status))
}

/// Notes a prefill whose answer was read to its end.
fn note_answered(
    serving: &Serving<'_>,
    progress: &mut RequestProgress<'_>,
    from: &Arc<Backend>,
    predicted: Predicted,
    sent: Moment,
    answer: &[u8],
) {
    let now = serving.proxy.clock.now();
    progress.prefilled(now);
    leg::note_prefill(serving, from, predicted, sent, now, None);
    from.health.succeeded(now);
    note_cached(progress, from, answer);
}

/// Notes the cached tokens that the prefill engine reports, if the decode engine reports transferred
/// tokens as cached.
fn note_cached(progress: &mut RequestProgress<'_>, from: &Backend, answer: &[u8]) {
    if !from.family.reports_transfer_as_cached() {
        return;
    }
    if let Ok(handoff) = from.family.read_prefill(answer) {
        progress.prefill_reported(handoff.usage);
        progress.cached(handoff.usage.map(|usage| usage.cached.unwrap_or(Tokens::ZERO)));
    }
}

/// Starts the prefill leg in a task of its own, which may outlive the decode's first token.
fn start_prefill(
    serving: &Serving<'_>,
    reservation: &Reservation,
    body: LegBody,
    attempt: u32,
    go: Arc<Notify>,
) -> JoinHandle<Prefilled> {
    let backend = Arc::clone(&reservation.backend);
    let inbound = serving.inbound.without_share();
    let accepted = Arc::clone(serving.accepted);
    let drain = serving.settings().silence_max().max(DRAIN_MAX).to_duration();
    let leg = async move {
        let request_id = leg::request_id(&accepted.request_id, attempt);
        let address = backend.pool.address();
        let identity = leg::identity(&request_id, &accepted);
        let answer = backend.pool.send(|| inbound.leg(address, identity, &body)).await?;
        let EngineAnswer { mut head, body } = answer;
        if answer::is_retryable(head.status) {
            return Err(ErrorAnswer::read(head, body).await.into());
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
