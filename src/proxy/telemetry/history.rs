//! State of the fleet by second over the last minutes, for charts. A sampler reads every engine
//! ten times a second and attributes its time to prefill, to decode, to both in proportion to their
//! predicted cost within a step, or to neither.

use bytes::Bytes;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tidegate_scheduler::cost::{DecodeModel, PrefillModel};
use tidegate_types::{Moment, Role, Seconds, Tokens};
use tokio::sync::watch;

use crate::backends::fleet::{EVERYONE, Fleet, RoutingTable};
use crate::telemetry::arrivals::Records;

/// Seconds kept: 15 minutes.
pub const POINTS_MAX: usize = 900;
/// Samples per point.
pub const SAMPLES: u32 = 10;
/// Time between two samples.
pub const SAMPLE_EVERY: Seconds = Seconds(0.1);
/// Most subscribers of `/v1/events` at once.
pub const SUBSCRIBERS_MAX: usize = 16;
/// Window of the percentiles of a point.
const RECENT: Seconds = Seconds(10.0);

/// One second of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// Engine time spent on prefill, in engines.
    pub prefill_engines: f64,
    /// Engine time spent on decode, in engines.
    pub decode_engines: f64,
    /// Engines by role: prefill, decode, mixed, draining.
    pub roles: [u32; 4],
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests in flight.
    pub live: usize,
    /// Requests that arrived in this second.
    pub arrived: u64,
    /// Requests that ended over the last 10 s; those whose client left are not counted.
    pub ended: usize,
    /// Those that met all targets.
    pub attained: usize,
    /// Percentiles over the last 10 s; `None` without a request.
    pub ttft_p50: Option<f64>,
    pub ttft_p90: Option<f64>,
    pub tpot_p50: Option<f64>,
    pub tpot_p90: Option<f64>,
}

/// Engine time of one second so far.
#[derive(Debug, Default)]
pub struct EngineTime {
    prefill: f64,
    decode: f64,
    samples: u32,
}

/// The points of the last minutes, and the channel to the subscribers.
#[derive(Debug)]
pub struct History {
    points: Mutex<VecDeque<Point>>,
    events: watch::Sender<Bytes>,
}

/// A subscriber of `/v1/events`.
#[derive(Debug)]
pub struct Subscriber(watch::Receiver<Bytes>);

impl Default for History {
    fn default() -> History {
        History { points: Mutex::default(), events: watch::channel(Bytes::new()).0 }
    }
}

impl Subscriber {
    /// Returns the next event, omitting those that were missed; `None` when the sender was dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}

impl EngineTime {
    /// Adds a sample of every engine.
    pub fn sample(&mut self, fleet: &Fleet, table: &RoutingTable, chunk: Tokens) {
        for backend in fleet.backends().iter() {
            let balance = backend.account.total();
            let entry = table.entry(backend.id);
            let prefills = balance.prefill_legs > 0;
            let (prefill, decode) = shares(
                prefills.then_some(chunk.min(balance.prefill_tokens)),
                // Streams without a first token have a charge and do not decode yet.
                (balance.streams.saturating_sub(balance.awaiting_first_token), balance.kv),
                &entry.prefill,
                &entry.decode,
            );
            self.prefill += prefill;
            self.decode += decode;
        }
        self.samples += 1;
    }

    /// Returns the mean number of engines on prefill and on decode since the last call, and resets
    /// both.
    pub fn take(&mut self) -> (f64, f64) {
        let EngineTime { prefill, decode, samples } = std::mem::take(self);
        let samples = f64::from(samples.max(1));
        (prefill / samples, decode / samples)
    }
}

/// Returns the shares of an engine's time on prefill and on decode. `chunk`: prompt tokens of its
/// next step, if it has a prompt; `streams` and their KV tokens.
fn shares(
    chunk: Option<Tokens>,
    (streams, kv): (u32, Tokens),
    prefill: &PrefillModel,
    decode: &DecodeModel,
) -> (f64, f64) {
    match (chunk, streams) {
        (None, 0) => (0.0, 0.0),
        (Some(_), 0) => (1.0, 0.0),
        (None, _) => (0.0, 1.0),
        (Some(chunk), _) => {
            let chunk = prefill.per_token.get() * chunk.as_f64();
            let step = decode.beside_prefill(streams, kv).get();
            let share = chunk / (chunk + step).max(1e-9);
            (share, 1.0 - share)
        }
    }
}

impl History {
    /// Appends a point; the oldest is removed when the history is full.
    pub fn add(&self, point: Point) {
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        if points.len() == POINTS_MAX {
            points.pop_front();
        }
        points.push_back(point);
    }

    /// Adds a subscriber; `None` at the limit of [`SUBSCRIBERS_MAX`].
    pub fn subscribe(&self) -> Option<Subscriber> {
        let few = self.events.receiver_count() < SUBSCRIBERS_MAX;
        few.then(|| Subscriber(self.events.subscribe()))
    }

    /// Whether there is a subscriber.
    pub fn has_subscribers(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Sends an event to the subscribers.
    pub fn publish(&self, event: Bytes) {
        self.events.send_replace(event);
    }

    /// All points, oldest first.
    pub fn points(&self) -> Vec<Point> {
        let points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        points.iter().cloned().collect()
    }

    pub fn last(&self) -> Option<Point> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).back().cloned()
    }
}

impl Point {
    /// Sets the latencies and the attainment of the last 10 s.
    #[must_use]
    pub fn with_latencies(self, records: &Records, now: Moment) -> Point {
        let recent = || records.within(now, RECENT).filter(|request| request.attained.is_some());
        let sorted = |values: &mut Vec<f64>| values.sort_by(f64::total_cmp);
        let mut ttft: Vec<f64> = recent().filter_map(|r| r.ttft).map(Seconds::get).collect();
        let mut tpot: Vec<f64> = recent().filter_map(|r| r.tpot).map(Seconds::get).collect();
        sorted(&mut ttft);
        sorted(&mut tpot);
        Point {
            ended: recent().count(),
            attained: recent().filter_map(|r| r.attained).filter(|attained| attained.all()).count(),
            ttft_p50: percentile(&ttft, 0.5),
            ttft_p90: percentile(&ttft, 0.9),
            tpot_p50: percentile(&tpot, 0.5),
            tpot_p90: percentile(&tpot, 0.9),
            ..self
        }
    }

    /// Sets the number of engines by role.
    #[must_use]
    pub fn with_roles(mut self, table: &RoutingTable) -> Point {
        for entry in table.backends(EVERYONE).iter().map(|id| table.entry(*id)) {
            let slot = Role::ALL.iter().position(|role| *role == entry.role).unwrap_or(0);
            self.roles[slot] += 1;
        }
        self
    }
}

/// Nearest-rank percentile of sorted values; `None` without a value.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_attributed_by_the_cost_of_a_step() {
        let (prefill, decode) = (PrefillModel::default(), DecodeModel::default());
        let of = |chunk: Option<u64>, streams, kv| {
            shares(chunk.map(Tokens), (streams, Tokens(kv)), &prefill, &decode)
        };
        assert_eq!(of(None, 0, 0), (0.0, 0.0));
        assert_eq!(of(Some(10), 0, 0), (1.0, 0.0));
        assert_eq!(of(None, 3, 1000), (0.0, 1.0));
        let (p, d) = of(Some(2048), 10, 10_000);
        assert!((p + d - 1.0).abs() < 1e-9 && p > 0.9, "{p} {d}");
        assert!(of(Some(64), 100, 100_000).0 < 0.4);
    }

    #[test]
    fn the_oldest_point_is_removed_first() {
        let history = History::default();
        for at in 0..POINTS_MAX + 3 {
            history.add(Point { at: at as f64, ..Point::default() });
        }
        let points = history.points();
        assert_eq!((points.len(), points[0].at), (POINTS_MAX, 3.0));
        assert_eq!(history.last(), points.last().cloned());
    }

    #[test]
    fn percentiles_use_the_nearest_rank() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.99), Some(4.0));
    }
}
