//! Behaviour of the planner on synthetic demand. Invariants are in `property_tests.rs`.

#[path = "minimum_tests.rs"]
mod minimum;
#[path = "property_tests.rs"]
mod properties;

use tidegate_types::{BackendId, GroupId, Moment, Role, RoleCapability, RoleSet, Seconds, Tokens};

use crate::planner::{
    BackendObservation, Cause, GroupDemand, Observation, Params, State, initial, plan,
};

const TICK: Seconds = Seconds(0.05);

pub(super) fn backend(slot: u16) -> BackendObservation {
    BackendObservation {
        id: BackendId(slot),
        group: GroupId(0),
        allowed: RoleSet::ANY,
        capability: RoleCapability::Instant,
        pinned: None,
        healthy: true,
        role: Role::Mixed,
        becoming: None,
        prefill: Seconds::ZERO,
        streams: 0,
        streams_max: 256,
        kv: Tokens::ZERO,
        kv_capacity: Tokens(430_000),
        prefill_model: Default::default(),
        decode_model: Default::default(),
        colocates: true,
    }
}

fn demand(group: u16) -> GroupDemand {
    GroupDemand::none(GroupId(group))
}

/// A fleet that is planned tick by tick.
struct Bench {
    params: Params,
    now: Moment,
    seen: Observation,
    state: State,
    journal: Vec<String>,
    flips: usize,
}

impl Bench {
    fn new(backends: Vec<BackendObservation>) -> Bench {
        let params = Params::default();
        let groups = backends.iter().map(|b| b.group.0).max().map_or(0, |last| last + 1);
        let mut seen = Observation { backends, groups: (0..groups).map(demand).collect() };
        let roles = initial(&seen);
        for (backend, role) in seen.backends.iter_mut().zip(roles) {
            backend.role = role;
        }
        let (now, state) = (Moment(1_000_000_000), State::default());
        Bench { params, now, seen, state, journal: Vec::new(), flips: 0 }
    }

    fn of(count: u16) -> Bench {
        Bench::new((0..count).map(backend).collect())
    }

    /// Runs the planner after one more tick with `demand`.
    fn tick(&mut self, demand: impl FnOnce(&mut GroupDemand)) {
        self.now = self.now + TICK;
        self.seen.groups[0] = self::demand(0);
        demand(&mut self.seen.groups[0]);
        self.plan();
    }

    fn plan(&mut self) {
        let (decision, state) = plan(&self.params, self.now, &self.seen, &self.state);
        self.state = state;
        for reason in &decision.reasons {
            let (id, from, to) = (reason.backend, reason.from, reason.to);
            let at = self.now.since_start().get();
            self.journal.push(format!("{at:.2} {id} {from}>{to} {}", reason.cause.as_str()));
            self.flips += 1;
        }
        if let Some(roles) = decision.roles {
            assert_eq!(roles.len(), self.seen.backends.len(), "every backend once");
            for (backend, role) in self.seen.backends.iter_mut().zip(roles) {
                if backend.capability == RoleCapability::DrainThenCall && backend.role != role {
                    backend.becoming = Some(role);
                    backend.role = Role::Draining;
                } else {
                    backend.role = role;
                }
            }
        }
    }

    /// Completes the role switches in progress.
    fn switched(&mut self) {
        for backend in &mut self.seen.backends {
            backend.role = backend.becoming.take().unwrap_or(backend.role);
        }
    }

    fn away(&self) -> usize {
        self.seen.backends.iter().filter(|b| b.becoming.is_some()).count()
    }

    fn count(&self, role: Role) -> usize {
        self.seen.backends.iter().filter(|b| b.role == role).count()
    }

    fn check_invariants(&self) {
        for backend in &self.seen.backends {
            assert!(backend.allowed.contains(backend.role), "{backend:?}");
            if let Some(pinned) = backend.pinned {
                assert_eq!(backend.role, pinned, "a pin was broken");
            }
        }
        let groups = self.seen.groups.iter().map(|g| g.group);
        for group in groups {
            let healthy: Vec<_> =
                self.seen.backends.iter().filter(|b| b.group == group && b.healthy).collect();
            let free = healthy.iter().filter(|b| {
                b.pinned.is_none()
                    && b.capability == RoleCapability::Instant
                    && b.allowed == RoleSet::ANY
            });
            if free.count() >= 2 {
                assert!(healthy.iter().any(|b| b.role.takes_prefill()), "no prefill engine");
                assert!(healthy.iter().any(|b| b.role.takes_decode()), "no decode engine");
            }
        }
    }
}

/// Engines that drain and switch by themselves (`DrainThenCall`), half of them in each role.
fn switching(count: u16) -> Bench {
    let allowed = RoleSet::EMPTY.with(Role::Prefill).with(Role::Decode);
    let backends = (0..count).map(|slot| BackendObservation {
        capability: RoleCapability::DrainThenCall,
        allowed,
        ..backend(slot)
    });
    let mut bench = Bench::new(backends.collect());
    for (slot, backend) in bench.seen.backends.iter_mut().enumerate() {
        backend.role = if slot % 2 == 0 { Role::Prefill } else { Role::Decode };
    }
    bench
}

/// Prefill work per tick that keeps `load` engines busy.
fn prefill_work(load: f64) -> impl FnOnce(&mut GroupDemand) {
    move |demand| {
        demand.arrived_requests = 2.0;
        demand.arrived_kv = 2000.0;
        demand.arrived_prefill = TICK * load;
        demand.arrived_output = 4.0;
    }
}

/// Short answers that keep this many streams busy at the TPOT target.
fn decode_work(streams: f64) -> impl FnOnce(&mut GroupDemand) {
    move |demand| {
        demand.arrived_requests = 10.0;
        demand.arrived_kv = 10_000.0;
        demand.arrived_prefill = TICK * 0.05;
        demand.arrived_output = streams * TICK.get() / 0.03;
    }
}

#[test]
fn a_cold_start_splits_in_half_and_the_only_engine_is_mixed() {
    assert_eq!(Bench::of(8).count(Role::Prefill), 4);
    assert_eq!(Bench::of(1).count(Role::Mixed), 1);
    let fixed = RoleSet::EMPTY.with(Role::Mixed);
    let plain = |slot| BackendObservation {
        allowed: fixed,
        capability: RoleCapability::Fixed,
        ..backend(slot)
    };
    assert_eq!(Bench::new((0..3).map(plain).collect()).count(Role::Mixed), 3);
}

#[test]
fn engines_follow_a_shift_in_demand_and_return() {
    let mut bench = Bench::of(8);
    for _ in 0..400 {
        bench.tick(prefill_work(6.0));
    }
    assert!(bench.count(Role::Prefill) >= 6, "{:?}", bench.journal);
    for backend in &mut bench.seen.backends {
        (backend.streams, backend.kv) = (150, Tokens(150_000));
    }
    for _ in 0..1200 {
        bench.tick(decode_work(1200.0));
    }
    assert!(bench.count(Role::Prefill) <= 2, "{:?}", bench.journal);
    bench.check_invariants();
}

#[test]
fn a_burst_flips_engines_at_once_even_if_the_average_is_low() {
    let mut bench = Bench::of(8);
    for _ in 0..100 {
        bench.tick(decode_work(600.0));
    }
    let before = bench.count(Role::Prefill);
    bench.now = bench.now + Seconds(5.0);
    bench.tick(|_| {});
    bench.tick(|demand| {
        demand.arrived_requests = 40.0;
        demand.arrived_kv = 40_000.0;
        demand.arrived_prefill = Seconds(12.0);
    });
    assert!(bench.count(Role::Prefill) > before + 1, "{:?}", bench.journal);
}

#[test]
fn short_shifts_are_ignored_and_a_persistent_one_is_followed() {
    let mut bench = Bench::of(8);
    let phase = |bench: &mut Bench, seconds: f64, prefill: bool| {
        for backend in &mut bench.seen.backends {
            (backend.streams, backend.kv) = (60, Tokens(42_000));
        }
        let flips = bench.flips;
        for _ in 0..(seconds / TICK.get()) as usize {
            match prefill {
                true => bench.tick(prefill_work(5.5)),
                false => bench.tick(decode_work(900.0)),
            }
        }
        bench.flips - flips
    };
    // After twenty alternations of the demand, ten more phases cause at most four flips.
    for turn in 0..40 {
        phase(&mut bench, 8.0, turn % 2 == 0);
    }
    let late: usize = (0..10).map(|turn| phase(&mut bench, 8.0, turn % 2 == 0)).sum();
    assert!(late <= 4, "{late} {:?}", &bench.journal[bench.journal.len() - late..]);
    let flips = phase(&mut bench, 300.0, true);
    assert!(flips > 0 || bench.count(Role::Prefill) >= 5, "{:?}", bench.journal);
    assert!(bench.count(Role::Prefill) >= 5, "{:?}", bench.journal);
}

#[test]
fn drain_then_call_engines_switch_a_few_at_a_time_and_only_for_a_persistent_shift() {
    let mut bench = switching(8);
    for _ in 0..40 {
        bench.tick(prefill_work(5.5));
    }
    assert_eq!(bench.away(), 0, "a shift of two seconds causes no switch: {:?}", bench.journal);
    for _ in 0..2400 {
        bench.tick(prefill_work(6.5));
        assert!(bench.away() <= 2, "{:?}", bench.journal);
        if bench.flips.is_multiple_of(2) {
            bench.switched();
        }
    }
    assert!(bench.count(Role::Prefill) >= 6, "{:?}", bench.journal);
}

#[test]
fn full_decode_memory_flips_an_engine_to_decode() {
    let mut bench = Bench::of(8);
    // One more stream of 12,000 tokens would not fit within nine tenths of the memory.
    for backend in bench.seen.backends.iter_mut().filter(|b| b.role == Role::Decode) {
        (backend.streams, backend.kv) = (32, Tokens(384_000));
    }
    for _ in 0..200 {
        bench.tick(|demand| {
            decode_work(20.0)(demand);
            demand.arrived_kv = 12_000.0 * demand.arrived_requests;
        });
    }
    assert!(bench.count(Role::Prefill) < 4, "{:?}", bench.journal);
}

#[test]
fn expected_streams_flip_engines_only_within_the_demand_window() {
    // Answers of a minute that would fill more than four decode engines if they kept arriving.
    let arrive = |bench: &mut Bench| {
        bench.tick(|demand| {
            decode_work(1100.0)(demand);
            demand.arrived_requests = 1.0;
            demand.arrived_kv = 1000.0;
        });
    };
    let mut bench = Bench::of(8);
    for _ in 0..200 {
        arrive(&mut bench);
    }
    assert_eq!(bench.flips, 0, "{:?}", bench.journal);
    for backend in bench.seen.backends.iter_mut().filter(|b| b.role == Role::Decode) {
        (backend.streams, backend.kv) = (230, Tokens(230_000));
    }
    for _ in 0..100 {
        arrive(&mut bench);
    }
    assert!(bench.count(Role::Decode) > 4, "{:?}", bench.journal);
}

#[test]
fn a_slight_decode_overload_does_not_flip_a_busy_prefill_engine() {
    let mut bench = Bench::of(4);
    for tick in 0..1200 {
        let each = if tick < 400 { 150 } else { 225 };
        for backend in bench.seen.backends.iter_mut().filter(|b| b.role == Role::Decode) {
            (backend.streams, backend.kv) = (each, Tokens(u64::from(each) * 1000));
        }
        bench.tick(|demand| {
            decode_work(f64::from(each) * 2.0)(demand);
            demand.arrived_prefill = TICK * 1.8;
        });
    }
    assert_eq!(bench.flips, 0, "{:?}", bench.journal);
}

#[test]
fn a_role_set_by_an_operator_is_kept_without_demand_against_it() {
    let mut bench = Bench::of(6);
    for _ in 0..20 {
        bench.tick(prefill_work(0.2));
    }
    let (prefills, flips) = (bench.count(Role::Prefill), bench.flips);
    bench.seen.backends[0].role = Role::Decode;
    bench.state.flipped(BackendId(0));
    for _ in 0..400 {
        bench.tick(prefill_work(0.2));
    }
    let after = (bench.count(Role::Prefill), bench.flips);
    assert_eq!(after, (prefills - 1, flips), "{:?}", bench.journal);
}

#[test]
fn in_a_mixed_fleet_engines_flip_by_comparative_advantage() {
    let slow_prefill = |b: BackendObservation| {
        let per_token = b.prefill_model.per_token * 3.0;
        let prefill_model = crate::cost::PrefillModel { per_token, ..b.prefill_model };
        BackendObservation { prefill_model, ..b }
    };
    let of = |slot: u16| if slot < 4 { slow_prefill(backend(slot)) } else { backend(slot) };
    let mut bench = Bench::new((0..8).map(of).collect());
    let prefills = |bench: &Bench| {
        let slots = bench.seen.backends.iter().filter(|b| b.role == Role::Prefill);
        slots.map(|b| b.id.0).collect::<Vec<_>>()
    };
    assert_eq!(prefills(&bench), [4, 5, 6, 7], "they start there");
    for _ in 0..1200 {
        bench.tick(decode_work(1100.0));
    }
    assert!(bench.count(Role::Prefill) < 4, "{:?}", bench.journal);
    assert!(prefills(&bench).iter().all(|slot| *slot >= 4), "{:?}", bench.journal);
}

#[test]
fn an_engine_pinned_to_draining_does_not_block_other_flips() {
    let mut bench = Bench::of(8);
    bench.seen.backends[0].pinned = Some(Role::Draining);
    for _ in 0..400 {
        bench.tick(prefill_work(5.0));
    }
    assert!(bench.count(Role::Prefill) >= 5, "{:?}", bench.journal);
}

#[test]
fn the_engine_with_the_fewest_streams_flips_first() {
    let mut bench = Bench::of(4);
    for (slot, streams) in [(2, 9), (3, 2)] {
        bench.seen.backends[slot].streams = streams;
        bench.seen.backends[slot].kv = Tokens(u64::from(streams) * 500);
    }
    for _ in 0..200 {
        bench.tick(prefill_work(3.0));
        if bench.flips > 0 {
            break;
        }
    }
    assert_eq!(bench.seen.backends[3].role, Role::Prefill, "{:?}", bench.journal);
    assert_eq!(bench.seen.backends[2].role, Role::Decode);
}

#[test]
fn the_journal_of_a_shift_and_its_return() {
    let mut bench = Bench::of(4);
    for tick in 0..600 {
        match tick / 200 {
            0 => bench.tick(decode_work(500.0)),
            1 => bench.tick(prefill_work(3.5)),
            _ => bench.tick(|_| {}),
        }
    }
    // Decode at first, then prefill as the average follows the shift, then no change: an idle fleet
    // keeps its roles.
    let flips: Vec<_> = bench.journal.iter().filter_map(|line| line.split_once(' ')).collect();
    let what: Vec<_> = flips.iter().map(|(_, flip)| *flip).collect();
    let expected = [
        "0 prefill>decode decode_short",
        "0 decode>prefill prefill_short",
        "2 decode>prefill prefill_short",
    ];
    assert_eq!(what, expected, "{:?}", bench.journal);
    assert!(flips.iter().all(|(at, _)| at.parse::<f64>().unwrap() < 21.0), "{:?}", bench.journal);
}

#[test]
fn a_recorded_run_replays_to_the_same_decisions() {
    let mut bench = Bench::of(6);
    let mut recorded = Vec::new();
    for tick in 0..300 {
        let load = f64::from(tick % 90) / 15.0;
        bench.tick(prefill_work(load));
        recorded.push(serde_json::to_string(&(bench.now, &bench.seen)).unwrap());
    }
    let replay = || {
        let (mut state, mut decisions) = (State::default(), Vec::new());
        for line in &recorded {
            let (now, seen): (Moment, Observation) = serde_json::from_str(line).unwrap();
            let (decision, next) = plan(&bench.params, now, &seen, &state);
            // The state survives serialization too.
            state = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
            decisions.push(decision);
        }
        (decisions, state)
    };
    assert_eq!(replay(), replay());
}

#[test]
fn the_mean_kv_forgets_old_prompts() {
    let mut bench = Bench::of(8);
    let with_kv = |kv: f64| {
        move |demand: &mut GroupDemand| {
            decode_work(20.0)(demand);
            demand.arrived_kv = kv * demand.arrived_requests;
        }
    };
    for _ in 0..2000 {
        bench.tick(with_kv(12_000.0));
    }
    for _ in 0..1200 {
        bench.tick(with_kv(1000.0));
    }
    let mean = bench.state.groups[0].demand.mean_kv().unwrap();
    assert!((mean - 1000.0).abs() < 50.0, "{mean}");
}

#[test]
fn spill_capacity_counts_only_on_engines_that_serve_colocated_requests() {
    let prefills = |colocates: bool| {
        let mut bench = Bench::of(8);
        for backend in &mut bench.seen.backends {
            (backend.colocates, backend.streams, backend.kv) = (colocates, 60, Tokens(60_000));
        }
        for _ in 0..2400 {
            bench.tick(|demand| {
                prefill_work(4.5)(demand);
                demand.arrived_output = 480.0 * TICK.get() / 0.03;
            });
        }
        bench.count(Role::Prefill)
    };
    assert_eq!((prefills(true), prefills(false)), (4, 5));
}

#[test]
fn a_decode_engine_with_less_capacity_than_its_peers_flips_another_to_decode() {
    let mut bench = Bench::of(8);
    for (slot, backend) in bench.seen.backends.iter_mut().enumerate() {
        backend.role = if slot == 6 { Role::Decode } else { Role::Prefill };
    }
    // Its stream capacity is 70, that of each peer 210.
    let alone = &mut bench.seen.backends[6];
    alone.decode_model.per_stream = Seconds(200e-6);
    (alone.streams, alone.kv) = (70, Tokens(70_000));
    for _ in 0..200 {
        bench.tick(decode_work(140.0));
    }
    assert!(bench.count(Role::Decode) > 1, "{:?}", bench.journal);
}
