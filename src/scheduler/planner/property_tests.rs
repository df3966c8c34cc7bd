//! Invariants of every plan under arbitrary events.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Happens {
    Prefill(f64),
    Decode(f64),
    Dies(usize),
    Returns(usize),
    Pin(usize, u8),
    Unpin(usize),
    Streams(usize, u32),
    Time(f64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0.0..20.0).prop_map(Happens::Prefill),
        (0.0..3000.0).prop_map(Happens::Decode),
        (0..12_usize).prop_map(Happens::Dies),
        (0..12_usize).prop_map(Happens::Returns),
        (0..12_usize, 0..4_u8).prop_map(|(slot, role)| Happens::Pin(slot, role)),
        (0..12_usize).prop_map(Happens::Unpin),
        (0..12_usize, 0..256_u32).prop_map(|(slot, n)| Happens::Streams(slot, n)),
        (0.0..100.0).prop_map(Happens::Time),
    ]
}

proptest! {
    // Failures are added as tests in tests.rs.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_empties_a_role_or_breaks_a_pin(
        count in 1..12_u16, groups in 1..3_u16, events in prop::collection::vec(happens(), 1..120)
    ) {
        let mut bench = Bench::new(
            (0..count).map(|slot| BackendObservation { group: GroupId(slot % groups), ..backend(slot) }).collect(),
        );
        let count = usize::from(count);
        for event in events {
            let backends = &mut bench.seen.backends;
            match event {
                Happens::Dies(slot) => backends[slot % count].healthy = false,
                Happens::Returns(slot) => backends[slot % count].healthy = true,
                Happens::Pin(slot, role) => backends[slot % count].pinned = Some(Role::ALL[usize::from(role)]),
                Happens::Unpin(slot) => backends[slot % count].pinned = None,
                Happens::Streams(slot, n) => backends[slot % count].streams = n,
                Happens::Time(span) => bench.now = bench.now + Seconds(span),
                _ => {}
            }
            match event {
                Happens::Prefill(load) => bench.tick(prefill_work(load)),
                Happens::Decode(streams) => bench.tick(decode_work(streams)),
                _ => bench.tick(|_| {}),
            }
            bench.check_invariants();
        }
    }

    #[test]
    fn drain_then_call_engines_leave_no_role_empty(
        count in 2..12_u16,
        turns in prop::collection::vec((0.0..12.0, 0.0..2000.0, 1..200_u32, any::<bool>()), 1..12),
    ) {
        let mut bench = switching(count);
        for (load, streams, ticks, done) in turns {
            for tick in 0..ticks {
                match tick % 2 {
                    0 => bench.tick(prefill_work(2.0 * load)),
                    _ => bench.tick(decode_work(2.0 * streams)),
                }
                prop_assert!(bench.count(Role::Prefill) > 0 && bench.count(Role::Decode) > 0);
                prop_assert!(bench.away() <= usize::from(count / 4).max(1));
            }
            if done {
                bench.switched();
            }
        }
    }

    #[test]
    fn flips_end_under_steady_load(count in 2..16_u16, prefill in 0.05..0.9_f64, decode in 0.05..0.9_f64) {
        let mut bench = Bench::of(count);
        let n = f64::from(count);
        // A split that is slightly too small shows regret only after a while.
        let marginal = |load: f64| (0.8..1.5).contains(&load);
        prop_assume!(!marginal(prefill * n / 2.0 / (n / 2.0).floor()));
        prop_assume!(!marginal(decode * n / 2.0 / (n / 2.0).ceil()));
        // The sum of both loads is within capacity.
        let (prefill, streams) = (prefill * n / 2.0, decode * n / 2.0 * 200.0);
        let mut work = 0.0;
        let mut steady = |bench: &mut Bench| {
            work += streams * TICK.get() / 0.03;
            let tokens = work.floor();
            work -= tokens;
            bench.tick(|demand| {
                demand.arrived_requests = 1.0;
                demand.arrived_kv = 1000.0;
                demand.arrived_prefill = TICK * prefill;
                demand.arrived_output = tokens;
            });
        };
        for _ in 0..200 {
            steady(&mut bench);
        }
        let settled = bench.flips;
        for _ in 0..1200 {
            steady(&mut bench);
        }
        prop_assert_eq!(bench.flips, settled, "{:?}", bench.journal);
    }
}
