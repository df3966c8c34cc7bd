//! In-flight requests: one entry a request with its stage and backends, inserted on arrival and
//! removed on settlement.

use dashmap::DashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_types::{BackendId, Moment, RequestId, Seconds, Targets, Tokens};

use crate::backends::fleet::gaps::Gaps;

/// Stage of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// In the EDF queue, or about to be placed.
    Queued,
    /// Its prefill leg runs.
    Prefill,
    /// Prefilled; no decode backend chosen yet.
    HandOff,
    /// Its decode or colocated leg runs, without a token yet.
    Waiting,
    /// Tokens arrive.
    Streaming,
}

impl Stage {
    /// The value in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Queued => "queued",
            Stage::Prefill => "prefill",
            Stage::HandOff => "handover",
            Stage::Waiting => "waiting",
            Stage::Streaming => "streaming",
        }
    }

    const fn from_u8(byte: u8) -> Stage {
        match byte {
            1 => Stage::Prefill,
            2 => Stage::HandOff,
            3 => Stage::Waiting,
            4 => Stage::Streaming,
            _ => Stage::Queued,
        }
    }
}

/// One in-flight request. Plain fields are set on arrival. Atomics are written by the request's own
/// task and read by the control loop and the admin API.
#[derive(Debug)]
pub struct InflightRequest {
    /// Number of the request, unique in the process.
    pub id: RequestId,
    /// Its `x-request-id`.
    pub name: Box<str>,
    /// The requested model.
    pub model: Option<Arc<str>>,
    /// Arrival of the request head.
    pub arrived: Moment,
    /// Prompt tokens, counted or estimated.
    pub prompt: Tokens,
    /// The targets by which it is scheduled and judged.
    pub targets: Targets,
    stage: AtomicU8,
    prefill_on: AtomicU32,
    decode_on: AtomicU32,
    first_at: AtomicU64,
    last_at: AtomicU64,
    emitted: AtomicU64,
    received_at: AtomicU64,
    awaiting_since: AtomicU64,
    gaps: Gaps,
    gap_max: AtomicU64,
}

const NOWHERE: u32 = u32::MAX;

impl InflightRequest {
    /// A request that has just arrived.
    pub fn new(
        id: RequestId,
        name: &str,
        model: Option<Arc<str>>,
        arrived: Moment,
        prompt: Tokens,
        targets: Targets,
    ) -> InflightRequest {
        InflightRequest {
            id,
            name: name.into(),
            model,
            arrived,
            prompt,
            targets,
            stage: AtomicU8::new(Stage::Queued as u8),
            prefill_on: AtomicU32::new(NOWHERE),
            decode_on: AtomicU32::new(NOWHERE),
            first_at: AtomicU64::new(Moment::NEVER.0),
            last_at: AtomicU64::new(Moment::NEVER.0),
            emitted: AtomicU64::new(0),
            received_at: AtomicU64::new(Moment::NEVER.0),
            awaiting_since: AtomicU64::new(Moment::NEVER.0),
            gaps: Gaps::default(),
            gap_max: AtomicU64::new(0),
        }
    }

    /// Current stage.
    pub fn stage(&self) -> Stage {
        Stage::from_u8(self.stage.load(Relaxed))
    }

    /// Sets the stage, which may also go back to `Queued` for a retry.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    /// Records that its prefill leg runs on `backend`.
    pub fn prefills_on(&self, backend: BackendId) {
        self.prefill_on.store(u32::from(backend.0), Relaxed);
        self.set_stage(Stage::Prefill);
    }

    /// Records that its decode or colocated leg runs on `backend`.
    pub fn decodes_on(&self, backend: BackendId) {
        self.decode_on.store(u32::from(backend.0), Relaxed);
        self.set_stage(Stage::Waiting);
    }

    /// Backend of its prefill leg; `None` without one.
    pub fn prefill_backend(&self) -> Option<BackendId> {
        backend(&self.prefill_on)
    }

    /// Backend of its decode or colocated leg; `None` before that leg starts.
    pub fn decode_backend(&self) -> Option<BackendId> {
        backend(&self.decode_on)
    }

    /// Records the start of an answer without countable tokens at `now`.
    pub fn start_streaming(&self, now: Moment) {
        self.received(now);
        self.set_stage(Stage::Streaming);
    }

    /// Records `tokens` more output tokens at `now`.
    pub fn emitted_at(&self, tokens: u32, now: Moment) {
        if self.emitted.fetch_add(u64::from(tokens), Relaxed) == 0 {
            self.first_at.store(now.0, Relaxed);
            self.set_stage(Stage::Streaming);
        } else {
            let gap = now.0.saturating_sub(self.last_at.load(Relaxed));
            self.gaps.note(gap);
            // The request's own task is the only writer.
            if gap > self.gap_max.load(Relaxed) {
                self.gap_max.store(gap, Relaxed);
            }
        }
        self.last_at.store(now.0, Relaxed);
    }

    /// Records bytes of its stream at `now`, with or without tokens.
    pub fn received(&self, now: Moment) {
        self.received_at.store(now.0, Relaxed);
        self.awaiting_since.store(Moment::NEVER.0, Relaxed);
    }

    /// Records that the proxy awaits bytes of the engine from `now` on.
    pub fn await_engine(&self, now: Moment) {
        self.awaiting_since.store(now.0, Relaxed);
    }

    /// Since when the proxy has awaited bytes of the engine; `None` while the client does not read,
    /// because the proxy does not read from the engine then.
    pub fn awaiting_since(&self) -> Option<Moment> {
        moment(&self.awaiting_since)
    }

    /// When its last bytes arrived.
    pub fn received_at(&self) -> Option<Moment> {
        moment(&self.received_at)
    }

    /// Output tokens so far.
    pub fn emitted(&self) -> Tokens {
        Tokens(self.emitted.load(Relaxed))
    }

    /// Gaps between its chunks.
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// Largest gap between two chunks; `None` with less than two.
    pub fn gap_max(&self) -> Option<Seconds> {
        let gap = self.gap_max.load(Relaxed);
        (gap > 0).then(|| Seconds(gap as f64 / 1e9))
    }

    /// When its first token arrived.
    pub fn first_at(&self) -> Option<Moment> {
        moment(&self.first_at)
    }

    /// When its last token arrived.
    pub fn last_at(&self) -> Option<Moment> {
        moment(&self.last_at)
    }
}

fn backend(cell: &AtomicU32) -> Option<BackendId> {
    u16::try_from(cell.load(Relaxed)).ok().map(BackendId)
}

fn moment(cell: &AtomicU64) -> Option<Moment> {
    Some(Moment(cell.load(Relaxed))).filter(|moment| *moment != Moment::NEVER)
}

/// All in-flight requests.
#[derive(Debug, Default)]
pub struct InflightRegistry {
    requests: DashMap<RequestId, Arc<InflightRequest>, BuildHasherDefault<Spread>>,
}

/// Hashes request ids by the golden ratio. Ids are consecutive and not chosen by clients, so this
/// spreads them evenly over the shards.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0.rotate_left(5) ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl InflightRegistry {
    /// Inserts a request on arrival.
    pub fn insert(&self, live: Arc<InflightRequest>) {
        self.requests.insert(live.id, live);
    }

    /// Removes a request on settlement.
    pub fn remove(&self, id: RequestId) {
        self.requests.remove(&id);
    }

    /// The request with this number, if it is in flight.
    pub fn get(&self, id: RequestId) -> Option<Arc<InflightRequest>> {
        self.requests.get(&id).map(|entry| Arc::clone(&entry))
    }

    /// Number of in-flight requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether no request is in flight.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Visits every request, in no particular order.
    pub fn for_each(&self, mut visit: impl FnMut(&InflightRequest)) {
        for entry in &self.requests {
            visit(&entry);
        }
    }
}
