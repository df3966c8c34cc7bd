//! `tokenizer_config.json`: the chat template, the special tokens that templates print, and tokens
//! that `tokenizer.json` may lack. Unknown members are ignored.

use super::TokenizerError;
use fastokens::Tokenizer;
use minijinja::Value;
use serde::Deserialize;
use serde_json::Value as Json;

/// Special tokens that templates may print (`special_tokens_map` of transformers).
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Contents of the file.
#[derive(Debug, Default)]
pub(crate) struct Config {
    file: File,
    /// Name and text of each special token.
    special: Vec<(&'static str, Value)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    chat_template: Option<Template>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    added_tokens_decoder: serde_json::Map<String, Json>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Json>,
}

/// One template, or several by name, of which `default` is for chats.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    NamedTemplate(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Config {
    pub(super) fn read(bytes: &[u8]) -> Result<Config, TokenizerError> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| {
            let problem = error.to_string();
            TokenizerError::Unreadable { file: "tokenizer_config.json", problem }
        })?;
        let special = NAMES
            .into_iter()
            .filter_map(|name| Some((name, Value::from(token_text(file.rest.get(name)?)?))));
        Ok(Config { special: special.collect(), file })
    }

    /// Returns the chat template.
    pub(super) fn chat_template(&self) -> Option<String> {
        match self.file.chat_template.as_ref()? {
            Template::One(source) => Some(source.clone()),
            Template::NamedTemplate(all) => {
                let default = all.iter().find(|named| named.name == "default");
                default.map(|named| named.template.clone())
            }
        }
    }

    /// Returns the text of a special token such as `bos_token`.
    pub(super) fn special(&self, name: &str) -> Option<Value> {
        self.special.iter().find(|(known, _)| *known == name).map(|(_, text)| text.clone())
    }

    pub(super) fn special_names(&self) -> impl Iterator<Item = &'static str> {
        self.special.iter().map(|(name, _)| *name)
    }

    /// Adds tokens that only this file declares (Qwen2-VL's `<|image_pad|>`).
    pub(super) fn add_tokens(&self, tokenizer: &mut Json) {
        if self.file.added_tokens_decoder.is_empty() {
            return;
        }
        let Some(object) = tokenizer.as_object_mut() else { return };
        let known = object.entry("added_tokens").or_insert_with(|| Json::Array(Vec::new()));
        let Some(known) = known.as_array_mut() else { return };
        for (id, token) in &self.file.added_tokens_decoder {
            let Ok(id) = id.parse::<u64>() else { continue };
            let is_known = known.iter().any(|token| token["id"].as_u64() == Some(id));
            if let Some(token) = token.as_object().filter(|_| !is_known) {
                let mut token = token.clone();
                token.insert("id".to_owned(), id.into());
                known.push(Json::Object(token));
            }
        }
    }

    /// Returns whether both files add the same special tokens. Some tokenizer classes follow this
    /// file instead of `tokenizer.json`, so that a difference makes counts uncertain.
    pub(super) fn agrees_with(&self, tokenizer: &Tokenizer) -> bool {
        let ids = tokenizer.encode_with_special_tokens("a", true).unwrap_or_default();
        let bare = tokenizer.encode_with_special_tokens("a", false).unwrap_or_default();
        let is = |id: Option<&u32>, name: &str| {
            let text = self.special(name);
            let known =
                text.as_ref().and_then(Value::as_str).and_then(|t| tokenizer.token_to_id(t));
            ids.len() > bare.len() && known.is_some() && known.as_ref() == id
        };
        let bos = is(ids.first(), "bos_token");
        let eos = is(ids.last(), "eos_token");
        self.file.add_bos_token.is_none_or(|wanted| wanted == bos)
            && self.file.add_eos_token.is_none_or(|wanted| wanted == eos)
    }
}

/// A token is its text, or an object with it.
fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}
