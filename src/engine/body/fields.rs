//! Reads the top-level members that tidegate needs. It must never refuse a body: wrong types,
//! ranges and combinations are refused by the engine. A value that cannot be read is estimated, and
//! the request then runs colocated.

use super::{ColocatedReason, Members, Prompt, Scan, Span, native};
use crate::Endpoint;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::cell::Cell;
use tidegate_types::Tokens;

macro_rules! keys {
    ($($key:ident = $name:literal),* $(,)?) => {
        /// A member that is read.
        #[derive(Clone, Copy)]
        pub(super) enum Key { $($key),* }

        impl Key {
            const COUNT: usize = [$($name),*].len();

            fn of(name: &[u8]) -> Option<Key> {
                match std::str::from_utf8(name).ok()? {
                    $($name => Some(Key::$key),)*
                    _ => None,
                }
            }
        }
    };
}

keys! {
    Model = "model",
    Messages = "messages",
    Prompt = "prompt",
    Input = "input",
    Stream = "stream",
    StreamOptions = "stream_options",
    N = "n",
    BestOf = "best_of",
    MaxTokens = "max_tokens",
    MaxCompletionTokens = "max_completion_tokens",
    MaxOutputTokens = "max_output_tokens",
    MinTokens = "min_tokens",
    UseBeamSearch = "use_beam_search",
    PromptEmbeds = "prompt_embeds",
    PromptLogprobs = "prompt_logprobs",
    Echo = "echo",
    TruncatePromptTokens = "truncate_prompt_tokens",
    KvTransferParams = "kv_transfer_params",
    Tools = "tools",
    ChatTemplate = "chat_template",
    ChatTemplateKwargs = "chat_template_kwargs",
    CacheSalt = "cache_salt",
    AddGenerationPrompt = "add_generation_prompt",
    ContinueFinalMessage = "continue_final_message",
    AddSpecialTokens = "add_special_tokens",
    Background = "background",
    PreviousResponse = "previous_response_id",
    SamplingParams = "sampling_params",
    Parameters = "parameters",
    Options = "options",
    Text = "text",
    InputIds = "input_ids",
    Inputs = "inputs",
    TokenIds = "token_ids",
}

/// Members that are present and not null; of repeated ones the last.
pub(super) struct Given<'a> {
    pub(super) body: &'a [u8],
    spans: [Option<Span>; Key::COUNT],
    /// A member that was read has a value that the engine may interpret differently.
    odd: Cell<bool>,
}

pub(super) fn read(endpoint: Endpoint, body: &[u8], members: Members) -> Scan {
    let given = Given::of(body, &members);
    let mut scan = Scan {
        endpoint,
        model: given.model(),
        stream: given.flag(Key::Stream).unwrap_or(endpoint.streams_by_default()),
        include_usage: given.include_usage(),
        n: 1,
        max_tokens: None,
        prompt: Prompt::Absent,
        colocated: None,
        tools: given.get(Key::Tools),
        chat_template: given.get(Key::ChatTemplate),
        chat_template_kwargs: given.get(Key::ChatTemplateKwargs),
        cache_salt: given.get(Key::CacheSalt),
        add_generation_prompt: None,
        continue_final_message: None,
        add_special_tokens: None,
        client_handoff: given.get(Key::KvTransferParams).is_some(),
        members,
    };
    // On a path that is only passed through, the same names may have another meaning.
    if matches!(endpoint, Endpoint::Other | Endpoint::Detokenize) {
        scan.colocated = Some(ColocatedReason::Endpoint);
        return scan;
    }
    if endpoint.is_native() {
        native::read(endpoint, &given, &mut scan);
        scan.colocated = scan.colocated.or(given.odd.get().then_some(ColocatedReason::OddValue));
        return scan;
    }
    scan.n = given.count(Key::N, 1).map_or(1, |n| n.try_into().unwrap_or(u32::MAX));
    scan.max_tokens = given.max_tokens(endpoint);
    scan.prompt = given.prompt(endpoint);
    scan.add_generation_prompt = given.flag(Key::AddGenerationPrompt);
    scan.continue_final_message = given.flag(Key::ContinueFinalMessage);
    scan.add_special_tokens = given.flag(Key::AddSpecialTokens);
    scan.colocated = given.colocated_reason(&scan);
    scan
}

impl<'a> Given<'a> {
    fn of(body: &'a [u8], members: &Members) -> Given<'a> {
        let mut spans = [None; Key::COUNT];
        for member in members.iter() {
            if let Some(key) = Key::of(&member.name(body)) {
                let value = Some(member.value);
                spans[key as usize] = value.filter(|span| span.of(body) != b"null");
            }
        }
        Given { body, spans, odd: Cell::new(false) }
    }

    pub(super) fn get(&self, key: Key) -> Option<Span> {
        self.spans[key as usize]
    }

    fn raw(&self, key: Key) -> Option<&'a [u8]> {
        self.get(key).map(|span| span.of(self.body))
    }

    /// Returns `None` for an empty name too: vLLM, SGLang and llama.cpp then serve their own model.
    fn model(&self) -> Option<Span> {
        let raw = self.raw(Key::Model).filter(|raw| *raw != b"\"\"")?;
        if first(raw) != b'"' {
            self.odd.set(true);
            return None;
        }
        self.get(Key::Model)
    }

    /// Reads a boolean. A value of another type is converted as pydantic does, and marked as odd.
    fn flag(&self, key: Key) -> Option<bool> {
        match self.raw(key)? {
            b"true" => Some(true),
            b"false" => Some(false),
            raw => {
                self.odd.set(true);
                truth(raw)
            }
        }
    }

    /// Reads a whole number; `16.0` counts as one, because some languages have no other type. Any
    /// other value is marked as odd; the result is then an estimate or `None`.
    fn int(&self, key: Key) -> Option<i64> {
        let raw = self.raw(key)?;
        if let Ok(int) = serde_json::from_slice(raw) {
            return Some(int);
        }
        let number = match serde_json::from_slice::<f64>(raw) {
            Ok(number) => number,
            Err(_) => {
                self.odd.set(true);
                super::members::text(raw)?.trim().parse().ok()?
            }
        };
        // Above 2^53 a float is not exact; no member reaches that range.
        let whole = number.fract() == 0.0 && number.abs() < 9e15;
        self.odd.set(self.odd.get() || !whole);
        number.is_finite().then_some(number as i64)
    }

    /// Reads a whole number of at least `least`. A smaller one may have a special meaning
    /// (llama.cpp's `max_tokens: -1` is no limit).
    fn count(&self, key: Key, least: i64) -> Option<u64> {
        let count = self.int(key)?;
        if count < least {
            self.odd.set(true);
            return None;
        }
        Some(count as u64)
    }

    fn max_tokens(&self, endpoint: Endpoint) -> Option<Tokens> {
        if endpoint == Endpoint::Responses {
            return self.count(Key::MaxOutputTokens, 1).map(Tokens);
        }
        // Scores a prompt: vLLM echoes it and generates nothing.
        let scores = endpoint == Endpoint::Completions && self.flag(Key::Echo) == Some(true);
        let old = self.count(Key::MaxTokens, if scores { 0 } else { 1 });
        let new = self.count(Key::MaxCompletionTokens, 1);
        let chat = endpoint == Endpoint::ChatCompletions;
        if chat { new.or(old) } else { old }.map(Tokens)
    }

    fn include_usage(&self) -> bool {
        #[derive(Deserialize)]
        struct StreamOptions<'a> {
            #[serde(borrow)]
            include_usage: Option<&'a RawValue>,
        }
        let Some(raw) = self.raw(Key::StreamOptions) else { return false };
        let options = serde_json::from_slice::<StreamOptions<'_>>(raw);
        match options.map(|options| options.include_usage.map(RawValue::get)) {
            Ok(None | Some("false")) => false,
            Ok(Some("true")) => true,
            Ok(Some(other)) => {
                self.odd.set(true);
                truth(other.as_bytes()) == Some(true)
            }
            Err(_) => {
                self.odd.set(true);
                false
            }
        }
    }

    fn prompt(&self, endpoint: Endpoint) -> Prompt {
        let messages = || self.get(Key::Messages).map(Prompt::Messages);
        let input = || self.get(Key::Input).map(Prompt::Input);
        let found = match endpoint {
            Endpoint::ChatCompletions | Endpoint::Messages => messages(),
            Endpoint::Completions => self.completion_prompt(),
            Endpoint::Tokenize => messages().or_else(|| self.completion_prompt()),
            Endpoint::Embeddings => input().or_else(messages),
            Endpoint::Responses => input(),
            _ => None,
        };
        found.unwrap_or(Prompt::Absent)
    }

    /// Reads a text, token ids, or a list of either. Any other value counts as a list: its size is
    /// estimated from its bytes, and the request runs colocated.
    fn completion_prompt(&self) -> Option<Prompt> {
        let span = self.get(Key::Prompt)?;
        let raw = span.of(self.body);
        if first(raw) == b'"' {
            return Some(Prompt::Text(span));
        }
        let inside = raw.get(1..raw.len() - 1).unwrap_or_default().trim_ascii_start();
        let count = match (first(raw), first(inside)) {
            (b'[', b'0'..=b'9') => count_ids(inside),
            _ => None,
        };
        Some(count.map_or(Prompt::List(span), |count| Prompt::TokenIds(count, span)))
    }

    fn colocated_reason(&self, scan: &Scan) -> Option<ColocatedReason> {
        let few = |tokens: Option<Tokens>, most| tokens.is_some_and(|t| t <= Tokens(most));
        let min = self.int(Key::MinTokens).unwrap_or(0);
        let starved = scan.max_tokens.is_some_and(|max| min > 0 && Tokens(min as u64) > max);
        let options = self.get(Key::StreamOptions).is_some();
        let stored =
            self.flag(Key::Background) == Some(true) || self.get(Key::PreviousResponse).is_some();
        let truncates = self.int(Key::TruncatePromptTokens).is_some_and(|most| most < 0);
        let several = scan.n > 1 || self.count(Key::BestOf, 0).is_some_and(|best| best > 1);
        let beam = self.flag(Key::UseBeamSearch) == Some(true);
        let echo = self.flag(Key::Echo) == Some(true);
        let rules = [
            (!scan.endpoint.can_split(), ColocatedReason::Endpoint),
            (scan.client_handoff, ColocatedReason::ClientHandoff),
            (several, ColocatedReason::SeveralAnswers),
            (beam, ColocatedReason::BeamSearch),
            (matches!(scan.prompt, Prompt::List(_)), ColocatedReason::ListPrompt),
            (self.get(Key::PromptEmbeds).is_some(), ColocatedReason::PromptEmbeds),
            (self.get(Key::PromptLogprobs).is_some(), ColocatedReason::PromptLogprobs),
            (echo, ColocatedReason::Echo),
            (few(scan.max_tokens, 1), ColocatedReason::OneToken),
            (truncates, ColocatedReason::TruncatesToFit),
            (stored && scan.endpoint == Endpoint::Responses, ColocatedReason::StoredByEngine),
            (
                scan.prompt == Prompt::Absent && self.get(Key::PromptEmbeds).is_none(),
                ColocatedReason::Endpoint,
            ),
            (starved || (options && !scan.stream), ColocatedReason::WouldBeRefused),
            (self.odd.get(), ColocatedReason::OddValue),
        ];
        rules.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason)
    }
}

/// Converts a value to a boolean as pydantic's lax mode does; `None` if pydantic refuses it.
fn truth(raw: &[u8]) -> Option<bool> {
    if let Ok(number) = serde_json::from_slice::<f64>(raw) {
        return (number == 1.0 || number == 0.0).then_some(number == 1.0);
    }
    let word = super::members::text(raw)?.to_ascii_lowercase();
    match word.as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// Counts the ids of a list, from its first id to the byte before `]`; `None` if there are other
/// bytes than digits. The input is valid JSON, so that digits are whole numbers.
fn count_ids(inside: &[u8]) -> Option<u32> {
    let (mut commas, mut strange) = (0_u32, false);
    // Without early exit and with byte-wide sums over short runs, the loop is vectorised.
    for run in inside.chunks(u8::MAX as usize) {
        commas += u32::from(run.iter().map(|byte| u8::from(*byte == b',')).sum::<u8>());
        let odd = |byte: &u8| !matches!(byte, b'0'..=b'9' | b',' | b' ' | b'\n' | b'\r' | b'\t');
        strange |= run.iter().fold(false, |any, byte| any | odd(byte));
    }
    (!strange).then_some(commas + 1)
}

fn first(raw: &[u8]) -> u8 {
    raw.first().copied().unwrap_or_default()
}
