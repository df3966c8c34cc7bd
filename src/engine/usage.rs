//! Token counts that an engine reports, in an answer or a chunk. An answer that cannot be parsed
//! has no usage.

use crate::Endpoint;
use crate::sse::{meta_usage, ollama_usage};
use memchr::memmem::FinderRev;
use serde::Deserialize;
use serde_json::Value;
use std::sync::LazyLock;
use tidegate_types::Tokens;

/// Reported token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt: Tokens,
    /// Generated tokens; 0 for embeddings and similar endpoints.
    pub completion: Tokens,
    /// Prompt tokens found in the engine's prefix cache, if reported (vLLM:
    /// `--enable-prompt-tokens-details`).
    pub cached: Option<Tokens>,
}

/// The `usage` object with the member names of OpenAI, its Responses API, and Anthropic.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct UsageWire {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    cache_read_input_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

const KEY: &[u8] = br#""usage""#;
static LAST_KEY: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));

/// Parses the usage that follows the key, if it counts anything.
fn member_value(after_key: &[u8]) -> Option<Usage> {
    let value = after_key.trim_ascii_start().strip_prefix(b":")?;
    let mut value = serde_json::Deserializer::from_slice(value);
    Option::<UsageWire>::deserialize(&mut value).ok()?.and_then(UsageWire::read)
}

impl Usage {
    /// Returns the usage in a whole answer of `endpoint`.
    pub fn of(endpoint: Endpoint, answer: &[u8]) -> Option<Usage> {
        let value = || serde_json::from_slice::<Value>(answer).ok();
        match endpoint {
            Endpoint::Generate => meta_usage(&value()?["meta_info"]),
            Endpoint::OllamaChat | Endpoint::OllamaGenerate => ollama_usage(&value()?),
            _ => Usage::of_answer(answer),
        }
    }

    /// Returns the usage in a whole JSON answer; `None` if it has none. Engines write it last, so
    /// that it is searched from the end and the text is not parsed. Quotes inside strings are
    /// escaped, so that the text cannot match.
    pub fn of_answer(answer: &[u8]) -> Option<Usage> {
        let mut before = answer;
        while let Some(at) = LAST_KEY.rfind(before) {
            if let Some(usage) = member_value(&answer[at + KEY.len()..]) {
                return Some(usage);
            }
            before = &answer[..at];
        }
        None
    }
}

impl UsageWire {
    /// Returns `None` if neither prompt nor output is counted.
    pub(crate) fn read(self) -> Option<Usage> {
        let prompt = self.prompt_tokens.or(self.input_tokens);
        let completion = self.completion_tokens.or(self.output_tokens);
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        let details = self.prompt_tokens_details.or(self.input_tokens_details);
        let cached = details.and_then(|d| d.cached_tokens).or(self.cache_read_input_tokens);
        Some(Usage {
            prompt: Tokens(prompt.unwrap_or(0)),
            completion: Tokens(completion.unwrap_or(0)),
            cached: cached.map(Tokens),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, expected: Option<(u64, u64, Option<u64>)>) {
        let expected = expected.map(|(prompt, completion, cached)| Usage {
            prompt: Tokens(prompt),
            completion: Tokens(completion),
            cached: cached.map(Tokens),
        });
        assert_eq!(Usage::of_answer(answer.as_bytes()), expected, "{answer}");
    }

    #[test]
    fn usage_is_read_under_every_name() {
        check(
            r#"{"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":null}}"#,
            Some((9, 3, None)),
        );
        check(
            r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}"#,
            Some((9, 0, Some(8))),
        );
        check(
            r#"{"usage":{"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":4}}}"#,
            Some((7, 2, Some(4))),
        );
        check(
            r#"{"usage":{"input_tokens":7,"output_tokens":2,"cache_read_input_tokens":5}}"#,
            Some((7, 2, Some(5))),
        );
    }

    #[test]
    fn the_answers_text_is_not_mistaken_for_usage() {
        check(
            r#"{"text":"\"usage\":{\"prompt_tokens\":1}","usage" : {"prompt_tokens":2},"kv":{"usage":null}}"#,
            Some((2, 0, None)),
        );
    }

    #[test]
    fn usage_of_native_apis_is_read() {
        let of = |endpoint, answer: &str| {
            let usage = Usage::of(endpoint, answer.as_bytes())?;
            Some((usage.prompt.get(), usage.completion.get(), usage.cached.map(Tokens::get)))
        };
        let sglang = r#"{"text":"x","meta_info":{"prompt_tokens":4,"completion_tokens":2,"cached_tokens":1}}"#;
        assert_eq!(of(Endpoint::Generate, sglang), Some((4, 2, Some(1))));
        let ollama =
            r#"{"message":{"content":"x"},"done":true,"prompt_eval_count":4,"eval_count":2}"#;
        assert_eq!(of(Endpoint::OllamaChat, ollama), Some((4, 2, None)));
        assert_eq!(
            of(Endpoint::OllamaGenerate, r#"{"done":true,"eval_count":2}"#),
            Some((0, 2, None))
        );
        assert_eq!(of(Endpoint::Generate, "[]"), None);
    }

    #[test]
    fn an_answer_without_counts_has_no_usage() {
        for answer in ["", "{}", "[]", r#"{"usage":null}"#, r#"{"usage":{}}"#, r#"{"usage":"#] {
            check(answer, None);
        }
    }
}
