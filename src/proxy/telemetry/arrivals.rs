//! Requests of the last hour as an arrival trace, and latencies by model over the last minutes. A
//! request adds one element to a lock-free queue when it ends; the sampler (history.rs) empties the
//! queue into the records behind the lock. Prompts are kept as lengths and block hashes only.

use crossbeam_queue::ArrayQueue;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidegate_types::{Moment, Seconds, Tokens};

use crate::backends::fleet::GAP_BUCKETS;
use crate::telemetry::request_log::{Attained, RequestLog, RequestOutcome};

/// Capacity of the queue: 0.1 s at 20,000 requests a second. Elements beyond it are dropped.
const QUEUE_MAX: usize = 2048;
/// Most requests kept: an hour at 18 requests a second, about 7 MB.
pub const KEPT_MAX: usize = 65_536;
/// Retention of a request.
pub const KEPT_FOR: Seconds = Seconds(3600.0);
/// Most block hashes kept: 4 MB. Requests beyond it are kept without hashes.
const HASHES_MAX: usize = 524_288;
/// Tokens per kept hash, as in the traces of the simulator.
const HASHED: u64 = 512;
/// Most pairs of a model and a service class with latencies of their own; further ones count as the last.
const ROWS_MAX: usize = 64;
/// Slots of the ITL window, and the length of one.
const SLOTS: usize = 30;
const SLOT: Seconds = Seconds(10.0);
/// Window of the latencies by model: [`SLOTS`] slots.
pub const WINDOW: Seconds = Seconds(300.0);

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct EndedRequest {
    /// When it arrived.
    pub at: Moment,
    pub ended_at: Moment,
    pub prompt: Tokens,
    pub output: Tokens,
    /// Whether the client stayed to the end.
    pub counts: bool,
    /// The targets that it met; `None` if it does not count for attainment.
    pub attained: Option<Attained>,
    pub ttft: Option<Seconds>,
    pub tpot: Option<Seconds>,
    /// Hash of each 512-token block of its prompt.
    pub blocks: Box<[u64]>,
    row: usize,
}

/// An ended request that is queued for the records.
struct Queued {
    arrival: EndedRequest,
    model: Option<Arc<str>>,
    class: Arc<str>,
    gaps: Option<Box<[u32; GAP_BUCKETS]>>,
}

/// The records. Written by the sampler, read by the admin API.
pub struct ArrivalLog {
    queue: ArrayQueue<Queued>,
    records: Mutex<Records>,
}

/// What the sampler has collected.
#[derive(Default)]
pub struct Records {
    /// Ended requests, ordered by their end.
    pub requests: VecDeque<EndedRequest>,
    rows: Vec<RowGaps>,
    hashes: usize,
}

/// ITL counts of a model's requests of one service class.
struct RowGaps {
    model: Arc<str>,
    class: Arc<str>,
    slots: Box<[[u32; GAP_BUCKETS]; SLOTS]>,
    /// Number of the slot written last, counted from the start.
    slot: u64,
}

/// Latencies of a model's requests of one service class over [`WINDOW`].
pub struct Latencies {
    pub model: Arc<str>,
    pub class: Arc<str>,
    /// Requests whose client stayed to the end.
    pub requests: usize,
    /// Those that count for attainment: all but batch work.
    pub judged: usize,
    pub met_ttft: usize,
    pub met_tpot: usize,
    pub met_itl: usize,
    pub met_all: usize,
    /// Sorted.
    pub ttft: Vec<f64>,
    /// Sorted.
    pub tpot: Vec<f64>,
    /// ITL counts by bucket.
    pub gaps: [u32; GAP_BUCKETS],
}

impl Default for ArrivalLog {
    fn default() -> ArrivalLog {
        ArrivalLog { queue: ArrayQueue::new(QUEUE_MAX), records: Mutex::default() }
    }
}

impl ArrivalLog {
    /// Queues a request that has ended. Takes no lock; a full queue drops it.
    pub fn note(&self, log: &RequestLog<'_>) {
        if !log.accepted.endpoint.generates() || log.prompt == Tokens::ZERO {
            return;
        }
        let arrival = EndedRequest {
            at: log.live.arrived,
            ended_at: log.live.arrived + log.duration,
            prompt: log.prompt,
            output: log.output,
            counts: log.outcome != RequestOutcome::ClientLeft,
            attained: log.attained(),
            ttft: log.ttft,
            tpot: log.tpot,
            blocks: blocks(&log.accepted.prompt.chain, log.accepted.prompt.block_tokens),
            row: 0,
        };
        let gaps = log.tpot.map(|_| {
            let mut gaps = Box::new([0; GAP_BUCKETS]);
            log.live.gaps().add_to(&mut gaps);
            gaps
        });
        let (model, class) = (log.live.model.clone(), Arc::clone(log.class));
        self.queue.push(Queued { arrival, model, class, gaps }).ok();
    }

    /// Moves queued requests into the records and removes those older than an hour.
    pub fn collect(&self, now: Moment) -> MutexGuard<'_, Records> {
        let mut records = self.records();
        // Bounded by the queue's capacity; requests that end meanwhile are collected by the next
        // call.
        for _ in 0..QUEUE_MAX {
            let Some(queued) = self.queue.pop() else { break };
            records.add(queued, now);
        }
        let old = |first: &EndedRequest| now - first.ended_at > KEPT_FOR;
        while records.requests.front().is_some_and(old) {
            records.drop_first();
        }
        records
    }

    pub fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hashes of the whole 512-token blocks of a chain whose blocks have `each` tokens.
fn blocks(chain: &[u64], each: Tokens) -> Box<[u64]> {
    let Some(step) = HASHED.checked_div(each.get()).filter(|step| *step > 0) else {
        return Box::default();
    };
    chain.iter().skip(step as usize - 1).step_by(step as usize).copied().collect()
}

impl Records {
    fn add(&mut self, queued: Queued, now: Moment) {
        let Queued { mut arrival, model, class, gaps } = queued;
        arrival.row = self.row(model, class);
        if let (Some(gaps), Some(row)) = (gaps, self.rows.get_mut(arrival.row)) {
            let slot = row.turn_to(now);
            for (sum, count) in slot.iter_mut().zip(gaps.iter()) {
                *sum = sum.saturating_add(*count);
            }
        }
        if self.hashes + arrival.blocks.len() > HASHES_MAX {
            arrival.blocks = Box::default();
        }
        self.hashes += arrival.blocks.len();
        self.requests.push_back(arrival);
        if self.requests.len() > KEPT_MAX {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.requests.pop_front() {
            self.hashes -= first.blocks.len();
        }
    }

    fn row(&mut self, model: Option<Arc<str>>, class: Arc<str>) -> usize {
        let model = model.unwrap_or_else(|| "none".into());
        let known = self.rows.iter().position(|row| row.model == model && row.class == class);
        known.unwrap_or_else(|| {
            if self.rows.len() < ROWS_MAX {
                let slots = Box::new([[0; GAP_BUCKETS]; SLOTS]);
                self.rows.push(RowGaps { model, class, slots, slot: 0 });
            }
            self.rows.len() - 1
        })
    }

    /// Requests that ended within `window` before `now`, latest first.
    pub fn within(&self, now: Moment, window: Seconds) -> impl Iterator<Item = &EndedRequest> {
        self.requests.iter().rev().take_while(move |request| now - request.ended_at <= window)
    }

    /// Latencies by model and service class over [`WINDOW`], in the order in which they were first
    /// seen.
    pub fn latencies(&mut self, now: Moment) -> Vec<Latencies> {
        let mut all: Vec<Latencies> = self.rows.iter_mut().map(|row| row.latencies(now)).collect();
        for request in self.within(now, WINDOW).filter(|request| request.counts) {
            let Some(row) = all.get_mut(request.row) else { continue };
            row.requests += 1;
            if let Some(attained) = &request.attained {
                row.judged += 1;
                row.met_ttft += usize::from(attained.ttft);
                row.met_tpot += usize::from(attained.tpot);
                row.met_itl += usize::from(attained.itl);
                row.met_all += usize::from(attained.all());
            }
            row.ttft.extend(request.ttft.map(Seconds::get));
            row.tpot.extend(request.tpot.map(Seconds::get));
        }
        for row in &mut all {
            row.ttft.sort_by(f64::total_cmp);
            row.tpot.sort_by(f64::total_cmp);
        }
        all.retain(|row| row.requests > 0);
        all
    }
}

impl RowGaps {
    /// Returns the slot of `now`; slots that have passed since are emptied.
    fn turn_to(&mut self, now: Moment) -> &mut [u32; GAP_BUCKETS] {
        let slot = (now.since_start() / SLOT) as u64;
        let passed = slot.saturating_sub(self.slot).min(SLOTS as u64);
        for back in 0..passed {
            self.slots[((slot - back) % SLOTS as u64) as usize] = [0; GAP_BUCKETS];
        }
        self.slot = self.slot.max(slot);
        &mut self.slots[(self.slot % SLOTS as u64) as usize]
    }

    fn latencies(&mut self, now: Moment) -> Latencies {
        self.turn_to(now);
        let mut gaps = [0_u32; GAP_BUCKETS];
        for slot in self.slots.iter() {
            for (sum, count) in gaps.iter_mut().zip(slot) {
                *sum = sum.saturating_add(*count);
            }
        }
        Latencies {
            model: Arc::clone(&self.model),
            class: Arc::clone(&self.class),
            requests: 0,
            judged: 0,
            met_ttft: 0,
            met_tpot: 0,
            met_itl: 0,
            met_all: 0,
            ttft: Vec::new(),
            tpot: Vec::new(),
            gaps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::Slo;

    fn at(seconds: f64) -> Moment {
        Moment::from_start(Seconds(seconds))
    }

    fn queued(ended_at: Moment, ttft: f64, blocks: usize) -> Queued {
        let (ttft, tpot) = (Seconds(ttft), Some(Seconds(0.02)));
        let arrival = EndedRequest {
            at: ended_at,
            ended_at,
            prompt: Tokens(1000),
            output: Tokens(10),
            counts: true,
            attained: Some(Attained::of(&Slo::default(), true, Some(ttft), tpot, None)),
            ttft: Some(ttft),
            tpot,
            blocks: vec![7; blocks].into(),
            row: 0,
        };
        let mut gaps = Box::new([0; GAP_BUCKETS]);
        gaps[17] = 9;
        Queued { arrival, model: Some("m".into()), class: "default".into(), gaps: Some(gaps) }
    }

    #[test]
    fn a_hash_is_kept_for_each_512_tokens() {
        let chain: Vec<u64> = (0..20).collect();
        assert_eq!(*blocks(&chain, Tokens(64)), [7, 15]);
        assert_eq!(*blocks(&chain, Tokens(512)), chain[..]);
        assert!(blocks(&chain, Tokens(1024)).is_empty());
        assert!(blocks(&chain, Tokens::ZERO).is_empty());
    }

    #[test]
    fn records_are_bounded_by_time_number_and_hashes() {
        let arrivals = ArrivalLog::default();
        let mut records = arrivals.records();
        for _ in 0..KEPT_MAX + 5 {
            records.add(queued(at(1.0), 0.5, 16), at(1.0));
        }
        assert_eq!(records.requests.len(), KEPT_MAX);
        assert!(records.hashes <= HASHES_MAX);
        let kept: usize = records.requests.iter().map(|request| request.blocks.len()).sum();
        assert_eq!(records.hashes, kept);
        drop(records);
        assert!(arrivals.collect(at(3602.0)).requests.is_empty());
        assert_eq!(arrivals.records().hashes, 0);
    }

    #[test]
    fn latencies_cover_the_window_only() {
        let mut records = Records::default();
        for (ended, ttft) in [(10.0, 9.0), (400.0, 0.5), (410.0, 2.0)] {
            records.add(queued(at(ended), ttft, 0), at(ended));
        }
        let all = records.latencies(at(420.0));
        assert_eq!((all[0].requests, all[0].met_ttft, all[0].met_all), (2, 1, 1));
        assert_eq!(all[0].ttft, [0.5, 2.0]);
        assert_eq!(all[0].gaps[17], 18);
        assert!(records.latencies(at(2000.0)).is_empty());
    }

    #[test]
    fn each_class_has_latencies_of_its_own_and_batch_work_no_attainment() {
        let mut records = Records::default();
        for (class, batch) in [("chat", false), ("night", true), ("chat", false)] {
            let mut request = queued(at(1.0), 2.0, 0);
            request.class = class.into();
            request.arrival.attained = request.arrival.attained.filter(|_| !batch);
            records.add(request, at(1.0));
        }
        let all = records.latencies(at(2.0));
        let rows: Vec<_> = all.iter().map(|row| (&*row.class, row.requests, row.judged)).collect();
        assert_eq!(rows, [("chat", 2, 2), ("night", 1, 0)]);
        assert_eq!((all[1].ttft.len(), all[0].met_ttft), (1, 0));
    }
}
