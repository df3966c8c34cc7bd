//! Runs a request's legs on the engines. Failures before the first byte are retried by attempts.rs.
//!
//! The engine family defines the legs; this file is independent of protocols. A leg's future owns its
//! connection and its reservation: dropping it closes the connection and settles the reservation.

use std::sync::Arc;
use tidegate_engine::{Legs, RendezvousInfo};

use crate::backends::fleet::Backend;
use crate::dispatch::answer::OpenedAnswer;
use crate::dispatch::colocated;
use crate::dispatch::concurrent_legs;
use crate::dispatch::disaggregated;
use crate::dispatch::leg;
use crate::dispatch::reservation::{Predicted, Reservation, ReservedLeg};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestProgress;
use crate::runtime::budget::BudgetShare;
use crate::runtime::filter_permits::INLINE_MAX;
use crate::upstream::failure::LegKind;

/// Most edited copies of a body at once: the two legs of a request with concurrent legs.
const LEG_COPIES_MAX: usize = 2;

/// Runs a request's legs, beginning on its reserved backend.
pub(crate) async fn attempt(
    serving: &Serving<'_>,
    placed: ReservedLeg,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    match placed {
        ReservedLeg::Colocated(reservation, predicted) => {
            colocated::send(serving, reservation, predicted, progress).await
        }
        ReservedLeg::Prefill(reservation, predicted) => {
            let backend = Arc::clone(&reservation.backend);
            let scan = progress.accepted.scan.as_ref();
            let endpoint = progress.accepted.endpoint;
            let body = &serving.inbound.body;
            let alone = !backend.trials.may_hand_off() && backend.family.serves_colocated();
            let copies = if alone { None } else { reserve_copies(serving, &backend) };
            let Some(_copies) = copies else {
                return run_colocated(serving, reservation, predicted, progress).await;
            };
            let id = fastrand::u64(..);
            let peer = backend.bootstrap.peer(backend.family, &backend.pool, id).await;
            let peer = peer.map_err(|problem| leg::miss(&backend, LegKind::Prefill, problem))?;
            let rendezvous = RendezvousInfo {
                host: backend.pool.address().authority.host(),
                port: backend.rendezvous_port,
                id,
                peer: peer.as_ref(),
                key: backend.key.as_deref(),
            };
            match scan.map(|scan| backend.family.legs(endpoint, body, scan, &rendezvous)) {
                Some(Legs::PrefillFirst { prefill }) => {
                    // Boxed, as below: unboxed, it would enlarge every request's future.
                    Box::pin(disaggregated::run(serving, reservation, predicted, prefill, progress))
                        .await
                }
                Some(Legs::Concurrent(pair)) => {
                    Box::pin(concurrent_legs::run(serving, reservation, predicted, pair, progress))
                        .await
                }
                // The family cannot split this request: it runs colocated on this backend.
                Some(Legs::Colocated) | None => {
                    colocated::send(serving, reservation, predicted, progress).await
                }
            }
        }
    }
}

/// Reserves body budget for the edited copies of a large body. `None`: they do not fit, and the request
/// can run colocated, without copies. Engines that cannot run it colocated exceed the budget.
fn reserve_copies(serving: &Serving<'_>, backend: &Backend) -> Option<Option<BudgetShare>> {
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
async fn run_colocated(
    serving: &Serving<'_>,
    mut reservation: Reservation,
    predicted: Predicted,
    progress: &mut RequestProgress<'_>,
) -> Result<OpenedAnswer, AttemptError> {
    reservation.open_stream(serving.job.prompt, &serving.job.targets);
    colocated::send(serving, reservation, predicted, progress).await
}
