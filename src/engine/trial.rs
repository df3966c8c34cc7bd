//! A trial hand-off: one short prompt with the legs of a request, to learn whether two engines can hand
//! KV cache to each other.

use bytes::Bytes;
use serde_json::json;

use crate::family::{Family, LegBody, Legs, RendezvousInfo};
use crate::{Endpoint, JsonBodyError, Scan, scan};

/// Path of both legs.
pub const TRIAL_PATH: &str = "/v1/completions";
/// vLLM's count of prompt tokens by source, and the source that stands for hand-offs.
const BY_SOURCE: &str = "vllm:prompt_tokens_by_source_total";
const HANDED_OVER: &str = "source=\"external_kv_transfer\"";

/// The request of a trial.
#[derive(Clone, Debug)]
pub struct TrialRequest {
    body: Bytes,
    scan: Scan,
}

impl TrialRequest {
    /// Returns a completion of two tokens for `model`, with a prompt of about `words` tokens that begins
    /// with `id`. With a random `id` no prefix cache holds it.
    ///
    /// # Errors
    /// [`JsonBodyError`] if the model's name makes the body unreadable.
    pub fn new(model: &str, id: u64, words: usize) -> Result<TrialRequest, JsonBodyError> {
        let prompt = format!("{id:x} {}", "tide ".repeat(words));
        let body = json!({ "model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0 });
        let body = Bytes::from(body.to_string());
        let scan = scan(Endpoint::Completions, &body)?;
        Ok(TrialRequest { body, scan })
    }

    /// Returns the legs of the trial.
    pub fn legs(&self, family: Family, rendezvous: &RendezvousInfo<'_>) -> Legs {
        family.legs(Endpoint::Completions, &self.body, &self.scan, rendezvous)
    }

    /// Returns the decode leg that follows the answer to the prefill leg.
    ///
    /// # Errors
    /// The reason why the answer contains no hand-off.
    pub fn decode_leg(
        &self,
        family: Family,
        answer: &Bytes,
        key: Option<&[u8]>,
    ) -> Result<LegBody, String> {
        let handoff = family.read_prefill(answer).map_err(|error| error.to_string())?;
        if family.is_nixl() && handoff.params.is_none() {
            return Err(
                "the answer has no kv_transfer_params: the engine has no connector".to_owned()
            );
        }
        Ok(family.decode_leg(&self.body, &self.scan, &handoff, key))
    }
}

/// Returns the prompt tokens received from other engines according to a vLLM metrics page; `None` if the
/// page lacks the metric.
pub fn tokens_received(page: &str) -> Option<f64> {
    let rows =
        page.lines().filter(|line| line.starts_with(BY_SOURCE) && line.contains(HANDED_OVER));
    let values: Option<Vec<f64>> =
        rows.map(|row| row.rsplit_once(' ')?.1.parse::<f64>().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDEZVOUS: RendezvousInfo<'_> =
        RendezvousInfo { host: "h", port: 1, id: 7, peer: None, key: None };

    #[test]
    fn a_trial_of_nixl_is_a_prefill_leg_and_a_decode_leg_with_its_hand_off() {
        let trial = TrialRequest::new("m", 0xAB, 3).unwrap();
        let Legs::PrefillFirst { prefill } = trial.legs(Family::VllmNixl, &RENDEZVOUS) else {
            panic!("one leg");
        };
        let prefill: serde_json::Value = serde_json::from_slice(&prefill).unwrap();
        assert_eq!(prefill["prompt"], "ab tide tide tide ");
        assert_eq!(prefill["kv_transfer_params"]["do_remote_decode"], true);
        let answer =
            Bytes::from_static(br#"{"choices":[],"kv_transfer_params":{"remote_host":"x"}}"#);
        let decode = trial.decode_leg(Family::VllmNixl, &answer, None).unwrap();
        let decode: serde_json::Value = serde_json::from_slice(&decode.body).unwrap();
        assert_eq!(decode["kv_transfer_params"]["remote_host"], "x");
        let without = Bytes::from_static(br#"{"choices":[],"kv_transfer_params":null}"#);
        assert!(trial.decode_leg(Family::VllmNixl, &without, None).is_err());
    }

    #[test]
    fn received_tokens_are_summed_over_engines_of_the_page() {
        let page = "vllm:prompt_tokens_by_source_total{engine=\"0\",source=\"external_kv_transfer\"} 12.0\n\
                    vllm:prompt_tokens_by_source_total{engine=\"1\",source=\"external_kv_transfer\"} 3.0\n\
                    vllm:prompt_tokens_by_source_total{engine=\"0\",source=\"local_compute\"} 99.0\n";
        assert_eq!(tokens_received(page), Some(15.0));
        assert_eq!(tokens_received("up 1\n"), None);
    }
}
