//! Filter 5: prompt tokens and prefix block hashes. It must never refuse a request: a prompt that
//! cannot be counted is estimated and marked as such.

use crate::encoded::{Encoded, UnixTime};
use crate::parse::Parsed;
use crate::{Counted, FreshIds, ModelTokenizer, PromptEstimator};
use std::borrow::Cow;
use tidegate_engine::json_string::string_end;
use tidegate_engine::{Endpoint, Prompt, Scan, Span};
use tidegate_scheduler::cost::{ByteFeatures, chain_bytes, chain_salt, chain_tokens};
use tidegate_types::Tokens;

/// Bytes per token assumed for the blocks of a prompt that was not tokenized.
const BYTES_PER_TOKEN: usize = 4;

/// Settings of the filter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokenize {
    /// Tokens per prefix block.
    pub(crate) block: usize,
    /// Renders chat templates contained in requests.
    pub(crate) trust_request_chat_template: bool,
}

/// Size of a prompt.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) counted: Counted,
    /// Proven lower bound for the longest single prompt; `None` if there is none.
    pub(crate) at_least: Option<Tokens>,
}

/// Input of all ways of counting.
struct PromptInput<'a> {
    settings: &'a Tokenize,
    scan: &'a Scan,
    body: &'a [u8],
    tokenizer: Option<&'a ModelTokenizer>,
    estimator: PromptEstimator<'a>,
    model: Option<&'a str>,
    /// Seed of the block hashes: prompts share blocks only under the same salt.
    salt: u64,
    /// The model's context length, if known.
    limit: Option<Tokens>,
}

/// Limit of JSON values in `tools` and `messages` that are rendered. A template holds each value as
/// an object of about 100 bytes and indents it: 4 MB of `[[],[],…]` took 2.2 GB. A thousand tools
/// have 50,000 values.
const NODES_MAX: usize = 100_000;
/// Bytes of the longest escape of one byte, `\u0041`.
const ESCAPED_MAX: usize = 6;

pub(crate) fn tokenize(
    settings: &Tokenize,
    parsed: &Parsed<'_>,
    estimator: PromptEstimator<'_>,
    body: &[u8],
    fresh: &FreshIds,
) -> Measured {
    let Some(scan) = &parsed.scan else { return Measured::default() };
    let tokenizer = parsed.model.and_then(|(_, entry)| entry.tokenizer.as_deref());
    let model = parsed.model.map(|(name, _)| &**name);
    let salt = salt(scan, body, model.unwrap_or_default());
    let limit = parsed.model.and_then(|(_, entry)| entry.max_model_len);
    let request = PromptInput { settings, scan, body, tokenizer, estimator, model, salt, limit };
    let measured = match scan.prompt {
        Prompt::Absent => Measured::default(),
        Prompt::TokenIds(count, _) => request.ids_given(count),
        Prompt::Text(span) => request.text(span),
        Prompt::List(span) => request.list(span),
        Prompt::Messages(span) => request.messages(span, UnixTime(fresh.unix_seconds)),
        Prompt::Input(span) if scan.endpoint == Endpoint::Responses => {
            request.messages(span, UnixTime(fresh.unix_seconds))
        }
        Prompt::Input(span) => request.estimated(span),
    };
    request.truncated(measured)
}

/// Engines share cached blocks only within one model and one `cache_salt`.
fn salt(scan: &Scan, body: &[u8], model: &str) -> u64 {
    let salt = scan.cache_salt.map(|span| span.of(body)).unwrap_or_default();
    chain_salt(model, salt)
}

impl PromptInput<'_> {
    fn ids_given(&self, count: u32) -> Measured {
        let ids = self.scan.token_ids(self.body);
        match ids {
            Some(ids) => self.exact(&ids, true),
            // Ids above 32 bits exist in no model, but their count is right.
            None => Measured { counted: counted(u64::from(count)), at_least: None },
        }
    }

    fn text(&self, span: Span) -> Measured {
        if let Some(measured) = self.too_long_for_context(span) {
            return measured;
        }
        let special = self.scan.add_special_tokens.unwrap_or(true);
        let encoded = self.tokenizer.zip(span.text(self.body));
        match encoded.and_then(|(tokenizer, text)| tokenizer.completion(&text, special)) {
            Some(encoded) => self.encoded(&encoded),
            None => self.estimated(span),
        }
    }

    /// Returns a lower bound for a text too long for the context under any tokenization, which is
    /// then not tokenized. An escape takes at most six bytes for one.
    fn too_long_for_context(&self, span: Span) -> Option<Measured> {
        let (tokenizer, limit) = self.tokenizer.zip(self.limit)?;
        let fewest = Tokens(tokenizer.fewest_tokens(span.of(self.body).len() / ESCAPED_MAX));
        (fewest >= limit).then(|| Measured { at_least: Some(fewest), ..self.estimated(span) })
    }

    fn encoded(&self, encoded: &Encoded) -> Measured {
        let measured = self.exact(&encoded.ids, encoded.exact);
        // A date can be some tokens longer on other days.
        let slack = encoded.splits + if encoded.prints_date { DATE_SLACK } else { 0 };
        let at_least = measured.at_least.map(|least| Tokens(least.get().saturating_sub(slack)));
        Measured { at_least, ..measured }
    }

    /// Several prompts: the engine reads one after the other. They run colocated, so that no block
    /// hashes are needed.
    fn list(&self, span: Span) -> Measured {
        let raw = span.of(self.body);
        if let Ok(lists) = serde_json::from_slice::<Vec<Vec<u32>>>(raw) {
            let lengths = lists.iter().map(|ids| ids.len() as u64);
            return several(lengths.map(|length| (length, true)));
        }
        let texts = serde_json::from_slice::<Vec<Cow<'_, str>>>(raw);
        let special = self.scan.add_special_tokens.unwrap_or(true);
        match (self.tokenizer, texts) {
            (Some(tokenizer), Ok(texts)) => {
                let each = texts.iter().map(|text| tokenizer.completion(text, special));
                match each.collect::<Option<Vec<_>>>() {
                    Some(all) => several(all.iter().map(|one| (one.ids.len() as u64, one.exact))),
                    None => self.estimated(span),
                }
            }
            _ => Measured {
                counted: Counted { chain: Vec::new(), ..self.estimated(span).counted },
                at_least: None,
            },
        }
    }

    fn messages(&self, span: Span, clock: UnixTime) -> Measured {
        let chat = matches!(self.scan.endpoint, Endpoint::ChatCompletions | Endpoint::Tokenize);
        let other = matches!(self.scan.endpoint, Endpoint::Responses | Endpoint::Messages);
        let own = self.scan.chat_template.is_some();
        let renders = (chat || other) && (!own || self.settings.trust_request_chat_template);
        let Some(tokenizer) = self.tokenizer.filter(|_| renders) else {
            return self.estimated(span);
        };
        if let Some(measured) = self.too_long_for_context(span) {
            return measured;
        }
        let tools = self.scan.tools.map(|tools| tools.of(self.body)).unwrap_or_default();
        if has_more_nodes(tools, NODES_MAX) || has_more_nodes(span.of(self.body), NODES_MAX) {
            return self.estimated(span);
        }
        let encoded = match other {
            true => tokenizer.chat_of_other_api(self.scan, self.body, clock),
            false => tokenizer.chat(self.scan, self.body, clock),
        };
        match encoded {
            Some(encoded) => self.encoded(&encoded),
            None => self.estimated(span),
        }
    }

    fn exact(&self, ids: &[u32], exact: bool) -> Measured {
        let chain = chain_tokens(self.salt, ids, self.settings.block);
        let tokens = Tokens(ids.len() as u64);
        Measured {
            counted: Counted {
                tokens,
                exact,
                features: None,
                block_tokens: self.block_tokens(&chain),
                chain,
            },
            at_least: exact.then_some(tokens),
        }
    }

    /// Estimates from the bytes of the prompt and of the tools, which the template puts before it.
    fn estimated(&self, span: Span) -> Measured {
        let prompt = span.of(self.body);
        let tools = self.scan.tools.map(|tools| tools.of(self.body)).unwrap_or_default();
        let both;
        let all = if tools.is_empty() {
            prompt
        } else {
            both = [tools, prompt].concat();
            &both
        };
        let features = ByteFeatures::from_text(all);
        let chain = chain_bytes(self.salt, all, self.settings.block * BYTES_PER_TOKEN);
        let counted = Counted {
            tokens: self.estimator.estimate(self.model, &features),
            exact: false,
            features: Some(features),
            block_tokens: self.block_tokens(&chain),
            chain,
        };
        Measured { counted, at_least: None }
    }

    /// The engine truncates the prompt and keeps its end, whose blocks are unknown.
    fn truncated(&self, measured: Measured) -> Measured {
        let Some(raw) = self.scan.value(self.body, "truncate_prompt_tokens") else {
            return measured;
        };
        let most =
            serde_json::from_slice::<i64>(raw).ok().and_then(|most| u64::try_from(most).ok());
        let tokens =
            most.map_or(measured.counted.tokens, |most| measured.counted.tokens.min(Tokens(most)));
        Measured { counted: counted(tokens.get()), at_least: None }
    }

    fn block_tokens(&self, chain: &[u64]) -> Tokens {
        Tokens(if chain.is_empty() { 0 } else { self.settings.block as u64 })
    }
}

/// Returns whether a JSON text has more than `max` values. Every value but the first follows a
/// comma, colon or bracket outside of strings.
fn has_more_nodes(json: &[u8], max: usize) -> bool {
    if json.len() <= max {
        return false;
    }
    let (mut nodes, mut at) = (0, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at = string_end(json, at + 1).unwrap_or(json.len()),
            b',' | b'[' | b'{' => nodes += 1,
            _ => {}
        }
        if nodes > max {
            return true;
        }
        at += 1;
    }
    false
}

/// Tokens by which a rendered date may change the count.
const DATE_SLACK: u64 = 8;

fn counted(tokens: u64) -> Counted {
    Counted { tokens: Tokens(tokens), ..Counted::default() }
}

fn several(prompts: impl Iterator<Item = (u64, bool)>) -> Measured {
    let (mut sum, mut longest, mut exact) = (0, 0, true);
    for (tokens, is_exact) in prompts {
        sum += tokens;
        longest = longest.max(tokens);
        exact &= is_exact;
    }
    let counted = Counted { exact, ..counted(sum) };
    Measured { counted, at_least: exact.then_some(Tokens(longest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        let many = format!("[{}]", vec!["[]"; 1000].join(","));
        assert!(has_more_nodes(many.as_bytes(), 999) && !has_more_nodes(many.as_bytes(), 5000));
        let text = format!("[\"{}\",\"\\\\\",\"\\\",,,\"]", ",[{".repeat(1000));
        assert!(!has_more_nodes(text.as_bytes(), 10));
        assert!(!has_more_nodes(b"\"\\", 0), "broken JSON ends too");
    }
}
