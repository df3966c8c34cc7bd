//! Latency targets of the streams on one backend, counted by value, without a lock. The smallest
//! target limits the backend's decode step.

use crate::shared_u64::SharedU64;
use tidegate_types::{Seconds, Slo, TightestTargets};

/// Distinct values that are counted apart. Further values share the last slot with its smallest one.
const SLOTS: usize = 8;
/// Bits of the number of streams in a word; the target in nanoseconds is above them.
const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
/// Most nanoseconds of a counted target: 18 minutes. A longer target counts as none.
const NANOS_MAX: u64 = (1 << (u64::BITS - COUNT_BITS)) - 1;

/// The targets of one stream, as they were counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CountedTargets {
    tpot: Option<u8>,
    itl: Option<u8>,
}

/// TPOT and ITL targets of the streams on a backend.
#[derive(Debug, Default)]
pub(super) struct StreamTargets<W> {
    tpot: Counts<W>,
    itl: Counts<W>,
}

/// Streams by target. A word holds a target in nanoseconds and the number of streams that have it; 0 is
/// a free slot.
#[derive(Debug, Default)]
struct Counts<W>([W; SLOTS]);

impl<W: SharedU64> StreamTargets<W> {
    /// Counts a stream.
    pub(super) fn add(&self, slo: &Slo) -> CountedTargets {
        let itl = slo.itl.and_then(|itl| self.itl.add(itl));
        CountedTargets { tpot: self.tpot.add(slo.tpot), itl }
    }

    /// Removes a stream that was counted as `counted`.
    pub(super) fn remove(&self, counted: CountedTargets) {
        self.tpot.remove(counted.tpot);
        self.itl.remove(counted.itl);
    }

    /// Returns the smallest targets, of the TPOT targets the smallest from `step` on.
    pub(super) fn tightest(&self, step: Seconds) -> TightestTargets {
        TightestTargets { tpot: self.tpot.smallest(step), itl: self.itl.smallest(Seconds::ZERO) }
    }
}

impl<W: SharedU64> Counts<W> {
    /// Counts a target and returns its slot; `None` if it is too long to be a limit.
    fn add(&self, target: Seconds) -> Option<u8> {
        let nanos = (target.get() * 1e9).round();
        if !(1.0..=NANOS_MAX as f64).contains(&nanos) {
            return None;
        }
        let nanos = nanos as u64;
        let joins = |word: u64| {
            (target_of(word) == nanos && (1..COUNT_MAX).contains(&count_of(word)))
                .then_some(word + 1)
        };
        let claims = |word: u64| (word == 0).then_some(nanos << COUNT_BITS | 1);
        // Two threads may count one target in two slots, which has the same smallest target.
        let joined = self.0.iter().position(|word| word.update(joins));
        let slot = joined.or_else(|| self.0.iter().position(|word| word.update(claims)));
        let slot = slot.unwrap_or_else(|| {
            let shares = |word: u64| {
                let target = if word == 0 { nanos } else { target_of(word).min(nanos) };
                Some(target << COUNT_BITS | (count_of(word) + 1).min(COUNT_MAX))
            };
            self.0[SLOTS - 1].update(shares);
            SLOTS - 1
        });
        Some(slot as u8)
    }

    fn remove(&self, slot: Option<u8>) {
        let leaves = |word: u64| Some(if count_of(word) <= 1 { 0 } else { word - 1 });
        if let Some(slot) = slot {
            self.0[usize::from(slot)].update(leaves);
        }
    }

    fn smallest(&self, from: Seconds) -> Option<Seconds> {
        let words = self.0.iter().map(SharedU64::load_relaxed).filter(|word| *word != 0);
        let targets = words.map(|word| Seconds(target_of(word) as f64 / 1e9));
        targets.filter(|target| *target >= from).reduce(Seconds::min)
    }
}

fn target_of(word: u64) -> u64 {
    word >> COUNT_BITS
}

fn count_of(word: u64) -> u64 {
    word & COUNT_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_u64::LocalU64;
    use proptest::prelude::*;
    use shuttle::sync::atomic::AtomicU64;
    use shuttle::{check_random, thread};
    use std::sync::Arc;

    fn slo(tpot_millis: u32) -> Slo {
        Slo { tpot: Seconds(f64::from(tpot_millis) / 1e3), ..Slo::default() }
    }

    proptest! {
        #[test]
        fn the_smallest_of_eight_values_is_exact(
            steps in prop::collection::vec((1_u32..=8, any::<bool>()), 1..200)
        ) {
            let targets = StreamTargets::<LocalU64>::default();
            let mut counted: Vec<(u32, CountedTargets)> = Vec::new();
            for (millis, ends) in steps {
                match ends && !counted.is_empty() {
                    true => targets.remove(counted.remove(millis as usize % counted.len()).1),
                    false => counted.push((millis, targets.add(&slo(millis)))),
                }
                let least = counted.iter().map(|(millis, _)| *millis).min();
                let expected = least.map(|millis| Seconds(f64::from(millis) / 1e3));
                prop_assert_eq!(targets.tightest(Seconds::ZERO).tpot, expected);
            }
        }

        #[test]
        fn with_more_values_the_smallest_is_never_too_long(
            values in prop::collection::vec(1_u32..=60, 1..60)
        ) {
            let targets = StreamTargets::<LocalU64>::default();
            let counted: Vec<_> = values.iter().map(|millis| targets.add(&slo(*millis))).collect();
            for (n, counted) in counted.into_iter().enumerate() {
                let least = f64::from(*values[n..].iter().min().unwrap()) / 1e3;
                prop_assert!(targets.tightest(Seconds::ZERO).tpot.unwrap() <= Seconds(least));
                targets.remove(counted);
            }
            prop_assert_eq!(targets.tightest(Seconds::ZERO), TightestTargets::default());
        }
    }

    #[test]
    fn a_target_without_a_bound_is_not_counted() {
        let targets = StreamTargets::<LocalU64>::default();
        let none = Slo { tpot: Seconds(f64::INFINITY), itl: None, ..Slo::default() };
        targets.remove(targets.add(&none));
        let counted = targets.add(&Slo { itl: Some(Seconds(0.2)), ..none });
        assert_eq!(
            targets.tightest(Seconds::ZERO),
            TightestTargets { tpot: None, itl: Some(Seconds(0.2)) }
        );
        targets.remove(counted);
        assert_eq!(targets.tightest(Seconds::ZERO), TightestTargets::default());
    }

    #[test]
    fn a_tpot_target_below_the_shortest_step_does_not_count() {
        let targets = StreamTargets::<LocalU64>::default();
        let _counted = [targets.add(&slo(5)), targets.add(&slo(30))];
        assert_eq!(targets.tightest(Seconds(0.015)).tpot, Some(Seconds(0.03)));
    }

    #[test]
    fn every_count_settles_in_any_order_of_threads() {
        check_random(
            || {
                let targets = Arc::new(StreamTargets::<AtomicU64>::default());
                let run = |millis: u32| {
                    let targets = Arc::clone(&targets);
                    thread::spawn(move || {
                        let counted = targets.add(&slo(millis));
                        assert!(targets.tightest(Seconds::ZERO).tpot.unwrap() <= slo(millis).tpot);
                        targets.remove(counted);
                    })
                };
                let threads: Vec<_> = [5, 7, 5].into_iter().map(run).collect();
                for thread in threads {
                    thread.join().unwrap();
                }
                assert_eq!(targets.tightest(Seconds::ZERO), TightestTargets::default());
            },
            300,
        );
    }
}
