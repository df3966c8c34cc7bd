//! The members that tidegate reads, with their types. It must never judge more than it needs: a
//! range or a combination that is wrong is the engine's to refuse, in the engine's words.

use super::{BodyError, Members, Prompt, Scan, Span, WholeReason, native};
use crate::Endpoint;
use serde::Deserialize;
use tidegate_terms::Tokens;

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

            const fn name(self) -> &'static str {
                match self { $(Key::$key => $name),* }
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
    Priority = "priority",
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

/// The members that were given and are not null, the last of each name.
pub(super) struct Given<'a> {
    pub(super) body: &'a [u8],
    spans: [Option<Span>; Key::COUNT],
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

pub(super) fn read(endpoint: Endpoint, body: &[u8], members: Members) -> Result<Scan, BodyError> {
    let given = Given::of(body, &members);
    let mut scan = Scan {
        endpoint,
        model: given.typed(Key::Model, "a string", b"\"")?,
        stream: given.flag(Key::Stream)?.unwrap_or(endpoint.streams_unless_told()),
        include_usage: given.include_usage()?,
        n: 1,
        max_tokens: None,
        prompt: Prompt::Absent,
        whole: None,
        tools: given.get(Key::Tools),
        chat_template: given.get(Key::ChatTemplate),
        chat_template_kwargs: given.get(Key::ChatTemplateKwargs),
        cache_salt: given.get(Key::CacheSalt),
        add_generation_prompt: None,
        continue_final_message: None,
        add_special_tokens: None,
        priority: None,
        client_handoff: given.get(Key::KvTransferParams).is_some(),
        members,
    };
    if scan.model.is_none() && needs_model(endpoint) {
        return Err(BodyError::new("you must provide a model parameter", Some("model")));
    }
    // A path that is only passed through may give these names another meaning.
    if matches!(endpoint, Endpoint::Other | Endpoint::Detokenize) {
        scan.whole = Some(WholeReason::Endpoint);
        return Ok(scan);
    }
    if endpoint.is_native() {
        native::read(endpoint, &given, &mut scan);
        return Ok(scan);
    }
    scan.n = given.n()?;
    scan.max_tokens = given.max_tokens(endpoint)?;
    scan.prompt = given.prompt(endpoint)?;
    scan.add_generation_prompt = given.flag(Key::AddGenerationPrompt)?;
    scan.continue_final_message = given.flag(Key::ContinueFinalMessage)?;
    scan.add_special_tokens = given.flag(Key::AddSpecialTokens)?;
    scan.priority = given.int(Key::Priority)?;
    scan.whole = given.whole(&scan)?;
    Ok(scan)
}

/// Where OpenAI's API requires it, and a pool cannot be chosen without it.
const fn needs_model(endpoint: Endpoint) -> bool {
    let own = matches!(endpoint, Endpoint::Generate | Endpoint::TokensIn);
    endpoint.generates() && !own || matches!(endpoint, Endpoint::Embeddings)
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
        Given { body, spans }
    }

    pub(super) fn get(&self, key: Key) -> Option<Span> {
        self.spans[key as usize]
    }

    fn raw(&self, key: Key) -> Option<&'a [u8]> {
        self.get(key).map(|span| span.of(self.body))
    }

    /// The member, if its first byte is one of `opens`.
    fn typed(&self, key: Key, wanted: &str, opens: &[u8]) -> Result<Option<Span>, BodyError> {
        match self.raw(key) {
            Some(raw) if !opens.contains(&first(raw)) => Err(wrong(key, wanted, raw)),
            _ => Ok(self.get(key)),
        }
    }

    fn flag(&self, key: Key) -> Result<Option<bool>, BodyError> {
        match self.raw(key) {
            None => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(raw) => Err(wrong(key, "a boolean", raw)),
        }
    }

    /// A whole number; `16.0` is one too, since some languages have no other.
    fn int(&self, key: Key) -> Result<Option<i64>, BodyError> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        if let Ok(int) = serde_json::from_slice(raw) {
            return Ok(Some(int));
        }
        match serde_json::from_slice::<f64>(raw) {
            // Beyond 2^53 a float is not exact; no member of ours gets there.
            Ok(float) if float.fract() == 0.0 && float.abs() < 9e15 => Ok(Some(float as i64)),
            _ => Err(wrong(key, "an integer", raw)),
        }
    }

    /// A whole number that is at least `least`.
    fn count(&self, key: Key, least: i64) -> Result<Option<u64>, BodyError> {
        match self.int(key)? {
            Some(count) if count < least => {
                let name = key.name();
                let message = format!("`{name}` must be at least {least}, got {count}.");
                Err(BodyError::new(message, Some(name)))
            }
            count => Ok(count.map(|count| count as u64)),
        }
    }

    fn n(&self) -> Result<u32, BodyError> {
        Ok(self.count(Key::N, 1)?.map_or(1, |n| n.try_into().unwrap_or(u32::MAX)))
    }

    fn max_tokens(&self, endpoint: Endpoint) -> Result<Option<Tokens>, BodyError> {
        if endpoint == Endpoint::Responses {
            return Ok(self.count(Key::MaxOutputTokens, 1)?.map(Tokens));
        }
        // Scoring a prompt: vLLM echoes it and generates nothing.
        let scores = endpoint == Endpoint::Completions && self.flag(Key::Echo)? == Some(true);
        let old = self.count(Key::MaxTokens, if scores { 0 } else { 1 })?;
        let new = self.count(Key::MaxCompletionTokens, 1)?;
        let chat = endpoint == Endpoint::ChatCompletions;
        Ok(if chat { new.or(old) } else { old }.map(Tokens))
    }

    fn include_usage(&self) -> Result<bool, BodyError> {
        let key = Key::StreamOptions;
        let Some(span) = self.typed(key, "an object", b"{")? else { return Ok(false) };
        let raw = span.of(self.body);
        let options = serde_json::from_slice::<StreamOptions>(raw).map_err(|_| {
            let message = "`stream_options.include_usage` must be a boolean.";
            BodyError::new(message, Some(key.name()))
        })?;
        Ok(options.include_usage == Some(true))
    }

    fn prompt(&self, endpoint: Endpoint) -> Result<Prompt, BodyError> {
        let messages = || self.typed(Key::Messages, "a list", b"[");
        let input = || self.typed(Key::Input, "a string or a list", b"\"[{");
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Messages => match messages()? {
                Some(span) => Ok(Prompt::Messages(span)),
                None => Err(missing(Key::Messages)),
            },
            Endpoint::Completions => match self.completion_prompt()? {
                Prompt::Absent if self.get(Key::PromptEmbeds).is_none() => {
                    Err(missing(Key::Prompt))
                }
                prompt => Ok(prompt),
            },
            Endpoint::Tokenize => match (self.completion_prompt()?, messages()?) {
                (_, Some(span)) => Ok(Prompt::Messages(span)),
                (Prompt::Absent, None) => Err(missing(Key::Prompt)),
                (prompt, None) => Ok(prompt),
            },
            Endpoint::Embeddings => match (input()?, messages()?) {
                (Some(span), _) => Ok(Prompt::Input(span)),
                (None, Some(span)) => Ok(Prompt::Messages(span)),
                (None, None) => Err(missing(Key::Input)),
            },
            Endpoint::Responses => Ok(input()?.map_or(Prompt::Absent, Prompt::Input)),
            _ => Ok(Prompt::Absent),
        }
    }

    fn completion_prompt(&self) -> Result<Prompt, BodyError> {
        const WANTED: &str = "a string, a list of token ids or a list of prompts";
        let Some(span) = self.typed(Key::Prompt, WANTED, b"\"[")? else {
            return Ok(Prompt::Absent);
        };
        let raw = span.of(self.body);
        if first(raw) == b'"' {
            return Ok(Prompt::Text(span));
        }
        let inside = raw.get(1..raw.len() - 1).unwrap_or_default().trim_ascii_start();
        match first(inside) {
            b'"' | b'[' => Ok(Prompt::List(span)),
            b'0'..=b'9' => match count_ids(inside) {
                Some(count) => Ok(Prompt::TokenIds(count, span)),
                None => {
                    let message = "`prompt` must be a list of non-negative integers.";
                    Err(BodyError::new(message, Some(Key::Prompt.name())))
                }
            },
            _ => Err(wrong(Key::Prompt, WANTED, raw)),
        }
    }

    fn whole(&self, scan: &Scan) -> Result<Option<WholeReason>, BodyError> {
        let few = |tokens: Option<Tokens>, most| tokens.is_some_and(|t| t <= Tokens(most));
        let min = self.int(Key::MinTokens)?.unwrap_or(0);
        let starved = scan.max_tokens.is_some_and(|max| min > 0 && Tokens(min as u64) > max);
        let options = self.get(Key::StreamOptions).is_some();
        let kept =
            self.flag(Key::Background)? == Some(true) || self.get(Key::PreviousResponse).is_some();
        let truncates = self.int(Key::TruncatePromptTokens)?.is_some_and(|most| most < 0);
        let several = scan.n > 1 || self.count(Key::BestOf, 0)?.is_some_and(|best| best > 1);
        let rules = [
            (!scan.endpoint.can_split(), WholeReason::Endpoint),
            (scan.client_handoff, WholeReason::ClientHandoff),
            (several, WholeReason::SeveralAnswers),
            (self.flag(Key::UseBeamSearch)? == Some(true), WholeReason::BeamSearch),
            (matches!(scan.prompt, Prompt::List(_)), WholeReason::ListPrompt),
            (self.get(Key::PromptEmbeds).is_some(), WholeReason::PromptEmbeds),
            (self.get(Key::PromptLogprobs).is_some(), WholeReason::PromptLogprobs),
            (self.flag(Key::Echo)? == Some(true), WholeReason::Echo),
            (few(scan.max_tokens, 1), WholeReason::OneToken),
            (truncates, WholeReason::TruncatesToFit),
            (kept && scan.endpoint == Endpoint::Responses, WholeReason::KeptByEngine),
            (
                scan.prompt == Prompt::Absent && self.get(Key::PromptEmbeds).is_none(),
                WholeReason::Endpoint,
            ),
            (starved || (options && !scan.stream), WholeReason::WouldBeRefused),
        ];
        Ok(rules.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason))
    }
}

/// How many ids a list of them holds, from its first id to the byte before `]`; `None` if anything
/// but digits is among them. The JSON is known to be valid, so that digits are whole numbers.
fn count_ids(inside: &[u8]) -> Option<u32> {
    let (mut commas, mut strange) = (0_u32, false);
    // No early exit, and bytewise sums over short runs: the compiler makes this vector code.
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

fn wrong(key: Key, wanted: &str, raw: &[u8]) -> BodyError {
    let got = match first(raw) {
        b'"' => "a string",
        b'{' => "an object",
        b'[' => "a list",
        b't' | b'f' => "a boolean",
        _ => "a number",
    };
    let name = key.name();
    // A list that is not the right list, or a number that is no integer.
    let message = if wanted.contains(got) || (got == "a number" && wanted == "an integer") {
        format!("`{name}` must be {wanted}.")
    } else {
        format!("`{name}` must be {wanted}, got {got}.")
    };
    BodyError::new(message, Some(name))
}

fn missing(key: Key) -> BodyError {
    let name = key.name();
    BodyError::new(format!("Missing required parameter: '{name}'."), Some(name))
}
