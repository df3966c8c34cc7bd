//! The run: phases of load with concurrent faults, and the assertions at the end.

use fastrand::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_emulator::LoadFailurePolicy;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::clients::{Client, Manner};
use crate::faults;
use crate::fleet::{Fleet, Proxy};
use crate::process::Held;
use crate::tally::Tally;

#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub requests: u64,
}

/// Requests in flight in a busy fleet.
const BUSY: usize = 48;
/// Requests of one phase; the last of them are sent one by one.
const PHASE: u64 = 500;
const IDLE: u64 = 20;
/// Share of requests that all engines refuse, by phase.
const REFUSED: [f64; 5] = [0.0, 0.1, 0.9, 0.3, 0.6];
/// Time for idle connections and leases to end.
const QUIET: Duration = Duration::from_secs(8);
/// Time for requests in flight to end.
const SETTLES: Duration = Duration::from_secs(30);

struct Stage {
    seed: u64,
    proxy: Arc<Proxy>,
    fleets: [Arc<Fleet>; 2],
    tally: Arc<Tally>,
}

pub async fn run(seed: u64, scale: Scale) {
    // vLLM's default policy, and the one that its documentation recommends.
    let policy = match seed % 2 {
        0 => LoadFailurePolicy::Recompute,
        _ => LoadFailurePolicy::Fail,
    };
    let fleets = [Arc::new(Fleet::split(policy).await), Arc::new(Fleet::whole().await)];
    let proxy = Arc::new(Proxy::start(&[&fleets[0], &fleets[1]]).await);
    let stage = Stage { seed, proxy, fleets, tally: Arc::default() };
    let began = Instant::now();
    let half = scale.requests / 2;
    stage.act(0..half).await;
    let middle = stage.settles().await;
    stage.act(half..scale.requests).await;
    let end = stage.settles().await;
    println!("chaos: {} requests in {:.0} s", scale.requests, began.elapsed().as_secs_f64());
    println!("chaos: middle {middle:?}, end {end:?}");
    stage.assert_outcomes();
    assert!(end.is_flat_since(middle), "middle {middle:?}, end {end:?}");
}

impl Stage {
    /// Sends the requests with these numbers while faults are injected.
    async fn act(&self, numbers: std::ops::Range<u64>) {
        let (stop, stopped) = watch::channel(false);
        let mut beside = JoinSet::new();
        let rng = |more: u64| Rng::with_seed(self.seed ^ numbers.start << 20 ^ more << 56);
        for (fleet, n) in self.fleets.iter().zip(1..) {
            beside.spawn(faults::inject(Arc::clone(fleet), rng(n), stopped.clone()));
        }
        let (proxy, split) = (Arc::clone(&self.proxy), Arc::clone(&self.fleets[0]));
        beside.spawn(faults::flips(proxy, split, rng(9), stopped));
        let permits = Arc::new(Semaphore::new(BUSY));
        let mut load = JoinSet::new();
        for number in numbers.clone() {
            let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(number));
            if number % PHASE >= PHASE - IDLE {
                tokio::time::sleep(Duration::from_millis(rng.u64(20..300))).await;
            }
            let refused = REFUSED[(number / PHASE) as usize % REFUSED.len()];
            let model = self.fleets[rng.usize(..2)].model;
            let client = Client::draw(&mut rng, model, refused);
            let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
            let (data, tally) = (self.proxy.data, Arc::clone(&self.tally));
            load.spawn(async move {
                let outcome = client.ask(data, number).await;
                tally.add(number, client.manner, &outcome);
                drop(permit);
            });
            while load.try_join_next().is_some() {}
        }
        while let Some(done) = load.join_next().await {
            done.unwrap();
        }
        stop.send_replace(true);
        while let Some(counts) = beside.join_next().await {
            println!("chaos: {:?}", counts.unwrap());
        }
    }

    /// Asserts that every counter returns to zero and that idle connections end.
    async fn settles(&self) -> Held {
        let end = Instant::now() + SETTLES;
        loop {
            let left = self.unsettled().await;
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "counters that are not zero: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(QUIET).await;
        let left = self.unsettled().await;
        assert!(left.is_empty(), "counters that are not zero: {left:?}");
        Held::now()
    }

    /// Returns non-zero counters of `/v1/fleet`, `/metrics` and the engines.
    async fn unsettled(&self) -> Vec<String> {
        let mut left = Vec::new();
        let fleet: serde_json::Value =
            serde_json::from_str(&self.proxy.page("/v1/fleet").await).unwrap_or_default();
        let mut zero = |name: String, value: &serde_json::Value| {
            if value.as_f64().is_none_or(|value| value != 0.0) {
                left.push(format!("{name} {value}"));
            }
        };
        zero("live_requests".to_owned(), &fleet["live_requests"]);
        zero("waiting_requests".to_owned(), &fleet["waiting_requests"]);
        for backend in fleet["backends"].as_array().into_iter().flatten() {
            for counter in
                ["prefill_seconds", "prefill_tokens", "prefill_legs", "streams", "kv_tokens"]
            {
                zero(format!("{} {counter}", backend["name"]), &backend[counter]);
            }
        }
        let page = self.proxy.page("/metrics").await;
        let sum = |name: &str| -> f64 {
            let rows = page.lines().filter(|line| line.starts_with(name));
            rows.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        for gauge in ["tidegate_live_requests", "tidegate_queue_requests"]
            .into_iter()
            .chain(["tidegate_backend_streams", "tidegate_backend_kv_tokens"])
            .chain(["tidegate_backend_prefill_seconds", "tidegate_backend_prefill_tokens"])
        {
            if sum(gauge) != 0.0 {
                left.push(format!("{gauge} {}", sum(gauge)));
            }
        }
        let started = sum("tidegate_requests_started_total");
        let settled = sum("tidegate_requests_settled_total");
        if started != settled {
            left.push(format!("{started} requests started, {settled} settled"));
        }
        for fleet in &self.fleets {
            let running = fleet.running().await;
            if running > 0 {
                left.push(format!("{running} sequences in {}'s engines", fleet.model));
            }
        }
        left
    }

    /// Prints client results beside the injected faults.
    fn assert_outcomes(&self) {
        self.tally.print();
        let good = self.tally.good();
        let cuts: u64 = self.fleets.iter().map(|fleet| fleet.cuts()).sum();
        println!("chaos: good requests: {good:?}; streams cut by the fault layer: {cuts}");
        assert!(good.served > 0);
        assert_eq!(good.lost, 0, "good requests that another engine could have served");
        assert!(good.cut <= cuts, "{} streams broke, {cuts} were cut by the fault layer", good.cut);
        // Requests not cut by a fault.
        let share = good.served as f64 / (good.served + good.lost) as f64;
        assert!(share >= 0.999, "share of valid requests served: {share}");
        for manner in [Manner::Refused, Manner::ErrorEvent] {
            let lost = self.tally.count(manner, "lost");
            assert_eq!(lost, 0, "{}: answers without the engines' message", manner.as_str());
        }
    }
}
