//! The fleet whose accounts dispatch charges.

use crate::inflight::{Account, Balance};
use crate::placement::{Fleet, Load, PrefillRequest};
use crate::shared_u64::SharedU64;
use std::sync::Arc;
use tidegate_types::{BackendId, Seconds, Tokens};

/// Slack of a backend without a stream that has a first token: an hour, longer than any stream.
const NO_STREAM: Seconds = Seconds(3600.0);

/// A [`Fleet`] whose backends have accounts.
pub trait Accounts: Fleet {
    /// Type of the accounts' counters: an atomic, or a cell of one thread.
    type Counter: SharedU64;
    /// The account of a backend.
    fn account(&self, on: BackendId) -> &Arc<Account<Self::Counter>>;
    /// Tokens of a request's prompt that the prefix index predicts to be cached on a backend.
    /// [`Fleet::cached`] is the part of them that is expected to be real.
    fn predicted_hit(&self, job: &PrefillRequest, on: BackendId) -> Tokens;
    /// Whether [`LegReservation::considered`](crate::dispatch::LegReservation::considered) is recorded.
    fn records_candidates(&self) -> bool {
        false
    }
}

/// Returns the load of a backend with the properties `fixed`, the account `balance`, and the
/// smallest TPOT slack of its streams, if one of them has a first token.
pub fn load_of(fixed: Load, balance: &Balance, slack: Option<Seconds>) -> Load {
    Load {
        prefill: fixed.prefill_model.batch(balance.prefill),
        prefill_tokens: balance.prefill_tokens,
        streams: balance.streams,
        awaiting_first_token: balance.awaiting_first_token,
        kv: balance.kv,
        slack: slack.filter(|_| balance.streams > 0).unwrap_or(NO_STREAM).min(NO_STREAM),
        ..fixed
    }
}
