//! vLLM's prefill leg, whatever the connector (engine_protocols.md §1.3). It must never change what
//! the prompt is rendered from: both legs must read identical tokens.

use crate::{Edits, Endpoint, Scan};
use bytes::Bytes;
use tidegate_terms::Seconds;

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

/// The body that makes one token, with the connector's parameters if it has some.
pub(super) fn prefill_body(
    endpoint: Endpoint,
    body: &Bytes,
    scan: &Scan,
    params: Option<&[u8]>,
) -> Bytes {
    let chat = endpoint == Endpoint::ChatCompletions;
    let (always, if_given) = if chat { (CHAT, CHAT_IF_GIVEN) } else { (&[][..], &[][..]) };
    let mut edits = Edits::new();
    for (key, raw) in IF_GIVEN.iter().chain(if_given) {
        // Null is what most clients' libraries write for "not set": leave it.
        if scan.value(body, key).is_some() {
            edits.set(key, raw);
        }
    }
    for (key, raw) in ALWAYS.iter().chain(always) {
        edits.set(key, raw);
    }
    if let Some(params) = params {
        edits.set(PARAMS, params);
    }
    edits.apply(body, scan)
}

/// The client's body with the connector's parameters.
pub(super) fn decode_body(body: &Bytes, scan: &Scan, params: &[u8]) -> Bytes {
    Edits::new().set(PARAMS, params).apply(body, scan)
}
