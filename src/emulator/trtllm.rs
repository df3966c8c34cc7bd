//! trtllm-serve's context response (docs/spec/engine-protocols.md#trtllm-context-first): the
//! parameters of the generation leg, opaque to a proxy, and the prompt's token ids.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::engine::EmulatedState;
use crate::error_response::ErrorResponse;
use crate::generate::{ActiveAnswers, json as answer, refuse};
use crate::request_body::{GenerationRequest, Remote};
use crate::response_body::ResponseBody;
use crate::response_format::ResponseFormat;

/// Smaller ids are reserved for the server.
pub const ID_MIN: u64 = 1 << 40;

/// Returns the lease name of a context's KV.
pub fn name(disagg_request_id: u64) -> String {
    format!("context-{disagg_request_id}")
}

/// Encodes the state as hexadecimal, so that a reader cannot parse it as JSON.
fn encode(engine: &EmulatedState, name: &str) -> String {
    let state = [engine.id.as_str(), name, &engine.host, &engine.address.port().to_string()];
    state.join("|").bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes the state written by [`encode`]; `None` if it was modified.
pub fn decode(state: &str) -> Option<Remote> {
    let pairs = state.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let text = String::from_utf8(pairs.map(byte).collect::<Option<Vec<u8>>>()?).ok()?;
    let mut parts = text.split('|').map(str::to_owned);
    let (engine_id, request_id, host) = (parts.next()?, parts.next()?, parts.next()?);
    let port = parts.next()?.parse().ok()?;
    Some(Remote { engine_id, request_id, host, port, meets: false })
}

/// Returns the endpoint to which a generation engine sends its KV destination.
pub fn endpoint(engine: &EmulatedState) -> String {
    format!("tcp://{}:{}", engine.host, engine.address.port())
}

/// Returns the context at an [`endpoint`]; it may not have begun yet.
pub fn at(endpoint: &str, request_id: String) -> Option<Remote> {
    let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
    let (host, port) = (host.to_owned(), port.parse().ok()?);
    // Any engine id: contexts are identified by address alone.
    Some(Remote { engine_id: String::new(), request_id, host, port, meets: true })
}

/// Prefills, holds the KV, and answers with its location.
pub async fn context(
    mut answers: ActiveAnswers,
    shape: &ResponseFormat,
    ask: &GenerationRequest,
    name: &str,
) -> Response<ResponseBody> {
    let Some(feed) = answers.prefilled().await else {
        return refuse(&ErrorResponse::internal());
    };
    answers.finish();
    let engine = &answers.engine;
    let id: u64 = name.trim_start_matches("context-").parse().unwrap_or(0);
    let made = shape.whole(&[&feed], None);
    let Ok(mut body) = serde_json::from_slice::<Value>(&made) else {
        return refuse(&ErrorResponse::internal());
    };
    body["prompt_token_ids"] = json!(ask.prompts.first().map(|prompt| prompt.ids()));
    body["choices"][0]["disaggregated_params"] = json!({
        "request_type": "context_only", "first_gen_tokens": [1],
        "ctx_request_id": fastrand::u32(1..), "encoded_opaque_state": encode(engine, name),
        "draft_tokens": null, "disagg_request_id": id, "ctx_dp_rank": 0,
        "ctx_info_endpoint": null, "schedule_style": 0,
    });
    answer(StatusCode::OK, Bytes::from(body.to_string()))
}
