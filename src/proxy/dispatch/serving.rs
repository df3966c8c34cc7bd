//! A request as its legs see it, and how an attempt may end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_filters::Accepted;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::PrefillRequest;
use tidegate_types::{BackendId, Seconds};

use crate::dispatch::context::Proxy;
use crate::dispatch::inbound::Inbound;
use crate::upstream::failure::{Failure, LegFailure};

/// A request with what its legs are made from.
pub struct Serving<'a> {
    /// What all requests share.
    pub proxy: &'a Arc<Proxy>,
    /// The client's request.
    pub inbound: &'a Inbound,
    /// What the filters found in it.
    pub accepted: &'a Arc<Accepted>,
    /// What to place.
    pub job: PrefillRequest,
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
