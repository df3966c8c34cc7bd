//! A chat body's messages as the template sees them, by the rules of vLLM's `parse_chat_messages`.
//! Where vLLM's versions differ, the conversation is marked as not faithful, and the count as
//! inexact.

mod parts;
mod plain;

use super::template::{ChatTemplate, ContentFormat, PlainMessage};
use minijinja::value::{Enumerator, Object, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use parts::Content;
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::Arc;
use tidegate_engine::{Prompt, Scan};

/// Text that transformers appends to the message to be continued, to find its end again.
const END_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Newer vLLM versions drop this line of Claude Code from system messages.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// A body's messages before conversion into template values.
pub(super) struct RequestMessages<'a> {
    scan: &'a Scan,
    body: &'a [u8],
    messages: Vec<Raw<'a>>,
    faithful: bool,
}

/// All values that a template can read.
#[derive(Debug)]
pub(super) struct Conversation {
    messages: Value,
    tools: Value,
    documents: Value,
    add_generation_prompt: bool,
    reasoning_effort: Option<Value>,
    /// `chat_template_kwargs`: further variables.
    kwargs: Option<Value>,
    continues: bool,
}

/// End of a prompt that continues its last message.
pub(super) struct EndMark;

/// A message in the body; the template does not see other members.
#[derive(Default, Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Content<'a>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
    #[serde(default)]
    tool_call_id: Option<Value>,
    #[serde(default)]
    reasoning: Option<Value>,
    #[serde(default)]
    reasoning_content: Option<Value>,
    #[serde(default)]
    name: Option<Value>,
}

/// A message as the template sees it, with its fields in vLLM's order.
#[derive(Debug, Default)]
struct TemplateMessage {
    fields: Vec<(&'static str, Value)>,
}

impl<'a> RequestMessages<'a> {
    /// Returns `None` if vLLM would refuse the messages.
    pub(super) fn read(scan: &'a Scan, body: &'a [u8], template: &ChatTemplate) -> Option<Self> {
        let Prompt::Messages(span) = scan.prompt else { return None };
        let text = simdutf8::basic::from_utf8(span.of(body)).ok()?;
        let messages: Vec<Raw<'_>> = match plain::read(text) {
            Some(plain) => plain.into_iter().map(Raw::plain).collect(),
            None => serde_json::from_str(text).ok()?,
        };
        // The conversion of tools (null members) differs between vLLM versions.
        let faithful = scan.tools.is_none() && messages.iter().all(|raw| raw.is_plain(template));
        (!messages.is_empty()).then_some(RequestMessages { scan, body, messages, faithful })
    }

    /// Returns whether every vLLM version passes the same values to the template.
    pub(super) fn is_faithful(&self) -> bool {
        self.faithful
    }

    /// Returns whether the prompt ends with the start of an assistant message.
    pub(super) fn adds_generation_prompt(&self) -> bool {
        self.scan.add_generation_prompt.unwrap_or(true)
    }

    /// Returns the messages if each is a role and a text, and no other value is passed to the
    /// template.
    pub(super) fn plain(&self, template: &ChatTemplate) -> Option<Vec<PlainMessage<'_>>> {
        let scan = self.scan;
        let more = scan.tools.is_some()
            || scan.chat_template_kwargs.is_some()
            || scan.continue_final_message == Some(true)
            || ["documents", "reasoning_effort"]
                .iter()
                .any(|name| scan.value(self.body, name).is_some());
        if more {
            return None;
        }
        let messages = self.messages.iter().map(|raw| raw.as_plain(template));
        messages.collect()
    }

    /// Returns `None` if vLLM would refuse a message.
    pub(super) fn conversation(self, template: &ChatTemplate) -> Option<Conversation> {
        let (scan, body) = (self.scan, self.body);
        let continues = scan.continue_final_message == Some(true);
        let last = self.messages.len() - 1;
        let add_generation_prompt = self.adds_generation_prompt();
        let message = |(at, raw): (usize, Raw<'_>)| {
            let mark = (continues && at == last).then_some(END_MARK);
            raw.message(template, mark).map(Value::from_object)
        };
        let messages = self.messages.into_iter().enumerate().map(message);
        let messages = messages.collect::<Option<Vec<Value>>>()?;
        let value = |raw: &[u8]| serde_json::from_slice::<Value>(raw).ok();
        let tools = scan.tools.and_then(|span| value(span.of(body)));
        Some(Conversation {
            messages: Value::from(messages),
            tools: tools.unwrap_or(Value::from(())),
            documents: scan.value(body, "documents").and_then(value).unwrap_or(Value::from(())),
            add_generation_prompt,
            reasoning_effort: scan.value(body, "reasoning_effort").and_then(value),
            kwargs: scan.chat_template_kwargs.and_then(|span| value(span.of(body))),
            continues,
        })
    }
}

impl Conversation {
    /// Creates a conversation of roles and texts.
    pub(super) fn of(messages: &[PlainMessage<'_>], add_generation_prompt: bool) -> Conversation {
        let message = |plain: &PlainMessage<'_>| {
            let mut message = TemplateMessage::default();
            message.add("role", Some(Value::from(plain.role)));
            message.add("content", Some(Value::from(plain.content)));
            Value::from_object(message)
        };
        Conversation {
            messages: messages.iter().map(message).collect(),
            tools: Value::from(()),
            documents: Value::from(()),
            add_generation_prompt,
            reasoning_effort: None,
            kwargs: None,
            continues: false,
        }
    }

    /// Returns the end mark that the rendered text will contain, if the last message is continued.
    pub(super) fn mark_end(&self) -> Option<EndMark> {
        self.continues.then_some(EndMark)
    }

    /// Returns a template variable; `None` if undefined.
    pub(super) fn variable(&self, name: &str) -> Option<Value> {
        match name {
            "messages" => return Some(self.messages.clone()),
            "tools" => return Some(self.tools.clone()),
            "documents" => return Some(self.documents.clone()),
            "add_generation_prompt" => return Some(Value::from(self.add_generation_prompt)),
            _ => {}
        }
        let theirs = self.kwargs.as_ref().and_then(|kwargs| kwargs.get_attr(name).ok());
        let theirs = theirs.filter(|value| !value.is_undefined());
        theirs.or_else(|| match name {
            "reasoning_effort" => self.reasoning_effort.clone(),
            // vLLM enables thinking for requests with a reasoning effort.
            "enable_thinking" => self
                .reasoning_effort
                .as_ref()
                .map(|effort| Value::from(effort.as_str() != Some("none"))),
            _ => None,
        })
    }
}

impl EndMark {
    /// transformers' rule: keeps the text before the mark, without the white space that the
    /// template trimmed.
    pub(super) fn cut(self, text: &mut String) -> Result<(), Error> {
        let at = text.rfind(END_MARK.trim_end()).ok_or_else(|| {
            let message = "the template leaves out the message to be continued";
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        let kept = text[at..].starts_with(END_MARK);
        text.truncate(at);
        if !kept {
            text.truncate(text.trim_end().len());
        }
        Ok(())
    }
}

impl<'a> Raw<'a> {
    fn plain((role, content): plain::Plain<'a>) -> Raw<'a> {
        let content = Content::Text(content);
        Raw { role, content, ..Raw::default() }
    }

    /// Returns whether all vLLM versions convert this message alike.
    fn is_plain(&self, template: &ChatTemplate) -> bool {
        let developer = self.role == "developer" && !template.knows_developer;
        let billing = self.role == "system" && self.content.starts_with(BILLING_HEADER);
        self.content.is_text() && self.tool_calls.is_none() && !developer && !billing
    }

    /// Returns `None` if the message has other members than role and text.
    fn as_plain(&self, template: &ChatTemplate) -> Option<PlainMessage<'_>> {
        let Content::Text(content) = &self.content else { return None };
        let more = self.tool_calls.is_some()
            || self.tool_call_id.is_some()
            || self.reasoning.is_some()
            || self.reasoning_content.is_some()
            || self.name.is_some();
        (!more).then(|| PlainMessage { role: known_role(&self.role, template), content })
    }

    /// vLLM's `_parse_chat_message_content` and `_postprocess_messages`.
    fn message(self, template: &ChatTemplate, mark: Option<&str>) -> Option<TemplateMessage> {
        let role = known_role(&self.role, template);
        let parts = template.format == ContentFormat::Parts && role != "tool";
        let content = if parts { self.content.parts(mark)? } else { self.content.string(mark)? };
        let mut message = TemplateMessage::default();
        message.add("role", Some(Value::from(role)));
        message.add("content", Some(content));
        if role == "assistant" {
            let calls = self.tool_calls.filter(|calls| !calls.is_empty());
            let calls = calls.map(|calls| calls.into_iter().map(with_arguments).collect());
            message.add("tool_calls", calls);
            let reasoning = self.reasoning.or(self.reasoning_content);
            message.add("reasoning", reasoning.clone());
            message.add("reasoning_content", reasoning);
        } else if role == "tool" {
            message.add("tool_call_id", self.tool_call_id);
        }
        message.add("name", self.name.filter(|name| name.kind() == ValueKind::String));
        Some(message)
    }
}

fn known_role<'r>(role: &'r str, template: &ChatTemplate) -> &'r str {
    if role == "developer" && !template.knows_developer { "system" } else { role }
}

impl TemplateMessage {
    fn add(&mut self, name: &'static str, value: Option<Value>) {
        self.fields.extend(value.map(|value| (name, value)));
    }
}

impl Object for TemplateMessage {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<Value> {
        self.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.fields.iter().map(|(name, _)| Value::from(*name)).collect())
    }
}

/// Converts a call's arguments from OpenAI's text into the object that templates expect; anything
/// else becomes `{}`.
fn with_arguments(call: Value) -> Value {
    let Ok(function) = call.get_attr("function") else { return call };
    if function.kind() != ValueKind::Map {
        return call;
    }
    let given = function.get_attr("arguments").unwrap_or(Value::UNDEFINED);
    let parsed = match given.as_str() {
        Some(text) => serde_json::from_str(text).unwrap_or(Value::UNDEFINED),
        None => given,
    };
    let nothing = || Value::from_pairs(std::iter::empty::<(Value, Value)>());
    let parsed = if parsed.kind() == ValueKind::Map { parsed } else { nothing() };
    replaced(&call, "function", replaced(&function, "arguments", parsed))
}

/// Returns the map with one member replaced or added.
fn replaced(map: &Value, name: &str, value: Value) -> Value {
    let mut members = Vec::new();
    let mut found = false;
    for key in map.try_iter().into_iter().flatten() {
        let here = key.as_str() == Some(name);
        found |= here;
        let kept = if here { value.clone() } else { map.get_item(&key).unwrap_or(Value::from(())) };
        members.push((key, kept));
    }
    if !found {
        members.push((Value::from(name), value));
    }
    Value::from_pairs(members)
}
