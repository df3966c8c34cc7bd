//! Tests of the route of batch work, and of requests beside streams of other classes.

use super::*;
use tidegate_types::ClassKind;

/// A request of batch work.
fn batch(prompt: u64) -> PrefillRequest {
    let targets = Targets { kind: ClassKind::Batch, slo: Slo::NONE, ..Targets::default() };
    PrefillRequest { targets, ttft_deadline: Moment::NEVER, ..job(1, prompt) }
}

#[test]
fn batch_work_leaves_a_prefill_backend_idle_and_stalls_no_stream() {
    let goes = |prompt, loads: &[BackendLoad]| goes(&batch(prompt), &Engines::new(loads.to_vec()));
    let decode = streaming(Decode, 30, 0.05);
    assert_eq!(goes(4000, &[idle(Prefill), decode]), Disaggregated(0), "the only one");
    assert_eq!(goes(4000, &[prefilling(Prefill, 0.001), decode]), Waits(WaitReason::PrefillBusy));
    let busy = prefilling(Prefill, 0.3);
    let one_idle = [busy, idle(Prefill), decode];
    assert_eq!(goes(4000, &one_idle), Waits(WaitReason::PrefillBusy));
    let two_idle = [idle(Prefill), idle(Prefill), busy, decode];
    assert!(matches!(goes(4000, &two_idle), Disaggregated(0 | 1)));
    // No spill, whatever the slack; a mixed backend takes it if its streams have slack.
    let rested = streaming(Decode, 30, 9.0);
    assert_eq!(goes(4000, &[busy, rested]), Waits(WaitReason::PrefillBusy));
    assert_eq!(goes(4000, &[streaming(Mixed, 30, 9.0)]), Colocated(0));
    assert!(matches!(goes(4000, &[streaming(Mixed, 30, 0.0)]), Waits(_)));
    // A short prompt is colocated as usual.
    assert_eq!(goes(10, &[idle(Prefill), rested]), Colocated(1));
}

#[test]
fn batch_work_without_a_usable_backend_is_refused() {
    let engines = Engines::new(vec![dead(Prefill), dead(Decode)]);
    assert_eq!(goes(&batch(4000), &engines), Goes::Unroutable(UnroutableReason::NoneUsable));
}

#[test]
fn a_prefill_beside_lax_streams_is_judged_by_their_targets() {
    // Beside the streams the prefill takes 0.23 s in two steps.
    let engine = |tpot: f64| BackendLoad {
        tightest: TightestTargets { tpot: Some(Seconds(tpot)), itl: None },
        ..streaming(Decode, 30, 0.18)
    };
    let goes = |tpot: f64| {
        let engines = Engines::new(vec![prefilling(Prefill, 2.0), engine(tpot)]);
        goes(&job(1, 3000), &engines)
    };
    assert_eq!(goes(0.03), Waits(WaitReason::PrefillBusy));
    assert!(matches!(goes(0.1), Colocated(1) | Disaggregated(1)));
}

#[test]
fn a_stricter_class_delays_a_request_for_half_of_its_ttft_target() {
    // Between the steps of one and of two streams.
    let model = idle(Decode).decode_model;
    let alone = model.base + (model.step(1, Tokens(1000)) - model.base) * 1.5;
    let tightest = TightestTargets { tpot: Some(alone), itl: None };
    let fleet =
        Engines::new(vec![idle(Prefill), BackendLoad { tightest, ..streaming(Decode, 1, 1.0) }]);
    let after = |wait| place(&Params::default(), NOW + Seconds(wait), &job(1, 1000), &fleet);
    assert_eq!(after(0.4), RouteDecision::Wait(WaitReason::DecodeBusy));
    assert!(matches!(after(0.6), RouteDecision::Prefill { .. }));
}
