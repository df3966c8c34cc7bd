//! Tests that every role keeps a healthy backend.

use super::*;

#[test]
fn a_lost_role_is_filled_at_once_and_the_only_engine_becomes_mixed() {
    let mut bench = Bench::of(3);
    let prefills: Vec<usize> =
        (0..3).filter(|slot| bench.seen.backends[*slot].role == Role::Prefill).collect();
    for slot in prefills {
        bench.seen.backends[slot].healthy = false;
    }
    bench.tick(|_| {});
    bench.check_invariants();
    assert!(bench.journal[0].contains(Cause::MinimumPerRole.as_str()));
    for slot in 0..2 {
        bench.seen.backends[slot].healthy = false;
    }
    bench.tick(|_| {});
    assert_eq!(bench.seen.backends[2].role, Role::Mixed);
    for backend in &mut bench.seen.backends {
        backend.healthy = true;
    }
    bench.tick(|_| {});
    bench.check_invariants();
    assert_eq!(bench.count(Role::Mixed), 0, "{:?}", bench.journal);
}

#[test]
fn filling_an_empty_role_does_not_empty_the_other() {
    // Found by a property test: one of the two remaining engines was pinned to draining.
    let mut bench = Bench::of(6);
    bench.seen.backends[3].pinned = Some(Role::Draining);
    bench.tick(|_| {});
    bench.seen.backends[3].pinned = None;
    for slot in [0, 1, 2, 5] {
        bench.seen.backends[slot].healthy = false;
        bench.tick(|_| {});
        bench.check_invariants();
    }
}

#[test]
fn unpinning_an_engine_leaves_no_role_empty() {
    // Found by a property test.
    let mut bench = Bench::new(
        (0..5)
            .map(|slot| BackendObservation { group: GroupId(slot % 2), ..backend(slot) })
            .collect(),
    );
    bench.seen.backends[4].pinned = Some(Role::Mixed);
    bench.tick(|_| {});
    bench.now = bench.now + Seconds(9.848_893_295);
    bench.tick(|_| {});
    bench.seen.backends[2].healthy = false;
    bench.tick(|_| {});
    bench.seen.backends[0].pinned = Some(Role::Draining);
    bench.tick(|_| {});
    for slot in [0, 4] {
        bench.seen.backends[slot].pinned = None;
        bench.tick(|_| {});
        bench.check_invariants();
    }
}

#[test]
fn a_lost_role_is_filled_by_one_switch_and_a_failed_engine_is_not_moved() {
    let mut bench = switching(4);
    for slot in [1, 3] {
        bench.seen.backends[slot].healthy = false;
    }
    for _ in 0..10 {
        bench.tick(|_| {});
    }
    assert_eq!((bench.away(), bench.flips), (1, 1), "{:?}", bench.journal);
    // The engine has failed to switch back too.
    let broken = bench.seen.backends.iter_mut().find(|b| b.becoming.is_some()).unwrap();
    broken.becoming = None;
    let id = broken.id;
    for _ in 0..10 {
        bench.tick(|_| {});
    }
    assert_eq!(bench.seen.backends[id.index()].role, Role::Draining, "{:?}", bench.journal);
}
