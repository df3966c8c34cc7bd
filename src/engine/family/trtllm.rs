//! TensorRT-LLM's trtllm-serve, context first (docs/spec/engine-protocols.md#trtllm-context-first):
//! the parameters in the context leg's answer, opaque except for `request_type`, make the
//! generation leg. It must never change `max_tokens`: the engine stops after the prefill by itself.

use crate::{Edits, Endpoint, Scan, Usage};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use tidegate_types::Seconds;

use super::{Handoff, ProtocolError};

/// The member that carries the hand-off, in requests and answers.
pub(super) const PARAMS: &str = "disaggregated_params";

/// The context engine keeps its blocks until they are fetched; the server gives a request 180 s.
/// The limit is that of the other families: after a longer wait the prefill is better repeated.
pub(super) const HANDOFF_DEADLINE: Seconds = Seconds(20.0);

/// The server assigns ids below 2^40 itself.
const ID_MIN: u64 = 1 << 40;

/// Returns a positive 64-bit id, unique among all requests of all proxies.
pub(super) const fn request_id(id: u64) -> u64 {
    id >> 1 | ID_MIN
}

/// `schedule_style`: the leg that is sent first.
#[derive(Clone, Copy)]
pub(super) enum LegOrder {
    /// Context first: its answer makes the generation leg.
    Context = 0,
    /// Generation first: the context engine waits for it.
    Generation = 1,
}

/// Returns the context leg's body.
pub(super) fn context_body(body: &Bytes, scan: &Scan, id: u64, first: LegOrder) -> Bytes {
    let params = format!(
        "{{\"request_type\":\"context_only\",\"disagg_request_id\":{},\"schedule_style\":{}}}",
        request_id(id),
        first as u8,
    );
    let mut edits = Edits::new();
    edits.set("stream", b"false").set(PARAMS, params.as_bytes());
    if scan.value(body, "stream_options").is_some() {
        edits.set("stream_options", b"null");
    }
    edits.apply(body, scan)
}

/// Returns the generation leg's body: the client's, with the parameters and the prompt's token ids,
/// which save the engine a second tokenization.
pub(super) fn generation_body(body: &Bytes, scan: &Scan, handoff: &Handoff) -> Bytes {
    let Some(params) = &handoff.params else { return body.clone() };
    let mut edits = Edits::new();
    edits.set(PARAMS, params);
    if let Some(ids) = &handoff.prompt_ids {
        let chat = scan.endpoint == Endpoint::ChatCompletions;
        edits.set(if chat { "prompt_token_ids" } else { "prompt" }, ids);
    }
    edits.apply(body, scan)
}

#[derive(Deserialize)]
struct ContextAnswer<'a> {
    #[serde(borrow)]
    choices: Vec<ContextChoice<'a>>,
    #[serde(borrow)]
    prompt_token_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ContextChoice<'a> {
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    disaggregated_params: Option<RawMembers<'a>>,
}

/// An object's raw members in order.
struct RawMembers<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ReadMembers;
        impl<'de> Visitor<'de> for ReadMembers {
            type Value = RawMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMembers<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawMembers(members))
            }
        }
        from.deserialize_map(ReadMembers)
    }
}

/// Parses a context leg's answer.
///
/// # Errors
/// [`ProtocolError`] unless it has exactly one choice, with parameters and both ids.
pub(super) fn read_context(answer: &[u8], usage: Option<Usage>) -> Result<Handoff, ProtocolError> {
    let unreadable = |error: serde_json::Error| ProtocolError::Unreadable(error.to_string());
    let read: ContextAnswer<'_> = serde_json::from_slice(answer).map_err(unreadable)?;
    let [choice] = read.choices.as_slice() else { return Err(ProtocolError::NotParams) };
    let goes_on = matches!(choice.finish_reason.as_deref(), None | Some("length" | "not_finished"));
    if !goes_on {
        let whole = Some(finished(answer).map_err(unreadable)?);
        return Ok(Handoff { usage, finished: whole, ..Handoff::default() });
    }
    let params = choice.disaggregated_params.as_ref().ok_or(ProtocolError::NotParams)?;
    let has = |name: &str| params.0.iter().any(|(key, raw)| key == name && raw.get() != "null");
    if !has("ctx_request_id") || !has("disagg_request_id") {
        return Err(ProtocolError::NotParams);
    }
    let ids = read.prompt_token_ids.filter(|raw| raw.get().starts_with('['));
    Ok(Handoff {
        params: Some(generation_params(params, read.usage)),
        prompt_ids: ids.map(|raw| Bytes::copy_from_slice(raw.get().as_bytes())),
        usage,
        finished: None,
    })
}

/// Returns the context's parameters with another `request_type` and the context's usage.
fn generation_params(params: &RawMembers<'_>, usage: Option<&RawValue>) -> Bytes {
    let mut out = String::from("{\"request_type\":\"generation_only\"");
    let mut add = |key: &str, raw: &str| {
        out.push(',');
        // A string always serialises.
        out.push_str(&serde_json::to_string(key).unwrap_or_default());
        out.push(':');
        out.push_str(raw);
    };
    for (key, raw) in params.0.iter().filter(|(key, _)| key != "request_type" && key != "ctx_usage")
    {
        add(key, raw.get());
    }
    if let Some(usage) = usage {
        add("ctx_usage", usage.get());
    }
    out.push('}');
    Bytes::from(out)
}

/// Returns the context's answer as the client's: the model finished with its first token.
fn finished(answer: &[u8]) -> Result<Bytes, serde_json::Error> {
    let mut answer: Value = serde_json::from_slice(answer)?;
    if let Some(members) = answer.as_object_mut() {
        members.remove("prompt_token_ids");
    }
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for choice in choices.into_iter().flatten() {
        if let Some(members) = choice.as_object_mut() {
            members.remove(PARAMS);
        }
    }
    Ok(Bytes::from(answer.to_string()))
}
