//! Which of those that wait are too much: more than every engine together could begin in time. The
//! longest go, so that the fewest do (Moore, "An n job, one machine sequencing algorithm for
//! minimizing the number of late jobs", Management Science 15, 1968). They wait until there is
//! less, or until they are hopeless: one that is served and late makes others late.
//!
//! The engines are taken for one that is as fast as all of them, free now, and undisturbed by
//! streams, so as long as fewer are too much than that, nothing is shed. Arithmetic only.

use std::collections::BinaryHeap;
use tidegate_types::{RequestId, Seconds};

/// Of `jobs`, each with its work and until when it must begin, in the order in which they are served
/// by so many engines: those that are too much, by id.
pub(super) fn shed(
    engines: usize,
    jobs: impl Iterator<Item = (RequestId, Seconds, Seconds)>,
) -> Vec<RequestId> {
    let speed = engines.max(1) as f64 * 1e9;
    let mut kept = BinaryHeap::new();
    let mut too_much = Vec::new();
    let mut before = 0;
    for (id, work, left) in jobs {
        let work = nanos(work);
        kept.push((work, id));
        let mut ahead = before;
        before += work;
        while ahead as f64 / speed > left.get().max(0.0) {
            let Some((longest, whose)) = kept.pop() else { break };
            too_much.push(whose);
            before -= longest;
            if whose == id {
                break;
            }
            ahead -= longest;
        }
    }
    too_much.sort_unstable();
    too_much
}

/// Whole nanoseconds can be compared, and sums of what comes and goes are exact. Ten thousand jobs of
/// an hour fit.
fn nanos(work: Seconds) -> u64 {
    ((work.get() * 1e9) as u64).min(3_600_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jobs(list: &[(f64, f64)]) -> impl Iterator<Item = (RequestId, Seconds, Seconds)> {
        list.iter()
            .enumerate()
            .map(|(id, (work, left))| (RequestId(id as u64), Seconds(*work), Seconds(*left)))
    }

    fn check(engines: usize, list: &[(f64, f64)], expected: &[u64]) {
        let ids: Vec<u64> = shed(engines, jobs(list)).into_iter().map(|id| id.0).collect();
        assert_eq!(ids, expected, "{list:?}");
    }

    #[test]
    fn the_longest_goes_where_not_all_can_begin_in_time() {
        check(1, &[(0.3, 0.5), (0.3, 0.5), (0.3, 0.7)], &[]);
        // The last could begin at .6 only, and after the long one alone.
        check(1, &[(0.6, 0.2), (0.3, 0.5), (0.3, 0.8)], &[0]);
        check(1, &[(0.3, 0.5), (0.6, 0.5), (0.3, 0.5)], &[1]);
        check(2, &[(0.6, 0.2), (0.3, 0.5), (0.3, 0.8)], &[]);
        check(1, &[], &[]);
    }

    #[test]
    fn one_that_should_have_begun_is_not_too_much_by_itself() {
        check(1, &[(5.0, -0.1)], &[]);
        check(1, &[(5.0, 0.0), (1.0, -0.1)], &[0]);
        check(1, &[(5.123_456_789_123_4, 0.0), (1.0, -0.1)], &[0]);
    }

    proptest! {
        /// What is kept can begin in time on the engine that stands for all; of one length, as many
        /// are kept as fit.
        #[test]
        fn what_is_kept_begins_in_time(
            engines in 1usize..5,
            mut list in prop::collection::vec((0.01f64..2.0, 0.0f64..3.0), 0..40),
        ) {
            list.sort_by(|a, b| a.1.total_cmp(&b.1));
            let out = shed(engines, jobs(&list));
            let mut ahead = 0.0;
            for (id, work, left) in jobs(&list).filter(|(id, ..)| out.binary_search(id).is_err()) {
                prop_assert!(ahead / engines as f64 <= left.get() + 1e-6, "{id:?}");
                ahead += work.get();
            }
        }

        #[test]
        fn no_fewer_could_be_shed(
            mut list in prop::collection::vec((1u32..20, 0u32..30), 0..10),
        ) {
            list.sort_by_key(|(_, left)| *left);
            let list: Vec<(f64, f64)> =
                list.into_iter().map(|(w, l)| (f64::from(w), f64::from(l) + 0.5)).collect();
            let begins = |kept: u32| {
                let mut ahead = 0.0;
                list.iter().enumerate().filter(|(i, _)| kept >> i & 1 == 1).all(|(_, (work, left))| {
                    let begun = ahead <= *left;
                    ahead += work;
                    begun
                })
            };
            let most = (0..1u32 << list.len()).filter(|kept| begins(*kept)).map(u32::count_ones).max();
            let kept = list.len() - shed(1, jobs(&list)).len();
            prop_assert_eq!(Some(kept as u32), most);
        }
    }
}
