//! Tests of the decode backend for a prefilled request.

use super::*;
use crate::cost::DecodeModel;
use crate::placement::fixture::{Engines, decode_request, idle, prefilling, streaming};
use tidegate_types::Role::{Decode, Draining, Mixed, Prefill};
use tidegate_types::Tokens;
use tidegate_types::{ClassKind, GroupId, Slo, Targets, TightestTargets};

fn placed(request: &DecodeRequest, loads: &[BackendLoad]) -> Option<u16> {
    let engines = Engines::new(loads.to_vec());
    place_decode(&Params::default(), request, &engines).map(|on| on.0)
}

/// Asserts the decode backend of a request prefilled on backend 0, for every seed.
fn check(loads: &[BackendLoad], expected: Option<u16>) {
    for seed in 0..20 {
        assert_eq!(
            placed(&DecodeRequest { seed, ..decode_request(0) }, loads),
            expected,
            "seed {seed}"
        );
    }
}

fn dead(load: BackendLoad) -> BackendLoad {
    BackendLoad { usable: false, ..load }
}

fn full() -> BackendLoad {
    BackendLoad { streams_max: 50, ..streaming(Decode, 50, 1.0) }
}

#[test]
fn the_decode_backend_with_the_shortest_steps_is_chosen() {
    check(&[idle(Prefill), streaming(Decode, 90, 1.0), streaming(Decode, 20, 1.0)], Some(2));
}

#[test]
fn new_streams_are_packed_so_that_other_backends_keep_slack() {
    let rested = streaming(Decode, 40, 1.0);
    check(&[idle(Prefill), streaming(Decode, 50, 0.0), rested], Some(1));
    check(
        &[
            idle(Prefill),
            BackendLoad { awaiting_first_token: 1, ..streaming(Decode, 50, 1.0) },
            rested,
        ],
        Some(1),
    );
    // Not onto a backend that is much slower.
    let long = DecodeRequest { expected_output: Tokens(2000), ..decode_request(0) };
    let crowded = [idle(Prefill), streaming(Decode, 90, 0.0), rested];
    assert_eq!(placed(&long, &crowded), Some(2));
    // Nor onto one close to the TPOT target.
    let fuller =
        |streams| [idle(Prefill), streaming(Decode, streams, 0.0), streaming(Decode, 100, 1.0)];
    check(&fuller(130), Some(1));
    check(&fuller(160), Some(2));
    // Slack has no value if spill is off.
    let engines = Engines::new(vec![idle(Prefill), streaming(Decode, 50, 0.0), rested]);
    let unshared = Params { spill: false, ..Params::default() };
    let on = place_decode(&unshared, &decode_request(0), &engines);
    assert_eq!(on, Some(BackendId(2)));
}

#[test]
fn a_backend_stalled_by_a_prefill_is_avoided() {
    let held_up = BackendLoad { prefill: Seconds(0.9), ..streaming(Decode, 10, 1.0) };
    check(&[idle(Prefill), held_up, streaming(Decode, 40, 1.0)], Some(2));
}

#[test]
fn a_stream_stays_on_its_prefill_backend_if_no_other_decodes_faster() {
    check(&[streaming(Mixed, 20, 1.0), streaming(Decode, 20, 1.0)], Some(0));
    check(&[streaming(Mixed, 150, 1.0), streaming(Decode, 20, 1.0)], Some(1));
}

#[test]
fn a_prefilled_request_waits_while_all_backends_are_full() {
    check(&[idle(Prefill), full()], None);
    let slow = streaming(Decode, 230, 0.0);
    check(&[idle(Prefill), slow], None);
    let no_memory = BackendLoad { kv_capacity: Tokens(21_000), ..streaming(Decode, 20, 1.0) };
    check(&[idle(Prefill), no_memory], None);
}

#[test]
fn a_hand_off_stays_in_the_compatibility_group() {
    let other = BackendLoad { group: GroupId(1), ..idle(Decode) };
    check(&[idle(Prefill), streaming(Decode, 90, 1.0), other], Some(1));
    check(&[idle(Prefill), full(), other], None);
}

#[test]
fn without_a_decode_backend_a_stream_stays_on_its_prefill_backend() {
    check(&[prefilling(Prefill, 0.05), dead(idle(Decode)), idle(Draining)], Some(0));
    check(&[dead(idle(Prefill)), dead(idle(Decode)), idle(Prefill)], Some(2));
    check(&[dead(idle(Prefill)), dead(idle(Decode))], None);
}

#[test]
fn a_backend_the_request_failed_on_is_the_last_choice() {
    let mut failed = decode_request(0);
    failed.excluded.insert(BackendId(1));
    let loads = [idle(Prefill), idle(Decode), streaming(Decode, 90, 1.0)];
    assert_eq!(placed(&failed, &loads), Some(2));
    assert_eq!(placed(&failed, &[idle(Prefill), idle(Decode)]), Some(0));
    assert_eq!(placed(&failed, &[dead(idle(Prefill)), idle(Decode)]), Some(1));
    assert_eq!(placed(&failed, &[idle(Prefill), idle(Decode), full()]), None);
}

#[test]
fn the_smallest_target_of_the_streams_limits_the_step_if_another_backend_has_capacity() {
    let engine = streaming(Decode, 100, 1.0);
    let step = engine.step_with(Tokens(1000)).get();
    let with = |own: f64, smallest: Option<f64>| {
        let tightest = TightestTargets { tpot: smallest.map(Seconds), itl: None };
        let mut request = decode_request(0);
        request.targets.slo.tpot = Seconds(own);
        let others = BackendLoad { tightest, ..engine };
        let slower = DecodeModel { base: engine.decode_model.base * 1.5, ..engine.decode_model };
        let other = BackendLoad { decode_model: slower, ..streaming(Decode, 1, 1.0) };
        let alone = placed(&request, &[idle(Prefill), others]);
        (alone, placed(&request, &[idle(Prefill), others, other]))
    };
    assert_eq!(with(step + 0.001, Some(step + 0.001)), (Some(1), Some(1)));
    assert_eq!(with(1.0, Some(step - 0.001)), (Some(1), Some(2)), "a stream would miss its target");
    assert_eq!(
        with(0.001, Some(step + 0.001)),
        (Some(1), Some(1)),
        "no stream can meet its target"
    );
}

#[test]
fn batch_streams_leave_half_of_the_step_and_of_the_memory() {
    let batch = Targets { kind: ClassKind::Batch, slo: Slo::NONE, ..Targets::default() };
    let request = DecodeRequest { targets: batch, ..decode_request(0) };
    let place = |load: BackendLoad| placed(&request, &[idle(Prefill), load]);
    // With the default target of 30 ms, half of the 15 ms above the fixed cost is full at 105 streams.
    assert_eq!(place(streaming(Decode, 90, 1.0)), Some(1));
    assert_eq!(place(streaming(Decode, 110, 1.0)), None);
    let memory = |kv| BackendLoad { kv: Tokens(kv), ..streaming(Decode, 10, 1.0) };
    assert_eq!(place(memory(200_000)), Some(1));
    assert_eq!(place(memory(220_000)), None);
    let strict = Params { class_tpot: Seconds(0.02), ..Params::default() };
    let engines = Engines::new(vec![idle(Prefill), streaming(Decode, 50, 1.0)]);
    assert_eq!(place_decode(&Params::default(), &request, &engines), Some(BackendId(1)));
    assert_eq!(place_decode(&strict, &request, &engines), None);
}
