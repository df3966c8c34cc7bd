//! Tests of the route of one request.

use super::*;
use crate::placement::fixture::{Engines, idle, job, prefilling, streaming};
use proptest::prelude::*;
use tidegate_types::Role::{Decode, Draining, Mixed, Prefill};
use tidegate_types::{Slo, Targets, TightestTargets};

const NOW: Moment = Moment::START;

#[derive(Debug, PartialEq)]
enum Goes {
    Disaggregated(u16),
    Colocated(u16),
    Waits(WaitReason),
    Unroutable(UnroutableReason),
}
use Goes::{Colocated, Disaggregated, Waits};

fn goes(job: &PrefillRequest, engines: &Engines) -> Goes {
    match place(&Params::default(), NOW, job, engines) {
        RouteDecision::Prefill { on, .. } => Goes::Disaggregated(on.0),
        RouteDecision::Colocated { on, .. } => Goes::Colocated(on.0),
        RouteDecision::Wait(reason) => Goes::Waits(reason),
        RouteDecision::Unroutable(reason) => Goes::Unroutable(reason),
    }
}

/// Asserts the route of a request of `prompt` tokens, for every seed.
fn check(prompt: u64, loads: &[BackendLoad], expected: Goes) {
    for id in 1..20 {
        assert_eq!(goes(&job(id, prompt), &Engines::new(loads.to_vec())), expected, "id {id}");
    }
}

fn colocated_only(prompt: u64) -> PrefillRequest {
    PrefillRequest { disaggregation: Disaggregation::Never, ..job(1, prompt) }
}

/// A backend without decode capacity: its steps are longer than the TPOT target.
fn full(role: Role) -> BackendLoad {
    streaming(role, 230, 0.0)
}

fn dead(role: Role) -> BackendLoad {
    BackendLoad { usable: false, ..idle(role) }
}

#[test]
fn a_long_prompt_is_disaggregated_if_the_decode_backend_has_no_slack() {
    check(4000, &[idle(Prefill), streaming(Decode, 30, 0.05)], Disaggregated(0));
}

#[test]
fn engines_without_colocation_receive_disaggregated_requests_only() {
    let pair = |load: BackendLoad| BackendLoad { colocates: false, ..load };
    let fleet = [pair(idle(Prefill)), pair(idle(Decode))];
    check(10, &fleet, Disaggregated(0));
    assert_eq!(goes(&colocated_only(4000), &Engines::new(fleet.to_vec())), Disaggregated(0));
    // Without a backend for the decode leg there is no route.
    let alone = [pair(idle(Decode)), pair(dead(Prefill))];
    check(4000, &alone, Goes::Unroutable(UnroutableReason::Unpaired));
}

#[test]
fn a_prompt_spills_to_a_decode_backend_whose_slack_covers_the_stall() {
    // The prefill backend is busy, and 1000 tokens stall the streams for about 50 ms.
    let busy = prefilling(Prefill, 0.5);
    check(1000, &[busy, streaming(Decode, 30, 0.08)], Colocated(1));
    // One TPOT of slack is reserved for the step in progress.
    check(1000, &[busy, streaming(Decode, 30, 0.06)], Waits(WaitReason::PrefillBusy));
    check(1000, &[busy, streaming(Decode, 30, 0.04)], Waits(WaitReason::PrefillBusy));
    check(1000, &[busy, streaming(Decode, 30, -0.01)], Waits(WaitReason::PrefillBusy));
}

#[test]
fn slack_is_not_used_if_a_prefill_backend_is_idle() {
    check(1000, &[idle(Prefill), streaming(Decode, 30, 0.5)], Disaggregated(0));
}

#[test]
fn an_idle_decode_backend_takes_no_prompt_if_a_prefill_backend_is_in_time() {
    check(4000, &[idle(Prefill), idle(Decode)], Disaggregated(0));
    check(4000, &[prefilling(Prefill, 0.5), idle(Decode)], Colocated(1));
    // With the hand-off the first token would be late.
    check(11_500, &[streaming(Prefill, 1, 0.5), idle(Decode)], Colocated(1));
}

#[test]
fn a_request_that_misses_its_ttft_leaves_a_prefill_backend_idle() {
    let (decode, busy) = (streaming(Decode, 30, 0.0), prefilling(Prefill, 0.5));
    let late = Moment::START + Seconds(2.0);
    let at = |now, loads: &[BackendLoad]| match place(
        &Params::default(),
        now,
        &job(1, 4000),
        &Engines::new(loads.to_vec()),
    ) {
        RouteDecision::Wait(reason) => Waits(reason),
        RouteDecision::Prefill { on, .. } => Disaggregated(on.0),
        other => panic!("{other:?}"),
    };
    assert_eq!(at(late, &[busy, idle(Prefill), decode]), Waits(WaitReason::PrefillBusy));
    assert!(matches!(at(late, &[idle(Prefill), idle(Prefill), decode]), Disaggregated(_)));
    assert_eq!(at(late, &[idle(Prefill), decode]), Disaggregated(0), "the only prefill backend");
    let patient = Moment::START + Seconds(16.0);
    assert_eq!(
        at(patient, &[busy, idle(Prefill), decode]),
        Disaggregated(1),
        "its patience is over"
    );
}

#[test]
fn a_spilled_prompt_decodes_on_another_backend_if_possible() {
    let (busy, decode) = (prefilling(Prefill, 0.5), streaming(Decode, 30, 0.08));
    let tight = streaming(Decode, 30, 0.0);
    check(1000, &[busy, decode], Colocated(1));
    check(1000, &[busy, decode, tight], Disaggregated(1));
    check(1000, &[busy, decode, full(Decode)], Colocated(1));
    check(1000, &[busy, BackendLoad { can_hand_off: false, ..decode }, tight], Colocated(1));
    check(1000, &[busy, decode, BackendLoad { group: GroupId(1), ..tight }], Colocated(1));
    // A prompt that fits into a step causes no stall.
    check(200, &[busy, streaming(Decode, 30, 0.0)], Colocated(1));
    let engines = Engines::new(vec![busy, decode, tight]);
    assert_eq!(goes(&colocated_only(1000), &engines), Colocated(1));
    // With a hand-off and another step the first token would be late.
    let soon = PrefillRequest { ttft_deadline: NOW + Seconds(0.1), ..job(1, 1000) };
    assert_eq!(goes(&soon, &engines), Colocated(1));
}

#[test]
fn a_stream_without_a_first_token_has_no_slack() {
    let busy = prefilling(Prefill, 0.5);
    let coming = BackendLoad { awaiting_first_token: 1, ..streaming(Decode, 30, 1.0) };
    check(1000, &[busy, coming], Waits(WaitReason::PrefillBusy));
    check(60, &[busy, coming], Colocated(1));
}

#[test]
fn a_decode_backend_takes_no_prefill_that_stalls_longer_than_the_ttft_target() {
    let busy = prefilling(Prefill, 0.5);
    check(30_000, &[busy, streaming(Decode, 30, 100.0)], Waits(WaitReason::PrefillBusy));
}

#[test]
fn a_decode_backend_takes_no_prefill_whose_longest_step_exceeds_the_itl_target() {
    // Beside the streams, the longest step takes .15 s with 3,000 tokens and .07 s with 900.
    let on = |itl: Option<f64>, prompt| {
        let tightest = TightestTargets { tpot: Some(Seconds(0.03)), itl: itl.map(Seconds) };
        let decode = BackendLoad { tightest, ..streaming(Decode, 20, 5.0) };
        let fleet = Engines::new(vec![prefilling(Prefill, 0.5), decode]);
        place(&Params::default(), NOW, &job(1, prompt), &fleet)
    };
    let runs = |choice| matches!(choice, RouteDecision::Colocated { on: BackendId(1), .. });
    for (itl, prompt, expected) in [
        (None, 3000, true),
        (Some(0.3), 3000, true),
        (Some(0.1), 3000, false),
        (Some(0.1), 900, true),
        (Some(0.05), 900, false),
    ] {
        assert_eq!(runs(on(itl, prompt)), expected, "{itl:?} {prompt}");
    }
}

#[test]
fn a_prompt_whose_step_stays_within_the_target_needs_no_slack() {
    check(60, &[prefilling(Prefill, 0.5), streaming(Decode, 30, 0.0)], Colocated(1));
}

#[test]
fn smaller_chunks_cause_shorter_stalls() {
    // Four steps of 45 ms instead of one of 150: three more tokens for every stream.
    let engines = Engines::new(vec![prefilling(Prefill, 0.5), streaming(Decode, 30, 0.08)]);
    let small = Params { chunk: Tokens(512), ..Params::default() };
    let on = |params: &Params| place(params, NOW, &job(1, 1800), &engines);
    assert_eq!(on(&Params::default()), RouteDecision::Wait(WaitReason::PrefillBusy));
    assert!(matches!(on(&small), RouteDecision::Colocated { on: BackendId(1), .. }));
}

#[test]
fn short_prompts_fill_a_step_beyond_the_backlog_bound() {
    // Outstanding tokens on an engine that takes half a second for them.
    let slow = |tokens| BackendLoad { prefill_tokens: Tokens(tokens), ..prefilling(Mixed, 0.5) };
    check(30, &[slow(1000)], Colocated(0));
    check(30, &[slow(2018)], Colocated(0));
    check(30, &[slow(2019)], Waits(WaitReason::PrefillBusy));
    check(400, &[slow(1000)], Waits(WaitReason::PrefillBusy));
}

#[test]
fn short_prompts_are_admitted_until_they_fill_a_step() {
    let engines = Engines::new(vec![BackendLoad { streams_max: 1000, ..idle(Mixed) }]);
    let admitted = (0..500).take_while(|id| {
        let job = job(*id, 30);
        let choice = place(&Params::default(), NOW, &job, &engines);
        let placed = matches!(choice, RouteDecision::Colocated { .. });
        if placed {
            engines.reserve(choice, job.prompt);
            // The answers are short, so that only the prefill limits admission.
            engines.change(0, |load| (load.streams, load.kv) = (0, Tokens(0)));
        }
        placed
    });
    assert_eq!(admitted.count(), 2048 / 30);
}

#[test]
fn a_short_prompt_is_colocated() {
    check(60, &[idle(Prefill), streaming(Decode, 100, 0.0)], Colocated(1));
    check(60, &[idle(Prefill), full(Decode)], Colocated(0));
}

#[test]
fn a_request_that_must_be_colocated_runs_on_a_prefill_backend_without_decode_slack() {
    let loads = [idle(Prefill), streaming(Decode, 100, 0.0)];
    assert_eq!(goes(&colocated_only(4000), &Engines::new(loads.to_vec())), Colocated(0));
    let loads = [idle(Prefill), streaming(Decode, 100, 0.9)];
    assert_eq!(goes(&colocated_only(4000), &Engines::new(loads.to_vec())), Colocated(1));
}

#[test]
fn the_decode_headroom_is_a_share_of_the_target_above_the_fixed_step_cost() {
    // The weights take 15.1 ms of a target of 16 ms; nine tenths of the rest remain, at 71 µs a
    // stream.
    let slo = Slo { tpot: Seconds(0.016), ..Slo::default() };
    let tight = PrefillRequest { targets: Targets::of_default_class(slo), ..job(1, 1000) };
    let goes = |streams| {
        let engines = Engines::new(vec![idle(Prefill), streaming(Decode, streams, 0.0)]);
        place(&Params::default(), NOW, &tight, &engines)
    };
    assert!(matches!(goes(10), RouteDecision::Prefill { .. }));
    assert_eq!(goes(11), RouteDecision::Wait(WaitReason::DecodeBusy));
}

#[test]
fn no_prefill_starts_without_decode_capacity() {
    check(4000, &[idle(Prefill), full(Decode)], Waits(WaitReason::DecodeBusy));
    let most = BackendLoad { streams_max: 30, ..streaming(Decode, 30, 0.0) };
    check(4000, &[idle(Prefill), most], Waits(WaitReason::DecodeBusy));
    let no_memory = BackendLoad { kv_capacity: Tokens(34_000), ..streaming(Decode, 30, 0.0) };
    check(4000, &[idle(Prefill), no_memory], Waits(WaitReason::DecodeBusy));
}

#[test]
fn decode_capacity_in_another_group_does_not_count() {
    let elsewhere = BackendLoad { group: GroupId(1), ..streaming(Decode, 1, 0.0) };
    let busy = BackendLoad { group: GroupId(1), ..prefilling(Prefill, 0.5) };
    check(4000, &[idle(Prefill), full(Decode), busy, elsewhere], Waits(WaitReason::DecodeBusy));
}

#[test]
fn an_idle_backend_takes_a_prompt_of_any_size_and_a_busy_one_takes_none() {
    check(100_000, &[idle(Prefill), streaming(Decode, 5, 0.0)], Disaggregated(0));
    let busy = prefilling(Prefill, 0.16);
    check(1000, &[busy, streaming(Decode, 5, -1.0)], Waits(WaitReason::PrefillBusy));
}

#[test]
fn the_least_loaded_of_equal_backends_is_chosen() {
    let decode = streaming(Decode, 30, 0.0);
    check(4000, &[prefilling(Prefill, 0.04), idle(Prefill), decode], Disaggregated(1));
    check(4000, &[streaming(Mixed, 50, 1.0), streaming(Mixed, 5, 1.0)], Colocated(1));
}

#[test]
fn a_backend_that_keeps_the_ttft_deadline_comes_before_a_faster_one() {
    // The faster decode engine would start the prefill too late.
    let slow = BackendLoad {
        decode_model: crate::cost::DecodeModel {
            base: Seconds(0.020),
            ..crate::placement::fixture::DECODE
        },
        ..idle(Mixed)
    };
    let quick = BackendLoad {
        prefill_model: crate::cost::PrefillModel {
            per_token: Seconds(300e-6),
            ..crate::placement::fixture::PREFILL
        },
        ..idle(Mixed)
    };
    let long_answer = PrefillRequest { expected_output: Tokens(1000), ..job(1, 4000) };
    assert_eq!(goes(&long_answer, &Engines::new(vec![slow, quick])), Colocated(0));
    let patient = PrefillRequest { ttft_deadline: NOW + Seconds(5.0), ..long_answer };
    assert_eq!(goes(&patient, &Engines::new(vec![slow, quick])), Colocated(1));
}

#[test]
fn a_prefix_cache_hit_outweighs_a_small_backlog() {
    let decode = streaming(Decode, 30, 0.0);
    let loads = vec![idle(Prefill), prefilling(Prefill, 0.04), decode];
    let engines = Engines::new(loads).caching(&[(1, 5500)]);
    let RouteDecision::Prefill { on, predicted, cached } =
        place(&Params::default(), NOW, &job(1, 8000), &engines)
    else {
        panic!("a long prompt on an idle fleet is disaggregated");
    };
    assert_eq!((on, cached), (BackendId(1), Tokens(5500)));
    assert!(predicted < Seconds(0.22));
}

#[test]
fn a_prefill_backend_that_holds_most_of_the_prefix_also_decodes_the_request() {
    let of = |holder: BackendLoad, cached: u32| {
        let loads = vec![idle(Prefill), holder, streaming(Decode, 30, 0.0)];
        goes(&job(1, 8000), &Engines::new(loads).caching(&[(1, cached)]))
    };
    assert_eq!(of(idle(Prefill), 7500), Colocated(1), "a hand-off would copy 7500 cached tokens");
    assert_eq!(of(idle(Prefill), 3000), Disaggregated(1), "most of the KV is new anyway");
    let split_only = BackendLoad { colocates: false, ..idle(Prefill) };
    assert_eq!(of(split_only, 7500), Disaggregated(1), "the engine takes no colocated requests");
    assert_eq!(of(streaming(Prefill, 8, 0.0), 7500), Disaggregated(1), "its streams lack slack");
}

#[test]
fn a_decode_backend_that_holds_most_of_the_prefix_is_used_without_slack() {
    let of = |backlog: f64, cached: u32| {
        let holder = BackendLoad { streams: 3, ..prefilling(Decode, backlog) };
        let loads = vec![idle(Prefill), BackendLoad { slack: Seconds::ZERO, ..holder }];
        goes(&job(1, 20_000), &Engines::new(loads).caching(&[(1, cached)]))
    };
    assert_eq!(of(0.0, 19_000), Colocated(1), "the other prefill takes over four times the work");
    assert_eq!(of(0.0, 5_000), Disaggregated(0), "the stall costs more than the prefill elsewhere");
    assert_eq!(of(0.3, 19_000), Waits(WaitReason::DecodeBusy), "it waits for the holder's backlog");
}

#[test]
fn a_request_waits_for_the_busy_backend_that_holds_its_prefix() {
    let decode = streaming(Decode, 30, 0.0);
    let of = |backlog: f64, cached: u32| {
        let loads = vec![idle(Prefill), prefilling(Prefill, backlog), decode];
        goes(&job(1, 8000), &Engines::new(loads).caching(&[(1, cached)]))
    };
    assert_eq!(of(0.3, 7500), Waits(WaitReason::DecodeBusy), "it saves 15 of 16 tokens, in time");
    assert_eq!(of(0.3, 2000), Disaggregated(0), "a quarter of the prompt is not worth a wait");
    assert_eq!(of(1.2, 7500), Disaggregated(0), "the wait would miss the TTFT deadline");
}

#[test]
fn draining_and_dead_backends_are_never_chosen() {
    check(4000, &[dead(Prefill), dead(Decode)], Goes::Unroutable(UnroutableReason::NoneUsable));
    check(4000, &[idle(Draining)], Goes::Unroutable(UnroutableReason::AllDraining));
    check(4000, &[], Goes::Unroutable(UnroutableReason::EmptyPool));
    check(4000, &[dead(Mixed), idle(Draining), streaming(Mixed, 90, 0.0)], Colocated(2));
}

#[test]
fn a_group_that_lost_one_role_serves_colocated_requests() {
    check(4000, &[idle(Prefill), dead(Decode)], Colocated(0));
    check(4000, &[dead(Prefill), streaming(Decode, 30, 0.0)], Colocated(1));
    check(4000, &[dead(Prefill), full(Decode)], Waits(WaitReason::DecodeBusy));
    let busy = BackendLoad { prefill: Seconds(0.2), ..streaming(Decode, 30, 0.0) };
    check(4000, &[dead(Prefill), busy], Waits(WaitReason::PrefillBusy));
}

#[test]
fn a_backend_the_request_failed_on_is_used_only_if_no_other_is_left() {
    let failed_on = |slot: u16| {
        let mut job = job(1, 4000);
        job.excluded.insert(BackendId(slot));
        job
    };
    let decode = streaming(Decode, 30, 0.0);
    let loads = vec![idle(Prefill), prefilling(Prefill, 0.04), decode];
    assert_eq!(goes(&failed_on(0), &Engines::new(loads)), Disaggregated(1));
    assert_eq!(goes(&failed_on(0), &Engines::new(vec![idle(Prefill), decode])), Colocated(1));
    assert_eq!(goes(&failed_on(0), &Engines::new(vec![idle(Mixed)])), Colocated(0));
}

#[test]
fn a_tpot_target_that_no_engine_can_meet_does_not_limit_streams() {
    let strict = Params {
        slo: tidegate_types::Slo { tpot: Seconds(0.001), ..Params::default().slo },
        ..Params::default()
    };
    let engines = Engines::new(vec![streaming(Mixed, 30, -1.0)]);
    let choice = place(&strict, NOW, &job(1, 500), &engines);
    assert!(matches!(choice, RouteDecision::Colocated { .. }), "{choice:?}");
}

#[test]
fn in_a_large_pool_the_only_free_backend_and_the_prefix_holder_are_found() {
    let mut loads = vec![full(Mixed); 1000];
    loads[731] = streaming(Mixed, 3, 1.0);
    check(4000, &loads, Colocated(731));
    let engines = Engines::new(vec![streaming(Mixed, 3, 1.0); 1000]).caching(&[(731, 3500)]);
    for id in 1..20 {
        assert_eq!(goes(&job(id, 4000), &engines), Colocated(731));
    }
}

#[test]
fn in_a_large_pool_equal_backends_share_the_load() {
    let engines = Engines::new(vec![idle(Mixed); 500]);
    let mut taken = vec![0u32; 500];
    for id in 0..5000 {
        match goes(&job(id, 1000), &engines) {
            Colocated(on) => taken[usize::from(on)] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(taken.iter().all(|count| *count < 40), "{taken:?}");
}

fn any_load() -> impl Strategy<Value = BackendLoad> {
    let role = prop::sample::select(&Role::ALL[..]);
    let often = || prop::bool::weighted(0.8);
    (role, often(), often(), 0u16..3, 0.0..0.3f64, 0u32..300, -0.5..2.0f64).prop_map(
        |(role, usable, can_hand_off, group, prefill, streams, slack)| BackendLoad {
            usable,
            can_hand_off,
            group: GroupId(group),
            prefill: Seconds(if prefill < 0.1 { 0.0 } else { prefill - 0.1 }),
            prefill_tokens: Tokens((f64::max(prefill - 0.1, 0.0) / 72e-6) as u64),
            ..streaming(role, streams, slack)
        },
    )
}

proptest! {
    #[test]
    fn the_chosen_backend_is_open_and_has_capacity(
        loads in prop::collection::vec(any_load(), 0..90),
        prompt in 1u64..40_000,
        never: bool,
        patient: bool,
        failed in 0u16..90,
        seed: u64,
    ) {
        let trunk_reservation_share = if patient { 0.5 } else { 0.0 };
        let params = Params { trunk_reservation_share, ..Params::default() };
        let disaggregation = if never { Disaggregation::Never } else { Disaggregation::Allowed };
        let mut job = PrefillRequest { disaggregation, seed, ..job(1, prompt) };
        job.excluded.insert(BackendId(failed));
        let engines = Engines::new(loads.clone());
        let open = |load: &BackendLoad| load.usable && load.role != Draining;
        let has_capacity = |load: &BackendLoad| load.has_prefill_capacity(params.prefill_backlog_max)
            || load.prefill_tokens + Tokens(prompt) <= params.step_tokens_max(Tokens(prompt));
        match place(&params, NOW, &job, &engines) {
            RouteDecision::Prefill { on, .. } => {
                let chosen = loads[on.index()];
                // A backend may prefill against its role if its engine allows a hand-off from that role.
                prop_assert!(chosen.role.takes_prefill() || chosen.can_hand_off);
                prop_assert!(open(&chosen) && has_capacity(&chosen) && !never);
                let taker = |(slot, load): (usize, &BackendLoad)| open(load)
                    && slot != on.index() && load.group == chosen.group && load.role.takes_decode();
                prop_assert!(loads.iter().enumerate().any(taker));
            }
            RouteDecision::Colocated { on, .. } => {
                let chosen = loads[on.index()];
                prop_assert!(open(&chosen) && has_capacity(&chosen));
                prop_assert!(chosen.streams < chosen.streams_max);
            }
            RouteDecision::Wait(_) => {
                let idle = |load: &BackendLoad| load.role == Mixed && load.streams == 0
                    && load.prefill == Seconds::ZERO && load.usable;
                let others = loads.iter().enumerate().filter(|(slot, _)| *slot as u16 != failed);
                // A request that misses its TTFT everywhere may wait (trunk reservation).
                let free = others.map(|(_, load)| load).any(idle);
                prop_assert!(patient || !free, "an idle backend was free");
            }
            RouteDecision::Unroutable(_) => prop_assert!(!loads.iter().any(open)),
        }
    }
}

#[path = "class_tests.rs"]
mod classes;
