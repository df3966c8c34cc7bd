//! ORCA's response header (Open Request Cost Aggregation) as vLLM sends it on request: `TEXT
//! named_metrics.a=1, …` or `JSON {"named_metrics": {"a": 1}}`.

use serde::Deserialize;
use std::collections::BTreeMap;

use crate::engine::EngineReading;

/// Name of the response header.
pub const HEADER: &str = "endpoint-load-metrics";
/// Parses the header's value; `None` if it is malformed or reports nothing.
pub fn reading(header: &str) -> Option<EngineReading> {
    let (format, rest) = header.trim().split_once(' ')?;
    let named = match format {
        "TEXT" => text(rest),
        "JSON" => json(rest)?,
        _ => return None,
    };
    let get = |name: &str| named.get(name).copied().filter(|value| value.is_finite());
    let reading = EngineReading {
        kv_usage: get("kv_cache_usage_perc"),
        waiting: get("num_requests_waiting"),
        running: get("num_requests_running"),
        ..EngineReading::default()
    };
    (!reading.is_empty()).then_some(reading)
}

fn text(pairs: &str) -> BTreeMap<String, f64> {
    let pair = |pair: &str| {
        let (name, value) = pair.trim().split_once('=')?;
        let name = name.strip_prefix("named_metrics.").unwrap_or(name);
        Some((name.to_owned(), value.parse().ok()?))
    };
    pairs.split(',').filter_map(pair).collect()
}

fn json(text: &str) -> Option<BTreeMap<String, f64>> {
    #[derive(Deserialize)]
    struct OrcaReport {
        named_metrics: BTreeMap<String, f64>,
    }
    serde_json::from_str::<OrcaReport>(text).ok().map(|report| report.named_metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_parsed_alike() {
        let expected =
            EngineReading { kv_usage: Some(0.4), waiting: Some(3.0), ..EngineReading::default() };
        for header in [
            "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0",
            r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}}"#,
        ] {
            assert_eq!(reading(header), Some(expected), "{header}");
        }
    }

    #[test]
    fn other_values_are_ignored() {
        for header in ["", "TEXT", "TEXT a=b", "JSON {", "BIN x", "TEXT kv_cache_usage_perc=nan"] {
            assert_eq!(reading(header), None, "{header}");
        }
    }
}
