//! Ring buffer of the requests that ended last, written on settlement and read by the admin API. A
//! write takes no lock: an atomic counter selects the slot, and one exchange replaces its content. A
//! reader takes the content out, copies its reference and puts it back, so that the cost of sharing is
//! on the side of the readers, which are rare.

use crossbeam_utils::atomic::AtomicCell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tidegate_scheduler::placement::Considered;
use tidegate_types::{Seconds, Tokens};

use crate::backends::fleet::InflightRequest;
use crate::telemetry::request_log::{Expected, RequestLog, RequestOutcome};

/// The ring buffer; with 0 slots no request is kept.
pub struct Recent {
    slots: Box<[RingSlot]>,
    written: AtomicUsize,
}

/// One place of the ring. Empty before its first request, and while a reader copies its reference.
struct RingSlot(AtomicCell<Option<Arc<RecentRequest>>>);

/// Attempts to read a slot that another reader has emptied. That reader puts the content back after a
/// few instructions, unless its thread is suspended; the request is then missing from this reading.
const READS_MAX: usize = 1000;

/// A request that has ended: the values of its [`RequestLog`].
pub struct RecentRequest {
    /// Number of requests that were written before it.
    written: usize,
    pub live: Arc<InflightRequest>,
    pub endpoint: &'static str,
    /// Holder of the API key; empty without keys.
    pub tenant: Box<str>,
    /// Name of its service class.
    pub class: Arc<str>,
    pub status: u16,
    pub ended: RequestOutcome,
    pub problem: Option<Box<str>>,
    pub attempts: u32,
    pub prefill_on: Option<Arc<str>>,
    pub decode_on: Option<Arc<str>>,
    pub prompt: Tokens,
    pub prompt_exact: bool,
    /// Cached prompt tokens that the engine reported.
    pub cached: Option<Tokens>,
    pub output: Tokens,
    pub queued: Option<Seconds>,
    pub prefilled: Option<Seconds>,
    pub ttft: Option<Seconds>,
    pub tpot: Option<Seconds>,
    pub duration: Seconds,
    pub split: bool,
    pub predicted: Option<Expected>,
    pub expected_ttft: Option<Seconds>,
    /// Candidates of the last placement, the chosen one first. By name, because a slot may be
    /// reused by a later backend.
    pub considered: Box<[(Arc<str>, Considered)]>,
}

impl Recent {
    /// A ring of `size` requests.
    pub fn new(size: usize) -> Recent {
        let slots = (0..size).map(|_| RingSlot(AtomicCell::new(None))).collect();
        Recent { slots, written: AtomicUsize::new(0) }
    }

    /// Whether requests are kept.
    pub fn is_on(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Adds a request that ends, in place of the oldest.
    pub fn push(
        &self,
        log: &RequestLog<'_>,
        considered: Box<[(Arc<str>, Considered)]>,
        reported: Option<Tokens>,
    ) {
        if !self.is_on() {
            return;
        }
        let written = self.written.fetch_add(1, Relaxed);
        let ended = RecentRequest { written, ..RecentRequest::of(log, considered, reported) };
        self.slots[written % self.slots.len()].put(Arc::new(ended));
    }

    /// At most `count` requests, the latest first.
    pub fn last(&self, count: usize) -> Vec<Arc<RecentRequest>> {
        self.iter().take(count).collect()
    }

    /// The latest request with this `x-request-id`, or this number.
    pub fn find(&self, id: &str) -> Option<Arc<RecentRequest>> {
        let number: Option<u64> = id.parse().ok();
        let by_name = self.iter().find(|ended| &*ended.live.name == id);
        by_name.or_else(|| self.iter().find(|ended| Some(ended.live.id.0) == number))
    }

    fn iter(&self) -> impl Iterator<Item = Arc<RecentRequest>> {
        let size = self.slots.len();
        let written = self.written.load(Relaxed);
        let back = (0..size.min(written)).map(move |back| (written - 1 - back) % size);
        back.filter_map(|slot| self.slots[slot].read())
    }
}

impl RingSlot {
    /// Replaces the content.
    fn put(&self, ended: Arc<RecentRequest>) {
        drop(self.0.swap(Some(ended)));
    }

    /// Returns the content; `None` if it is empty.
    fn read(&self) -> Option<Arc<RecentRequest>> {
        for _ in 0..READS_MAX {
            if let Some(ended) = self.0.take() {
                // A request that was put meanwhile stays. Another reader may have put an older one.
                let mut last = Arc::clone(&ended);
                while let Some(other) = self.0.swap(Some(Arc::clone(&last)))
                    && other.written > last.written
                {
                    last = other;
                }
                return Some(ended);
            }
            spin_loop();
        }
        None
    }
}

impl RecentRequest {
    fn of(
        log: &RequestLog<'_>,
        considered: Box<[(Arc<str>, Considered)]>,
        reported: Option<Tokens>,
    ) -> Self {
        let accepted = log.accepted;
        RecentRequest {
            written: 0,
            live: Arc::clone(log.live),
            endpoint: accepted.endpoint.as_str(),
            tenant: accepted.tenant.as_str().into(),
            class: Arc::clone(log.class),
            status: log.status,
            ended: log.outcome,
            problem: log.problem.map(Into::into),
            attempts: log.attempts,
            prefill_on: log.prefill_on.map(|backend| Arc::clone(&backend.name)),
            decode_on: log.decode_on.map(|backend| Arc::clone(&backend.name)),
            prompt: log.prompt,
            prompt_exact: accepted.prompt.exact,
            cached: reported,
            output: log.output,
            queued: log.queued,
            prefilled: log.prefilled,
            ttft: log.ttft,
            tpot: log.tpot,
            duration: log.duration,
            split: log.split,
            predicted: log.predicted,
            expected_ttft: log.expected_ttft,
            considered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::{Moment, RequestId, Targets};

    fn ended(id: u64) -> RecentRequest {
        let name = format!("r{}", id % 3);
        let live = InflightRequest::new(
            RequestId(id),
            &name,
            None,
            Moment::START,
            Tokens(1),
            Targets::default(),
        );
        RecentRequest {
            written: id as usize,
            live: Arc::new(live),
            endpoint: "chat",
            tenant: "".into(),
            class: "default".into(),
            status: 200,
            ended: RequestOutcome::Done,
            problem: None,
            attempts: 1,
            prefill_on: None,
            decode_on: None,
            prompt: Tokens(1),
            prompt_exact: true,
            cached: None,
            output: Tokens(1),
            queued: None,
            prefilled: None,
            ttft: None,
            tpot: None,
            duration: Seconds::ZERO,
            split: false,
            predicted: None,
            expected_ttft: None,
            considered: Box::default(),
        }
    }

    fn put(ring: &Recent, ended: RecentRequest) {
        let slot = ring.written.fetch_add(1, Relaxed) % ring.slots.len();
        ring.slots[slot].put(Arc::new(ended));
    }

    #[test]
    fn readers_do_not_remove_a_request_that_is_put_while_they_read() {
        let ring = Recent::new(1);
        put(&ring, ended(0));
        std::thread::scope(|scope| {
            let reader = || {
                for _ in 0..2000 {
                    let last = ring.last(1);
                    assert!(last.iter().all(|ended| ended.live.id.0 <= 2000));
                }
            };
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            for id in 1..=2000 {
                put(&ring, ended(id));
            }
            for reader in readers {
                reader.join().unwrap();
            }
        });
        assert_eq!(ring.last(1)[0].live.id.0, 2000);
        assert_eq!(Arc::strong_count(&ring.last(1)[0]), 2, "the ring holds one reference");
    }

    #[test]
    fn the_latest_request_is_first_and_the_oldest_is_overwritten() {
        let ring = Recent::new(4);
        assert!(ring.last(9).is_empty() && ring.find("r1").is_none());
        for id in 1..=6 {
            put(&ring, ended(id));
        }
        let ids: Vec<u64> = ring.last(9).iter().map(|ended| ended.live.id.0).collect();
        assert_eq!(ids, [6, 5, 4, 3]);
        assert_eq!(ring.last(1).len(), 1);
        assert_eq!(ring.find("r0").unwrap().live.id.0, 6, "the latest request with that id");
        assert_eq!(ring.find("4").unwrap().live.id.0, 4, "by number");
        assert!(ring.find("2").is_none(), "the entry was overwritten");
        assert!(!Recent::new(0).is_on());
    }
}
