//! Tests of the EDF queue: order, deadlines and outcomes.

use super::*;
use crate::placement::fixture::{Engines, idle, job, prefilling, streaming};
use proptest::prelude::*;
use tidegate_types::{BackendId, ClassKind, Role, Slo, Targets, Tokens};

fn at(seconds: f64) -> Moment {
    Moment::START + Seconds(seconds)
}

/// A request with its TTFT deadline and its queue deadline, in seconds after the start.
fn due(id: u64, prompt: u64, ttft: f64, refused: f64) -> PrefillRequest {
    PrefillRequest { ttft_deadline: at(ttft), queue_deadline: at(refused), ..job(id, prompt) }
}

fn queue(jobs: impl IntoIterator<Item = PrefillRequest>) -> EdfQueue {
    let mut queue = EdfQueue::new();
    for job in jobs {
        queue.push(job).unwrap();
    }
    queue
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Placed(u64),
    Expired(u64),
    Unroutable(u64),
    Late(u64),
}

/// Polls and reserves the placed requests.
fn poll(queue: &mut EdfQueue, now: Moment, engines: &Engines) -> Vec<Left> {
    poll_with(&Params::default(), queue, now, engines)
}

fn poll_with(params: &Params, queue: &mut EdfQueue, now: Moment, engines: &Engines) -> Vec<Left> {
    let mut left = Vec::new();
    queue.poll(params, now, engines, |outcome| {
        left.push(match outcome {
            QueueOutcome::Place(job, choice) => {
                engines.reserve(choice, job.prompt);
                Left::Placed(job.id.0)
            }
            QueueOutcome::Expired(job) => Left::Expired(job.id.0),
            QueueOutcome::Unroutable(job, _) => Left::Unroutable(job.id.0),
            QueueOutcome::Late(job) => Left::Late(job.id.0),
        });
        Reserved::Yes
    });
    left
}

fn full() -> Engines {
    Engines::new(vec![prefilling(Role::Mixed, 1.0)])
}

/// Settles all prefill work, so that there is capacity for one prefill.
fn free_capacity(engines: &Engines) {
    engines.change(0, |load| *load = idle(load.role));
}

#[test]
fn the_earliest_deadline_is_placed_first() {
    let engines = full();
    let mut queue = queue([due(1, 2500, 3.0, 9.0), due(2, 2500, 1.0, 9.0), due(3, 2500, 2.0, 9.0)]);
    assert_eq!(poll(&mut queue, at(0.0), &engines), []);
    for next in [2, 3, 1] {
        free_capacity(&engines);
        assert_eq!(poll(&mut queue, at(0.0), &engines), [Left::Placed(next)]);
    }
    assert!(queue.is_empty());
}

#[test]
fn the_latest_feasible_start_includes_the_hand_off_and_one_decode_step() {
    // 2500 tokens take 186 ms, and 53 ms more until their first token.
    let order = |role: Role, now: f64| {
        let engines = Engines::new(vec![prefilling(role, 1.0), idle(Role::Decode)]);
        engines.change(1, |load| load.prefill = Seconds(1.0));
        let mut queue = queue([due(1, 2500, 1.0, 9.0), due(2, 2500, 5.0, 9.0)]);
        poll(&mut queue, at(0.0), &engines);
        free_capacity(&engines);
        poll(&mut queue, at(now), &engines)
    };
    assert_eq!(order(Role::Mixed, 0.79), [Left::Placed(1)]);
    assert_eq!(order(Role::Prefill, 0.79), [Left::Placed(2)]);
    assert_eq!(order(Role::Prefill, 0.74), [Left::Placed(1)]);
}

#[test]
fn the_late_class_is_placed_last() {
    let engines = full();
    // 30,000 tokens take three seconds: late from the start, although the deadline is the earliest.
    let mut queue = queue([due(1, 30_000, 1.0, 9.0), due(2, 2500, 2.0, 9.0)]);
    for next in [2, 1] {
        free_capacity(&engines);
        assert_eq!(poll(&mut queue, at(0.1), &engines), [Left::Placed(next)]);
    }
}

#[test]
fn the_late_class_prefers_short_work_and_ages() {
    let engines = full();
    let arrived = |id, prompt, seconds: f64| PrefillRequest {
        arrived: at(seconds),
        ..due(id, prompt, 0.0, 90.0)
    };
    // 30,000 tokens take 2.8 s: served as if they had arrived 28 s later.
    let mut queue =
        queue([arrived(1, 30_000, 0.0), arrived(2, 2500, 20.0), arrived(3, 2500, 40.0)]);
    for next in [2, 1, 3] {
        free_capacity(&engines);
        assert_eq!(poll(&mut queue, at(41.0), &engines), [Left::Placed(next)]);
    }
}

#[test]
fn a_request_past_its_latest_start_is_late() {
    let engines = full();
    // 2500 tokens take 186 ms.
    let mut queue = queue([due(1, 2500, 1.0, 9.0), due(2, 2500, 5.0, 9.0)]);
    poll(&mut queue, at(0.0), &engines);
    free_capacity(&engines);
    assert_eq!(poll(&mut queue, at(0.9), &engines), [Left::Placed(2)]);
}

#[test]
fn load_shedding_refuses_only_requests_that_became_late_in_the_queue() {
    let params = Params { late: LatePolicy::Refuse, ..Params::default() };
    let engines = full();
    // 2500 tokens take 186 ms; 30,000 tokens take three seconds and are late on arrival.
    let mut retry = due(3, 2500, 1.0, 9.0);
    retry.excluded.insert(BackendId(0));
    let jobs = [due(1, 2500, 1.0, 9.0), due(2, 30_000, 1.0, 9.0), retry, due(4, 2500, 5.0, 9.0)];
    let mut queue = queue(jobs);
    let mut poll = |seconds| poll_with(&params, &mut queue, at(seconds), &engines);
    assert_eq!(poll(0.7), []);
    assert_eq!(poll(0.9), [Left::Late(1)]);
    assert_eq!(poll(0.91), []);
    free_capacity(&engines);
    assert_eq!(poll(0.92), [Left::Placed(4)]);
    assert_eq!(queue.len(), 2, "the long prompt and the retry wait in the late class");
}

#[test]
fn the_late_class_receives_exactly_its_share_of_the_work() {
    let engines = full();
    let mut queue = EdfQueue::new();
    let late = 0..1000;
    for id in late.clone() {
        queue.push(due(id, 6000, 0.0, 1e6)).unwrap();
    }
    let mut work = [0.0, 0.0];
    for round in 0..2000u64 {
        // Feasible requests are always queued.
        queue.push(due(10_000 + round, 2500, 1e5 + round as f64, 1e6)).unwrap();
        queue.push(due(20_000 + round, 2500, 1e5 + round as f64, 1e6)).unwrap();
        free_capacity(&engines);
        for left in poll(&mut queue, at(1.0), &engines) {
            let Left::Placed(id) = left else { panic!("{left:?}") };
            work[usize::from(late.contains(&id))] += engines.load(BackendId(0)).prefill.get();
        }
    }
    let share = work[1] / (work[0] + work[1]);
    assert!((share - Params::default().late_class_share).abs() < 0.005, "{share}");
}

#[test]
fn a_short_request_overtakes_a_long_one_without_capacity() {
    let busy = prefilling(Role::Prefill, 1.0);
    let engines = Engines::new(vec![busy, streaming(Role::Decode, 30, 0.08)]);
    let mut queue = queue([due(1, 5000, 1.0, 9.0), due(2, 800, 2.0, 9.0)]);
    assert_eq!(poll(&mut queue, at(0.0), &engines), [Left::Placed(2)]);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_job_past_its_queue_deadline_is_refused_even_with_free_capacity() {
    let mut queue = queue([due(1, 2000, 1.0, 5.0), due(2, 2000, 1.0, 7.0)]);
    assert_eq!(queue.next_deadline(), Some(at(5.0)));
    assert_eq!(poll(&mut queue, at(5.0), &full()), [Left::Expired(1)]);
    assert_eq!(queue.next_deadline(), Some(at(7.0)));
}

#[test]
fn without_a_usable_backend_all_requests_are_refused_at_once() {
    let engines =
        Engines::new(vec![crate::placement::BackendLoad { usable: false, ..idle(Role::Mixed) }]);
    let mut queue = queue([due(1, 2000, 1.0, 5.0), due(2, 2000, 0.0, 7.0)]);
    let left = poll(&mut queue, at(0.5), &engines);
    assert_eq!(left, [Left::Unroutable(1), Left::Unroutable(2)]);
    assert_eq!((queue.next_deadline(), queue.len()), (None, 0));
}

#[test]
fn a_request_that_lost_a_race_for_capacity_stays_queued() {
    let engines = Engines::new(vec![idle(Role::Mixed)]);
    let mut queue = queue([due(1, 2000, 1.0, 5.0)]);
    let mut asked = 0;
    queue.poll(&Params::default(), at(0.0), &engines, |_| {
        asked += 1;
        Reserved::No
    });
    assert_eq!((asked, queue.len()), (RACES_MAX, 1));
    assert_eq!(poll(&mut queue, at(0.0), &engines), [Left::Placed(1)]);
}

#[test]
fn a_full_queue_returns_an_error() {
    let mut queue = EdfQueue::with_limit(1);
    assert_eq!(queue.push(job(1, 10)), Ok(()));
    assert_eq!(queue.push(job(2, 10)), Err(QueueFull { limit: 1 }));
    assert!(queue.cancel(RequestId(1)) && !queue.cancel(RequestId(1)));
    assert_eq!(queue.push(job(2, 10)), Ok(()));
}

#[test]
fn queued_requests_are_counted_by_pool() {
    let elsewhere = PrefillRequest { pool: PoolId(1), ..job(3, 2000) };
    let mut queue = queue([job(1, 2000), job(2, 2000), elsewhere]);
    assert_eq!((queue.waiting(PoolId(0)), queue.waiting(PoolId(1))), (2, 1));
    poll(&mut queue, at(0.0), &full());
    assert_eq!((queue.waiting(PoolId(0)), queue.waiting(PoolId(1))), (2, 1));
    for id in 1..4 {
        queue.cancel(RequestId(id));
    }
    assert_eq!((queue.waiting(PoolId(0)), queue.waiting(PoolId(1))), (0, 0));
}

#[test]
fn polling_a_full_pool_reads_few_loads_whatever_the_queue_length() {
    let engines = Engines::new(vec![prefilling(Role::Mixed, 1.0); 8]);
    let jobs = (0..5000).map(|id| due(id, 100 + id * 7919 % 9000, 1.0 + id as f64, 1e6));
    let mut queue = queue(jobs);
    poll(&mut queue, at(0.0), &engines);
    let before = engines.asked();
    poll(&mut queue, at(0.0), &engines);
    let asked = engines.asked() - before;
    assert!(asked <= 8 * 12, "{asked} loads asked for");
}

#[derive(Clone, Debug)]
enum QueueOperation {
    Offer {
        prompt: u64,
        ttft: f64,
        wait: f64,
        never: bool,
        pool: u16,
    },
    Cancel(u64),
    MakeRoom(usize),
    Toggle(usize),
    /// Advances the time and polls; every third placement loses a race.
    Poll(f64),
}

fn operation() -> impl Strategy<Value = QueueOperation> {
    let offer = (1u64..30_000, 0.0..2.0f64, 0.0..5.0f64, any::<bool>(), 0u16..2).prop_map(
        |(prompt, ttft, wait, never, pool)| QueueOperation::Offer {
            prompt,
            ttft,
            wait,
            never,
            pool,
        },
    );
    prop_oneof![
        6 => offer,
        1 => (0u64..100).prop_map(QueueOperation::Cancel),
        3 => (0usize..3).prop_map(QueueOperation::MakeRoom),
        1 => (0usize..3).prop_map(QueueOperation::Toggle),
        4 => (0.0..0.5f64).prop_map(QueueOperation::Poll),
    ]
}

/// A queue and the history of its operations.
struct World {
    queue: EdfQueue,
    engines: Engines,
    now: Moment,
    offered: u64,
    left: BTreeMap<u64, u32>,
    races: u32,
}

impl World {
    fn apply(&mut self, operation: &QueueOperation) {
        match *operation {
            QueueOperation::Offer { prompt, ttft, wait, never, pool } => {
                let id = self.offered;
                self.offered += 1;
                let disaggregation =
                    if never { Disaggregation::Never } else { Disaggregation::Allowed };
                let (ttft, refused) = (self.now + Seconds(ttft), self.now + Seconds(wait));
                let job = PrefillRequest {
                    pool: PoolId(pool.into()),
                    disaggregation,
                    arrived: self.now,
                    ..job(id, prompt)
                };
                let job = PrefillRequest { ttft_deadline: ttft, queue_deadline: refused, ..job };
                self.queue.push(job).unwrap();
            }
            QueueOperation::Cancel(id) => {
                if self.queue.cancel(RequestId(id)) {
                    *self.left.entry(id).or_default() += 1;
                }
            }
            QueueOperation::MakeRoom(slot) => self.engines.change(slot, |load| {
                let usable = load.usable;
                *load = crate::placement::BackendLoad { usable, ..idle(load.role) };
            }),
            QueueOperation::Toggle(slot) => self.engines.change(slot, |load| load.usable ^= true),
            QueueOperation::Poll(after) => self.poll(Seconds(after)),
        }
    }

    fn poll(&mut self, after: Seconds) {
        self.now = self.now + after;
        let World { queue, engines, now, left, races, .. } = self;
        queue.poll(&Params::default(), *now, engines, |outcome| {
            let id = match outcome {
                QueueOutcome::Place(job, choice) => {
                    *races += 1;
                    if races.is_multiple_of(3) {
                        return Reserved::No;
                    }
                    assert!(job.queue_deadline > *now);
                    engines.reserve(choice, job.prompt);
                    job.id
                }
                QueueOutcome::Expired(job) => {
                    assert!(job.queue_deadline <= *now);
                    job.id
                }
                QueueOutcome::Late(job) => panic!("{job:?} is served late by default"),
                QueueOutcome::Unroutable(job, _) => job.id,
            };
            *left.entry(id.0).or_default() += 1;
            Reserved::Yes
        });
    }
}

proptest! {
    #[test]
    fn every_request_leaves_exactly_once(operations in prop::collection::vec(operation(), 0..150)) {
        let roles = [Role::Prefill, Role::Decode, Role::Mixed];
        let mut world = World {
            queue: EdfQueue::new(),
            engines: Engines::new(roles.map(idle).to_vec()),
            now: Moment::START,
            offered: 0,
            left: BTreeMap::new(),
            races: 0,
        };
        for operation in &operations {
            world.apply(operation);
            prop_assert_eq!(world.queue.len() + world.left.len(), world.offered as usize);
            let (zero, one) = (world.queue.waiting(PoolId(0)), world.queue.waiting(PoolId(1)));
            prop_assert_eq!(zero + one, world.queue.len());
        }
        world.poll(Seconds(1e6));
        prop_assert!(world.queue.is_empty() && world.queue.next_deadline().is_none());
        prop_assert_eq!(world.queue.waiting(PoolId(0)), 0);
        prop_assert_eq!(world.left.len() as u64, world.offered);
        prop_assert!(world.left.values().all(|times| *times == 1));
    }

    #[test]
    fn equal_requests_are_placed_by_deadline(
        deadlines in prop::collection::vec(1.0..100.0f64, 1..40),
        engine_count in 1usize..10,
    ) {
        let engines = Engines::new(vec![idle(Role::Mixed); engine_count]);
        let jobs = deadlines.iter().enumerate();
        let mut queue = queue(jobs.map(|(id, ttft)| due(id as u64, 4000, *ttft, 1e6)));
        let placed = poll(&mut queue, at(0.0), &engines);
        prop_assert_eq!(placed.len(), engine_count.min(deadlines.len()));
        let mut order: Vec<u64> = (0..deadlines.len() as u64).collect();
        order.sort_by(|a, b| deadlines[*a as usize].total_cmp(&deadlines[*b as usize]));
        for (left, expected) in placed.iter().zip(order) {
            prop_assert_eq!(*left, Left::Placed(expected));
        }
    }
}

#[test]
fn each_request_is_late_by_its_own_targets() {
    let engines = Engines::new(vec![prefilling(Role::Prefill, 1.0), idle(Role::Decode)]);
    engines.change(1, |load| load.prefill = Seconds(1.0));
    let with_tpot = |id, tpot: f64| {
        let mut request = due(id, 2500, 1.0, 9.0);
        request.targets.slo.tpot = Seconds(tpot);
        request
    };
    // The first decode step counts as one TPOT target: at 0.79 s request 1 can still start in time.
    let mut queue = queue([with_tpot(1, 0.001), with_tpot(2, 0.2)]);
    poll(&mut queue, at(0.0), &engines);
    free_capacity(&engines);
    let refuse = Params { late: LatePolicy::Refuse, ..Params::default() };
    let left = poll_with(&refuse, &mut queue, at(0.74), &engines);
    assert_eq!(left, [Left::Late(2), Left::Placed(1)]);
}

/// A request of batch work.
fn batch(id: u64, prompt: u64) -> PrefillRequest {
    let targets = Targets { kind: ClassKind::Batch, slo: Slo::NONE, ..Targets::default() };
    let never = Moment::NEVER;
    PrefillRequest { targets, ttft_deadline: never, queue_deadline: never, ..job(id, prompt) }
}

#[test]
fn batch_work_is_placed_behind_all_other_requests() {
    let engines = full();
    // Request 3 is late from the start, request 4 has the latest deadline.
    let jobs = [batch(1, 100), batch(2, 100), due(3, 30_000, 1.0, 90.0), due(4, 2500, 80.0, 90.0)];
    let mut queue = queue(jobs);
    assert_eq!((queue.waiting(PoolId(0)), queue.waiting_batch(PoolId(0))), (2, 2));
    assert!(queue.has_interactive());
    for next in [4, 3, 1] {
        free_capacity(&engines);
        assert_eq!(poll(&mut queue, at(2.0), &engines), [Left::Placed(next)]);
    }
    assert!(!queue.has_interactive() && !queue.is_empty());
    assert_eq!(queue.next_deadline(), Some(Moment::NEVER));
    free_capacity(&engines);
    assert_eq!(poll(&mut queue, at(2.0), &engines), [Left::Placed(2)]);
}

#[test]
fn batch_work_waits_while_another_request_has_no_capacity() {
    // The decode backend has memory for the batch request only.
    let engines = Engines::new(vec![idle(Role::Prefill), streaming(Role::Decode, 10, 1.0)]);
    engines.change(1, |load| load.kv_capacity = Tokens(30_000));
    let mut queue = queue([batch(1, 100), due(2, 25_000, 9.0, 90.0)]);
    assert_eq!(poll(&mut queue, at(0.0), &engines), []);
    queue.cancel(RequestId(2));
    assert_eq!(poll(&mut queue, at(0.0), &engines), [Left::Placed(1)]);
}
