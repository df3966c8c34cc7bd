//! Reads one event's data: tokens, usage, end of the answer. There are two readers that must agree:
//! substring searches for the usual chunk, and a parser for all others. It must never fail a
//! stream: unreadable data counts as nothing.
//!
//! The searches are sound because quotes inside a JSON string are escaped: the bytes `usage"` would
//! be `usage\"` there. A string whose whole value is `usage` looks like a key; it is left to the
//! parser.

use super::native::{generate_event, ollama_line};
use super::{Seen, timings_usage};
use crate::json_string::string_end;
use crate::usage::UsageWire;
use crate::{Endpoint, Usage};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Reader of the data of one stream's events.
#[derive(Debug)]
pub(super) struct Chunks {
    kind: Endpoint,
    /// Anthropic reports prompt tokens in the first event and output tokens in the last.
    prompt: Option<Usage>,
    /// Tokens so far, if the engine reports usage in every chunk.
    exact: Option<u64>,
    /// Tokens so far in SGLang's native API, which always reports them.
    generated: u64,
    /// Choices with a finish reason.
    finished: Finished,
    /// Count of events.
    events: u64,
}

/// Set of choices with a finish reason: a bitmap of the first 128 indexes, OpenAI's largest `n`.
#[derive(Clone, Copy, Debug, Default)]
struct Finished {
    among_first: u128,
    /// Count of finish reasons of choices with larger indexes.
    others: u32,
}

impl Finished {
    fn add(&mut self, index: u32) {
        match 1_u128.checked_shl(index) {
            Some(bit) => self.among_first |= bit,
            None => self.others = self.others.saturating_add(1),
        }
    }

    fn count(self) -> u32 {
        self.among_first.count_ones().saturating_add(self.others)
    }
}

struct ChunkFinders {
    choices: Finder<'static>,
    finish: Finder<'static>,
    index: Finder<'static>,
    usage: Finder<'static>,
    error: Finder<'static>,
    completion: Finder<'static>,
}

static FIND: LazyLock<ChunkFinders> = LazyLock::new(|| ChunkFinders {
    choices: Finder::new(br#""choices":[{"index":"#),
    finish: Finder::new(br#""finish_reason":"#),
    index: Finder::new(br#""index""#),
    usage: Finder::new(br#""usage""#),
    error: Finder::new(br#""error""#),
    completion: Finder::new(br#""completion_tokens":"#),
});

/// A chunk of any known protocol. Members whose type varies stay raw, so that an unexpected type
/// does not hide the other members.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    /// `error` in the error events of vLLM before 0.10 and of LMDeploy.
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// llama.cpp: counts in the last chunk, requested or not.
    #[serde(borrow)]
    timings: Option<&'a RawValue>,
    /// Responses: the whole answer, in the last event.
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    /// Messages: the empty answer, in the first event.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    /// llama.cpp: prompt progress, on request.
    #[serde(borrow)]
    prompt_progress: Option<&'a RawValue>,
    /// llama.cpp's native API: true in the last event.
    #[serde(borrow)]
    stop: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow)]
    index: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    token_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

impl Chunks {
    pub(super) fn new(kind: Endpoint) -> Chunks {
        Chunks {
            kind,
            prompt: None,
            exact: None,
            generated: 0,
            finished: Finished::default(),
            events: 0,
        }
    }

    pub(super) fn finished_choices(&self) -> u32 {
        self.finished.count()
    }

    pub(super) fn has_events(&self) -> bool {
        self.events > 0
    }

    /// From here on chunks contain the engine's count; `so_far` tokens were counted already.
    pub(super) fn count_exactly(&mut self, so_far: u32) {
        self.exact = Some(u64::from(so_far));
    }

    /// Adds the observations in one event's data.
    pub(super) fn read(&mut self, data: &[u8], seen: &mut Seen) {
        self.events += 1;
        let counted = self.exact.and_then(|_| completion_of(data));
        match usual(data, counted.is_some()) {
            Some(finished) => {
                match counted {
                    Some(now) => self.count_to(now, seen),
                    None => self.count_one(seen),
                }
                if let Some(index) = finished {
                    seen.finished = true;
                    self.finished.add(index);
                }
            }
            None => self.parse(data, seen),
        }
    }

    fn count_one(&mut self, seen: &mut Seen) {
        seen.tokens += 1;
        self.exact = self.exact.map(|so_far| so_far + 1);
    }

    /// Sets the total to `now`.
    fn count_to(&mut self, now: u64, seen: &mut Seen) {
        if let Some(so_far) = &mut self.exact {
            let more = now.saturating_sub(*so_far);
            seen.tokens = seen.tokens.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
            *so_far = now.max(*so_far);
        }
    }

    fn parse(&mut self, data: &[u8], seen: &mut Seen) {
        if data.trim_ascii() == b"[DONE]" {
            seen.done = true;
            return;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else {
            seen.informative = true;
            return;
        };
        let named = chunk.object.is_some_and(|object| object.get() == "\"error\"");
        seen.error |= named || given(chunk.error).is_some();
        if chunk.stop.is_some_and(|stop| stop.get() == "true") {
            (seen.finished, seen.done) = (true, true);
        }
        if matches!(self.kind, Endpoint::Generate | Endpoint::OllamaChat | Endpoint::OllamaGenerate)
        {
            return self.native(data, seen);
        }
        let opens = chunk.choices.as_ref().is_some_and(|choices| !choices.is_empty());
        seen.informative |= !opens || given(chunk.prompt_progress).is_some();
        let timings = || timings_usage(&serde_json::from_str(given(chunk.timings)?.get()).ok()?);
        let usage = usage_of(chunk.usage).or_else(timings);
        let usage = usage.map(|usage| self.with_prompt_of_start(&chunk, usage));
        seen.usage = usage.or(seen.usage);
        let counted = usage.filter(|_| self.exact.is_some());
        if let Some(usage) = counted {
            self.count_to(usage.completion.get(), seen);
        }
        for choice in chunk.choices.iter().flatten() {
            if counted.is_none() && choice.carries_token() {
                self.count_one(seen);
            }
            if given(choice.finish_reason).is_some_and(|reason| reason.get() != "\"\"") {
                seen.finished = true;
                let index = choice.index.and_then(|index| index.get().parse().ok());
                self.finished.add(index.unwrap_or(0));
            }
        }
        match self.kind {
            Endpoint::Responses => responses_event(&chunk, seen),
            Endpoint::Messages => self.messages_event(&chunk, seen),
            _ => {}
        }
    }

    fn native(&mut self, data: &[u8], seen: &mut Seen) {
        let Ok(event) = serde_json::from_slice(data) else { return };
        match self.kind {
            Endpoint::Generate => {
                if let Some(index) = generate_event(&event, &mut self.generated, seen) {
                    self.finished.add(index);
                }
            }
            _ => ollama_line(&event, seen),
        }
    }

    /// Adds the prompt tokens of Anthropic's first event to the usage of its last one.
    fn with_prompt_of_start(&self, chunk: &Chunk, usage: Usage) -> Usage {
        let ends =
            self.kind == Endpoint::Messages && chunk.kind.as_deref() == Some("message_delta");
        match self.prompt.filter(|_| ends) {
            Some(start) => Usage {
                prompt: usage.prompt.max(start.prompt),
                cached: usage.cached.or(start.cached),
                ..usage
            },
            None => usage,
        }
    }

    fn messages_event(&mut self, chunk: &Chunk, seen: &mut Seen) {
        match chunk.kind.as_deref() {
            Some("message_start") => self.prompt = usage_within(chunk.message),
            Some("content_block_delta") => seen.tokens += 1,
            Some("message_delta") => {
                seen.finished = true;
                self.finished.add(0);
            }
            Some("message_stop") => seen.done = true,
            _ => {}
        }
    }
}

fn responses_event(chunk: &Chunk, seen: &mut Seen) {
    match chunk.kind.as_deref() {
        Some("response.completed" | "response.incomplete" | "response.cancelled") => {
            seen.usage = usage_within(chunk.response).or(seen.usage);
            seen.finished = true;
            seen.done = true;
        }
        Some("response.failed" | "error") => {
            seen.error = true;
            seen.done = true;
        }
        Some(kind) if kind.ends_with(".delta") => seen.tokens += 1,
        _ => {}
    }
}

/// Recognises the usual chunk: one choice with some delta content or some text, no usage, no error.
/// It carries one token. Returns the choice's index if it is that choice's last chunk; the outer
/// `None` means undecided (parser). `counted`: the usage was read already.
fn usual(data: &[u8], counted: bool) -> Option<Option<u32>> {
    let at = FIND.choices.find(data)? + FIND.choices.needle().len();
    let rest = data.get(at..)?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let (index, rest) = rest.split_at(digits);
    let rest = rest.strip_prefix(b",")?;
    let (chat, string) = match rest.strip_prefix(br#""delta":{"content":""#) {
        Some(string) => (true, string),
        None => (false, rest.strip_prefix(br#""text":""#)?),
    };
    let end = string_end(string, 0).filter(|end| *end > 0)?;
    let rest = string.get(end + 1..)?;
    let tail = if chat { rest.strip_prefix(b"}")? } else { rest };
    if FIND.index.find(tail).is_some()
        || FIND.error.find(data).is_some()
        || !counted && has_usage(data)
    {
        return None;
    }
    let reason = FIND.finish.find(tail)? + FIND.finish.needle().len();
    match tail.get(reason..)? {
        // Some servers send an empty string in every chunk.
        [b'n', b'u', b'l', b'l', ..] | [b'"', b'"', ..] => Some(None),
        [b'"', ..] => std::str::from_utf8(index).ok()?.parse().ok().map(Some),
        _ => None,
    }
}

/// Returns the token count of a chunk that ends with its one usage, which has no cached count.
fn completion_of(data: &[u8]) -> Option<u64> {
    let at = memchr::memmem::rfind(data, FIND.usage.needle())?;
    let value = data.get(at + FIND.usage.needle().len()..)?.strip_prefix(b":{")?;
    let number = FIND.completion.find(value)? + FIND.completion.needle().len();
    let digits = value.get(number..)?;
    let length = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    let plain = value.iter().filter(|byte| **byte == b'{').count() == 0;
    let ends = digits.get(length..)?.ends_with(b"}}");
    let number = std::str::from_utf8(&digits[..length]).ok()?;
    (plain && ends).then(|| number.parse().ok())?
}

/// Returns whether there may be a usage other than null.
fn has_usage(data: &[u8]) -> bool {
    let mut rest = data;
    while let Some(at) = FIND.usage.find(rest) {
        rest = &rest[at + FIND.usage.needle().len()..];
        if !rest.starts_with(b":null") {
            return true;
        }
    }
    false
}

impl ChunkChoice<'_> {
    /// Returns whether the choice carries a token: text, reasoning or a tool call, or an empty
    /// text. vLLM sends an empty text for a token that ends the answer or is not a whole character
    /// yet. An empty text beside a role opens the answer and does not count.
    fn carries_token(&self) -> bool {
        let texts = [text(self.text), self.delta.map_or(MaybeText::None, delta)];
        match texts.into_iter().max().unwrap_or(MaybeText::None) {
            MaybeText::Some => true,
            MaybeText::Empty => !matches!(given(self.token_ids), Some(ids) if is_empty(ids)),
            // vLLM's generate endpoint sends ids and no text.
            MaybeText::None => matches!(given(self.token_ids), Some(ids) if !is_empty(ids)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MaybeText {
    None,
    Empty,
    Some,
}

fn delta(delta: &RawValue) -> MaybeText {
    let Ok(members) = serde_json::from_str::<BTreeMap<Cow<str>, &RawValue>>(delta.get()) else {
        return MaybeText::None;
    };
    let opens = given(members.get("role").copied()).is_some();
    let others = members.iter().filter(|(name, _)| *name != "role");
    let most = others.map(|(_, value)| text(Some(value))).max().unwrap_or(MaybeText::None);
    if opens && most == MaybeText::Empty { MaybeText::None } else { most }
}

/// Classifies a delta's member (content, reasoning, tool calls): absent, empty or not.
fn text(value: Option<&RawValue>) -> MaybeText {
    match value.map(|value| value.get().as_bytes()) {
        Some(b"\"\"") => MaybeText::Empty,
        Some([b'"', ..]) => MaybeText::Some,
        Some([b'[' | b'{', ..]) if !value.is_some_and(is_empty) => MaybeText::Some,
        _ => MaybeText::None,
    }
}

/// Returns whether a list or object is empty.
fn is_empty(value: &RawValue) -> bool {
    let inside = value.get().as_bytes().get(1..).unwrap_or_default().trim_ascii_start();
    matches!(inside.first(), Some(b']' | b'}'))
}

fn given(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|raw| raw.get() != "null")
}

fn usage_of(usage: Option<&RawValue>) -> Option<Usage> {
    serde_json::from_str::<UsageWire>(usage?.get()).ok()?.read()
}

fn usage_within(answer: Option<&RawValue>) -> Option<Usage> {
    Usage::of_answer(answer?.get().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTENTS: [&str; 9] = [
        r#""Hi""#,
        r#""""#,
        r#""say \"usage\": {\"prompt_tokens\":1}""#,
        r#""usage""#,
        r#""error""#,
        r#""\\""#,
        r#""\\\"},\"finish_reason\":\"stop\"""#,
        "null",
        r#""\"delta\":{\"content\":\"x""#,
    ];
    const DELTAS: [&str; 5] = [
        r#"{"content":C}"#,
        r#"{"role":"assistant","content":C}"#,
        r#"{"content":C,"tool_calls":[{"index":0}]}"#,
        r#"{"reasoning":C}"#,
        "{}",
    ];
    const TAILS: [&str; 6] = [
        "",
        r#","usage":null"#,
        r#","usage":{"prompt_tokens":9,"completion_tokens":3}"#,
        r#","error":{"message":"x"}"#,
        r#","kv_transfer_params":null"#,
        r#","usage":null,"usage":{"prompt_tokens":1}"#,
    ];

    proptest! {
        #[test]
        fn the_searches_agree_with_the_parser(
            content in 0..CONTENTS.len(), delta in 0..DELTAS.len() + 1, tail in 0..TAILS.len(),
            reason in prop::sample::select(vec!["null", "\"\"", "\"stop\"", "\"error\""]),
            index in 0..12_u32, second: bool, ids in prop::sample::select(vec!["null", "[]", "[5]"]),
        ) {
            let carried = match DELTAS.get(delta) {
                Some(delta) => format!("\"delta\":{}", delta.replace('C', CONTENTS[content])),
                None => format!("\"text\":{}", CONTENTS[content]),
            };
            let choice = format!(
                r#"{{"index":{index},{carried},"logprobs":null,"finish_reason":{reason},"token_ids":{ids}}}"#
            );
            let choices = if second { format!("{choice},{choice}") } else { choice };
            let data = format!(r#"{{"id":"x","choices":[{choices}]{}}}"#, TAILS[tail]);
            if let Some(finished) = usual(data.as_bytes(), false) {
                let mut seen = Seen::default();
                Chunks::new(Endpoint::ChatCompletions).parse(data.as_bytes(), &mut seen);
                let expected = Seen { tokens: 1, finished: finished.is_some(), ..Seen::default() };
                prop_assert_eq!(seen, expected, "{}", data);
                prop_assert!(finished.is_none_or(|finished| finished == index));
            }
        }
    }

    #[test]
    fn the_usual_chunks_are_read_without_the_parser() {
        let chat = br#"{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"the \"usage\""},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;
        assert_eq!(usual(chat, false), Some(None));
        let text = br#"{"id":"x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" x","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null}"#;
        assert_eq!(usual(text, false), Some(Some(0)));
    }
}
