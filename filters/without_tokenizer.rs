//! In place of `model` in a build without the feature `tokenizer`: no tokenizer can be loaded, so that
//! no value of the type exists.

use std::convert::Infallible;
use tidegate_engine::Scan;

use crate::encoded::{Encoded, TokenizerError, UnixTime};

/// A tokenizer and its chat template.
#[derive(Debug)]
pub struct ModelTokenizer(Infallible);

impl ModelTokenizer {
    /// Loads nothing.
    ///
    /// # Errors
    /// Always [`TokenizerError::NotBuilt`].
    pub fn load(
        _tokenizer_json: &[u8],
        _tokenizer_config: Option<&[u8]>,
        _template_override: Option<&str>,
    ) -> Result<ModelTokenizer, TokenizerError> {
        Err(TokenizerError::NotBuilt)
    }

    /// Adds a cache for token ids.
    #[must_use]
    pub fn with_cache(self, _bytes: usize) -> ModelTokenizer {
        match self.0 {}
    }

    /// Messages for the operator.
    pub fn notes(&self) -> &[String] {
        match self.0 {}
    }

    /// Returns whether there is a chat template.
    pub fn has_template(&self) -> bool {
        match self.0 {}
    }

    /// Tokenizes a text.
    pub fn encode_text(&self, _text: &str, _add_special_tokens: bool) -> Option<Vec<u32>> {
        match self.0 {}
    }

    pub(crate) fn fewest_tokens(&self, _bytes: usize) -> u64 {
        match self.0 {}
    }

    pub(crate) fn completion(&self, _text: &str, _special: bool) -> Option<Encoded> {
        match self.0 {}
    }

    pub(crate) fn chat(&self, _scan: &Scan, _body: &[u8], _clock: UnixTime) -> Option<Encoded> {
        match self.0 {}
    }

    pub(crate) fn chat_of_other_api(
        &self,
        _scan: &Scan,
        _body: &[u8],
        _clock: UnixTime,
    ) -> Option<Encoded> {
        match self.0 {}
    }
}
