//! Awaits a leg's first byte and checks the engine's health meanwhile. The leg is abandoned when its
//! engine is dead or silent and another backend can take the request.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use tidegate_types::{BackendId, Moment, Role, Seconds};

use crate::backends::fleet::Backend;
use crate::dispatch::serving::Serving;
use crate::upstream::ExchangeError;
use crate::upstream::failure::LegProblem;

/// Interval of the health checks: a fraction of the time that a probe takes to detect a dead engine, and
/// long enough for thousands of waiting legs.
const CHECK_INTERVAL: Seconds = Seconds(0.25);
/// Wait after which a leg leaves an engine whose streams are all silent: the time after which a
/// stream counts as silent.
const SILENT_AFTER: Seconds = Seconds(2.5);

/// A leg is slow after this factor of its prediction. Predictions are within a factor of two once the
/// costs are fitted. Range tried: 3 to 8, without a difference.
const SLOW_FACTOR: f64 = 4.0;

/// The time after which a leg with this prediction is slow, at least `least`; `None`: never.
fn slow_after(least: Seconds, predicted: Seconds) -> Option<Seconds> {
    (least > Seconds::ZERO).then(|| (predicted * SLOW_FACTOR).max(least))
}

/// Returns the exchange's result, within the first-byte time-out. `on`: the engine that answers, and the
/// one that it depends on. `predicted`: predicted time to the first byte; after [`SLOW_FACTOR`] times
/// that, the leg is marked slow.
///
/// The exchange is passed by reference because it is large.
pub(crate) async fn watched<T>(
    serving: &Serving<'_>,
    on: [Option<&Backend>; 2],
    predicted: Seconds,
    mut exchange: Pin<&mut impl Future<Output = Result<T, LegProblem>>>,
) -> Result<T, LegProblem> {
    let clock = serving.proxy.clock;
    let begun = clock.now();
    let limit = on.iter().flatten().map(|backend| backend.pool.first_byte_timeout()).min();
    let limit = limit.unwrap_or_default();
    let slow = slow_after(serving.settings().values.retry.hedge, predicted);
    serving.proxy.timer_coalescing.keep();
    let mut check = pin!(tokio::time::sleep_until(clock.coarse_instant(begun + CHECK_INTERVAL)));
    loop {
        tokio::select! {
            biased;
            done = exchange.as_mut() => return done,
            () = check.as_mut() => {}
        }
        let now = clock.now();
        if (now - begun).to_duration() >= limit {
            return Err(ExchangeError::AnswerTimeout(limit).into());
        }
        for backend in on.into_iter().flatten() {
            if let Some(why) = failure_of(backend, now - begun)
                && has_other(serving, backend, now)
            {
                let (on, backend) = (backend.id, backend.name.clone());
                return Err(LegProblem::Abandoned { on, backend, why });
            }
        }
        if slow.is_some_and(|slow| now - begun >= slow) {
            serving.slow.store(true, Relaxed);
        }
        serving.proxy.timer_coalescing.keep();
        check.as_mut().reset(clock.coarse_instant(now + CHECK_INTERVAL));
    }
}

/// Returns why a leg that has waited for `waited` should be abandoned.
fn failure_of(backend: &Backend, waited: Seconds) -> Option<&'static str> {
    let health = &backend.health;
    if health.is_dead() {
        Some("the engine is down")
    } else if health.is_silent() && waited >= SILENT_AFTER {
        Some("all streams of the engine are silent")
    } else {
        None
    }
}

/// Returns whether another backend can take the leg; false if this backend is the request's last
/// resort.
fn has_other(serving: &Serving<'_>, on: &Backend, now: Moment) -> bool {
    let fleet = &serving.proxy.fleet;
    let table = fleet.table();
    let own = table.entry(on.id);
    let can = |id: &BackendId| {
        let (other, entry) = (fleet.backend(*id), table.entry(*id));
        let same = entry.group == own.group && entry.role == own.role;
        let free = other.health.is_usable() && !other.health.is_suspect(now);
        free && entry.role != Role::Draining && (same || other.family.serves_colocated())
    };
    let excluded = &serving.job.excluded;
    let mut others = table.backends(serving.job.pool).iter();
    !excluded.contains(on.id) && others.any(|id| *id != on.id && !excluded.contains(*id) && can(id))
}
