//! Scan of live streams: each backend's TPOT slack, and detection of silent backends.

use tidegate_types::{Moment, Seconds};

use crate::backends::fleet::{Fleet, InflightRequest};

/// A backend is suspect when all its streams have been silent for this long (longer for slow
/// streams, see `GAPS`). Engines pause for a long prefill chunk or a preemption, which takes less
/// than one or two seconds.
const SILENCE: Seconds = Seconds(2.5);
/// A slow stream counts as silent after this many of its mean inter-token gaps.
const GAPS: f64 = 10.0;

/// Updates slack and silence of every backend from its streams.
pub fn watch(fleet: &Fleet, now: Moment) {
    let mut deadlines = vec![Moment::NEVER; fleet.backends().len()];
    let mut silent_at = vec![None::<Moment>; fleet.backends().len()];
    fleet.registry.for_each(|live| {
        let Some(backend) = live.decode_backend() else { return };
        let slot = backend.index();
        if let Some(received) = live.received_at() {
            fleet.backends()[slot].health.received(received);
        }
        if let Some(deadline) = tpot_deadline(live) {
            deadlines[slot] = deadlines[slot].min(deadline);
        }
        if let Some(silent) = silence(live) {
            silent_at[slot] = Some(silent_at[slot].map_or(silent, |other| other.max(silent)));
        }
    });
    for (backend, (deadline, silent)) in
        fleet.backends().iter().zip(deadlines.into_iter().zip(silent_at))
    {
        backend.set_tpot_deadline(deadline);
        // Bytes of any stream of the backend count, including streams that have ended.
        let received = backend.health.received_at() + SILENCE;
        let silent = silent.filter(|silent| now > *silent && now > received);
        if silent.is_none() {
            if backend.health.clear_silent() {
                tracing::info!(backend = %backend.name, "streams send tokens again");
            }
        } else if backend.health.mark_silent() {
            backend.health.set_reason("all streams are silent".to_owned());
            tracing::warn!(backend = %backend.name, "all streams are silent: backend is placed last");
        }
    }
}

/// When the stream's mean TPOT exceeds its target if no further token arrives. A stream that has
/// emitted n tokens since its first is on time until first + n·TPOT.
fn tpot_deadline(live: &InflightRequest) -> Option<Moment> {
    Some(live.first_at()? + live.targets.slo.tpot * live.emitted().as_f64())
}

/// When the stream counts as silent. `None` before its first token and while the proxy does not
/// wait for the engine because the client does not read.
fn silence(live: &InflightRequest) -> Option<Moment> {
    let (first, last) = (live.first_at()?, live.last_at()?);
    let waits = live.awaiting_since()?;
    let quiet_from = waits.max(live.received_at().unwrap_or(last));
    Some(quiet_from + patience(first, last, live.emitted().as_f64()))
}

/// Returns the allowed silence: a few seconds for a fast stream, more for an engine whose steps
/// take about a second.
fn patience(first: Moment, last: Moment, emitted: f64) -> Seconds {
    let gap = (last - first) / (emitted - 1.0).max(1.0);
    SILENCE.max(gap * GAPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::{RequestId, Targets, Tokens};

    fn at(seconds: f64) -> Moment {
        Moment::START + Seconds(seconds)
    }

    #[test]
    fn a_fast_stream_is_silent_after_seconds_and_a_slow_one_after_many_gaps() {
        for (first, last, emitted, patient) in
            [(10.0, 10.0, 1.0, 2.5), (10.0, 13.0, 101.0, 2.5), (10.0, 20.0, 11.0, 10.0)]
        {
            let found = patience(at(first), at(last), emitted);
            assert!((found - Seconds(patient)).get().abs() < 1e-6, "{first} {last} {emitted}");
        }
    }

    #[test]
    fn a_stream_is_silent_only_while_the_proxy_waits_for_its_engine() {
        let live =
            InflightRequest::new(RequestId(1), "r", None, at(0.0), Tokens(1), Targets::default());
        live.await_engine(at(0.0));
        assert_eq!(silence(&live), None, "no token yet");
        live.received(at(1.0));
        live.emitted_at(1, at(1.0));
        assert_eq!(silence(&live), None, "its client does not read");
        live.await_engine(at(60.0));
        assert_eq!(silence(&live), Some(at(62.5)), "counted from the start of the wait");
        live.received(at(62.0));
        live.await_engine(at(62.0));
        assert_eq!(silence(&live), Some(at(64.5)), "bytes without a token end the silence");
    }
}
