//! SGLang's `GET /v1/loads`: load of each data-parallel rank.

use serde::Deserialize;
use tidegate_types::Tokens;

use crate::engine::{EngineReading, add, most};

#[derive(Deserialize)]
struct LoadsAnswer {
    loads: Vec<RankLoad>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RankLoad {
    num_running_reqs: Option<f64>,
    num_waiting_reqs: Option<f64>,
    max_total_num_tokens: Option<f64>,
    token_usage: Option<f64>,
    total_prefill_uncached_tokens: Option<f64>,
    total_prefill_busy_us: Option<f64>,
    disaggregation: Option<DisaggregationLoad>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DisaggregationLoad {
    decode_transfer_queue_reqs: Option<f64>,
}

/// Parses the answer; `None` if it is not such an answer or reports nothing.
pub fn reading(answer: &[u8]) -> Option<EngineReading> {
    let loads = serde_json::from_slice::<LoadsAnswer>(answer).ok()?.loads;
    let mut reading = EngineReading::default();
    let (mut tokens, mut micros) = (0.0, 0.0);
    for load in loads {
        load.num_running_reqs.into_iter().for_each(|n| add(&mut reading.running, n));
        load.num_waiting_reqs.into_iter().for_each(|n| add(&mut reading.waiting, n));
        load.token_usage.into_iter().for_each(|share| most(&mut reading.kv_usage, share));
        if let Some(capacity) = load.max_total_num_tokens.filter(|capacity| *capacity > 0.0) {
            let before = reading.kv_capacity.unwrap_or(Tokens::ZERO);
            reading.kv_capacity = Some(before + Tokens(capacity as u64));
        }
        let waits = load.disaggregation.and_then(|mode| mode.decode_transfer_queue_reqs);
        waits.into_iter().for_each(|n| add(&mut reading.deferred, n));
        tokens += load.total_prefill_uncached_tokens.unwrap_or(0.0);
        micros += load.total_prefill_busy_us.unwrap_or(0.0);
    }
    if micros > 0.0 {
        reading.prefill_rate = Some(tokens / micros * 1e6);
    }
    (!reading.is_empty()).then_some(reading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_summed_and_kv_usage_is_the_maximum() {
        let answer = br#"{"timestamp":1,"version":"0.5.23","loads":[
            {"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":1,"max_total_num_tokens":1000,
             "token_usage":0.5,"total_prefill_uncached_tokens":5000,"total_prefill_busy_us":500000,
             "disaggregation":{"mode":"decode","decode_transfer_queue_reqs":2}},
            {"dp_rank":1,"num_running_reqs":1,"num_waiting_reqs":0,"max_total_num_tokens":1000,
             "token_usage":0.75,"total_prefill_uncached_tokens":5000,"total_prefill_busy_us":500000}]}"#;
        let expected = EngineReading {
            running: Some(4.0),
            waiting: Some(1.0),
            deferred: Some(2.0),
            kv_usage: Some(0.75),
            kv_capacity: Some(Tokens(2000)),
            prefill_rate: Some(10_000.0),
            ..EngineReading::default()
        };
        assert_eq!(reading(answer), Some(expected));
    }

    #[test]
    fn other_answers_yield_no_reading() {
        for answer in [&b""[..], b"{}", b"[]", br#"{"loads":[]}"#, br#"{"loads":[{}]}"#] {
            assert_eq!(reading(answer), None);
        }
    }
}
