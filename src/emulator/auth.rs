//! TensorRT-LLM's internal authentication (docs/spec/engine-protocols.md#trtllm-auth): a generation
//! leg that says
//! where KV is must be signed. It shares no code with the proxy's signer, and must never let a
//! request pass that is signed for other parameters.

use http::header::HeaderMap;
use ring::hmac;
use serde_json::Value;

use crate::config::EmulatorConfig;
use crate::refusal::Refusal;

/// Is what the body says of KV signed as it must be?
///
/// # Errors
/// It is not.
pub fn check(config: &EmulatorConfig, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let Some(key) = &config.disagg_key else { return Ok(()) };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let of = |name: &str| body["disaggregated_params"][name].clone();
    let (endpoint, state) = (of("ctx_info_endpoint"), of("encoded_opaque_state"));
    if endpoint.is_null() && state.is_null() {
        return Ok(());
    }
    // What these engines say is plain ASCII: no escapes to agree upon.
    let said = format!("{{\"ctx_info_endpoint\":{endpoint},\"encoded_opaque_state\":{state}}}");
    let tag = headers
        .get("x-trtllm-disagg-auth")
        .and_then(|value| value.to_str().ok()?.strip_prefix("sha256="))
        .and_then(bytes_of);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    match tag {
        Some(tag) if hmac::verify(&key, said.as_bytes(), &tag).is_ok() => Ok(()),
        _ => {
            let message = "Invalid internal disaggregated request authentication".to_owned();
            Err(Refusal::bad(message, Some("disaggregated_params")))
        }
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
