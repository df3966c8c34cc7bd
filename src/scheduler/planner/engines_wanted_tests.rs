//! Pool sizes derived from the counterfactual model.

use super::*;
use crate::planner::tests::backend;
use tidegate_types::{Role, RoleSet};

/// Runs `seconds` of even demand in planner ticks of 50 ms on `engines`.
fn wanted(engines: u16, seconds: u32, demand: GroupDemand) -> EnginesWanted {
    let mut model = EnginesWanted::default();
    run(&mut model, Moment(1_000_000_000), engines, seconds, demand);
    model
}

fn run(
    model: &mut EnginesWanted,
    from: Moment,
    engines: u16,
    seconds: u32,
    demand: GroupDemand,
) -> Moment {
    let backends = (0..engines)
        .map(|slot| {
            let role = if slot < engines / 2 { Role::Prefill } else { Role::Decode };
            BackendObservation { role, ..backend(slot) }
        })
        .collect();
    let seen = Observation { backends, groups: vec![demand] };
    let mut now = from;
    for _ in 0..seconds * 20 {
        model.follow(&Params::default(), now, &seen);
        now = now + Seconds(0.05);
    }
    now
}

/// Demand of one planner tick: prefill work for `prefill` engines, and `rate` requests a second.
fn demand(rate: f64, prefill: f64, output: f64) -> GroupDemand {
    GroupDemand {
        arrived_requests: rate * 0.05,
        arrived_prefill: Seconds(prefill * 0.05),
        arrived_output: rate * output * 0.05,
        arrived_kv: rate * (1000.0 + output / 2.0) * 0.05,
        ..GroupDemand::none(GroupId(0))
    }
}

fn of(model: &EnginesWanted) -> usize {
    model.of(GroupId(0)).unwrap()
}

#[test]
fn twice_the_demand_needs_twice_the_engines() {
    let one = of(&wanted(8, 120, demand(20.0, 3.8, 500.0)));
    let two = of(&wanted(8, 120, demand(40.0, 7.6, 500.0)));
    assert!((5..=8).contains(&one), "{one}");
    assert!(two.abs_diff(2 * one) <= 1, "{one} {two}");
    // The result is independent of the actual fleet of equal engines.
    assert_eq!(of(&wanted(4, 120, demand(20.0, 3.8, 500.0))), one);
}

#[test]
fn the_result_is_at_least_the_minimum() {
    assert_eq!(of(&wanted(8, 30, demand(0.0, 0.0, 0.0))), 1);
    let mut model = EnginesWanted::default();
    let roles = RoleSet::EMPTY.with(Role::Prefill).with(Role::Decode);
    let backends = (0..4)
        .map(|slot| BackendObservation { allowed: roles, colocates: false, ..backend(slot) })
        .collect();
    let seen = Observation { backends, groups: vec![demand(0.1, 0.01, 100.0)] };
    for tick in 0..100 {
        model.follow(&Params::default(), Moment::START + Seconds(f64::from(tick) * 0.05), &seen);
    }
    assert_eq!(of(&model), 2);
}

#[test]
fn a_peak_counts_for_one_window() {
    let mut model = EnginesWanted::default();
    let low = demand(4.0, 0.4, 500.0);
    let now = run(&mut model, Moment(1_000_000_000), 8, 60, low);
    let before = of(&model);
    let now = run(&mut model, now, 8, 30, demand(40.0, 7.6, 500.0));
    let peak = of(&model);
    assert!(peak > 2 * before, "{before} {peak}");
    let now = run(&mut model, now, 8, 100, low);
    assert_eq!(of(&model), peak);
    run(&mut model, now, 8, 400, low);
    assert_eq!(of(&model), before);
}

#[test]
fn long_answers_need_decode_engines() {
    let short = of(&wanted(8, 200, demand(20.0, 1.0, 100.0)));
    let long = of(&wanted(8, 200, demand(20.0, 1.0, 2000.0)));
    assert!(long > short + 2, "{short} {long}");
}

#[test]
fn prefill_and_decode_time_of_mixed_engines_add_up() {
    let mixed = RoleSet::EMPTY.with(Role::Mixed);
    let wanted = |prefill: f64| {
        let backends = (0..2).map(|slot| BackendObservation { allowed: mixed, ..backend(slot) });
        let groups = vec![demand(1.0, prefill, 10.0)];
        let seen = Observation { backends: backends.collect(), groups };
        let mut model = EnginesWanted::default();
        for tick in 0..400 {
            let now = Moment::START + Seconds(f64::from(tick) * 0.05);
            model.follow(&Params::default(), now, &seen);
        }
        of(&model)
    };
    assert_eq!((wanted(0.5), wanted(1.5), wanted(3.5)), (1, 2, 4));
}

#[test]
fn large_fleets_are_modelled_in_strides() {
    assert_eq!(strides(5, 48).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let sizes: Vec<_> = strides(1000, 48).collect();
    assert!(sizes.len() <= 48 && sizes.last() == Some(&1000), "{sizes:?}");
}
