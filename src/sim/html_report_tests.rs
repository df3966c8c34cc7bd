//! Tests of the page: it describes the runs, is self-contained, and contains finite numbers only.

use super::*;
use crate::policy::Policy;
use crate::simulate::simulate;
use serde_json::Value;

fn runs(trace: &Trace, config: &SimConfig) -> Vec<Run> {
    let policies = [Policy::Aggregated, Policy::Bound, Policy::Tidegate];
    policies.map(|policy| simulate(trace, 1.0, policy, config)).to_vec()
}

fn trace(lines: usize) -> Trace {
    let line = |i: usize| {
        let at = i as f64 * 0.4;
        format!(
            "{{\"timestamp\":{},\"input_length\":{},\"output_length\":40}}\n",
            at * 1e3,
            200 + i * 90
        )
    };
    Trace::parse(&(0..lines).map(line).collect::<String>()).unwrap()
}

/// Returns the data in a page.
fn data(html: &str) -> Value {
    let (_, rest) = html.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn titles(data: &Value) -> Vec<&str> {
    let sections = data["sections"].as_array().unwrap();
    let charts = sections.iter().flat_map(|section| section["charts"].as_array().unwrap());
    charts.map(|chart| chart["title"].as_str().unwrap()).collect()
}

#[test]
fn the_page_contains_every_policy_and_no_external_reference() {
    let (config, trace) = (SimConfig { engines: 3, ..SimConfig::default() }, trace(60));
    let runs = runs(&trace, &config);
    let names = ["a <b> & \"c\"".to_owned()];
    let html = page(&names, &config, &runs, Some((&trace, &runs[2])));
    let data = data(&html);
    assert_eq!(titles(&data), ["Attainment", "TTFT", "TPOT", "Pools", "Queue", "TTFT", "TPOT"]);
    let policies = data["sections"][0]["charts"][0]["series"].as_array().unwrap();
    let policies: Vec<_> = policies.iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(policies, ["aggregated", "bound", "tidegate"]);
    let rows = data["sections"][3]["table"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1][6], "–", "the bound has an attainment only");
    let external_names = html.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http", "src=", "<b>", "NaN"] {
        assert!(!external_names.contains(outside), "{outside}");
    }
    assert_eq!(html, page(&names, &config, &runs, Some((&trace, &runs[2]))));
}

#[test]
fn a_run_without_requests_has_a_page() {
    let (config, trace) = (SimConfig::default(), Trace { arrivals: Vec::new() });
    let runs = runs(&trace, &config);
    let html = page(&["empty".to_owned()], &config, &runs, Some((&trace, &runs[2])));
    assert_eq!(data(&html)["title"], "empty");
}

#[test]
fn the_page_of_a_live_run_has_latencies_and_distributions() {
    let (config, trace) = (SimConfig { engines: 3, ..SimConfig::default() }, trace(20));
    let run = simulate(&trace, 1.0, Policy::Tidegate, &config);
    let html = live_page(&["live".to_owned()], &config.slo, &trace, &run.report, &run.outcomes);
    let data = data(&html);
    assert_eq!(titles(&data), ["TTFT", "TPOT", "TTFT", "TPOT"]);
    let points = data["sections"][0]["charts"][0]["series"][0]["points"].as_array().unwrap();
    assert_eq!(points.len(), 20, "one bin an arrival");
}
