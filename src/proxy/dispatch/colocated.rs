//! Prefill and decode of a request on one backend.

use std::pin::pin;
use std::sync::Arc;

use crate::dispatch::answer::{OpenedAnswer, OpenedBody};
use crate::dispatch::leg;
use crate::dispatch::prefilling::PrefillInProgress;
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestProgress;
use crate::upstream::failure::LegKind;

/// Runs the request as one leg: the client's body byte for byte.
pub(crate) async fn send(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    let backend = Arc::clone(&reservation.backend);
    leg::note_decode(serving, progress, &backend, Some(predicted));
    progress.runs_colocated();
    let missed = |problem| leg::miss(&backend, LegKind::Colocated, problem);
    let sent = serving.proxy.clock.now();
    let leg = serving.inbound.body.clone().into();
    let ahead = predicted.ahead + predicted.prefill;
    // Pinned once: pinned at each await, the future would be stored twice.
    let mut answered =
        pin!(leg::answered(serving, &backend, None, ahead, leg, progress.attempts(), &|| ()));
    let streams = progress.accepted.scan.as_ref().is_some_and(|scan| scan.stream);
    let (head, body) = match streams {
        true => answered.as_mut().await,
        // The answer does not show the end of the prefill: its charge is settled at the predicted end.
        false => {
            let due = sent + predicted.ahead + predicted.prefill;
            serving.proxy.timer_coalescing.keep();
            let due = pin!(tokio::time::sleep_until(serving.proxy.clock.coarse_instant(due)));
            tokio::select! {
                biased;
                opened = answered.as_mut() => opened,
                () = due => {
                    reservation.presume_prefilled();
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
            leg::note_prefill(serving, &backend, predicted, sent, now, None);
        } else {
            let backend = Arc::clone(&backend);
            progress.awaits_first_token(PrefillInProgress { backend, predicted, sent });
        }
    } else if head.status.is_success() {
        if let OpenedBody::Complete(_) = &body {
            // One duration for prefill and decode; the control loop separates them by the output tokens.
            let all = PrefillInProgress { backend: Arc::clone(&backend), predicted, sent };
            progress.answered_whole(all.sample(serving.job.prompt, now, None));
        }
        serving.proxy.note_prefix(backend.id, serving.accepted);
    }
    Ok(leg::opened(serving, head, body, reservation))
}

/// Runs the request colocated after the engine refused its prefill leg, possibly because of tidegate's
/// edits. With `learns`, a success stops disaggregation of requests of this shape for a while.
pub(crate) async fn unedited(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    learns: bool,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    reservation.open_stream(serving.job.prompt, &serving.job.targets);
    // The engine has seen the request id of the prefill leg.
    progress.next_attempt();
    let opened = send(serving, reservation, predicted, progress).await?;
    let learns = learns && opened.head.status.is_success();
    if let Some(shape) = serving.shape().filter(|_| learns) {
        serving.proxy.shapes.learn(shape, serving.proxy.clock.now());
    }
    Ok(opened)
}
