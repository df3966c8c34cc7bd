//! Look over the live streams: how long each backend may be held up before one of its streams
//! misses its TPOT, and whether a backend has gone silent.

use tidegate_terms::{Moment, Seconds};

use crate::fleet::{Fleet, Live};

/// A backend whose streams have all been silent for so long is suspected. Engines pause for a
/// long prefill chunk or a preemption, which stays below a second or two.
const SILENCE: Seconds = Seconds(3.0);

/// Look at every stream. Returns whether a backend went out of service or came back.
pub fn watch(fleet: &Fleet, now: Moment) -> bool {
    let tpot = fleet.slo().tpot;
    let mut late_at = vec![Moment::NEVER; fleet.backends.len()];
    let mut spoke_at = vec![None::<Moment>; fleet.backends.len()];
    fleet.registry.for_each(|live| {
        let Some(backend) = live.decode_backend() else { return };
        let Some((late, last)) = deadline(live, tpot) else { return };
        let slot = backend.index();
        late_at[slot] = late_at[slot].min(late);
        spoke_at[slot] = Some(spoke_at[slot].map_or(last, |other| other.max(last)));
    });
    let mut changed = false;
    for (backend, (late, spoke)) in fleet.backends.iter().zip(late_at.into_iter().zip(spoke_at)) {
        backend.set_late_at(late);
        let silent = spoke.is_some_and(|spoke| now - spoke > SILENCE);
        let turned = if silent { backend.health.fell_silent() } else { backend.health.spoke(now) };
        if turned {
            let health = backend.health.as_str();
            tracing::warn!(backend = %backend.name, health, "its streams changed their mind");
        }
        changed |= turned;
    }
    changed
}

/// When a stream misses its TPOT if nothing more comes, and when its last token came. A stream that
/// emitted n tokens since its first one is on time until first + n·TPOT.
fn deadline(live: &Live, tpot: Seconds) -> Option<(Moment, Moment)> {
    let (first, last) = (live.first_at()?, live.last_at()?);
    Some((first + tpot * live.emitted().as_f64(), last))
}
