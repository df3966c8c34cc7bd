//! Leases on prefilled KV (docs/spec/engine-protocols.md#vllm-nixl-lease). KV is held
//! under a lease that a queued decode engine extends, and freed when it is read, abandoned or
//! expired. Each KV is read at most once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_sim::SeqId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::engine::EmulatedState;
use crate::scheduler::SchedulerCommand;
use crate::stats::EmulatorCounters;

/// KV held for a decode engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldKv {
    /// The sequence that computed it.
    pub sequence: SeqId,
    /// Size in tokens.
    pub tokens: u64,
    /// Identity of the KV.
    pub kv: u64,
    /// Tokens that prefill found in its prefix cache.
    pub cached: u64,
}

/// Reason why KV cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The request is unknown, or its KV was already read.
    Unknown,
    /// The lease has expired.
    Expired,
    /// Another read is in progress.
    Taken,
    /// The reader's prompt has another length.
    AnotherLength,
}

#[derive(Debug)]
struct KvLease {
    held: HeldKv,
    until: Instant,
    read: bool,
}

/// Leases of one engine, by request id.
#[derive(Debug, Default)]
pub struct Leases {
    table: Mutex<LeaseTable>,
    /// Signals a new lease to the expiry task, which may have to wake earlier.
    added: Notify,
}

#[derive(Debug, Default)]
struct LeaseTable {
    leases: HashMap<String, KvLease>,
    /// Most recently expired leases, to distinguish a late reader from an unknown request.
    expired: VecDeque<String>,
}

/// Number of expired leases remembered.
const EXPIRED_MAX: usize = 1024;

impl Leases {
    /// Holds KV for `lease`.
    pub fn hold(&self, request_id: String, held: HeldKv, lease: Duration) {
        let until = Instant::now() + lease;
        self.table().leases.insert(request_id, KvLease { held, until, read: false });
        self.added.notify_one();
    }

    /// Begins the only read and extends the lease to at least `extension` from now.
    ///
    /// # Errors
    /// The KV is unknown, expired, being read, or of another length.
    pub fn read(
        &self,
        request_id: &str,
        tokens: u64,
        extension: Duration,
    ) -> Result<HeldKv, Missing> {
        let mut table = self.table();
        let expired = table.expired.iter().any(|id| id == request_id);
        let missing = if expired { Missing::Expired } else { Missing::Unknown };
        let lease = table.leases.get_mut(request_id).ok_or(missing)?;
        let now = Instant::now();
        if lease.until < now {
            return Err(Missing::Expired);
        }
        if lease.read {
            return Err(Missing::Taken);
        }
        if lease.held.tokens != tokens {
            return Err(Missing::AnotherLength);
        }
        lease.read = true;
        lease.until = lease.until.max(now + extension);
        Ok(lease.held)
    }

    /// Extends the lease to at least `extension` from now.
    pub fn extend(&self, request_id: &str, extension: Duration) -> Result<(), Missing> {
        let mut table = self.table();
        let lease = table.leases.get_mut(request_id).ok_or(Missing::Expired)?;
        lease.until = lease.until.max(Instant::now() + extension);
        Ok(())
    }

    /// Ends a lease after the read or an abandonment.
    ///
    /// # Errors
    /// The lease has expired, or did not exist.
    pub fn end(&self, request_id: &str) -> Result<HeldKv, Missing> {
        let mut table = self.table();
        let expired = table.expired.iter().any(|id| id == request_id);
        let missing = if expired { Missing::Expired } else { Missing::Unknown };
        table.leases.remove(request_id).map(|lease| lease.held).ok_or(missing)
    }

    /// Returns whether the KV is held.
    pub fn holds(&self, request_id: &str) -> bool {
        self.table().leases.contains_key(request_id)
    }

    /// Returns the number of leases.
    pub fn count(&self) -> usize {
        self.table().leases.len()
    }

    fn take_expired(&self) -> Vec<HeldKv> {
        let now = Instant::now();
        let mut table = self.table();
        let LeaseTable { leases, expired } = &mut *table;
        let ended = leases.extract_if(|_, lease| lease.until <= now);
        let held = ended.map(|(id, lease)| {
            expired.push_back(id);
            lease.held
        });
        let held = held.collect();
        while table.expired.len() > EXPIRED_MAX {
            table.expired.pop_front();
        }
        held
    }

    fn next_end(&self) -> Option<Instant> {
        self.table().leases.values().map(|lease| lease.until).min()
    }

    fn table(&self) -> MutexGuard<'_, LeaseTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees KV whose lease has expired, until the engine stops.
pub async fn expire(engine: Arc<EmulatedState>) {
    loop {
        match engine.leases.next_end() {
            None => engine.leases.added.notified().await,
            Some(end) => tokio::select! {
                () = sleep_until(end) => {}
                () = engine.leases.added.notified() => {}
            },
        }
        for held in engine.leases.take_expired() {
            EmulatorCounters::add(&engine.counters.leases_expired, 1);
            engine.send_command(SchedulerCommand::Release(held.sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn held() -> Leases {
        let leases = Leases::default();
        let held = HeldKv { sequence: SeqId(1), tokens: 100, kv: 7, cached: 0 };
        leases.hold("r".to_owned(), held, LEASE);
        leases
    }

    #[tokio::test(start_paused = true)]
    async fn kv_is_read_once_by_a_reader_with_the_same_prompt() {
        let leases = held();
        assert_eq!(leases.read("other", 100, LEASE), Err(Missing::Unknown));
        assert_eq!(leases.read("r", 99, LEASE), Err(Missing::AnotherLength));
        assert_eq!(leases.read("r", 100, LEASE).map(|held| held.kv), Ok(7));
        assert_eq!(leases.read("r", 100, LEASE), Err(Missing::Taken));
        assert!(leases.end("r").is_ok());
        assert_eq!(leases.end("r"), Err(Missing::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_unless_it_is_extended() {
        let leases = held();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(leases.extend("r", Duration::from_secs(20)), Ok(()));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert_eq!(leases.take_expired(), []);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(leases.take_expired().len(), 1);
        assert_eq!(leases.read("r", 100, LEASE), Err(Missing::Expired));
        assert_eq!(leases.extend("r", LEASE), Err(Missing::Expired));
        assert_eq!(leases.end("r"), Err(Missing::Expired));
    }
}
