//! Ids of objects that engines store for clients, in paths, bodies and answers. An id that cannot
//! be read is unknown, which costs one query to the engines.

use crate::{Endpoint, Scan};
use serde::Deserialize;
use std::borrow::Cow;

/// Path prefixes that are followed by an object's id.
const COLLECTIONS: [&str; 6] = [
    "/v1/responses/",
    "/v1/chat/completions/",
    "/v1/conversations/",
    "/v1/files/",
    "/v1/batches/",
    "/v1/videos/",
];

#[derive(Deserialize)]
struct KeptObject<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
}

/// An event of a stream: a created response or a chat chunk.
#[derive(Deserialize)]
struct StreamEvent<'a> {
    #[serde(borrow)]
    response: Option<KeptObject<'a>>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
}

/// `conversation`: an id, or an object with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum ConversationRef<'a> {
    Id(#[serde(borrow)] Cow<'a, str>),
    Object {
        #[serde(borrow)]
        id: Cow<'a, str>,
    },
}

/// Returns the id in a path.
pub fn id_in_path(path: &str) -> Option<&str> {
    let rest = COLLECTIONS.iter().find_map(|collection| path.strip_prefix(collection))?;
    rest.split('/').next().filter(|id| !id.is_empty())
}

/// Returns the id of the stored object that a request continues.
pub fn id_in_request<'a>(scan: &Scan, body: &'a [u8]) -> Option<Cow<'a, str>> {
    let text = |key: &str| serde_json::from_slice::<Cow<'a, str>>(scan.value(body, key)?).ok();
    let conversation = || {
        let raw = scan.value(body, "conversation")?;
        match serde_json::from_slice::<ConversationRef<'a>>(raw).ok()? {
            ConversationRef::Id(id) | ConversationRef::Object { id } => Some(id),
        }
    };
    match scan.endpoint {
        Endpoint::Responses => text("previous_response_id").or_else(conversation),
        Endpoint::Upload => text("input_file_id"),
        _ => None,
    }
}

/// Returns whether the engine stores the answer to this request.
pub fn is_stored(endpoint: Endpoint, scan: Option<&Scan>, path: &str, body: &[u8]) -> bool {
    match endpoint {
        Endpoint::Responses | Endpoint::Upload => true,
        Endpoint::ChatCompletions => {
            scan.is_some_and(|scan| scan.value(body, "store") == Some(b"true"))
        }
        _ => path == "/v1/conversations",
    }
}

/// Returns the id of a whole answer.
pub fn id_in_answer(answer: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice::<KeptObject<'_>>(answer).ok()?.id
}

/// Returns the id in the first events of a stream.
pub fn id_in_events(events: &[u8]) -> Option<Cow<'_, str>> {
    let mut lines = events.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let event: StreamEvent<'_> = serde_json::from_slice(line.strip_prefix(b"data:")?).ok()?;
        event.response.and_then(|response| response.id).or(event.id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan;

    #[test]
    fn the_id_in_a_path_is_found() {
        for (path, id) in [
            ("/v1/responses/resp_1", Some("resp_1")),
            ("/v1/responses/resp_1/input_items", Some("resp_1")),
            ("/v1/chat/completions/c/messages", Some("c")),
            ("/v1/responses", None),
            ("/v1/responses/", None),
            ("/v1/models/m", None),
        ] {
            assert_eq!(id_in_path(path), id, "{path}");
        }
    }

    #[test]
    fn the_id_in_a_request_body_is_found() {
        for (body, id) in [
            (r#"{"previous_response_id":"r\u0031"}"#, Some("r1")),
            (r#"{"previous_response_id":null,"conversation":"c1"}"#, Some("c1")),
            (r#"{"conversation":{"id":"c2"}}"#, Some("c2")),
            (r#"{"previous_response_id":7}"#, None),
            ("{}", None),
        ] {
            let scan = scan(Endpoint::Responses, body.as_bytes()).unwrap();
            assert_eq!(id_in_request(&scan, body.as_bytes()).as_deref(), id, "{body}");
        }
    }

    #[test]
    fn the_id_in_an_answer_or_stream_is_found() {
        assert_eq!(id_in_answer(br#"{"x":[1],"id":"r"}"#).as_deref(), Some("r"));
        assert_eq!(id_in_answer(b"[]"), None);
        let created = b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r2\",\"x\":1}}\r\n\r\n";
        assert_eq!(id_in_events(created).as_deref(), Some("r2"));
        assert_eq!(id_in_events(b": ping\n\ndata: {\"id\":\"c\"}\n\n").as_deref(), Some("c"));
        assert_eq!(id_in_events(b"data: [DONE]\n\n"), None);
    }
}
