//! Random faults of engines and role changes, in real time, from a seed: one fault at a time in
//! each fleet.

use fastrand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::fleet::{Fleet, Proxy};
use crate::tap::Mode;

/// Fault of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Hang,
    Reset,
    Slow,
    Fails,
    Busy,
}

impl Fault {
    const ALL: [Fault; 6] =
        [Fault::Kill, Fault::Hang, Fault::Reset, Fault::Slow, Fault::Fails, Fault::Busy];
}

/// Pause after a fault, in which the requests it hit end or are retried before the next fault.
const GAP: std::ops::Range<u64> = 1_000..2_500;
const LASTS: std::ops::Range<u64> = 200..4_000;

async fn begin(fleet: &Fleet, engine: usize, fault: Fault, rng: &mut Rng) {
    let tap = &fleet.taps[engine];
    match fault {
        Fault::Kill => fleet.kill(engine).await,
        Fault::Hang => tap.set(Mode::Hang),
        Fault::Reset => tap.set(Mode::Reset(rng.usize(..3000))),
        Fault::Slow => tap.set(Mode::Slow(Duration::from_millis(rng.u64(20..250)))),
        Fault::Fails => tap.set(Mode::Fail([500, 502][rng.usize(..2)])),
        Fault::Busy => tap.set(Mode::Fail([429, 503][rng.usize(..2)])),
    }
}

/// Injects faults into one fleet until stopped; returns the count of each kind.
pub async fn inject(
    fleet: Arc<Fleet>,
    mut rng: Rng,
    mut stop: watch::Receiver<bool>,
) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut last = fleet.taps.len();
    // Each round contains every fault once.
    let mut round = Vec::new();
    while !waits(&mut stop, rng.u64(GAP)).await {
        if round.is_empty() {
            round = Fault::ALL.to_vec();
            rng.shuffle(&mut round);
        }
        let Some(fault) = round.pop() else { continue };
        // An engine that has just recovered is skipped.
        let engine = (last + rng.usize(1..fleet.taps.len())) % fleet.taps.len();
        last = engine;
        begin(&fleet, engine, fault, &mut rng).await;
        *counts.entry(format!("{fault:?}")).or_default() += 1;
        waits(&mut stop, rng.u64(LASTS)).await;
        match fault {
            Fault::Kill => fleet.revive(engine).await,
            _ => fleet.taps[engine].set(Mode::Pass),
        }
    }
    counts
}

/// Flips and releases one engine at a time by the admin API.
pub async fn flips(
    proxy: Arc<Proxy>,
    fleet: Arc<Fleet>,
    mut rng: Rng,
    mut stop: watch::Receiver<bool>,
) -> BTreeMap<String, u64> {
    let (mut done, mut reloads) = (0, 0);
    while !waits(&mut stop, rng.u64(200..2_500)).await {
        let backend = fleet.name(rng.usize(..fleet.taps.len()));
        let role = ["prefill", "decode", "mixed"][rng.usize(..3)];
        let change = format!("{{\"role\":\"{role}\"}}");
        done += u64::from(proxy.set_role(&backend, &change).await == 200);
        waits(&mut stop, rng.u64(100..2_000)).await;
        proxy.set_role(&backend, "{\"pin\":false}").await;
        proxy.reload();
        reloads += 1;
    }
    BTreeMap::from([("flips by hand".to_owned(), done), ("reloads".to_owned(), reloads)])
}

/// Waits for `millis`, or until stopped. Returns true if stopped.
async fn waits(stop: &mut watch::Receiver<bool>, millis: u64) -> bool {
    let stopped = stop.wait_for(|stop| *stop);
    tokio::time::timeout(Duration::from_millis(millis), stopped).await.is_ok()
}
