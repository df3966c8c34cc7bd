//! The fleet whose accounts dispatch charges.

use crate::inflight::Account;
use crate::placement::{BackendLoad, FleetLoads, PrefillRequest};
use crate::shared_u64::SharedU64;
use std::sync::Arc;
use tidegate_types::{BackendId, Seconds, Tokens};

/// Slack of a backend without a stream that has a first token: an hour, longer than any stream.
const NO_STREAM: Seconds = Seconds(3600.0);

/// A [`FleetLoads`] whose backends have accounts.
pub trait Accounts: FleetLoads {
    /// Type of the accounts' counters: an atomic, or a cell of one thread.
    type Counter: SharedU64;
    /// The account of a backend.
    fn account(&self, on: BackendId) -> &Arc<Account<Self::Counter>>;
    /// Tokens of a request's prompt that the prefix index predicts to be cached on a backend.
    /// [`FleetLoads::cached`] is the part of them that is expected to be real.
    fn predicted_hit(&self, job: &PrefillRequest, on: BackendId) -> Tokens;
    /// Whether [`LegReservation::considered`](crate::dispatch::LegReservation::considered) is recorded.
    fn records_candidates(&self) -> bool {
        false
    }
}

/// Returns the load of a backend with the properties `fixed`, the charges of `account`, and the
/// smallest TPOT slack of its streams, if one of them has a first token.
pub fn load_of<W: SharedU64>(
    fixed: BackendLoad,
    account: &Account<W>,
    slack: Option<Seconds>,
) -> BackendLoad {
    let balance = account.total();
    // Batch streams need no slack.
    let batch = account.batch_streams().awaiting_first_token;
    BackendLoad {
        tightest: account.tightest_targets(fixed.decode_model.step(1, Tokens::ZERO)),
        prefill: fixed.prefill_model.batch(balance.prefill),
        prefill_tokens: balance.prefill_tokens,
        streams: balance.streams,
        awaiting_first_token: balance.awaiting_first_token.saturating_sub(batch),
        kv: balance.kv,
        slack: slack.filter(|_| balance.streams > 0).unwrap_or(NO_STREAM).min(NO_STREAM),
        ..fixed
    }
}
