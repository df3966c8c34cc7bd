//! TensorRT-LLM's internal authentication (docs/spec/engine-protocols.md#trtllm-auth): the KV
//! location in a generation leg must be signed. The verifier shares no code with the proxy's
//! signer, and refuses a signature over other parameters.

use http::header::HeaderMap;
use ring::hmac;
use serde_json::Value;

use crate::config::EmulatorConfig;
use crate::error_response::ErrorResponse;

/// Verifies the signature of the KV location in a body.
///
/// # Errors
/// The signature is missing or wrong.
pub fn check(
    config: &EmulatorConfig,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), ErrorResponse> {
    let Some(key) = &config.disagg_key else { return Ok(()) };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let of = |name: &str| body["disaggregated_params"][name].clone();
    let (endpoint, state) = (of("ctx_info_endpoint"), of("encoded_opaque_state"));
    if endpoint.is_null() && state.is_null() {
        return Ok(());
    }
    // The signed values are plain ASCII and need no escaping.
    let signed = format!("{{\"ctx_info_endpoint\":{endpoint},\"encoded_opaque_state\":{state}}}");
    let tag = headers
        .get("x-trtllm-disagg-auth")
        .and_then(|value| value.to_str().ok()?.strip_prefix("sha256="))
        .and_then(bytes_of);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    match tag {
        Some(tag) if hmac::verify(&key, signed.as_bytes(), &tag).is_ok() => Ok(()),
        _ => {
            let message = "Invalid internal disaggregated request authentication".to_owned();
            Err(ErrorResponse::bad(message, Some("disaggregated_params")))
        }
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
