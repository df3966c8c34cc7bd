//! Look over the live streams: how long each backend may be held up before one of its streams
//! misses its TPOT, and whether a backend has gone silent.

use tidegate_terms::{Moment, Seconds};

use crate::fleet::{Fleet, Live};

/// A backend whose streams have all been silent for so long is suspected, unless they are slow ones.
/// Engines pause for a long prefill chunk or a preemption, which stays below a second or two.
const SILENCE: Seconds = Seconds(2.5);
/// Slow streams are silent when they have been so for so many of their usual gaps.
const GAPS: f64 = 10.0;

/// Look at every stream.
pub fn watch(fleet: &Fleet, now: Moment) {
    let tpot = fleet.slo().tpot;
    let mut late_at = vec![Moment::NEVER; fleet.backends.len()];
    let mut silent_at = vec![None::<Moment>; fleet.backends.len()];
    fleet.registry.for_each(|live| {
        let Some(backend) = live.decode_backend() else { return };
        let Some((late, silent)) = deadlines(live, tpot) else { return };
        let slot = backend.index();
        late_at[slot] = late_at[slot].min(late);
        silent_at[slot] = Some(silent_at[slot].map_or(silent, |other| other.max(silent)));
    });
    for (backend, (late, silent)) in fleet.backends.iter().zip(late_at.into_iter().zip(silent_at)) {
        backend.set_late_at(late);
        let silent = silent.is_some_and(|silent| now > silent);
        let turned = if silent { backend.health.fell_silent() } else { backend.health.spoke(now) };
        if turned {
            let health = backend.health.as_str();
            tracing::warn!(backend = %backend.name, health, "its streams changed their mind");
        }
    }
}

/// When a stream misses its TPOT if nothing more comes, and when it counts as silent. A stream that
/// emitted n tokens since its first one is on time until first + n·TPOT.
fn deadlines(live: &Live, tpot: Seconds) -> Option<(Moment, Moment)> {
    let (first, last, emitted) = (live.first_at()?, live.last_at()?, live.emitted().as_f64());
    Some((first + tpot * emitted, silent_at(first, last, emitted)))
}

/// A sign within seconds for a fast stream, and no false one for an engine that needs a second a
/// token.
fn silent_at(first: Moment, last: Moment, emitted: f64) -> Moment {
    let gap = (last - first) / (emitted - 1.0).max(1.0);
    last + SILENCE.max(gap * GAPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_stream_is_silent_after_seconds_and_a_slow_one_after_many_gaps() {
        let at = |seconds: f64| Moment::START + Seconds(seconds);
        for (first, last, emitted, silent) in
            [(10.0, 10.0, 1.0, 12.5), (10.0, 13.0, 101.0, 15.5), (10.0, 20.0, 11.0, 30.0)]
        {
            let found = silent_at(at(first), at(last), emitted);
            assert!((found - at(silent)).get().abs() < 1e-6, "{first} {last} {emitted}: {found:?}");
        }
    }
}
