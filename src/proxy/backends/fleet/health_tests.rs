//! State transitions of health: causes of unusable and suspect backends, and their recovery.

use super::*;

const NOW: Moment = Moment::START;

fn at(seconds: f64) -> Moment {
    NOW + Seconds(seconds)
}

fn params(failures_to_eject: u32, slow_return: f64) -> HealthParams {
    let outlier = OutlierParams {
        window: Seconds(10.0),
        requests_min: 5,
        failure_share: 0.5,
        ejection: Seconds(5.0),
        ejection_max: Seconds(60.0),
    };
    HealthParams { failures_to_eject, slow_return: Seconds(slow_return), outlier }
}

fn health() -> Health {
    Health::new(params(2, 10.0))
}

#[test]
fn a_reported_failure_takes_an_engine_down_and_a_late_probe_makes_it_suspect() {
    let late = health();
    assert!(!late.missed_probe());
    assert!(late.missed_probe());
    assert!(late.is_usable() && late.is_suspect(NOW) && !late.is_healthy() && !late.is_up());
    assert_eq!(late.as_str(NOW), "down");
    assert!(late.succeeded(NOW), "an answered request outweighs a failed probe");
    assert_eq!(late.as_str(NOW), "up");
    let unwell = health();
    assert!(!unwell.failed_probe());
    assert!(unwell.failed_probe());
    assert!(!unwell.is_usable());
    assert!(unwell.probed(NOW));
    assert!(unwell.is_usable());
    assert!(unwell.refused(), "a refused connection takes effect at once");
    assert!(!unwell.refused(), "already down");
}

#[test]
fn an_outlier_is_ejected_for_its_time_and_until_a_probe() {
    let health = health();
    health.succeeded(NOW);
    assert!(!(0..3).any(|_| health.failed(NOW)), "four requests are below the minimum");
    assert!(health.failed(NOW));
    assert_eq!(health.eject(NOW), Some(Seconds(5.0)));
    assert_eq!(health.eject(NOW), None);
    assert!(health.is_usable() && health.is_suspect(NOW) && !health.is_healthy());
    health.succeeded(at(1.0));
    assert!(health.is_suspect(at(1.0)), "one answer does not end the ejection");
    assert!(!health.probed(at(4.0)));
    assert!(health.is_suspect(at(6.0)), "the ejection is over, but no probe was answered");
    assert!(health.probed(at(6.0)));
    assert!(!health.is_suspect(at(6.0)));
    assert_eq!(health.recent(at(6.0)), (0, 0));
    assert!(health.share(at(6.0)) < 1.0, "slow start");
}

#[test]
fn load_refusals_back_off_as_requested_or_by_doubling() {
    let health = health();
    assert_eq!(health.back_off(NOW, None), Seconds(0.25));
    assert_eq!(
        health.back_off(NOW, None),
        Seconds(0.25),
        "refusals of concurrent requests count once"
    );
    assert!(health.is_suspect(at(0.2)) && !health.is_suspect(at(0.3)) && health.is_healthy());
    assert_eq!(health.as_str(at(0.2)), "busy");
    for (now, span) in [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0), (8.0, 4.0), (16.0, 5.0), (32.0, 5.0)] {
        assert_eq!(health.back_off(at(now), None), Seconds(span), "{now}");
    }
    assert_eq!(health.back_off(at(64.0), Some(Seconds(30.0))), Seconds(30.0));
    assert!(health.is_suspect(at(93.0)) && !health.is_suspect(at(95.0)));
    assert_eq!(health.back_off(at(100.0), Some(Seconds(1e6))), BACK_OFF_REQUESTED_MAX);
    health.succeeded(at(100.0));
    assert!(health.is_suspect(at(101.0)), "another request's answer does not end the ejection");
    assert_eq!(health.back_off(at(200.0), None), Seconds(0.25));
}

#[test]
fn a_silent_backend_is_suspect_and_not_down() {
    let health = health();
    health.succeeded(NOW);
    assert!(health.mark_silent());
    assert!(health.is_usable() && health.is_suspect(NOW) && health.is_healthy());
    assert!(!health.probed(NOW));
    assert!(
        health.is_silent(),
        "an answered probe does not clear silence: engines with a hung step answer probes"
    );
    assert!(health.clear_silent());
    assert_eq!(health.share(NOW), 1.0, "silence does not start a slow start");
    health.mark_silent();
    health.refused();
    health.clear_silent();
    assert_eq!(
        health.as_str(NOW),
        "down",
        "silence does not change the state of a backend that is down"
    );
}

#[test]
fn slow_start_grows_the_share_of_a_returning_backend() {
    let health = health();
    assert!(health.probed(NOW));
    assert_eq!(health.share(NOW), 1.0, "no slow start before the first outage");
    health.refused();
    assert!(health.probed(at(100.0)));
    for (seconds, share) in [(100.0, 0.1), (101.0, 0.1), (105.0, 0.5), (110.0, 1.0), (999.0, 1.0)] {
        assert!((health.share(at(seconds)) - share).abs() < 1e-6, "{seconds}");
    }
    assert!(!health.probed(at(200.0)));
    assert_eq!(
        health.share(at(200.0)),
        1.0,
        "a probe of a backend that is up does not restart slow start"
    );
    let at_once = Health::new(params(1, 0.0));
    at_once.failed_probe();
    at_once.probed(NOW);
    assert_eq!(at_once.share(at(0.001)), 1.0);
}

#[test]
fn an_unfit_engine_is_unusable_even_if_it_answers() {
    let health = health();
    assert!(health.set_unfit(true));
    health.probed(NOW);
    health.succeeded(NOW);
    assert!(!health.is_usable() && health.is_up());
    assert_eq!(health.as_str(NOW), "unfit");
    assert!(health.set_unfit(false));
    assert!(health.is_usable());
}

#[test]
fn the_reason_is_shown_only_while_a_backend_is_out() {
    let health = health();
    health.refused();
    health.set_reason("connection refused".to_owned());
    assert_eq!(health.reason(NOW).as_deref(), Some("connection refused"));
    health.probed(NOW);
    assert_eq!(health.reason(NOW), None);
}
