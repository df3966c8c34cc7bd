//! vLLM's prefill leg, whatever the connector (docs/spec/engine-protocols.md#vllm-prefill-leg). It
//! must never change what
//! the prompt is rendered from: both legs must read identical tokens.

use crate::{Edits, Endpoint, Scan};
use bytes::Bytes;
use tidegate_types::Seconds;

/// The member that carries the hand-off, both ways.
pub(super) const PARAMS: &str = "kv_transfer_params";

/// A prefill engine keeps its blocks for 30 s (NIXL's `kv_lease_duration`) unless the decode engine
/// asks in between; 20 s leaves it time to do so. What a shared store holds lasts longer, but a
/// hand-off that has waited so long is better redone.
pub(super) const HANDOFF_DEADLINE: Seconds = Seconds(20.0);

/// Always set.
const ALWAYS: &[(&str, &[u8])] = &[
    ("max_tokens", b"1"),
    ("stream", b"false"),
    // The one token is thrown away, so it must not end the request early: a prefill that stops is
    // not handed over by every connector.
    ("ignore_eos", b"true"),
];

/// Set only where the client's body has the member: values that vLLM refuses beside the above, or
/// work for a token that nobody reads. None of them has a part in rendering the prompt.
const IF_GIVEN: &[(&str, &[u8])] = &[
    ("max_completion_tokens", b"1"),
    // "Stream options can only be defined when `stream=True`."
    ("stream_options", b"null"),
    // "min_tokens must be less than or equal to max_tokens=1". Null is no integer to vLLM.
    ("min_tokens", b"0"),
    ("min_completion_tokens", b"0"),
    ("stop", b"[]"),
    ("stop_token_ids", b"[]"),
    // An integer in completions, where null is the default.
    ("logprobs", b"null"),
    ("top_logprobs", b"0"),
    // Refused without logprobs.
    ("logprob_token_ids", b"null"),
];

/// In chat, `max_completion_tokens` comes before `max_tokens`, and `logprobs` is a boolean.
const CHAT: &[(&str, &[u8])] = &[("max_completion_tokens", b"1")];
const CHAT_IF_GIVEN: &[(&str, &[u8])] = &[("logprobs", b"false")];

/// Responses: nothing of the half answer is to be kept.
const RESPONSES: &[(&str, &[u8])] =
    &[("max_output_tokens", b"1"), ("stream", b"false"), ("store", b"false")];
/// Messages, where a stop sequence is the one thing that could end the prefill early.
const MESSAGES: &[(&str, &[u8])] = &[("max_tokens", b"1"), ("stream", b"false")];
const MESSAGES_IF_GIVEN: &[(&str, &[u8])] = &[("stop_sequences", b"[]")];
/// Token ids in: what limits the answer lies one level deeper.
const TOKENS_IN: &[(&str, &[u8])] = &[("stream", b"false")];
const TOKENS_IN_IF_GIVEN: &[(&str, &[u8])] = &[("stream_options", b"null")];
const SAMPLING: &[(&str, &[u8])] = &[("max_tokens", b"1"), ("ignore_eos", b"true")];
const SAMPLING_IF_GIVEN: &[(&str, &[u8])] =
    &[("min_tokens", b"0"), ("stop", b"[]"), ("stop_token_ids", b"[]"), ("logprobs", b"null")];

/// The body that makes one token, with the connector's parameters if it has some.
pub(super) fn prefill_body(
    endpoint: Endpoint,
    body: &Bytes,
    scan: &Scan,
    params: Option<&[u8]>,
) -> Bytes {
    let mut edits = match endpoint {
        Endpoint::Responses => edits(body, scan, RESPONSES, &[]),
        Endpoint::Messages => edits(body, scan, MESSAGES, MESSAGES_IF_GIVEN),
        Endpoint::TokensIn => edits(body, scan, TOKENS_IN, TOKENS_IN_IF_GIVEN),
        _ => edits(body, scan, ALWAYS, IF_GIVEN),
    };
    if endpoint == Endpoint::ChatCompletions {
        set(&mut edits, body, scan, CHAT, CHAT_IF_GIVEN);
    }
    let sampling = (endpoint == Endpoint::TokensIn).then(|| sampling(body, scan)).flatten();
    if let Some(sampling) = &sampling {
        edits.set("sampling_params", sampling);
    }
    if let Some(params) = params {
        edits.set(PARAMS, params);
    }
    edits.apply(body, scan)
}

type Members = [(&'static str, &'static [u8])];

fn edits(
    body: &Bytes,
    scan: &Scan,
    always: &'static Members,
    if_given: &'static Members,
) -> Edits<'static> {
    let mut edits = Edits::new();
    set(&mut edits, body, scan, always, if_given);
    edits
}

fn set(
    edits: &mut Edits<'_>,
    body: &Bytes,
    scan: &Scan,
    always: &'static Members,
    if_given: &'static Members,
) {
    // Null is what most clients' libraries write for "not set": leave it.
    for (key, raw) in if_given.iter().filter(|(key, _)| scan.value(body, key).is_some()) {
        edits.set(key, raw);
    }
    for (key, raw) in always {
        edits.set(key, raw);
    }
}

/// The sampling parameters of one token; `None` if the client's are no object: the engine says so.
fn sampling(body: &Bytes, scan: &Scan) -> Option<Bytes> {
    let sampling = Bytes::copy_from_slice(scan.value(body, "sampling_params").unwrap_or(b"{}"));
    let inner = crate::scan(Endpoint::Other, &sampling).ok()?;
    Some(edits(&sampling, &inner, SAMPLING, SAMPLING_IF_GIVEN).apply(&sampling, &inner))
}

/// The client's body with the connector's parameters.
pub(super) fn decode_body(body: &Bytes, scan: &Scan, params: &[u8]) -> Bytes {
    Edits::new().set(PARAMS, params).apply(body, scan)
}
