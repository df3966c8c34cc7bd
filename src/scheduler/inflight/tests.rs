//! Tests of the account under the interleavings that shuttle explores.

use crate::inflight::{Account as AnyAccount, BacklogBound, Balance};
use shuttle::sync::atomic::AtomicU64;
use shuttle::{check_random, thread};
use std::sync::Arc;
use tidegate_types::{Seconds, Targets, TightestTargets, Tokens};

/// The account on atomics whose interleavings shuttle explores.
type Account = AnyAccount<AtomicU64>;

/// A bound by time alone.
const BOUND: BacklogBound = BacklogBound { work: Seconds(0.15), tokens: Tokens(0) };
const ROUNDS: usize = 300;

fn check(test: impl Fn() + Send + Sync + 'static) {
    check_random(test, ROUNDS);
}

#[test]
fn every_charge_settles_in_any_order() {
    check(|| {
        let account = Arc::new(Account::default());
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let account = Arc::clone(&account);
                thread::spawn(move || {
                    let prefill = account.charge_prefill(Seconds(0.1), Tokens(10 + n));
                    let mut stream = account.open_stream(Tokens(10 + n), &Targets::default());
                    drop(prefill);
                    assert!(account.balance().awaiting_first_token > 0);
                    stream.emit(3);
                    stream.emit(1);
                    // A stream that ends before its first token.
                    drop(account.open_stream(Tokens(7), &Targets::default()));
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(account.balance().is_settled(), "{:?}", account.balance());
        assert_eq!(account.tightest_targets(Seconds::ZERO), TightestTargets::default());
        assert_eq!(account.balance().emitted, Tokens(12));
    });
}

#[test]
fn the_last_capacity_is_charged_once() {
    check(|| {
        let account = Arc::new(Account::default());
        let charge =
            |account: &Arc<Account>| account.try_charge_prefill(Seconds(0.2), Tokens(5), BOUND);
        let other = Arc::clone(&account);
        let other_thread = thread::spawn(move || charge(&other));
        let first = charge(&account);
        let second = other_thread.join().unwrap();
        assert!(first.is_some() != second.is_some(), "exactly one is accepted");
        drop((first, second));
        assert!(account.balance().is_settled());
    });
}

#[test]
fn streams_never_exceed_their_limit() {
    check(|| {
        let account = Arc::new(Account::default());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let account = Arc::clone(&account);
                thread::spawn(move || account.try_open_stream(Tokens(7), &Targets::default(), 2))
            })
            .collect();
        let open: Vec<_> = threads.into_iter().filter_map(|r| r.join().unwrap()).collect();
        assert_eq!(open.len(), 2);
        assert_eq!(account.balance().kv, Tokens(14));
        drop(open);
        assert!(account.balance().is_settled());
    });
}

#[test]
fn the_load_of_other_gateways_takes_capacity_and_is_not_in_the_own_balance() {
    check(|| {
        let account = Arc::new(Account::default());
        let others = Balance {
            prefill: Seconds(0.1),
            prefill_tokens: Tokens(60),
            prefill_legs: 1,
            streams: 3,
            kv: Tokens(900),
            ..Balance::default()
        };
        account.set_others(&others);
        let charge = |work| account.try_charge_prefill(Seconds(work), Tokens(50), BOUND);
        let first = charge(0.1);
        assert!(first.is_some(), "0.1 of 0.15 s are taken");
        assert!(charge(0.1).is_none(), "0.2 s are taken");
        let step = BacklogBound { tokens: Tokens(120), ..BOUND };
        assert!(account.try_charge_prefill(Seconds(0.1), Tokens(20), step).is_none());
        let stream = account.try_open_stream(Tokens(7), &Targets::default(), 4);
        assert!(
            stream.is_some()
                && account.try_open_stream(Tokens(7), &Targets::default(), 4).is_none()
        );
        assert_eq!(account.balance().streams, 1);
        assert_eq!((account.total().streams, account.total().kv), (4, Tokens(907)));
        drop((first, stream));
        assert!(account.balance().is_settled());
        assert_eq!(account.total(), others);
        account.set_others(&Balance::default());
        assert!(account.total().is_settled());
    });
}

#[test]
fn an_idle_backend_accepts_any_prompt() {
    check(|| {
        let account = Arc::new(Account::default());
        let long = account.try_charge_prefill(Seconds(60.0), Tokens(1), BOUND);
        assert!(long.is_some());
        assert!(account.try_charge_prefill(Seconds(0.0), Tokens(0), BOUND).is_none());
    });
}

#[test]
fn prompts_beyond_the_backlog_bound_fit_within_one_step() {
    check(|| {
        let account = Arc::new(Account::default());
        let step = BacklogBound { tokens: Tokens(100), ..BOUND };
        let first = account.try_charge_prefill(Seconds(1.0), Tokens(40), BOUND);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let account = Arc::clone(&account);
                thread::spawn(move || account.try_charge_prefill(Seconds(0.01), Tokens(30), step))
            })
            .collect();
        let joined: Vec<_> = threads.into_iter().filter_map(|r| r.join().unwrap()).collect();
        assert_eq!(joined.len(), 2, "40 and twice 30 tokens of 100");
        assert_eq!(account.balance().prefill_tokens, Tokens(100));
        drop((first, joined));
        assert!(account.balance().is_settled());
    });
}
