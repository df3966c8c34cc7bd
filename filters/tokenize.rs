//! Filter 5: how many tokens will the engine read, and which blocks of them may be cached? It must
//! never refuse: what cannot be counted is estimated, and says so.

use crate::model::{Encoded, ModelTokenizer, UnixTime};
use crate::parse::Parsed;
use crate::{Counted, FreshIds};
use std::borrow::Cow;
use tidegate_engine::{Endpoint, Prompt, Scan, Span};
use tidegate_scheduler::cost::{
    ByteEstimator, ByteFeatures, chain_bytes, chain_salt, chain_tokens,
};
use tidegate_types::Tokens;

/// Bytes that stand for one token in the blocks of a prompt that was not tokenized.
const BYTES_PER_TOKEN: usize = 4;

/// The filter's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokenize {
    /// Tokens a prefix block.
    pub(crate) block: usize,
    /// May a request bring its own template?
    pub(crate) trust_request_chat_template: bool,
}

/// A prompt's size.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) counted: Counted,
    /// The longest single prompt has at least so many tokens, for sure; `None`: who knows.
    pub(crate) at_least: Option<Tokens>,
}

/// What every way of counting reads.
struct Request<'a> {
    settings: &'a Tokenize,
    scan: &'a Scan,
    body: &'a [u8],
    tokenizer: Option<&'a ModelTokenizer>,
    estimator: &'a ByteEstimator,
    /// What must be equal for two prompts to share blocks.
    salt: u64,
    /// The model's longest context, if an engine told.
    limit: Option<Tokens>,
}

/// Values of `tools` and `messages` that are rendered. A template holds every value as an object of
/// some 100 bytes, and indents it: 4 MB of `[[],[],…]` took 2.2 GB. A thousand tools have 50,000.
const NODES_MAX: usize = 100_000;
/// `\u0041` for one byte.
const ESCAPED_MAX: usize = 6;

pub(crate) fn tokenize(
    settings: &Tokenize,
    parsed: &Parsed<'_>,
    estimator: &ByteEstimator,
    body: &[u8],
    fresh: &FreshIds,
) -> Measured {
    let Some(scan) = &parsed.scan else { return Measured::default() };
    let tokenizer = parsed.model.and_then(|(_, entry)| entry.tokenizer.as_deref());
    let salt = salt(scan, body, parsed.model.map(|(name, _)| &**name).unwrap_or_default());
    let limit = parsed.model.and_then(|(_, entry)| entry.max_model_len);
    let request = Request { settings, scan, body, tokenizer, estimator, salt, limit };
    let measured = match scan.prompt {
        Prompt::Absent => Measured::default(),
        Prompt::TokenIds(count, _) => request.ids_given(count),
        Prompt::Text(span) => request.text(span),
        Prompt::List(span) => request.list(span),
        Prompt::Messages(span) => request.messages(span, UnixTime(fresh.unix_seconds)),
        Prompt::Input(span) if scan.endpoint == Endpoint::Responses => {
            request.messages(span, UnixTime(fresh.unix_seconds))
        }
        Prompt::Input(span) => request.rough(span),
    };
    request.truncated(measured)
}

/// A cache is shared only under one model and one `cache_salt`.
fn salt(scan: &Scan, body: &[u8], model: &str) -> u64 {
    let salt = scan.cache_salt.map(|span| span.of(body)).unwrap_or_default();
    chain_salt(model, salt)
}

impl Request<'_> {
    fn ids_given(&self, count: u32) -> Measured {
        let ids = self.scan.token_ids(self.body);
        match ids {
            Some(ids) => self.exact(&ids, true),
            // Ids beyond 32 bits: no model has them, but the count is right.
            None => Measured { counted: counted(u64::from(count)), at_least: None },
        }
    }

    fn text(&self, span: Span) -> Measured {
        if let Some(measured) = self.cannot_fit(span) {
            return measured;
        }
        let special = self.scan.add_special_tokens.unwrap_or(true);
        let encoded = self.tokenizer.zip(span.text(self.body));
        match encoded.and_then(|(tokenizer, text)| tokenizer.completion(&text, special)) {
            Some(encoded) => self.encoded(&encoded),
            None => self.rough(span),
        }
    }

    /// A text of so many bytes that no tokenization fits the context: not tokenized at all. Escapes
    /// take at most six bytes for one.
    fn cannot_fit(&self, span: Span) -> Option<Measured> {
        let (tokenizer, limit) = self.tokenizer.zip(self.limit)?;
        let fewest = Tokens(tokenizer.fewest_tokens(span.of(self.body).len() / ESCAPED_MAX));
        (fewest >= limit).then(|| Measured { at_least: Some(fewest), ..self.rough(span) })
    }

    fn encoded(&self, encoded: &Encoded) -> Measured {
        let measured = self.exact(&encoded.ids, encoded.sure);
        // A date is a token or two longer on some days.
        let slack = encoded.cuts + if encoded.dated { DATE_SLACK } else { 0 };
        let at_least = measured.at_least.map(|least| Tokens(least.get().saturating_sub(slack)));
        Measured { at_least, ..measured }
    }

    /// Several prompts: each is read, one after the other. They run whole on one engine, so that
    /// there is no chain to look up.
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
                    Some(all) => several(all.iter().map(|one| (one.ids.len() as u64, one.sure))),
                    None => self.rough(span),
                }
            }
            _ => Measured {
                counted: Counted { chain: Vec::new(), ..self.rough(span).counted },
                at_least: None,
            },
        }
    }

    fn messages(&self, span: Span, clock: UnixTime) -> Measured {
        let chat = matches!(self.scan.endpoint, Endpoint::ChatCompletions | Endpoint::Tokenize);
        let other = matches!(self.scan.endpoint, Endpoint::Responses | Endpoint::Messages);
        let own = self.scan.chat_template.is_some();
        let renders = (chat || other) && (!own || self.settings.trust_request_chat_template);
        let Some(tokenizer) = self.tokenizer.filter(|_| renders) else { return self.rough(span) };
        if let Some(measured) = self.cannot_fit(span) {
            return measured;
        }
        let tools = self.scan.tools.map(|tools| tools.of(self.body)).unwrap_or_default();
        if has_more_nodes(tools, NODES_MAX) || has_more_nodes(span.of(self.body), NODES_MAX) {
            return self.rough(span);
        }
        let encoded = match other {
            true => tokenizer.chat_of_other_api(self.scan, self.body, clock),
            false => tokenizer.chat(self.scan, self.body, clock),
        };
        match encoded {
            Some(encoded) => self.encoded(&encoded),
            None => self.rough(span),
        }
    }

    fn exact(&self, ids: &[u32], sure: bool) -> Measured {
        let chain = chain_tokens(self.salt, ids, self.settings.block);
        let tokens = Tokens(ids.len() as u64);
        Measured {
            counted: Counted {
                tokens,
                exact: sure,
                features: None,
                block_tokens: self.block_tokens(&chain),
                chain,
            },
            at_least: sure.then_some(tokens),
        }
    }

    /// From the bytes: of the prompt, and of the tools, which the template puts before it.
    fn rough(&self, span: Span) -> Measured {
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
            tokens: self.estimator.estimate(&features),
            exact: false,
            features: Some(features),
            block_tokens: self.block_tokens(&chain),
            chain,
        };
        Measured { counted, at_least: None }
    }

    /// The engine cuts the prompt before it reads it. It keeps the end, whose blocks we do not know.
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

/// Has a JSON text more than `max` values? Every value but the first follows a comma, a colon or a
/// bracket outside of strings.
fn has_more_nodes(json: &[u8], max: usize) -> bool {
    if json.len() <= max {
        return false;
    }
    let (mut nodes, mut at) = (0, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at = end_of_string(json, at + 1),
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

/// Where the string ends whose content begins at `at`: its closing quote.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at;
        }
        at += 2;
    }
    json.len()
}

/// By how much a rendered date may change the count.
const DATE_SLACK: u64 = 8;

fn counted(tokens: u64) -> Counted {
    Counted { tokens: Tokens(tokens), ..Counted::default() }
}

fn several(prompts: impl Iterator<Item = (u64, bool)>) -> Measured {
    let (mut sum, mut longest, mut exact) = (0, 0, true);
    for (tokens, sure) in prompts {
        sum += tokens;
        longest = longest.max(tokens);
        exact &= sure;
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
