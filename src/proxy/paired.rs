//! Both legs at once, on engines that meet each other (SGLang): the decode engine is chosen before
//! anything is sent, its answer is the client's, the prefill's is read and dropped.
//!
//! The legs are linked: one that fails before the first byte takes the other with it, and so does
//! a client that leaves. What must never happen is that a prefill is cut because the decode has
//! begun: it may still be sending.

use bytes::Bytes;
use http::response::Parts;
use std::sync::Arc;
use tidegate_terms::Seconds;
use tokio::task::{AbortHandle, JoinHandle};

use crate::answer::{self, Opened, OpenedBody};
use crate::failure::{Leg, LegProblem};
use crate::legs::{self, Miss, PREFILL_ANSWER_MAX, Serving};
use crate::place::{self, Predicted};
use crate::seat::Seat;
use crate::settle::Record;
use crate::upstream::ExchangeError;

/// A prefill's answer may take so long after the decode has begun; then it is cut after all.
const DRAIN_MAX: Seconds = Seconds(30.0);

/// Cuts the prefill leg when it is dropped, unless it was let go.
struct Linked(Option<AbortHandle>);

impl Linked {
    fn let_go(mut self) {
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

type Prefilled = Result<(Parts, Bytes), LegProblem>;

/// Run both legs with the same body; the prefill's seat is taken, the decode's is found here.
pub(crate) async fn run(
    serving: &Serving<'_>,
    seat: Seat,
    predicted: Predicted,
    both: Bytes,
    record: &mut Record,
) -> Result<Opened, Miss> {
    let from = Arc::clone(&seat.backend);
    let handover = legs::handover(serving, &from);
    let deadline = serving.proxy.clock.now() + serving.proxy.handoff_max;
    let decode_seat = place::find_decode(serving.proxy, &handover, deadline).await?;
    let to = Arc::clone(&decode_seat.backend);
    record.predicted = Some(predicted);
    record.prefill_on = Some(Arc::clone(&from));
    record.live.prefills_on(from.id);
    legs::note_decode(record, &to, None);

    let sent = serving.proxy.clock.now();
    let mut prefill = start_prefill(serving, &seat, both.clone(), record.attempts);
    let linked = Linked(Some(prefill.abort_handle()));
    let endpoint = record.accepted.endpoint;
    let decode = async {
        let answer = legs::send(serving, &to, both, record.attempts).await?;
        answer::open(answer, endpoint).await
    };
    tokio::pin!(decode);
    let (head, body) = tokio::select! {
        answered = &mut prefill => {
            let answered = answered.unwrap_or_else(|_| Err(ExchangeError::Closed.into()));
            let (head, body) = answered.map_err(|p| legs::miss(&from, Leg::Prefill, p))?;
            if !head.status.is_success() {
                // The engine's verdict on the request itself: the same everywhere.
                return Ok(legs::opened(serving, head, OpenedBody::Complete(body), seat));
            }
            let now = serving.proxy.clock.now();
            legs::note_prefill(serving, &from, predicted, sent, now);
            from.health.succeeded(now);
            drop(seat);
            decode.await.map_err(|problem| legs::miss(&to, Leg::Decode, problem))?
        }
        opened = &mut decode => {
            let opened = opened.map_err(|problem| legs::miss(&to, Leg::Decode, problem))?;
            legs::note_prefill(serving, &from, predicted, sent, serving.proxy.clock.now());
            drop(seat);
            if opened.0.status.is_success() {
                linked.let_go();
            }
            opened
        }
    };
    serving.proxy.fleet.prefixes.insert(to.id, &serving.accepted.prompt.chain);
    Ok(legs::opened(serving, head, body, decode_seat))
}

/// A task of its own, so that it can outlive the wait for the decode's first token.
fn start_prefill(
    serving: &Serving<'_>,
    seat: &Seat,
    body: Bytes,
    attempt: u32,
) -> JoinHandle<Prefilled> {
    let backend = Arc::clone(&seat.backend);
    let inbound = serving.inbound.clone();
    let accepted = Arc::clone(serving.accepted);
    let leg = async move {
        let request_id = legs::request_id(&accepted.request_id, attempt);
        let authority = &backend.pool.address().authority;
        let identity = legs::identity(&request_id, &accepted);
        let answer = backend.pool.send(|| inbound.leg(authority, identity, body.clone())).await?;
        let (head, body) = answer.into_parts();
        if answer::is_retryable(head.status) {
            return Err(LegProblem::Status(head.status));
        }
        let body = answer::read_all(body, PREFILL_ANSWER_MAX).await?;
        Ok((head, body))
    };
    let timeout = serving.proxy.silence_max.max(DRAIN_MAX).to_duration();
    tokio::spawn(async move {
        let in_time = tokio::time::timeout(timeout, leg).await;
        in_time.unwrap_or_else(|_| Err(ExchangeError::Closed.into()))
    })
}
