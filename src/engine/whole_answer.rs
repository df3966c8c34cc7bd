//! Converts an unstreamed answer into the stream that the client requested: for engines that do not
//! stream, and for a model that finished with its first token.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{Endpoint, Scan};

/// Converts an answer to OpenAI's chat or completions; `None` if it has no choices or is not JSON.
pub fn stream_of_answer(answer: &[u8], scan: &Scan) -> Option<Bytes> {
    let is_whole = |answer: &Value| answer["choices"].as_array().is_some_and(|all| !all.is_empty());
    let read: Value = serde_json::from_slice(answer).ok().filter(is_whole)?;
    scan.endpoint.is_completion().then(|| events(&read, scan))
}

/// Converts an answer into the events of a stream.
///
/// # Errors
/// If the answer is not JSON.
pub(crate) fn as_stream(answer: &[u8], scan: &Scan) -> Result<Bytes, serde_json::Error> {
    Ok(events(&serde_json::from_slice(answer)?, scan))
}

fn events(answer: &Value, scan: &Scan) -> Bytes {
    let chat = scan.endpoint == Endpoint::ChatCompletions;
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": answer["id"], "object": object, "created": answer["created"],
            "model": answer["model"], "choices": choices,
        });
        if !usage.is_null() {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    };
    let choices = answer["choices"].as_array().into_iter().flatten().map(|choice| {
        let mut sent = json!({
            "index": choice["index"], "finish_reason": choice["finish_reason"],
            "logprobs": choice["logprobs"],
        });
        match chat {
            true => sent["delta"] = delta(&choice["message"]),
            false => sent["text"] = choice["text"].clone(),
        }
        sent
    });
    let mut out = chunk(choices.collect(), Value::Null);
    if scan.include_usage {
        out.push_str(&chunk(json!([]), answer["usage"].clone()));
    }
    out.push_str("data: [DONE]\n\n");
    Bytes::from(out)
}

/// Converts a message into a delta, whose tool calls are numbered.
fn delta(message: &Value) -> Value {
    let mut delta = message.clone();
    let calls = delta.get_mut("tool_calls").and_then(Value::as_array_mut);
    for (index, call) in calls.into_iter().flatten().enumerate() {
        if let Some(members) = call.as_object_mut() {
            members.insert("index".to_owned(), json!(index));
        }
    }
    delta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan;

    #[test]
    fn only_a_completion_is_converted() {
        let body = Bytes::from_static(br#"{"model":"m","messages":[],"stream":true}"#);
        let chat = scan(Endpoint::ChatCompletions, &body).expect("it is JSON");
        let answer = br#"{"id":"c","choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}"#;
        let stream = stream_of_answer(answer, &chat).expect("a completion");
        let stream = String::from_utf8_lossy(&stream).into_owned();
        assert!(stream.contains("\"delta\":{\"content\":\"a\"}"), "{stream}");
        assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
        for odd in ["\"stop\"", "[1]", "7", r#"{"tool_calls":[1,"x",[]]}"#, r#"{"tool_calls":7}"#] {
            let answer = format!("{{\"choices\":[{{\"message\":{odd}}},5,\"x\"]}}");
            assert!(stream_of_answer(answer.as_bytes(), &chat).is_some(), "{odd}");
        }
        for other in ["", "[]", "{}", r#"{"choices":[]}"#, r#"{"error":{"message":"x"}}"#] {
            assert_eq!(stream_of_answer(other.as_bytes(), &chat), None, "{other}");
        }
        let messages = scan(Endpoint::Messages, &body).expect("it is JSON");
        assert_eq!(stream_of_answer(answer, &messages), None);
    }
}
