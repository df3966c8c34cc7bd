//! The client receives the stream that it would have received without the injection.

use super::*;
use crate::scan;
use crate::{Endpoint, Seen, SseReader};
use proptest::prelude::*;
use serde_json::{Value, json};

fn chunk(usage: &str, content: &str) -> String {
    let content = serde_json::to_string(content).unwrap();
    format!(
        "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\
         \"choices\":[{{\"index\":0,\"delta\":{{\"content\":{content}}},\"logprobs\":null,\
         \"finish_reason\":null}}]{usage}}}\n\n"
    )
}

fn counted(tokens: u32) -> String {
    format!(",\"usage\":{{\"prompt_tokens\":9,\"total_tokens\":12,\"completion_tokens\":{tokens}}}")
}

fn last(cached: u32) -> String {
    format!(
        "data: {{\"id\":\"c\",\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":3,\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}}}\n\ndata: [DONE]\n\n"
    )
}

fn passed(wish: UsageRequest, cached: Option<Tokens>, stream: &str, piece: usize) -> String {
    let mut filter = UsageFilter::new(wish, cached);
    let mut out = Vec::new();
    for piece in stream.as_bytes().chunks(piece) {
        out.extend_from_slice(&filter.pass(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&filter.rest().unwrap_or_default());
    String::from_utf8(out).unwrap()
}

const TEXTS: [&str; 5] = ["a", "", "\"usage\":{\"x\":1}", "}\n\n{", "\\\""];

proptest! {
    /// For any text and any split of the stream.
    #[test]
    fn unrequested_usage_is_removed_and_nothing_else(
        texts in prop::collection::vec(prop::sample::select(TEXTS.to_vec()), 0..6),
        piece in 1..80_usize,
    ) {
        let with: String = texts.iter().zip(1..).map(|(t, n)| chunk(&counted(n), t)).collect();
        let without: String = texts.iter().map(|text| chunk("", text)).collect();
        let stream = format!("{with}{}", last(0));
        let done = "data: [DONE]\n\n";
        prop_assert_eq!(passed(UsageRequest::Never, None, &stream, piece), format!("{without}{done}"));
        prop_assert_eq!(passed(UsageRequest::Final, None, &stream, piece), format!("{without}{}", last(0)));
        prop_assert_eq!(passed(UsageRequest::Every, None, &stream, piece), stream);
    }

    #[test]
    fn the_engines_count_is_used_whatever_the_text(
        chunks in prop::collection::vec((prop::sample::select(TEXTS.to_vec()), 0..9_u32), 1..8),
        piece in 1..80_usize,
    ) {
        let mut reader = SseReader::new(Endpoint::ChatCompletions);
        reader.count_exactly(&Seen::default());
        let (mut now, mut tokens) = (0, 0);
        for (text, more) in chunks {
            now += more;
            let bytes = chunk(&counted(now), text);
            tokens += bytes.as_bytes().chunks(piece).map(|b| reader.feed(b).tokens).sum::<u32>();
        }
        prop_assert_eq!(tokens, now);
    }

    #[test]
    fn bytes_without_usage_pass_unchanged(
        bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1..50_usize,
    ) {
        let mut filter = UsageFilter::new(UsageRequest::Never, Some(Tokens(1)));
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            out.extend_from_slice(&filter.pass(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&filter.rest().unwrap_or_default());
        prop_assert_eq!(out, bytes);
    }
}

#[test]
fn an_unchanged_chunk_is_not_copied() {
    let chunk = Bytes::from(chunk("", "x"));
    let passed = UsageFilter::new(UsageRequest::Never, None).pass(chunk.clone());
    assert_eq!(passed.as_ptr(), chunk.as_ptr());
}

#[test]
fn only_the_events_own_usage_is_removed() {
    for event in [
        "data: {\"choices\":[{\"x\":{\"usage\":{\"a\":1}}}]}\n\n",
        "data: {\"error\":{\"usage\":{\"a\":1}}}\n\n",
        "data: {\"usage\":7}\n\n",
        ": \"usage\":{\n\n",
    ] {
        assert_eq!(passed(UsageRequest::Never, None, event, 9), event);
    }
    let first = "data: {\"usage\": {\"a\":1} , \"b\":2}\n\n";
    assert_eq!(passed(UsageRequest::Never, None, first, 99), "data: { \"b\":2}\n\n");
}

#[test]
fn cached_tokens_are_those_of_the_prefill() {
    assert_eq!(passed(UsageRequest::Every, Some(Tokens(4)), &last(9), 7), last(4));
    assert_eq!(passed(UsageRequest::Final, Some(Tokens(123)), &last(9), 7), last(123));
    let answer = Bytes::from_static(br#"{"usage":{"prompt_tokens_details":{"cached_tokens": 9}}}"#);
    assert_eq!(
        correct_cached_tokens(answer.clone(), Some(Tokens(0))),
        &br#"{"usage":{"prompt_tokens_details":{"cached_tokens": 0}}}"#[..]
    );
    assert_eq!(correct_cached_tokens(answer.clone(), None), answer);
    let none = Bytes::from_static(br#"{"cached_tokens":null}"#);
    assert_eq!(correct_cached_tokens(none.clone(), Some(Tokens(3))), none);
}

#[test]
fn the_request_keeps_its_other_stream_options() {
    let ask = |more: Value| {
        let mut body =
            json!({"model": "m", "stream": true, "messages": [{"role":"user","content":"x"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = Bytes::from(body.to_string());
        let scan = scan(Endpoint::ChatCompletions, &body).unwrap();
        let asked = inject_usage_request(&body, &scan);
        let options = asked.map(|asked| {
            serde_json::from_slice::<Value>(&asked).unwrap()["stream_options"].clone()
        });
        (UsageRequest::of(&scan, &body), options)
    };
    let both = json!({"include_usage": true, "continuous_usage_stats": true});
    assert_eq!(ask(json!({})), (UsageRequest::Never, Some(both.clone())));
    let options = |options: Value| json!({"stream_options": options});
    assert_eq!(
        ask(options(json!({"include_usage": true}))),
        (UsageRequest::Final, Some(both.clone()))
    );
    assert_eq!(ask(options(both.clone())), (UsageRequest::Every, None));
    let more = json!({"x": 1, "include_usage": true, "continuous_usage_stats": true});
    assert_eq!(ask(options(json!({"x": 1}))), (UsageRequest::Never, Some(more)));
    assert_eq!(ask(json!({"stream": false})).1, None);
    assert_eq!(ask(json!({"n": 2})).1, None);
}

#[test]
fn chunks_of_several_tokens_are_counted_exactly() {
    let stream = [chunk(&counted(1), "a"), chunk(&counted(4), "bcd"), chunk(&counted(4), "")];
    let mut reader = SseReader::new(Endpoint::ChatCompletions);
    let first = reader.feed(stream[0].as_bytes());
    reader.count_exactly(&first);
    let rest: Vec<Seen> = stream[1..].iter().map(|chunk| reader.feed(chunk.as_bytes())).collect();
    assert_eq!((first.tokens, rest[0].tokens, rest[1].tokens), (1, 3, 0));
    // Without injection each chunk counts as one token.
    let mut reader = SseReader::new(Endpoint::ChatCompletions);
    assert_eq!(reader.feed(stream.concat().as_bytes()).tokens, 3);
}
