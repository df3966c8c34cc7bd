//! A request as its legs see it, and the errors of an attempt.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_filters::Accepted;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{FleetLoads, PrefillRequest};
use tidegate_types::Seconds;

use crate::backends::fleet::{Backend, PlacementView};
use crate::dispatch::context::Proxy;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::reservation::Predicted;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::upstream::failure::{Failure, LegFailure};

/// A request with the inputs of its legs.
pub struct Serving<'a> {
    /// State shared by all requests.
    pub proxy: &'a Arc<Proxy>,
    /// The client's request.
    pub inbound: &'a Inbound,
    /// The request as the filters accepted it.
    pub accepted: &'a Arc<Accepted>,
    /// The request as placement sees it.
    pub job: PrefillRequest,
    /// Backends that hold a prefix of the prompt.
    pub matches: Matches,
    /// Set when its leg is slow (watch.rs); cleared when read.
    pub slow: AtomicBool,
}

impl Serving<'_> {
    /// The settings that were in force at the request's arrival.
    pub(crate) fn settings(&self) -> &SettingsInForce {
        &self.inbound.settings
    }

    /// Resolves when a leg is slow. The flag is set within the same task, which polls again.
    pub(crate) async fn is_slow(&self) {
        std::future::poll_fn(|_| match self.slow.swap(false, Relaxed) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
    }

    /// Predicts a colocated leg on `backend`, before its charges.
    pub(crate) fn predict(&self, view: &PlacementView<'_>, backend: &Backend) -> Predicted {
        let (prompt, on) = (self.job.prompt, backend.id);
        let (predicted_hit, cached) = (view.held(&self.job, on), view.cached(&self.job, on));
        let prefill = view.table.entry(on).prefill.predict(prompt - cached, cached);
        let before = backend.account.total();
        let beside = before.concurrent_streams();
        Predicted { prefill, ahead: before.prefill, predicted_hit, cached, beside }
    }

    /// Predicted decode time on a backend, if the answer is not streamed; otherwise 0.
    pub(crate) fn decode_time(&self, on: &Backend) -> Seconds {
        let scan = self.accepted.scan.as_ref();
        if scan.is_some_and(|scan| scan.stream) || !self.accepted.endpoint.generates() {
            return Seconds::ZERO;
        }
        let (balance, table) = (on.account.total(), self.proxy.fleet.table());
        let step = table.entry(on.id).decode.step(balance.streams.max(1), balance.kv);
        let most = scan.and_then(|scan| scan.max_tokens);
        step * most.unwrap_or(self.job.expected_output).as_f64()
    }

    /// Returns the request's shape, by which refusals of prefill legs are remembered (shapes.rs).
    pub(crate) fn shape(&self) -> Option<u64> {
        self.accepted.scan.as_ref().map(|scan| scan.shape(&self.inbound.body))
    }
}

/// Error of an attempt without an answer for the client.
pub(crate) enum AttemptError {
    /// Another backend may serve the request.
    Retryable(LegFailure),
    /// No further attempt is useful.
    Final(Failure),
}

impl From<Failure> for AttemptError {
    fn from(failure: Failure) -> AttemptError {
        AttemptError::Final(failure)
    }
}
