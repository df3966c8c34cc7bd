//! vLLM with the NIXL connector: the prefill leg's recipe (engine_protocols.md §1.3 and §2). It must
//! never change what the prompt is rendered from: both legs must read identical tokens.

use crate::{Edits, Endpoint, Scan};
use bytes::Bytes;
use tidegate_terms::Seconds;

/// The member that carries the hand-off, both ways.
pub(super) const PARAMS: &str = "kv_transfer_params";

/// The prefill engine keeps the blocks for 30 s (`kv_lease_duration`) unless the decode engine asks
/// in between; 20 s leaves it time to do so.
pub(super) const HANDOFF_DEADLINE: Seconds = Seconds(20.0);

/// Asks the engine to keep the blocks. Only `do_remote_decode` is read, but the nulls matter: with
/// remote ids it would try to pull blocks itself.
const KEEP_BLOCKS: &[u8] = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

/// Always set.
const ALWAYS: &[(&str, &[u8])] = &[
    ("max_tokens", b"1"),
    ("stream", b"false"),
    // The one token is thrown away, so it must not end the request early: a prefill that stops is
    // not handed over by every connector.
    ("ignore_eos", b"true"),
    (PARAMS, KEEP_BLOCKS),
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
const RESPONSES: &[(&str, &[u8])] = &[
    ("max_output_tokens", b"1"),
    ("stream", b"false"),
    ("store", b"false"),
    (PARAMS, KEEP_BLOCKS),
];
/// Messages, where a stop sequence is the one thing that could end the prefill early.
const MESSAGES: &[(&str, &[u8])] =
    &[("max_tokens", b"1"), ("stream", b"false"), (PARAMS, KEEP_BLOCKS)];
const MESSAGES_IF_GIVEN: &[(&str, &[u8])] = &[("stop_sequences", b"[]")];
/// Token ids in: what limits the answer lies one level deeper.
const TOKENS_IN: &[(&str, &[u8])] = &[("stream", b"false"), (PARAMS, KEEP_BLOCKS)];
const TOKENS_IN_IF_GIVEN: &[(&str, &[u8])] = &[("stream_options", b"null")];
const SAMPLING: &[(&str, &[u8])] = &[("max_tokens", b"1"), ("ignore_eos", b"true")];
const SAMPLING_IF_GIVEN: &[(&str, &[u8])] =
    &[("min_tokens", b"0"), ("stop", b"[]"), ("stop_token_ids", b"[]"), ("logprobs", b"null")];

/// The body that makes one token and keeps the prompt's blocks for the decode engine.
pub(super) fn prefill_body(endpoint: Endpoint, body: &Bytes, scan: &Scan) -> Bytes {
    match endpoint {
        Endpoint::Responses => edited(body, scan, RESPONSES, &[]),
        Endpoint::Messages => edited(body, scan, MESSAGES, MESSAGES_IF_GIVEN),
        Endpoint::TokensIn => {
            let sampling = scan.value(body, "sampling_params").unwrap_or(b"{}");
            let sampling = Bytes::copy_from_slice(sampling);
            let body = edited(body, scan, TOKENS_IN, TOKENS_IN_IF_GIVEN);
            // Both were JSON objects before, and edits keep them so.
            let (Ok(outer), Ok(inner)) =
                (crate::scan(Endpoint::Other, &body), crate::scan(Endpoint::Other, &sampling))
            else {
                return body;
            };
            let sampling = edited(&sampling, &inner, SAMPLING, SAMPLING_IF_GIVEN);
            Edits::new().set("sampling_params", &sampling).apply(&body, &outer)
        }
        _ => completion_body(endpoint, body, scan),
    }
}

fn edited(
    body: &Bytes,
    scan: &Scan,
    always: &[(&str, &[u8])],
    if_given: &[(&str, &[u8])],
) -> Bytes {
    let mut edits = Edits::new();
    for (key, raw) in if_given.iter().filter(|(key, _)| scan.value(body, key).is_some()) {
        edits.set(key, raw);
    }
    for (key, raw) in always {
        edits.set(key, raw);
    }
    edits.apply(body, scan)
}

fn completion_body(endpoint: Endpoint, body: &Bytes, scan: &Scan) -> Bytes {
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
    edits.apply(body, scan)
}
