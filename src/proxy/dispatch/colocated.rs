//! Prefill and decode of a request on one backend.

use std::pin::pin;
use std::sync::Arc;

use crate::dispatch::answer::{Opened, OpenedBody};
use crate::dispatch::leg;
use crate::dispatch::place::Predicted;
use crate::dispatch::prefilling::Prefilling;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::Course;
use crate::upstream::failure::Leg;

/// One leg, the client's request byte for byte.
pub(crate) async fn whole(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    course: &mut Course<'_>,
) -> Result<Opened, Miss> {
    let backend = Arc::clone(&reservation.backend);
    leg::note_decode(serving, course, &backend, Some(predicted));
    (course.notes.split, course.notes.prefilled_at) = (false, None);
    (course.notes.cached, course.notes.prefill_usage, course.notes.whole) = (None, None, None);
    let missed = |problem| leg::miss(&backend, Leg::Whole, problem);
    let sent = serving.proxy.clock.now();
    let leg = serving.inbound.body.clone().into();
    let ahead = predicted.ahead + predicted.prefill;
    // Pinned here, and not where it is awaited, or there would be room for two of it.
    let mut answered =
        pin!(leg::answered(serving, &backend, None, ahead, leg, course.notes.attempts, &|| ()));
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
            leg::note_prefill(serving, &backend, predicted, sent, now, None);
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
    Ok(leg::opened(serving, head, body, reservation))
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
