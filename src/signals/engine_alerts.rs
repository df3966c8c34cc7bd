//! Alerts derived from an engine's readings, for operators. Placement does not use them: the
//! proxy's own accounts are more recent.

use crate::engine::EngineReading;

/// Share of used KV memory above which the next long prompt causes a preemption.
const KV_FULL: f64 = 0.95;
/// Requests queued inside an engine that raise no alert. A longer queue does, if it also exceeds
/// the running requests.
const WAITING_MANY: f64 = 4.0;

/// A condition of an engine that an operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineAlert {
    /// KV memory is at least 95 % full.
    KvFull,
    /// More requests are queued inside the engine than run.
    Queueing,
    /// Running requests were preempted and start again.
    Preempting,
    /// KV transfers failed.
    TransfersFail,
    /// KV leases of prefilled requests expired before the transfer.
    LeasesExpire,
    /// Hand-offs were sent but no KV was transferred: the decode engine recomputes every prompt.
    /// The answers are correct, so that nothing else shows it.
    Recomputes,
}

impl EngineAlert {
    /// All alerts.
    pub const ALL: [EngineAlert; 6] = [
        EngineAlert::KvFull,
        EngineAlert::Queueing,
        EngineAlert::Preempting,
        EngineAlert::TransfersFail,
        EngineAlert::LeasesExpire,
        EngineAlert::Recomputes,
    ];

    /// Label value in metrics and in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            EngineAlert::KvFull => "kv_full",
            EngineAlert::Queueing => "queueing",
            EngineAlert::Preempting => "preempting",
            EngineAlert::TransfersFail => "transfers_fail",
            EngineAlert::LeasesExpire => "leases_expire",
            EngineAlert::Recomputes => "recomputes",
        }
    }
}

/// Compares consecutive readings of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlertWatch {
    before: Option<EngineReading>,
    recomputes: bool,
}

impl AlertWatch {
    /// Returns the active alerts. `handed`: answers arrived whose hand-off must have been fetched
    /// since the last counted transfer ([`AlertWatch::has_moved`]).
    pub fn observe(&mut self, now: EngineReading, handed: bool) -> Vec<EngineAlert> {
        let has_moved = self.has_moved(&now);
        let before = self.before.replace(now);
        let mut found = Vec::new();
        if now.kv_usage.is_some_and(|usage| usage >= KV_FULL) {
            found.push(EngineAlert::KvFull);
        }
        let running = now.running.unwrap_or(0.0);
        if now.waiting.is_some_and(|waiting| waiting > running.max(WAITING_MANY)) {
            found.push(EngineAlert::Queueing);
        }
        // The first reading has no predecessor for the counters.
        let Some(before) = before else { return found };
        let counts = [
            (EngineAlert::Preempting, before.preemptions, now.preemptions),
            (EngineAlert::TransfersFail, before.failed_transfers, now.failed_transfers),
            (EngineAlert::LeasesExpire, before.expired, now.expired),
        ];
        let grew = counts.into_iter().filter(|(_, before, now)| grown(*before, *now) > 0.0);
        found.extend(grew.map(|(alert, ..)| alert));
        // Stays active until KV is transferred again.
        self.recomputes = !has_moved && (self.recomputes || handed && now.transferred.is_some());
        if self.recomputes {
            found.push(EngineAlert::Recomputes);
        }
        found
    }

    /// Returns whether the engine obtained prompt tokens without computing them since the last
    /// reading; true for the first reading.
    pub fn has_moved(&self, now: &EngineReading) -> bool {
        self.before.is_none_or(|before| {
            grown(before.transferred, now.transferred) + grown(before.hits, now.hits) > 0.0
        })
    }
}

/// Increase of a counter; a smaller value means a restart from 0.
fn grown(before: Option<f64>, now: Option<f64>) -> f64 {
    let (before, now) = (before.unwrap_or(0.0), now.unwrap_or(0.0));
    if now < before { now } else { now - before }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(preemptions: f64, transferred: f64) -> EngineReading {
        EngineReading {
            preemptions: Some(preemptions),
            transferred: Some(transferred),
            hits: Some(0.0),
            ..EngineReading::default()
        }
    }

    /// Feeds readings, each with its `handed` flag, and checks the alerts of the last one.
    fn check(readings: &[(EngineReading, bool)], expected: &[EngineAlert]) {
        let mut watch = AlertWatch::default();
        let found =
            readings.iter().map(|(reading, handed)| watch.observe(*reading, *handed)).last();
        assert_eq!(found.unwrap(), expected, "{readings:?}");
    }

    #[test]
    fn counters_before_the_first_reading_raise_no_alert() {
        check(&[(counts(9.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(9.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(10.0, 0.0), false)], &[EngineAlert::Preempting]);
    }

    #[test]
    fn a_restarted_engines_counters_start_at_zero() {
        check(&[(counts(9.0, 0.0), false), (counts(0.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(2.0, 0.0), false)], &[EngineAlert::Preempting]);
    }

    #[test]
    fn full_kv_memory_and_a_queue_inside_the_engine_raise_alerts_at_once() {
        let full = EngineReading { kv_usage: Some(0.99), ..EngineReading::default() };
        check(&[(full, false)], &[EngineAlert::KvFull]);
        let queue = |waiting, running| EngineReading {
            waiting: Some(waiting),
            running: Some(running),
            ..EngineReading::default()
        };
        check(&[(queue(50.0, 8.0), false)], &[EngineAlert::Queueing]);
        check(&[(queue(4.0, 0.0), false)], &[]);
        check(&[(queue(50.0, 200.0), false)], &[]);
    }

    #[test]
    fn hand_offs_without_a_transfer_raise_recomputes_until_one_is_counted() {
        let quiet = counts(0.0, 100.0);
        let more = counts(0.0, 101.0);
        let hit = EngineReading { hits: Some(64.0), ..quiet };
        let mute = EngineReading { transferred: None, ..quiet };
        check(&[(quiet, false), (quiet, true)], &[EngineAlert::Recomputes]);
        check(&[(quiet, false), (quiet, true), (quiet, false)], &[EngineAlert::Recomputes]);
        check(&[(quiet, false), (quiet, true), (more, true)], &[]);
        // No alert: a prefix cache hit, no hand-off, an engine without the counter.
        check(&[(quiet, false), (hit, true)], &[]);
        check(&[(quiet, false), (quiet, false)], &[]);
        check(&[(mute, false), (mute, true)], &[]);
    }

    #[test]
    fn every_alert_has_its_own_label() {
        let labels: std::collections::BTreeSet<_> =
            EngineAlert::ALL.map(EngineAlert::as_str).into();
        assert_eq!(labels.len(), EngineAlert::ALL.len());
    }
}
