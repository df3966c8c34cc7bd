//! A model's tokenizer and chat template, for exact prompt token counts. It must never count
//! differently from the engine: a `tokenizer.json` that the fast tokenizer does not support is
//! refused at load.
//!
//! - `config`: `tokenizer_config.json`
//! - `refuse`: unsupported structures of `tokenizer.json`
//! - `template`: the compiled chat template, with the functions that Hugging Face templates call
//! - `conversation`: a body's messages as the template sees them
//! - `other_apis`: prompts of the Responses and Messages APIs as chats
//! - `pieces`: splits long texts at token boundaries
//! - `python`: JSON and dates in Python's format

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

use crate::encoded::{Encoded, TokenizerError, UnixTime};

use config::Config;
use conversation::RequestMessages;
use fastokens::Tokenizer;
use template::ChatTemplate;
use tidegate_engine::{Endpoint, Scan};

/// A tokenizer and its chat template. Immutable, shared by threads.
pub struct ModelTokenizer {
    tokenizer: Tokenizer,
    config: Config,
    template: Option<ChatTemplate>,
    /// `tokenizer_config.json` and `tokenizer.json` agree on the added special tokens.
    special_tokens_agree: bool,
    /// Length in bytes of the vocabulary's longest token; bounds a text's token count from below.
    longest_token: usize,
    notes: Vec<String>,
}

impl ModelTokenizer {
    /// Loads Hugging Face's `tokenizer.json`, with the chat template of `tokenizer_config.json` or
    /// with `template_override` (the engine's `--chat-template`, or a `chat_template.jinja`). Takes
    /// about 1 s for a vocabulary of 128k.
    ///
    /// # Errors
    /// [`TokenizerError`] for a malformed file or an unsupported tokenizer. A template that does
    /// not compile is reported by [`ModelTokenizer::notes`] instead.
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
        // Engines truncate and pad by their own rules.
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
        let special_tokens_agree = config.agrees_with(&tokenizer);
        if !special_tokens_agree {
            notes.push(
                "tokenizer_config.json and tokenizer.json differ in the special tokens they add; \
                 completion prompts may be off by one or two tokens"
                    .to_owned(),
            );
        }
        Ok(ModelTokenizer {
            tokenizer,
            config,
            template,
            special_tokens_agree,
            longest_token,
            notes,
        })
    }

    /// Adds a cache of `bytes` bytes for the token ids of earlier messages, so that a
    /// conversation's history is not tokenized again. Messages above a 64th of the size are not
    /// cached; 0 disables the cache.
    #[must_use]
    pub fn with_cache(mut self, bytes: usize) -> ModelTokenizer {
        self.tokenizer.enable_segment_cache(bytes);
        self
    }

    /// Messages for the operator, for example why chats are estimated; empty if there are none.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns whether there is a chat template, which exact counts of chats require.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Tokenizes a text, recognising special tokens in it. `add_special_tokens` adds those that the
    /// tokenizer puts around a text. `None` if the tokenizer fails.
    pub fn encode_text(&self, text: &str, add_special_tokens: bool) -> Option<Vec<u32>> {
        self.encode(text, add_special_tokens).map(|(ids, _)| ids)
    }

    /// Tokenizes a text; returns the ids and the number of splits.
    fn encode(&self, text: &str, special: bool) -> Option<(Vec<u32>, u64)> {
        if text.len() <= pieces::PIECE {
            return Some((self.tokenizer.encode_with_special_tokens(text, special).ok()?, 0));
        }
        let pieces = pieces::pieces(text);
        let splits = pieces.len() as u64 - 1;
        let mut ids = Vec::with_capacity(text.len() / 4);
        for (i, piece) in pieces.into_iter().enumerate() {
            // A special token for the end follows the first piece instead; the count is the same.
            let piece = self.tokenizer.encode_with_special_tokens(piece, special && i == 0);
            ids.extend_from_slice(&piece.ok()?);
        }
        Some((ids, splits))
    }

    /// Lower bound of the tokens of a text of `bytes` bytes.
    pub(crate) fn fewest_tokens(&self, bytes: usize) -> u64 {
        (bytes / self.longest_token) as u64
    }

    /// Tokenizes a chat body's rendered messages at time `unix_seconds`. `None` without a template,
    /// or if it refuses the messages.
    pub fn encode_chat(&self, scan: &Scan, body: &[u8], unix_seconds: u64) -> Option<Vec<u32>> {
        self.chat(scan, body, UnixTime(unix_seconds)).map(|encoded| encoded.ids)
    }

    pub(crate) fn completion(&self, text: &str, special: bool) -> Option<Encoded> {
        let (ids, splits) = self.encode(text, special)?;
        Some(Encoded {
            ids,
            exact: !special || self.special_tokens_agree,
            prints_date: false,
            splits,
        })
    }

    pub(crate) fn chat(&self, scan: &Scan, body: &[u8], clock: UnixTime) -> Option<Encoded> {
        let own_template = scan.chat_template.and_then(|span| span.text(body));
        let own_template = match own_template {
            Some(source) => Some(ChatTemplate::compile(source.into_owned()).ok()?),
            None => None,
        };
        let template = own_template.as_ref().or(self.template.as_ref())?;
        let messages = RequestMessages::read(scan, body, template)?;
        let exact = messages.is_faithful() && own_template.is_none() && !template.imitates;
        let rendered = template.render(messages, &self.config, clock)?;
        let special = scan.add_special_tokens.unwrap_or(false);
        let encoded = self.completion(&rendered.text, special)?;
        Some(Encoded {
            exact: exact && encoded.exact,
            prints_date: rendered.prints_date,
            ..encoded
        })
    }

    /// Tokenizes a Responses or Messages body; `None` also if it contains other content than text.
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
        let messages = RequestMessages::read(scan, body, template).ok_or("unreadable")?;
        let rendered = template.render(messages, &self.config, clock).ok_or("not rendered")?;
        Ok(rendered.text)
    }
}

/// Returns the length in bytes of the longest token. Byte-level vocabularies write a byte as a
/// character of one or two bytes, so that this is an upper bound; normalizers only shorten.
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
