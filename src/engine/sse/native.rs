//! Events of native APIs: `/generate` of SGLang and TGI, and Ollama's lines. It must never fail a
//! stream: unreadable data counts as nothing.

use super::Seen;
use crate::Usage;
use serde_json::Value;
use tidegate_types::Tokens;

/// Reads one event of `/generate`; `counted` is the previous total. SGLang reports a total in every
/// event, TGI sends one token per event. Returns the index of a choice that ends here.
pub(super) fn generate_event(event: &Value, counted: &mut u64, seen: &mut Seen) -> Option<u32> {
    let meta = &event["meta_info"];
    if let Some(now) = meta["completion_tokens"].as_u64() {
        let more = now.saturating_sub(*counted);
        seen.tokens = seen.tokens.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
        *counted = now.max(*counted);
        seen.usage = meta_usage(meta).or(seen.usage);
        let finished = !meta["finish_reason"].is_null() && meta["finish_reason"] != "";
        seen.finished |= finished;
        let index = event["index"].as_u64().and_then(|index| u32::try_from(index).ok());
        return finished.then_some(index.unwrap_or(0));
    }
    if event["token"].is_object() {
        seen.tokens += 1;
    }
    // TGI has no `[DONE]`; its last event has the whole text.
    if event["generated_text"].is_string() {
        (seen.finished, seen.done) = (true, true);
        let completion = event["details"]["generated_tokens"].as_u64();
        let of = |completion| Usage { completion: Tokens(completion), ..Usage::default() };
        // The prompt length is reported only on request.
        let prompt = event["details"]["input_length"].as_u64().map(Tokens);
        let usage = completion.zip(prompt).map(|(c, prompt)| Usage { prompt, ..of(c) });
        seen.usage = usage.or(seen.usage);
    }
    None
}

/// Reads SGLang's `meta_info`.
pub(crate) fn meta_usage(meta: &Value) -> Option<Usage> {
    Some(Usage {
        prompt: Tokens(meta["prompt_tokens"].as_u64()?),
        completion: Tokens(meta["completion_tokens"].as_u64()?),
        cached: meta["cached_tokens"].as_u64().map(Tokens),
    })
}

/// Reads one line of Ollama's.
pub(super) fn ollama_line(line: &Value, seen: &mut Seen) {
    let some = |value: &Value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    let message = &line["message"];
    let parts = [&line["response"], &line["thinking"], &message["content"], &message["thinking"]];
    if parts.into_iter().any(some) || some(&message["tool_calls"]) {
        seen.tokens += 1;
    }
    if line["done"] == true {
        (seen.finished, seen.done) = (true, true);
        seen.usage = ollama_usage(line).or(seen.usage);
    }
}

/// Reads the counts in Ollama's last line or whole answer. A fully cached prompt has no count.
pub(crate) fn ollama_usage(line: &Value) -> Option<Usage> {
    Some(Usage {
        prompt: Tokens(line["prompt_eval_count"].as_u64().unwrap_or(0)),
        completion: Tokens(line["eval_count"].as_u64()?),
        cached: None,
    })
}

/// Reads llama.cpp's `timings`, for answers without `usage`.
pub(crate) fn timings_usage(timings: &Value) -> Option<Usage> {
    let cached = timings["cache_n"].as_u64();
    Some(Usage {
        prompt: Tokens(timings["prompt_n"].as_u64()? + cached.unwrap_or(0)),
        completion: Tokens(timings["predicted_n"].as_u64()?),
        cached: cached.map(Tokens),
    })
}
