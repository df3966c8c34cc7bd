//! The same requests on atomics and on plain cells, and what becomes of waiting requests.

use super::*;
use crate::inflight::Account;
use crate::placement::fixture::{decode_request, idle, job};
use crate::placement::{BackendLoad, FleetLoads, Params, PrefillRequest};
use crate::shared_u64::{LocalU64, SharedU64};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tidegate_types::{BackendId, Moment, PoolId, RequestId, Role, Seconds, Targets, Tokens};

/// Engines with accounts.
struct EnginesWithAccounts<W: SharedU64> {
    pool: Vec<BackendId>,
    fixed: Vec<BackendLoad>,
    accounts: Vec<Arc<Account<W>>>,
}

impl<W: SharedU64> EnginesWithAccounts<W> {
    fn new(fixed: Vec<BackendLoad>) -> EnginesWithAccounts<W> {
        EnginesWithAccounts {
            pool: (0..fixed.len()).map(|slot| BackendId(slot as u16)).collect(),
            accounts: fixed.iter().map(|_| Arc::default()).collect(),
            fixed,
        }
    }

    fn is_settled(&self) -> bool {
        self.accounts.iter().all(|account| account.balance().is_settled())
    }
}

impl<W: SharedU64> FleetLoads for EnginesWithAccounts<W> {
    fn pool(&self, _: PoolId) -> &[BackendId] {
        &self.pool
    }

    fn load(&self, on: BackendId) -> BackendLoad {
        load_of(self.fixed[on.index()], &self.accounts[on.index()], None)
    }

    fn cached(&self, _: &PrefillRequest, _: BackendId) -> Tokens {
        Tokens::ZERO
    }
}

impl<W: SharedU64> Accounts for EnginesWithAccounts<W> {
    type Counter = W;

    fn account(&self, on: BackendId) -> &Arc<Account<W>> {
        &self.accounts[on.index()]
    }

    fn predicted_hit(&self, _: &PrefillRequest, _: BackendId) -> Tokens {
        Tokens::ZERO
    }
}

fn at(seconds: f64) -> Moment {
    Moment::START + Seconds(seconds)
}

/// Sends prompts 50 ms apart to two prefill engines and a decode engine; each engine ends its
/// oldest prefill before every second arrival. Returns the order of the reservations.
fn placements<W: SharedU64 + std::fmt::Debug>(
    prompts: &[u64],
) -> Vec<(RequestId, BackendId, bool)> {
    let roles = [Role::Prefill, Role::Prefill, Role::Decode];
    let fleet: EnginesWithAccounts<W> = EnginesWithAccounts::new(roles.map(idle).to_vec());
    let (params, mut queue) = (Params::default(), DispatchQueue::with_limit(100));
    let (mut placed, mut legs) = (Vec::new(), Vec::new());
    for (n, prompt) in prompts.iter().enumerate() {
        let now = at(n as f64 * 0.05);
        let mut request = job(n as u64, *prompt);
        request.ttft_deadline = now + Seconds(1.0);
        request.arrived = now;
        queue.push(request).expect("the queue is below its limit");
        if n % 2 == 0 && !legs.is_empty() {
            legs.remove(0);
        }
        queue.pass(&params, now, &fleet, |outcome| match outcome {
            DispatchOutcome::Reserved(job, leg) => {
                placed.push((job.id, leg.on, leg.stream.is_some()));
                legs.push(leg);
            }
            other => panic!("{other:?}"),
        });
    }
    drop(legs);
    assert!(fleet.is_settled());
    placed
}

proptest! {
    #[test]
    fn atomics_and_plain_cells_give_equal_reservations(
        prompts in prop::collection::vec(1_u64..20_000, 1..60)
    ) {
        prop_assert_eq!(placements::<AtomicU64>(&prompts), placements::<LocalU64>(&prompts));
    }
}

#[test]
fn a_reservation_charges_its_backend_and_settles_when_dropped() {
    let fleet: EnginesWithAccounts<LocalU64> = EnginesWithAccounts::new(vec![idle(Role::Mixed)]);
    let PlaceResult::Reserved(placed) =
        try_place(&Params::default(), at(0.0), &job(1, 1000), &fleet)
    else {
        panic!("an idle engine takes a request");
    };
    let balance = fleet.accounts[0].balance();
    assert_eq!((balance.prefill_tokens, balance.streams), (Tokens(1000), 1));
    assert_eq!(placed.predicted.beside.streams, 0);
    assert!(placed.predicted.beside.mid_step && placed.considered.is_none());
    drop(placed);
    assert!(fleet.is_settled());
}

#[test]
fn a_prefilled_request_takes_a_full_backend_after_its_deadline_only() {
    let full = BackendLoad { streams_max: 1, ..idle(Role::Decode) };
    let fleet: EnginesWithAccounts<LocalU64> =
        EnginesWithAccounts::new(vec![idle(Role::Prefill), full]);
    let other = fleet.accounts[1].open_stream(Tokens(10), &Targets::default());
    // Only its own stream may be beside it.
    let mut queue = DispatchQueue::with_limit(1);
    let mut request = decode_request(0);
    request.excluded.insert(BackendId(0));
    queue.push_decode(WaitingDecode { request, arrived: at(0.0), deadline: at(20.0) });
    let params = Params::default();
    let fits = |load: BackendLoad| load.streams < load.streams_max;
    assert!(!fits(fleet.load(BackendId(1))));
    assert!(!queue.pass(&params, at(19.9), &fleet, |outcome| panic!("{outcome:?}")));
    let mut on = None;
    assert!(queue.pass(&params, at(20.0), &fleet, |outcome| match outcome {
        DispatchOutcome::Decoding(waiting, backend, _) => on = Some((waiting.request.id, backend)),
        other => panic!("{other:?}"),
    }));
    assert_eq!(on, Some((RequestId(1), BackendId(1))));
    assert!(queue.is_empty());
    drop(other);
    assert!(fleet.is_settled());
}

#[test]
fn a_request_is_refused_at_its_deadline_and_without_a_usable_backend() {
    let refusals = |usable: bool, now: Moment| {
        let load = BackendLoad { usable, ..idle(Role::Mixed) };
        let fleet: EnginesWithAccounts<LocalU64> = EnginesWithAccounts::new(vec![load]);
        let mut queue = DispatchQueue::with_limit(1);
        queue.push(job(1, 1000)).expect("the queue is below its limit");
        let mut refused = Vec::new();
        queue.pass(&Params::default(), now, &fleet, |outcome| match outcome {
            DispatchOutcome::Refused(id, refusal) => refused.push((id, refusal)),
            other => panic!("{other:?}"),
        });
        assert!(queue.is_empty());
        refused
    };
    let late = Refusal::QueueDeadline { waited: Seconds(30.0) };
    assert_eq!(refusals(true, at(30.0)), [(RequestId(1), late)]);
    assert_eq!(refusals(false, at(0.0)), [(RequestId(1), Refusal::NoBackend)]);
}

#[test]
fn the_next_pass_is_due_at_the_earliest_deadline() {
    let mut queue = DispatchQueue::with_limit(1);
    assert_eq!(queue.next_deadline(at(1.0)), at(1.0) + LONGEST_PAUSE);
    let waiting = WaitingDecode { request: decode_request(0), arrived: at(1.0), deadline: at(1.1) };
    queue.push_decode(waiting);
    assert_eq!(queue.next_deadline(at(1.0)), at(1.1));
    queue.cancel(RequestId(1));
    assert_eq!(queue.next_deadline(at(1.0)), at(1.0) + LONGEST_PAUSE);
}

/// Engines whose candidates are recorded, with the number of loads read.
struct Recorded(EnginesWithAccounts<LocalU64>, std::cell::Cell<usize>);

impl FleetLoads for Recorded {
    fn pool(&self, pool: PoolId) -> &[BackendId] {
        self.0.pool(pool)
    }

    fn load(&self, on: BackendId) -> BackendLoad {
        self.1.set(self.1.get() + 1);
        self.0.load(on)
    }

    fn cached(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        self.0.cached(job, on)
    }
}

impl Accounts for Recorded {
    type Counter = LocalU64;

    fn account(&self, on: BackendId) -> &Arc<Account<LocalU64>> {
        self.0.account(on)
    }

    fn predicted_hit(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        self.0.predicted_hit(job, on)
    }

    fn records_candidates(&self) -> bool {
        true
    }
}

#[test]
fn a_recorded_placement_reads_each_load_once_and_decides_the_same() {
    let roles = [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode];
    let engines = || EnginesWithAccounts::<LocalU64>::new(roles.map(idle).to_vec());
    let (plain, recorded) = (engines(), Recorded(engines(), Default::default()));
    let (params, now) = (Params::default(), at(0.0));
    let mut held = Vec::new();
    for n in 0..4 {
        let request = job(n, 3000);
        recorded.1.set(0);
        let first = try_place(&params, now, &request, &plain);
        let second = try_place(&params, now, &request, &recorded);
        let (PlaceResult::Reserved(first), PlaceResult::Reserved(second)) = (first, second) else {
            break;
        };
        assert_eq!((first.on, first.stream.is_some()), (second.on, second.stream.is_some()));
        assert_eq!(second.considered.as_ref().map(|all| all.len()), Some(roles.len()));
        assert_eq!(recorded.1.get(), roles.len());
        held.push((first, second));
    }
    assert!(held.len() >= 2, "both prefill engines take a prompt");
}
