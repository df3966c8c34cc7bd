//! Where a prefilled request goes on.

use super::*;
use crate::placement::fixture::{Engines, handover, idle, prefilling, streaming};
use tidegate_types::GroupId;
use tidegate_types::Role::{Decode, Draining, Mixed, Prefill};
use tidegate_types::Tokens;

fn placed(handover: &Handover, loads: &[Load]) -> Option<u16> {
    let engines = Engines::new(loads.to_vec());
    place_decode(&Params::default(), Moment::START, handover, &engines).map(|on| on.0)
}

/// Where a request prefilled on backend 0 goes on, whatever its seed.
fn check(loads: &[Load], expected: Option<u16>) {
    for seed in 0..20 {
        assert_eq!(placed(&Handover { seed, ..handover(0) }, loads), expected, "seed {seed}");
    }
}

fn dead(load: Load) -> Load {
    Load { usable: false, ..load }
}

fn full() -> Load {
    Load { streams_max: 50, ..streaming(Decode, 50, 1.0) }
}

#[test]
fn the_decode_backend_with_the_shortest_steps_takes_it() {
    check(&[idle(Prefill), streaming(Decode, 90, 1.0), streaming(Decode, 20, 1.0)], Some(2));
}

#[test]
fn a_stream_goes_where_another_has_just_begun_so_that_the_others_can_take_prompts() {
    let rested = streaming(Decode, 40, 1.0);
    check(&[idle(Prefill), streaming(Decode, 50, 0.0), rested], Some(1));
    check(&[idle(Prefill), Load { unbegun: 1, ..streaming(Decode, 50, 1.0) }, rested], Some(1));
    // Not where it would be much slower.
    let long = Handover { expected_output: Tokens(2000), ..handover(0) };
    let crowded = [idle(Prefill), streaming(Decode, 90, 0.0), rested];
    assert_eq!(placed(&long, &crowded), Some(2));
    // Nor where the target is nearly used up, or a prompt in the way may cost it its TPOT.
    let fuller =
        |streams| [idle(Prefill), streaming(Decode, streams, 0.0), streaming(Decode, 100, 1.0)];
    check(&fuller(130), Some(1));
    check(&fuller(160), Some(2));
    let busy = Load { prefill: Seconds(0.5), unbegun: 1, ..streaming(Decode, 30, 0.0) };
    let patient = Handover { ttft_deadline: Moment::START, ..handover(0) };
    assert_eq!(placed(&patient, &[idle(Prefill), busy, rested]), Some(2));
    // Slack that no prompt may use is worth nothing.
    let engines = Engines::new(vec![idle(Prefill), streaming(Decode, 50, 0.0), rested]);
    let unshared = Params { hold_max: Seconds(-1.0), ..Params::default() };
    let on = place_decode(&unshared, Moment::START, &handover(0), &engines);
    assert_eq!(on, Some(BackendId(2)));
}

#[test]
fn one_that_is_held_up_by_a_prefill_is_passed_over() {
    let held_up = Load { prefill: Seconds(0.9), ..streaming(Decode, 10, 1.0) };
    check(&[idle(Prefill), held_up, streaming(Decode, 40, 1.0)], Some(2));
}

#[test]
fn a_short_answer_waits_for_the_end_of_a_prefill_if_its_first_token_can() {
    let held_up = |prefill| Load { prefill: Seconds(prefill), ..streaming(Decode, 10, 1.0) };
    let goes = |prefill, output| {
        let handover = Handover { expected_output: Tokens(output), ..handover(0) };
        placed(&handover, &[idle(Prefill), held_up(prefill)])
    };
    assert_eq!(goes(0.5, 10), None);
    assert_eq!(goes(0.5, 1000), Some(1), "a long one makes up for it");
    assert_eq!(goes(1.5, 10), Some(1), "no time to wait");
    assert_eq!(goes(0.0, 10), Some(1));
}

#[test]
fn it_stays_where_it_is_if_that_backend_decodes_as_well_as_another() {
    check(&[streaming(Mixed, 20, 1.0), streaming(Decode, 20, 1.0)], Some(0));
    check(&[streaming(Mixed, 150, 1.0), streaming(Decode, 20, 1.0)], Some(1));
}

#[test]
fn full_backends_make_it_wait() {
    check(&[idle(Prefill), full()], None);
    let slow = streaming(Decode, 230, 0.0);
    check(&[idle(Prefill), slow], None);
    let no_memory = Load { kv_capacity: Tokens(21_000), ..streaming(Decode, 20, 1.0) };
    check(&[idle(Prefill), no_memory], None);
}

#[test]
fn another_group_cannot_read_its_kv() {
    let other = Load { group: GroupId(1), ..idle(Decode) };
    check(&[idle(Prefill), streaming(Decode, 90, 1.0), other], Some(1));
    check(&[idle(Prefill), full(), other], None);
}

#[test]
fn if_nobody_decodes_any_more_it_stays_on_its_prefill_backend() {
    check(&[prefilling(Prefill, 0.05), dead(idle(Decode)), idle(Draining)], Some(0));
    check(&[dead(idle(Prefill)), dead(idle(Decode)), idle(Prefill)], Some(2));
    check(&[dead(idle(Prefill)), dead(idle(Decode))], None);
}

#[test]
fn one_it_failed_on_is_the_last_resort() {
    let mut failed = handover(0);
    failed.excluded.insert(BackendId(1));
    let loads = [idle(Prefill), idle(Decode), streaming(Decode, 90, 1.0)];
    assert_eq!(placed(&failed, &loads), Some(2));
    assert_eq!(placed(&failed, &[idle(Prefill), idle(Decode)]), Some(0));
    assert_eq!(placed(&failed, &[dead(idle(Prefill)), idle(Decode)]), Some(1));
    assert_eq!(placed(&failed, &[idle(Prefill), idle(Decode), full()]), None);
}
