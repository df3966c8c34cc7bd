//! Prompts of a request: rendered messages, a text, token ids, or a list of either.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

use super::BodyMembers;
use super::members::{boolean, given, shown};
use crate::error_response::ErrorResponse;
use crate::tokens::{TokenizedPrompt, render_message, render_turn};

/// Returns the prompts of a chat or completion request.
pub fn of(chat: bool, members: &BodyMembers<'_>) -> Result<Vec<TokenizedPrompt>, ErrorResponse> {
    if chat { conversation(members).map(|prompt| vec![prompt]) } else { completion(members) }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct RawChatMessage<'a> {
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawContentPart<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

fn conversation(members: &BodyMembers<'_>) -> Result<TokenizedPrompt, ErrorResponse> {
    let Some(raw) = given(members, "messages") else {
        return Err(ErrorResponse::wrong_type("messages", "missing", "Field required", "..."));
    };
    let wrong = || {
        let message = "Input should be a valid list";
        ErrorResponse::wrong_type("messages", "list_type", message, &shown(raw))
    };
    let messages: Vec<RawChatMessage<'_>> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
    if messages.is_empty() {
        return Err(ErrorResponse::bad("messages must not be empty".to_owned(), Some("messages")));
    }
    let mut rendered = String::with_capacity(raw.get().len() + 64);
    for message in &messages {
        let content = content(message.content).ok_or_else(wrong)?;
        render_message(&mut rendered, message.role.as_deref().unwrap_or("user"), &content);
    }
    // Templates render tools in their own ways; only that the tools are read matters here.
    if let Some(tools) = given(members, "tools") {
        rendered.push_str(tools.get());
    }
    if boolean(members, "add_generation_prompt")? != Some(false) {
        render_turn(&mut rendered);
    }
    Ok(TokenizedPrompt::of_text(&rendered))
}

/// Returns a text, or the texts of a list of parts; `None` for other values.
fn content<'a>(raw: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
    let Some(raw) = raw else { return Some(Cow::Borrowed("")) };
    match raw.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0),
        Some(b'[') => {
            let parts: Vec<RawContentPart<'_>> = serde_json::from_str(raw.get()).ok()?;
            Some(Cow::Owned(parts.iter().filter_map(|part| part.text.as_deref()).collect()))
        }
        _ => None,
    }
}

fn completion(members: &BodyMembers<'_>) -> Result<Vec<TokenizedPrompt>, ErrorResponse> {
    let Some(raw) = given(members, "prompt") else {
        let message = "Either prompt or prompt_embeds must be provided and non-empty.";
        return Err(ErrorResponse::bad(message.to_owned(), Some("prompt")));
    };
    if let Some(prompt) = one(raw)? {
        return Ok(vec![prompt]);
    }
    let wrong = || {
        let message = "Input should be a valid string";
        ErrorResponse::wrong_type("prompt", "string_type", message, &shown(raw))
    };
    let list: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
    list.into_iter().map(|raw| one(raw)?.ok_or_else(wrong)).collect()
}

/// Returns a text or a list of token ids; `None` for other values.
fn one(raw: &RawValue) -> Result<Option<TokenizedPrompt>, ErrorResponse> {
    if raw.get().starts_with('"') {
        let text = serde_json::from_str::<Text<'_>>(raw.get()).ok();
        return Ok(text.map(|text| TokenizedPrompt::of_text(&text.0)));
    }
    let Ok(ids) = serde_json::from_str::<Vec<u32>>(raw.get()) else { return Ok(None) };
    if ids.is_empty() {
        let message = "The decoder prompt cannot be empty";
        return Err(ErrorResponse::bad(message.to_owned(), Some("prompt")));
    }
    Ok(Some(TokenizedPrompt::of_ids(&ids)))
}
