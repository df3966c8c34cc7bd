//! Prompts of the Responses and Messages APIs, converted to the chat that vLLM makes of them.
//! Prompts with tools, images or thinking are not converted; they are estimated.

use serde::Serialize;
use serde_json::Value;
use tidegate_engine::{Endpoint, Prompt, Scan};

/// vLLM drops this line of Claude Code.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

#[derive(Serialize)]
struct Chat {
    model: &'static str,
    messages: Vec<ChatMessage>,
}

#[derive(Serialize)]
struct ChatMessage {
    role: String,
    content: Value,
}

/// Returns the body of a chat request that renders to the same prompt; `None` if the prompt
/// contains other content than text. The body is only tokenized, never sent.
pub(super) fn as_chat(scan: &Scan, body: &[u8]) -> Option<Vec<u8>> {
    let tools = scan.tools.map(|tools| tools.of(body)).unwrap_or(b"[]");
    if tools != b"[]" {
        return None;
    }
    let mut messages = Vec::new();
    match (scan.endpoint, scan.prompt) {
        (Endpoint::Messages, Prompt::Messages(span)) => {
            let system = scan.value(body, "system").map(serde_json::from_slice::<Value>);
            let system = system
                .transpose()
                .ok()?
                .map_or(Some(String::new()), |value| system_text(&value))?;
            push(&mut messages, "system", system);
            for message in serde_json::from_slice::<Vec<Value>>(span.of(body)).ok()? {
                let role = message["role"]
                    .as_str()
                    .filter(|role| matches!(*role, "user" | "assistant"))?;
                let content = content(&message["content"], &["text"])?;
                messages.push(ChatMessage { role: role.to_owned(), content });
            }
        }
        (Endpoint::Responses, Prompt::Input(span)) => {
            let instructions =
                scan.value(body, "instructions").map(serde_json::from_slice::<String>);
            push(&mut messages, "system", instructions.transpose().ok()?.unwrap_or_default());
            match serde_json::from_slice::<Value>(span.of(body)).ok()? {
                Value::String(text) => push(&mut messages, "user", text),
                Value::Array(items) => {
                    for item in items {
                        messages.push(item_message(&item)?);
                    }
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    serde_json::to_vec(&Chat { model: "m", messages }).ok()
}

fn push(messages: &mut Vec<ChatMessage>, role: &str, text: String) {
    if !text.is_empty() {
        messages.push(ChatMessage { role: role.to_owned(), content: Value::String(text) });
    }
}

/// Anthropic's `system`: a text, or blocks of text joined without a separator.
fn system_text(system: &Value) -> Option<String> {
    match system {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts: Option<Vec<&str>> =
                blocks.iter().map(|block| text_of(block, &["text"])).collect();
            let kept = texts?.into_iter().filter(|text| !text.starts_with(BILLING_HEADER));
            Some(kept.collect())
        }
        _ => None,
    }
}

/// A text stays a text; so does the only text of a list.
fn content(content: &Value, kinds: &[&str]) -> Option<Value> {
    match content {
        Value::String(_) => Some(content.clone()),
        Value::Array(blocks) => {
            let texts: Vec<&str> =
                blocks.iter().map(|b| text_of(b, kinds)).collect::<Option<_>>()?;
            match texts.as_slice() {
                [] => None,
                [text] => Some(Value::from(*text)),
                texts => Some(
                    texts
                        .iter()
                        .map(|t| serde_json::json!({ "type": "text", "text": t }))
                        .collect(),
                ),
            }
        }
        _ => None,
    }
}

fn text_of<'v>(block: &'v Value, kinds: &[&str]) -> Option<&'v str> {
    let kind = block["type"].as_str()?;
    kinds.contains(&kind).then(|| block["text"].as_str())?
}

/// Converts a message item of a Responses request.
fn item_message(item: &Value) -> Option<ChatMessage> {
    let role = item["role"].as_str()?;
    let plain = item["type"].is_null() || item["type"] == "message";
    // Earlier output of the model comes as output items, which vLLM converts differently.
    let known = matches!(role, "user" | "system" | "developer");
    let simple = role == "assistant" && item["content"].is_string();
    let content = content(&item["content"], &["input_text", "text"])?;
    (plain && (known || simple)).then(|| ChatMessage { role: role.to_owned(), content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tidegate_engine::scan;

    #[track_caller]
    fn check(endpoint: Endpoint, body: Value, messages: Option<Value>) {
        let text = body.to_string();
        let scan = scan(endpoint, text.as_bytes()).unwrap();
        let chat = as_chat(&scan, text.as_bytes());
        let chat =
            chat.map(|chat| serde_json::from_slice::<Value>(&chat).unwrap()["messages"].clone());
        assert_eq!(chat, messages, "{text}");
    }

    #[test]
    fn texts_with_roles_become_a_chat() {
        let user = json!({"role": "user", "content": "a"});
        let system = json!({"role": "system", "content": "s"});
        check(Endpoint::Responses, json!({"model": "m", "input": "a"}), Some(json!([user])));
        check(
            Endpoint::Responses,
            json!({"model": "m", "instructions": "s", "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "message", "role": "assistant", "content": "b"}]}),
            Some(json!([system, user, {"role": "assistant", "content": "b"}])),
        );
        let messages = |more: Value| {
            let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        check(Endpoint::Messages, messages(json!({"system": "s"})), Some(json!([system, user])));
        let blocks = json!([{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "s"}]);
        check(Endpoint::Messages, messages(json!({"system": blocks})), Some(json!([system, user])));
        let two = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        check(Endpoint::Messages, messages(json!({"messages": two})), Some(two));
    }

    #[test]
    fn prompts_with_other_content_are_not_converted() {
        for more in [
            json!({"tools": [{"name": "f"}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            json!({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}]}),
            json!({"system": 7}),
        ] {
            let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check(Endpoint::Messages, body, None);
        }
        let call = json!([{"type": "function_call", "name": "f", "call_id": "1", "arguments": ""}]);
        check(Endpoint::Responses, json!({"model": "m", "input": call}), None);
    }
}
