//! Samples the fleet into the history ten times a second, and sends a snapshot to the clients of
//! `/v1/events` once a second. Snapshots are built only while there are such clients.

use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tidegate_scheduler::planner::GroupOutlook;
use tokio::time::{MissedTickBehavior, interval};

use super::{targets, views};
use crate::dispatch::context::Proxy;
use crate::telemetry::history::{EngineTime, Point, SAMPLE_EVERY, SAMPLES};
use crate::telemetry::journal::JournalEntry;

/// Journal entries in a snapshot; a client reads older ones from `/v1/plan/history`.
const FLIPS: usize = 20;

/// An event of `/v1/events`.
#[derive(Serialize)]
struct Snapshot<'a> {
    /// Seconds since the Unix epoch.
    at: f64,
    point: Option<Point>,
    fleet: views::FleetView,
    outlook: &'a [GroupOutlook],
    targets: targets::TargetsView,
    flips: Vec<JournalEntry>,
}

/// Runs until the process ends.
pub async fn run(proxy: Arc<Proxy>) {
    let every: Duration = SAMPLE_EVERY.to_duration();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut time, mut samples, mut arrived) = (EngineTime::default(), 0, arrivals(&proxy));
    loop {
        ticks.tick().await;
        time.sample(&proxy.fleet, &proxy.fleet.table(), proxy.settings.load().placement.chunk);
        samples += 1;
        if samples < SAMPLES {
            drop(proxy.arrivals.collect(proxy.clock.now()));
            continue;
        }
        samples = 0;
        let before = std::mem::replace(&mut arrived, arrivals(&proxy));
        proxy.history.add(point(&proxy, time.take(), arrived.saturating_sub(before)));
        if proxy.history.has_subscribers() {
            proxy.history.publish(event(&proxy));
        }
    }
}

/// Requests that arrived since the start.
fn arrivals(proxy: &Proxy) -> u64 {
    proxy.fleet.table().pools.iter().map(|pool| pool.demand.arrivals.totals().requests).sum()
}

fn point(proxy: &Proxy, (prefill, decode): (f64, f64), arrived: u64) -> Point {
    let now = proxy.clock.now();
    let records = proxy.arrivals.collect(now);
    let point = Point {
        at: proxy.clock.wall(now),
        prefill_engines: prefill,
        decode_engines: decode,
        waiting: proxy.queue.signal().waiting(),
        live: proxy.fleet.registry.len(),
        arrived,
        ..Point::default()
    };
    point.with_roles(&proxy.fleet.table()).with_latencies(&records, now)
}

/// A snapshot as a server-sent event.
pub fn event(proxy: &Proxy) -> Bytes {
    let mut flips = proxy.journal.entries();
    flips.drain(..flips.len().saturating_sub(FLIPS));
    let outlook = proxy.outlook.load();
    let snapshot = Snapshot {
        at: proxy.wall_now(),
        point: proxy.history.last(),
        fleet: views::fleet(proxy),
        outlook: &outlook,
        targets: targets::targets(proxy),
        flips,
    };
    let json = serde_json::to_string(&snapshot).unwrap_or_default();
    Bytes::from(format!("event: snapshot\ndata: {json}\n\n"))
}
