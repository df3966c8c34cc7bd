//! Placement's read-only view of the fleet: roles and costs of a table with the current counters of
//! the accounts.

use std::collections::HashMap;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{Load, PrefillRequest};
use tidegate_types::{BackendId, Moment, PoolId, RequestId, Role, Seconds, Tokens};

use super::{Fleet, RoutingTable};

/// Prefix matches of the requests that are being placed.
pub enum Known<'a> {
    /// Of one request: the fast path.
    One(&'a Matches),
    /// Of all queued requests: the dispatcher.
    Many(&'a HashMap<RequestId, Matches>),
}

/// A table and the accounts at one moment.
pub struct View<'a> {
    /// Accounts and health.
    pub fleet: &'a Fleet,
    /// Roles, pools and costs.
    pub table: &'a RoutingTable,
    /// Prefix matches of the requests to place.
    pub known: Known<'a>,
    /// Tokens per block of the prefix index.
    pub block: Tokens,
    /// Time of the view.
    pub now: Moment,
}

/// Slack of a backend without streams: longer than any stream.
const NO_STREAM: Seconds = Seconds(3600.0);

impl View<'_> {
    /// Most streams that may be on a backend at once.
    pub fn streams_max(&self, id: BackendId) -> u32 {
        self.fleet.streams_max(self.table, id, self.now)
    }

    /// Tokens of a job's prompt that the prefix index predicts to be cached on a backend, in whole
    /// blocks of the engine.
    pub fn held(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        let blocks = match self.known {
            Known::One(matches) => matches.blocks_on(backend),
            Known::Many(all) => all.get(&job.id).map_or(0, |matches| matches.blocks_on(backend)),
        };
        // The last prompt token is always computed.
        let held = Tokens(u64::from(blocks) * self.block.get()).min(job.prompt - Tokens(1));
        self.fleet.backend(backend).whole_blocks(held)
    }
}

impl tidegate_scheduler::placement::Fleet for View<'_> {
    fn pool(&self, pool: PoolId) -> &[BackendId] {
        self.table.backends(pool)
    }

    fn load(&self, id: BackendId) -> Load {
        let entry = self.table.entry(id);
        let backend = self.fleet.backend(id);
        let balance = backend.account.balance();
        let slack = if balance.streams == 0 { NO_STREAM } else { backend.slack(self.now) };
        Load {
            role: entry.role,
            usable: backend.health.is_usable(),
            last: backend.health.is_last(self.now),
            runs_whole: backend.family.serves_colocated(),
            hands_over: backend.allowed.contains(Role::Prefill),
            group: entry.group,
            prefill: entry.prefill.batch(balance.prefill),
            prefill_tokens: balance.prefill_tokens,
            streams: balance.streams,
            awaiting_first_token: balance.awaiting_first_token,
            streams_max: self.streams_max(id),
            kv: balance.kv,
            kv_capacity: backend.kv_capacity(),
            slack: slack.min(NO_STREAM),
            prefill_model: entry.prefill,
            decode_model: entry.decode,
            transfer_model: entry.transfer,
        }
    }

    fn holders(&self, job: &PrefillRequest) -> Matches {
        match self.known {
            Known::One(matches) => *matches,
            Known::Many(all) => all.get(&job.id).copied().unwrap_or_default(),
        }
    }

    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        let real = self.fleet.real_hit(backend, self.held(job, backend));
        self.fleet.backend(backend).whole_blocks(real)
    }
}
