//! What of an engine's readings an operator should look at. A notice, never a verdict: where work
//! goes is decided by the proxy's own accounts, which are fresher.

use crate::engine::EngineReading;

/// Above this share of used KV memory the next long prompt preempts somebody.
const KV_FULL: f64 = 0.95;
/// So many requests waiting inside an engine are a queue that the proxy does not own.
const WAITING_MANY: f64 = 4.0;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineAlert {
    /// KV memory is full.
    KvFull,
    /// More requests wait inside the engine than run.
    Queueing,
    /// Running requests were thrown out of their step and begin again.
    Preempting,
    /// KV transfers failed.
    TransfersFail,
    /// Nobody fetched a prefill's KV in time.
    LeasesExpire,
    /// Hand-offs were sent, no KV came, and the answers are right all the same: the engine computes
    /// every prompt again.
    Recomputes,
}

impl EngineAlert {
    /// All of them.
    pub const ALL: [EngineAlert; 6] = [
        EngineAlert::KvFull,
        EngineAlert::Queueing,
        EngineAlert::Preempting,
        EngineAlert::TransfersFail,
        EngineAlert::LeasesExpire,
        EngineAlert::Recomputes,
    ];

    /// The word in metrics and in the admin API.
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

/// One engine, from look to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlertWatch {
    before: Option<EngineReading>,
    recomputes: bool,
}

impl AlertWatch {
    /// What is wrong now. `handed`: answers were seen whose hand-off must have been fetched since
    /// the engine last counted a transfer ([`AlertWatch::has_moved`]).
    pub fn look(&mut self, now: EngineReading, handed: bool) -> Vec<EngineAlert> {
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
        // The first look has nothing to compare with.
        let Some(before) = before else { return found };
        let counts = [
            (EngineAlert::Preempting, before.preemptions, now.preemptions),
            (EngineAlert::TransfersFail, before.failed_transfers, now.failed_transfers),
            (EngineAlert::LeasesExpire, before.expired, now.expired),
        ];
        let grew = counts.into_iter().filter(|(_, before, now)| grown(*before, *now) > 0.0);
        found.extend(grew.map(|(alert, ..)| alert));
        // Once noticed it stands until KV comes again.
        self.recomputes = !has_moved && (self.recomputes || handed && now.transferred.is_some());
        if self.recomputes {
            found.push(EngineAlert::Recomputes);
        }
        found
    }

    /// Has the engine got prompt tokens without computing them since the last look? Yes if there
    /// was no look.
    pub fn has_moved(&self, now: &EngineReading) -> bool {
        self.before.is_none_or(|before| {
            grown(before.transferred, now.transferred) + grown(before.hits, now.hits) > 0.0
        })
    }
}

/// By how much a count grew; one that shrank began again at 0.
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

    /// Looks, each with the hand-offs before it, and what is found at the last.
    fn check(looks: &[(EngineReading, bool)], expected: &[EngineAlert]) {
        let mut watch = AlertWatch::default();
        let found = looks.iter().map(|(reading, handed)| watch.look(*reading, *handed)).last();
        assert_eq!(found.unwrap(), expected, "{looks:?}");
    }

    #[test]
    fn what_happened_before_the_first_look_is_no_trouble() {
        check(&[(counts(9.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(9.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(10.0, 0.0), false)], &[EngineAlert::Preempting]);
    }

    #[test]
    fn an_engine_that_restarted_counts_from_zero() {
        check(&[(counts(9.0, 0.0), false), (counts(0.0, 0.0), false)], &[]);
        check(&[(counts(9.0, 0.0), false), (counts(2.0, 0.0), false)], &[EngineAlert::Preempting]);
    }

    #[test]
    fn full_memory_and_a_queue_of_its_own_are_trouble_at_once() {
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
    fn hand_offs_without_any_transfer_are_recomputed_until_one_comes() {
        let quiet = counts(0.0, 100.0);
        let more = counts(0.0, 101.0);
        let hit = EngineReading { hits: Some(64.0), ..quiet };
        let mute = EngineReading { transferred: None, ..quiet };
        check(&[(quiet, false), (quiet, true)], &[EngineAlert::Recomputes]);
        check(&[(quiet, false), (quiet, true), (quiet, false)], &[EngineAlert::Recomputes]);
        check(&[(quiet, false), (quiet, true), (more, true)], &[]);
        // The prefix was there; nothing was handed over; the engine does not tell.
        check(&[(quiet, false), (hit, true)], &[]);
        check(&[(quiet, false), (quiet, false)], &[]);
        check(&[(mute, false), (mute, true)], &[]);
    }

    #[test]
    fn every_trouble_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = EngineAlert::ALL.map(EngineAlert::as_str).into();
        assert_eq!(words.len(), EngineAlert::ALL.len());
    }
}
