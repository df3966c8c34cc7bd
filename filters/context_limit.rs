//! Filter 6: the prompt and `max_tokens` against the model's context length. It must never refuse a
//! request that vLLM would serve; estimated counts refuse none.

use crate::parse::Parsed;
use crate::tokenize::Measured;
use tidegate_engine::{ApiError, Endpoint, Scan};
use tidegate_types::Tokens;

pub(crate) fn check_context(parsed: &Parsed<'_>, measured: &Measured) -> Result<(), ApiError> {
    let Some(scan) = &parsed.scan else { return Ok(()) };
    let limit = parsed.model.and_then(|(_, entry)| entry.max_model_len);
    limit.map_or(Ok(()), |limit| check_length(scan, measured, limit))
}

/// Refuses what vLLM 0.32 refuses: a prompt that leaves no room for one token
/// (`InputProcessor._validate_prompt_len`), and a `max_tokens` above the context length
/// (`TokenizeParams`). A `max_tokens` that exceeds it only together with the prompt is reduced by
/// vLLM (`get_max_tokens`).
fn check_length(scan: &Scan, measured: &Measured, limit: Tokens) -> Result<(), ApiError> {
    if !matches!(scan.endpoint, Endpoint::ChatCompletions | Endpoint::Completions) {
        return Ok(());
    }
    let wanted = scan.max_tokens;
    let too_much = wanted.is_some_and(|wanted| wanted > limit);
    let too_long = measured.at_least.is_some_and(|prompt| prompt >= limit);
    if !too_much && !too_long {
        return Ok(());
    }
    let prompt = measured.at_least.unwrap_or(measured.counted.tokens);
    let refusal = ApiError::context_length(limit, prompt, wanted.filter(|_| too_much));
    let param = match (too_long, scan.endpoint) {
        (false, _) => "max_tokens",
        (true, Endpoint::Completions) => "prompt",
        (true, _) => return Err(refusal),
    };
    Err(ApiError { param: Some(param), ..refusal })
}
