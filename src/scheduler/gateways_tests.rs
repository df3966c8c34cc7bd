//! Tests of the sums over gateways.

use super::*;

fn at(seconds: f64) -> Moment {
    Moment::START + Seconds(seconds)
}

fn load(streams: u32, slack_nanos: Option<i64>) -> GatewayLoad {
    GatewayLoad {
        prefill_nanos: u64::from(streams) * 10,
        streams,
        kv_tokens: u64::from(streams) * 100,
        slack_nanos,
        ..GatewayLoad::default()
    }
}

fn report(loads: &[(&str, GatewayLoad)], requests: u64) -> GatewayReport {
    let arrived = ModelArrivals { model: "m".into(), requests, ..ModelArrivals::default() };
    GatewayReport {
        loads: loads.iter().map(|(name, load)| ((*name).to_owned(), *load)).collect(),
        arrivals: (requests > 0).then_some(arrived).into_iter().collect(),
    }
}

fn share_of<'a>(shares: &'a [Share], to: &str) -> &'a Share {
    shares.iter().find(|share| share.to == to).unwrap()
}

#[test]
fn each_gateway_gets_the_sum_and_the_smallest_slack_of_the_others() {
    let mut ledger = Ledger::default();
    ledger.report("a", report(&[("x", load(1, Some(30))), ("y", load(5, None))], 0), at(0.0));
    ledger.report("b", report(&[("x", load(2, Some(10)))], 0), at(0.0));
    ledger.report("c", report(&[("x", load(4, Some(20)))], 0), at(0.0));
    let shares = ledger.shares(at(0.1), |_| true);
    for (to, streams, slack) in [("a", 6, 10), ("b", 5, 20), ("c", 3, 10)] {
        let share = share_of(&shares, to);
        assert_eq!((share.gateways, share.others.loads["x"]), (2, load(streams, Some(slack))));
    }
    assert!(!share_of(&shares, "a").others.loads.contains_key("y"), "its own alone");
    assert_eq!(share_of(&shares, "b").others.loads["y"], load(5, None));
}

#[test]
fn a_report_replaces_the_one_before_and_a_silent_gateway_leaves_the_sum() {
    let mut ledger = Ledger::default();
    ledger.report("a", report(&[("x", load(7, None))], 0), at(0.0));
    ledger.report("b", report(&[("x", load(1, None))], 0), at(0.0));
    ledger.report("a", report(&[("x", load(3, None))], 0), at(0.5));
    ledger.report("b", report(&[("x", load(1, None))], 0), at(1.4));
    let shares = ledger.shares(at(1.4), |_| true);
    assert_eq!(share_of(&shares, "b").others.loads["x"].streams, 3);
    let shares = ledger.shares(at(1.51), |_| true);
    assert_eq!(shares.len(), 1, "a has been silent for more than a second");
    assert_eq!((shares[0].gateways, shares[0].others.clone()), (0, GatewayReport::default()));
}

#[test]
fn arrivals_reach_every_other_gateway_once_also_one_that_takes_no_share_for_a_while() {
    let mut ledger = Ledger::default();
    for name in ["a", "b", "c"] {
        ledger.report(name, GatewayReport::default(), at(0.0));
    }
    let (mut got_b, mut got_c) = (0, 0);
    for round in 1..=10 {
        ledger.report("a", report(&[], 3), at(0.0));
        let shares = ledger.shares(at(0.0), |name| name != "c" || round % 5 == 0);
        assert!(share_of(&shares, "a").others.arrivals.is_empty(), "its own");
        let count = |share: &Share| share.others.arrivals.iter().map(|a| a.requests).sum::<u64>();
        got_b += count(share_of(&shares, "b"));
        got_c += shares.iter().find(|share| share.to == "c").map_or(0, count);
    }
    assert_eq!((got_b, got_c), (30, 30));
}

#[test]
fn a_report_with_an_impossible_number_is_refused() {
    let good = load(7, Some(1));
    let arrived = ModelArrivals { model: "m".into(), requests: 3, ..ModelArrivals::default() };
    let with = |load: GatewayLoad, arrived: ModelArrivals| GatewayReport {
        loads: [("x".to_owned(), load)].into(),
        arrivals: vec![arrived],
    };
    assert!(with(good, arrived.clone()).checked(1).is_ok());
    let (big, many) = (u64::MAX, u32::MAX);
    let wrong_loads = [
        GatewayLoad { prefill_nanos: big, ..good },
        GatewayLoad { prefill_tokens: big, ..good },
        GatewayLoad { prefill_legs: many, ..good },
        GatewayLoad { streams: many, ..good },
        GatewayLoad { awaiting_first_token: many, ..good },
        GatewayLoad { kv_tokens: big, ..good },
    ];
    let wrong_arrivals = [
        ModelArrivals { requests: big, ..arrived.clone() },
        ModelArrivals { prefill_nanos: big, ..arrived.clone() },
        ModelArrivals { prompt_tokens: big, ..arrived.clone() },
        ModelArrivals { output_tokens: big, ..arrived.clone() },
    ];
    let loads = wrong_loads.map(|load| with(load, arrived.clone()));
    let arrivals = wrong_arrivals.map(|arrived| with(good, arrived));
    for report in loads.into_iter().chain(arrivals) {
        assert!(matches!(report.clone().checked(1), Err(Implausible::Number { .. })), "{report:?}");
        assert!(report.checked(GATEWAYS_MAX).is_err(), "nor of many gateways");
    }
    let crowd =
        GatewayReport { arrivals: vec![arrived; MODELS_MAX + 1], ..GatewayReport::default() };
    assert_eq!(crowd.checked(1), Err(Implausible::Entries("arrivals", MODELS_MAX + 1)));
    assert!(GatewayReport::default().checked(usize::MAX).is_err());
    // A stream without a target has infinite slack.
    let unlimited = with(load(1, Some(i64::MAX)), ModelArrivals::default()).checked(1).unwrap();
    assert_eq!(unlimited.loads["x"].slack_nanos, Some(NANOS_MAX as i64));
}

#[test]
fn a_report_of_another_version_is_read_as_far_as_it_is_known() {
    let text = r#"{"loads":{"x":{"streams":2,"news":1}},"more":[]}"#;
    let read: GatewayReport = serde_json::from_str(text).unwrap();
    assert_eq!(read, report(&[("x", GatewayLoad { streams: 2, ..GatewayLoad::default() })], 0));
}
