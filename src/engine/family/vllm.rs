//! vLLM's prefill leg, for every connector (docs/spec/engine-protocols.md#vllm-prefill-leg). It
//! must never change a member that the prompt is rendered from: both legs must read identical
//! tokens.

use crate::{Edits, Endpoint, Scan};
use bytes::Bytes;
use tidegate_types::Seconds;

/// The member that carries the hand-off, in requests and answers.
pub(super) const PARAMS: &str = "kv_transfer_params";

/// A prefill engine keeps its blocks for 30 s (NIXL's `kv_lease_duration`) unless the decode engine
/// asks earlier; 20 s leaves time for that. A shared store keeps them longer, but after such a wait
/// the prefill is better repeated.
pub(super) const HANDOFF_DEADLINE: Seconds = Seconds(20.0);

/// Members set in every body.
const ALWAYS: &[(&str, &[u8])] = &[
    ("max_tokens", b"1"),
    ("stream", b"false"),
    // The token is discarded and must not end the request: some connectors hand over only requests
    // that did not stop.
    ("ignore_eos", b"true"),
];

/// Members set only if the client's body has them: vLLM refuses them beside the above, or they cost
/// work for a discarded token. The prompt does not depend on any of them.
const IF_GIVEN: &[(&str, &[u8])] = &[
    ("max_completion_tokens", b"1"),
    // "Stream options can only be defined when `stream=True`."
    ("stream_options", b"null"),
    // "min_tokens must be less than or equal to max_tokens=1". vLLM does not accept null here.
    ("min_tokens", b"0"),
    ("min_completion_tokens", b"0"),
    ("stop", b"[]"),
    ("stop_token_ids", b"[]"),
    // An integer in completions, with null as the default.
    ("logprobs", b"null"),
    ("top_logprobs", b"0"),
    // Refused without logprobs.
    ("logprob_token_ids", b"null"),
];

/// In chat, `max_completion_tokens` takes precedence over `max_tokens`, and `logprobs` is a
/// boolean.
const CHAT: &[(&str, &[u8])] = &[("max_completion_tokens", b"1")];
const CHAT_IF_GIVEN: &[(&str, &[u8])] = &[("logprobs", b"false")];

/// Responses: the engine must not store the prefill's answer.
const RESPONSES: &[(&str, &[u8])] =
    &[("max_output_tokens", b"1"), ("stream", b"false"), ("store", b"false")];
/// Messages: only a stop sequence could end the prefill early.
const MESSAGES: &[(&str, &[u8])] = &[("max_tokens", b"1"), ("stream", b"false")];
const MESSAGES_IF_GIVEN: &[(&str, &[u8])] = &[("stop_sequences", b"[]")];
/// Token ids in: the output limit is one level deeper.
const TOKENS_IN: &[(&str, &[u8])] = &[("stream", b"false")];
const TOKENS_IN_IF_GIVEN: &[(&str, &[u8])] = &[("stream_options", b"null")];
const SAMPLING: &[(&str, &[u8])] = &[("max_tokens", b"1"), ("ignore_eos", b"true")];
const SAMPLING_IF_GIVEN: &[(&str, &[u8])] =
    &[("min_tokens", b"0"), ("stop", b"[]"), ("stop_token_ids", b"[]"), ("logprobs", b"null")];

/// Returns the body that makes one token, with the connector's parameters if given.
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
    // Most client libraries send null for "not set"; it is kept.
    for (key, raw) in if_given.iter().filter(|(key, _)| scan.value(body, key).is_some()) {
        edits.set(key, raw);
    }
    for (key, raw) in always {
        edits.set(key, raw);
    }
}

/// Returns sampling parameters for one token; `None` if the client's are not an object, which the
/// engine refuses.
fn sampling(body: &Bytes, scan: &Scan) -> Option<Bytes> {
    let sampling = Bytes::copy_from_slice(scan.value(body, "sampling_params").unwrap_or(b"{}"));
    let inner = crate::scan(Endpoint::Other, &sampling).ok()?;
    Some(edits(&sampling, &inner, SAMPLING, SAMPLING_IF_GIVEN).apply(&sampling, &inner))
}

/// Returns the client's body with the connector's parameters.
pub(super) fn decode_body(body: &Bytes, scan: &Scan, params: &[u8]) -> Bytes {
    Edits::new().set(PARAMS, params).apply(body, scan)
}
