//! The queue between requests and exporter. Bounded: what finds it full is dropped and counted.

use metrics::{Counter, counter};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tidegate_filters::{Accepted, Sampler};
use tidegate_types::Moment;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::ended::{EndedFlip, EndedWork, TracedRequest};
use crate::telemetry::journal::JournalEntry;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::request_log::RequestLog;

/// Longest time for the last batches when the process ends.
pub(crate) const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The requests' end of the queue.
pub struct SpanQueue {
    sender: mpsc::Sender<EndedWork>,
    shared: Arc<QueueShared>,
    sampler: Sampler,
    /// Start of each role switch in progress, by backend. Locked by the control loop only.
    switches: Mutex<Vec<(String, f64)>>,
    /// Whether the process ends.
    stopping: watch::Sender<bool>,
}

/// The exporter's end of the queue.
pub(crate) struct ReceivedWork {
    pub items: mpsc::Receiver<EndedWork>,
    pub shared: Arc<QueueShared>,
    pub stop: watch::Receiver<bool>,
}

/// State that both ends share.
pub(crate) struct QueueShared {
    /// Spans in the queue and in the batch that is being sent.
    held: AtomicUsize,
    /// Most of them.
    max: usize,
    /// Counters of what has become of them.
    pub counters: SpanCounters,
}

/// Counters by result.
pub(crate) struct SpanCounters {
    pub exported: Counter,
    pub queue_full: Counter,
    /// The collector refuses them.
    pub refused: Counter,
    /// The collector takes none in time.
    pub unreachable: Counter,
}

impl SpanCounters {
    fn new(metrics: &Metrics) -> SpanCounters {
        metrics.within(|| {
            let dropped = |reason| counter!("tidegate_spans_dropped_total", "reason" => reason);
            SpanCounters {
                exported: counter!("tidegate_spans_exported_total"),
                queue_full: dropped("queue_full"),
                refused: dropped("refused"),
                unreachable: dropped("unreachable"),
            }
        })
    }
}

impl SpanQueue {
    /// A queue of at most `max` spans, and the exporter's end of it.
    pub(crate) fn new(
        max: usize,
        sampler: Sampler,
        metrics: &Metrics,
    ) -> (SpanQueue, ReceivedWork) {
        let counters = SpanCounters::new(metrics);
        let shared = Arc::new(QueueShared { held: AtomicUsize::new(0), max, counters });
        let (sender, items) = mpsc::channel(max);
        let (stopping, stop) = watch::channel(false);
        let queue = SpanQueue {
            sender,
            shared: Arc::clone(&shared),
            sampler,
            switches: Mutex::default(),
            stopping,
        };
        (queue, ReceivedWork { items, shared, stop })
    }

    /// Which traces are sampled.
    pub(crate) fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// A request has ended at `now`. Unless its trace is sampled, this is one comparison.
    pub(crate) fn request_ended(
        &self,
        log: &RequestLog<'_>,
        accepted: &Arc<Accepted>,
        now: Moment,
    ) {
        if accepted.traceparent.is_sampled() {
            self.push(EndedWork::Request(Box::new(TracedRequest::new(log, accepted, now))));
        }
    }

    /// A role change was recorded. A switch by the engine is one span, from its beginning to its end.
    /// Flips are rare: the ratio of the sampler does not apply to them.
    pub(crate) fn flipped(&self, entry: &JournalEntry) {
        if self.sampler.is_off() {
            return;
        }
        let mut switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = switches.iter().position(|(backend, _)| *backend == entry.backend);
        let start = begun.map(|at| switches.swap_remove(at).1);
        match entry.result {
            "draining" => switches.push((entry.backend.clone(), entry.at)),
            _ => {
                drop(switches);
                self.push(EndedWork::Flip(Box::new(EndedFlip::new(
                    entry,
                    start.unwrap_or(entry.at),
                ))));
            }
        }
    }

    /// Sends what is left, when the process ends and all requests have.
    pub(crate) async fn close(&self) {
        self.stopping.send_replace(true);
        timeout(FLUSH_MAX, self.stopping.closed()).await.ok();
    }

    fn push(&self, ended: EndedWork) {
        let spans = ended.spans();
        if self.shared.held.fetch_add(spans, Relaxed) + spans > self.shared.max
            || self.sender.try_send(ended).is_err()
        {
            self.shared.held.fetch_sub(spans, Relaxed);
            self.shared.counters.queue_full.increment(spans as u64);
        }
    }
}

impl QueueShared {
    /// The exporter is done with this many spans.
    pub(crate) fn release(&self, spans: usize) {
        self.held.fetch_sub(spans, Relaxed);
    }
}
