//! A model's own tokenizer and chat template: what its engine would make of a prompt. It must never
//! be used where it would count wrongly: what the fast tokenizer cannot take is refused at load.
//!
//! - `config`: `tokenizer_config.json`
//! - `refuse`: which `tokenizer.json` cannot be taken
//! - `template`: the chat template, compiled once, with what Hugging Face templates call
//! - `conversation`: a body's messages as the template sees them
//! - `other_apis`: prompts of the Responses and the Messages API as chats
//! - `pieces`: long texts, cut where no token is
//! - `python`: JSON and dates as Python writes them

mod config;
mod conversation;
mod other_apis;
mod pieces;
mod python;
mod refuse;
mod template;

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod tests;

pub(crate) use template::UnixTime;

use config::Config;
use conversation::RequestMessages;
use fastokens::Tokenizer;
use template::ChatTemplate;
use tidegate_engine::{Endpoint, Scan};

/// A tokenizer and its chat template, loaded once. Immutable; any number of threads may use it.
pub struct ModelTokenizer {
    tokenizer: Tokenizer,
    config: Config,
    template: Option<ChatTemplate>,
    /// Does `tokenizer_config.json` ask for the special tokens that `tokenizer.json` adds?
    special_sure: bool,
    /// Bytes of the vocabulary's longest token: a text has at least one token for so many bytes.
    longest_token: usize,
    notes: Vec<String>,
}

/// Why a tokenizer cannot be used. The model's prompts can still be estimated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A file that is not what it should be.
    #[error("{file}: {problem}")]
    Unreadable {
        /// Which: `tokenizer.json` or `tokenizer_config.json`.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// `tokenizer.json` is sound, but the fast tokenizer would not count as the model's own does.
    #[error("tokenizer.json: {0} is not supported; prompts will be estimated")]
    Unsupported(String),
}

/// A prompt's token ids.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// The engine reads exactly these.
    pub(crate) sure: bool,
    /// The template printed the date.
    pub(crate) dated: bool,
    /// Cuts of a long text that may each have cost a token.
    pub(crate) cuts: u64,
}

impl ModelTokenizer {
    /// Loads Hugging Face's `tokenizer.json` with the chat template of `tokenizer_config.json`, or
    /// with `template_override`, which is the engine's `--chat-template` (or a
    /// `chat_template.jinja`). Takes about a second for a vocabulary of 128k.
    ///
    /// # Errors
    /// A file that cannot be read, or a tokenizer that the fast one cannot stand in for. A template
    /// that does not compile is no error: see [`ModelTokenizer::notes`].
    pub fn load(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        template_override: Option<&str>,
    ) -> Result<ModelTokenizer, TokenizerError> {
        let config = tokenizer_config.map_or(Ok(Config::default()), Config::read)?;
        let mut json = serde_json::from_slice(tokenizer_json).map_err(|error| {
            TokenizerError::Unreadable { file: "tokenizer.json", problem: error.to_string() }
        })?;
        config.add_tokens(&mut json);
        refuse::check(&json)?;
        let longest_token = longest_token(&json);
        let mut tokenizer = Tokenizer::from_json(json)
            .map_err(|error| TokenizerError::Unsupported(error.to_string()))?;
        // Engines cut and pad prompts by their own rules, not by the file's.
        tokenizer.set_truncation(None);
        tokenizer.set_padding(None);
        let mut notes = Vec::new();
        let source = template_override.map(str::to_owned).or_else(|| config.chat_template());
        let template = source.and_then(|source| match ChatTemplate::compile(source) {
            Ok(template) => Some(template),
            Err(error) => {
                notes.push(format!("chat template: {error:#}; chat prompts will be estimated"));
                None
            }
        });
        let special_sure = config.agrees_with(&tokenizer);
        if !special_sure {
            notes.push(
                "tokenizer_config.json and tokenizer.json differ in the special tokens they add; \
                 completion prompts may be off by one or two tokens"
                    .to_owned(),
            );
        }
        Ok(ModelTokenizer { tokenizer, config, template, special_sure, longest_token, notes })
    }

    /// The same with `bytes` of memory for the token ids of messages seen before: chats and agents
    /// send their whole history with every turn, and then only what is new is tokenized. A message
    /// of more than a 64th of it is not kept; 0 keeps none.
    #[must_use]
    pub fn with_cache(mut self, bytes: usize) -> ModelTokenizer {
        self.tokenizer.enable_segment_cache(bytes);
        self
    }

    /// What the operator should know: why chats are only estimated, and the like. Empty if all is
    /// well.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Can chats be counted? Not without a template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The ids of a text, special tokens in it recognised; with `add_special_tokens` also those
    /// that the model's tokenizer puts around it. `None` if the tokenizer fails on it.
    pub fn encode_text(&self, text: &str, add_special_tokens: bool) -> Option<Vec<u32>> {
        self.encode(text, add_special_tokens).map(|(ids, _)| ids)
    }

    /// The same, with the cuts that may each have cost a token.
    fn encode(&self, text: &str, special: bool) -> Option<(Vec<u32>, u64)> {
        if text.len() <= pieces::PIECE {
            return Some((self.tokenizer.encode_with_special_tokens(text, special).ok()?, 0));
        }
        let pieces = pieces::pieces(text);
        let cuts = pieces.len() as u64 - 1;
        let mut ids = Vec::with_capacity(text.len() / 4);
        for (i, piece) in pieces.into_iter().enumerate() {
            // A special token that belongs at the end stands after the first piece then: the count
            // is the same.
            let piece = self.tokenizer.encode_with_special_tokens(piece, special && i == 0);
            ids.extend_from_slice(&piece.ok()?);
        }
        Some((ids, cuts))
    }

    /// The fewest tokens that a text of `bytes` bytes can have.
    pub(crate) fn fewest_tokens(&self, bytes: usize) -> u64 {
        (bytes / self.longest_token) as u64
    }

    /// The ids of a chat body's rendered messages; `unix_seconds` is the time of day for templates
    /// that print a date. `None` if there is no template, or it does not take these messages.
    pub fn encode_chat(&self, scan: &Scan, body: &[u8], unix_seconds: u64) -> Option<Vec<u32>> {
        self.chat(scan, body, UnixTime(unix_seconds)).map(|encoded| encoded.ids)
    }

    pub(crate) fn completion(&self, text: &str, special: bool) -> Option<Encoded> {
        let (ids, cuts) = self.encode(text, special)?;
        Some(Encoded { ids, sure: !special || self.special_sure, dated: false, cuts })
    }

    pub(crate) fn chat(&self, scan: &Scan, body: &[u8], clock: UnixTime) -> Option<Encoded> {
        let theirs = scan.chat_template.and_then(|span| span.text(body));
        let theirs = match theirs {
            Some(source) => Some(ChatTemplate::compile(source.into_owned()).ok()?),
            None => None,
        };
        let template = theirs.as_ref().or(self.template.as_ref())?;
        let said = RequestMessages::read(scan, body, template)?;
        let sure = said.is_faithful() && theirs.is_none() && !template.imitates;
        let rendered = template.render(said, &self.config, clock)?;
        let special = scan.add_special_tokens.unwrap_or(false);
        let encoded = self.completion(&rendered.text, special)?;
        Some(Encoded { sure: sure && encoded.sure, dated: rendered.dated, ..encoded })
    }

    /// The same for a Responses or a Messages body. `None` too if there is more to it than text.
    pub(crate) fn chat_of_other_api(
        &self,
        scan: &Scan,
        body: &[u8],
        clock: UnixTime,
    ) -> Option<Encoded> {
        let chat = other_apis::as_chat(scan, body)?;
        let scan = tidegate_engine::scan(Endpoint::ChatCompletions, &chat).ok()?;
        self.chat(&scan, &chat, clock)
    }

    #[cfg(test)]
    pub(crate) fn render(
        &self,
        scan: &Scan,
        body: &[u8],
        clock: UnixTime,
    ) -> Result<String, String> {
        let template = self.template.as_ref().ok_or("no template")?;
        let said = RequestMessages::read(scan, body, template).ok_or("unreadable")?;
        let rendered = template.render(said, &self.config, clock).ok_or("not rendered")?;
        Ok(rendered.text)
    }
}

/// The most bytes that one token of `tokenizer.json` stands for. Byte-level vocabularies write a byte
/// as a character of one or two bytes, so this is an upper bound for them; normalizers only shorten.
fn longest_token(json: &serde_json::Value) -> usize {
    let vocabulary = json["model"]["vocab"].as_object();
    let tokens = vocabulary.into_iter().flat_map(|tokens| tokens.keys().map(String::len));
    let added = json["added_tokens"].as_array();
    let added =
        added.into_iter().flatten().filter_map(|token| Some(token["content"].as_str()?.len()));
    tokens.chain(added).max().unwrap_or(1).max(1)
}

impl std::fmt::Debug for ModelTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelTokenizer")
            .field("vocabulary", &self.tokenizer.vocab_size())
            .field("template", &self.has_template())
            .finish_non_exhaustive()
    }
}
