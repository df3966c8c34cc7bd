//! Bodies of native APIs: `/generate` of SGLang and TGI, `/inference/v1/generate` of vLLM,
//! `/api/chat` and `/api/generate` of Ollama. Their limits are nested and named differently. It
//! must never refuse a body: a value that cannot be read is unknown.

use super::fields::Given;
use super::{ColocatedReason, Key, Prompt, Scan, Span};
use crate::Endpoint;
use serde::Deserialize;
use serde_json::Value;
use tidegate_types::Tokens;

/// Members of `sampling_params` (SGLang, vLLM), `parameters` (TGI) and `options` (Ollama): the
/// output limit, and reasons not to split.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Sampling {
    max_new_tokens: Value,
    max_tokens: Value,
    num_predict: Value,
    n: Value,
    prompt_logprobs: Value,
}

/// Fills in prompt, limits and split reasons.
pub(super) fn read(endpoint: Endpoint, given: &Given<'_>, scan: &mut Scan) {
    let sampling = match endpoint {
        Endpoint::OllamaChat | Endpoint::OllamaGenerate => given.get(Key::Options),
        _ => given.get(Key::SamplingParams).or(given.get(Key::Parameters)),
    };
    let raw = sampling.map(|span| span.of(given.body)).unwrap_or_default();
    let sampling: Sampling = serde_json::from_slice(raw).unwrap_or_default();
    let limits = [&sampling.max_new_tokens, &sampling.max_tokens, &sampling.num_predict];
    scan.max_tokens = limits.into_iter().find_map(Value::as_u64).map(Tokens);
    let n = sampling.n.as_u64().and_then(|n| u32::try_from(n).ok());
    scan.n = n.unwrap_or(1).max(1);
    scan.prompt = prompt(endpoint, given);
    scan.colocated = colocated_reason(endpoint, scan, !sampling.prompt_logprobs.is_null());
}

fn prompt(endpoint: Endpoint, given: &Given<'_>) -> Prompt {
    let messages = |span: Span| match first(span, given) {
        b'[' => Prompt::Messages(span),
        _ => Prompt::Absent,
    };
    match endpoint {
        Endpoint::OllamaChat => given.get(Key::Messages).map_or(Prompt::Absent, messages),
        Endpoint::OllamaGenerate => {
            given.get(Key::Prompt).map_or(Prompt::Absent, |s| any(s, given))
        }
        Endpoint::TokensIn => given.get(Key::TokenIds).map_or(Prompt::Absent, |s| any(s, given)),
        _ => {
            let keys = [Key::Text, Key::InputIds, Key::Inputs];
            keys.iter().find_map(|key| given.get(*key)).map_or(Prompt::Absent, |s| any(s, given))
        }
    }
}

/// Classifies a text, token ids, or a list of either.
fn any(span: Span, given: &Given<'_>) -> Prompt {
    let raw = span.of(given.body);
    match first(span, given) {
        b'"' => Prompt::Text(span),
        b'[' => match serde_json::from_slice::<Vec<u32>>(raw) {
            Ok(ids) if ids.is_empty() => Prompt::Absent,
            Ok(ids) => Prompt::TokenIds(ids.len().try_into().unwrap_or(u32::MAX), span),
            Err(_) => Prompt::List(span),
        },
        _ => Prompt::Absent,
    }
}

fn colocated_reason(
    endpoint: Endpoint,
    scan: &Scan,
    prompt_logprobs: bool,
) -> Option<ColocatedReason> {
    let one = scan.max_tokens.is_some_and(|most| most <= Tokens(1));
    let rules = [
        (!endpoint.can_split(), ColocatedReason::Endpoint),
        (scan.client_handoff, ColocatedReason::ClientHandoff),
        (scan.n > 1, ColocatedReason::SeveralAnswers),
        (matches!(scan.prompt, Prompt::List(_) | Prompt::Absent), ColocatedReason::ListPrompt),
        (prompt_logprobs, ColocatedReason::PromptLogprobs),
        (one, ColocatedReason::OneToken),
    ];
    rules.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason)
}

fn first(span: Span, given: &Given<'_>) -> u8 {
    span.of(given.body).first().copied().unwrap_or_default()
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
