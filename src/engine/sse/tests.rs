//! Streams read whole and split, synthetic and recorded from vLLM.

use super::*;
use crate::testing::{CHAT, COMPLETIONS, json};
use proptest::prelude::*;
use tidegate_types::Tokens;

fn read(kind: Endpoint, stream: &str, pieces: &[usize]) -> Seen {
    let mut reader = SseReader::new(kind);
    let (mut total, mut rest) = (Seen::default(), stream.as_bytes());
    let mut sizes = pieces.iter().copied();
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(sizes.next().unwrap_or(rest.len()).min(rest.len()));
        add(&mut total, reader.feed(piece));
        rest = left;
    }
    add(&mut total, reader.finish());
    total
}

fn add(total: &mut Seen, seen: Seen) {
    total.tokens += seen.tokens;
    total.usage = seen.usage.or(total.usage);
    total.done |= seen.done;
    total.error |= seen.error;
    total.finished |= seen.finished;
}

fn usage(prompt: u64, completion: u64) -> Option<Usage> {
    Some(Usage { prompt: Tokens(prompt), completion: Tokens(completion), cached: None })
}

#[track_caller]
fn check(stream: &str, expected: Seen) {
    assert_eq!(read(Endpoint::ChatCompletions, stream, &[]), expected, "{stream}");
    let bytes = vec![1; stream.len()];
    assert_eq!(read(Endpoint::ChatCompletions, stream, &bytes), expected, "bytewise: {stream}");
}

/// One event with one choice.
fn choice(choice: &str) -> String {
    format!("data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,{choice}}}]}}\n\n")
}

#[track_caller]
fn check_choice(text: &str, tokens: u32, finished: bool) {
    check(&choice(text), Seen { tokens, finished, ..Seen::default() });
}

#[test]
fn chunks_with_generated_content_count_as_tokens() {
    for (text, tokens) in [
        (r#""delta":{"content":"Hi"},"finish_reason":null"#, 1),
        (r#""delta":{"role":"assistant","content":""},"finish_reason":null"#, 0),
        (r#""delta":{"role":"assistant","content":null},"finish_reason":null"#, 0),
        (r#""delta":{"role":"assistant"},"finish_reason":null"#, 0),
        (r#""delta":{"role":"assistant","content":"Hi"},"finish_reason":null"#, 1),
        (r#""delta":{"role":null,"content":"Hi","tool_calls":null},"finish_reason":null"#, 1),
        (r#""delta":{"content":""},"finish_reason":null"#, 1),
        (r#""delta":{"content":""},"finish_reason":null,"token_ids":[]"#, 0),
        (r#""delta":{"reasoning":"hm"},"finish_reason":null"#, 1),
        (r#""delta":{"reasoning_content":"hm","content":null},"finish_reason":null"#, 1),
        (r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}"#, 1),
        (r#""delta":{"role":"assistant","content":"","tool_calls":[{"index":0}]}"#, 1),
        (r#""delta":{"tool_calls":[ ]}"#, 0),
        (r#""delta":{},"finish_reason":null"#, 0),
        (r#""text":" x","logprobs":null,"finish_reason":null"#, 1),
        (r#""text":"","finish_reason":null"#, 1),
        (r#""token_ids":[5,6],"finish_reason":null"#, 1),
    ] {
        check_choice(text, tokens, false);
    }
    check_choice(r#""delta":{"content":""},"finish_reason":"length""#, 1, true);
    check_choice(r#""delta":{},"finish_reason":"stop""#, 0, true);
    check_choice(r#""delta":{"content":null},"finish_reason":"tool_calls""#, 0, true);
}

#[test]
fn text_that_resembles_json_is_not_misread() {
    for content in [
        r#"\"usage\": {\"prompt_tokens\": 5}"#,
        "usage",
        "error",
        r#"\\"#,
        r#"data: [DONE]\n\ndata: x\n\n"#,
        r#"\"},\"finish_reason\":\"stop\""#,
    ] {
        check_choice(
            &format!(r#""delta":{{"content":"{content}"}},"finish_reason":null"#),
            1,
            false,
        );
        check_choice(&format!(r#""text":"{content}","finish_reason":null"#), 1, false);
    }
}

#[test]
fn the_end_of_a_stream_and_its_usage_are_read() {
    let end = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n";
    check(end, Seen { usage: usage(9, 3), ..Seen::default() });
    check("data: [DONE]\n\n", Seen { done: true, ..Seen::default() });
    // Some servers end here.
    check("data: [DONE]\n", Seen { done: true, ..Seen::default() });
    check("data: [DONE]", Seen { done: true, ..Seen::default() });
    check("data:[DONE] \n\n", Seen { done: true, ..Seen::default() });
    let error = "data: {\"error\":{\"message\":\"x\",\"code\":500}}\n\ndata: [DONE]\n\n";
    check(error, Seen { error: true, done: true, ..Seen::default() });
    check("data: {\"error\":null,\"choices\":[]}\n\n", Seen::default());
}

#[test]
fn the_last_usage_counts_if_every_chunk_has_one() {
    let chunk = |n| {
        let usage = format!(r#""usage":{{"prompt_tokens":9,"completion_tokens":{n}}}"#);
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"\"}}}}],{usage}}}\n\n"
        )
    };
    let stream = [chunk(1), chunk(2), chunk(3)].concat();
    check(&stream, Seen { tokens: 3, usage: usage(9, 3), ..Seen::default() });
}

#[test]
fn every_line_ending_and_field_is_understood() {
    let event = r#"{"choices":[{"index":0,"text":"x","finish_reason":null}]}"#;
    let one = Seen { tokens: 1, ..Seen::default() };
    for end in ["\n", "\r", "\r\n"] {
        for lines in [
            vec![format!("data: {event}")],
            vec![format!("data:{event}")],
            vec![": keep-alive".to_owned(), String::new(), format!("data: {event}")],
            vec![
                "event: x".to_owned(),
                "id: 1".to_owned(),
                format!("data: {event}"),
                ":".to_owned(),
            ],
            vec![
                "data: {\"choices\":[".to_owned(),
                "data: {\"index\":0,\"text\":\"x\"}]}".to_owned(),
            ],
            vec![format!("data: {event}"), String::new(), "data".to_owned()],
            vec![format!("data: {event}"), String::new(), format!("dataset: {event}")],
        ] {
            check(&format!("{}{end}{end}", lines.join(end)), one);
        }
    }
}

#[test]
fn unreadable_data_counts_as_nothing() {
    for data in ["", "x", "[1]", "{", "{\"choices\":7}", "null", "{\"choices\":[7]}"] {
        check(&format!("data: {data}\n\n"), Seen::default());
    }
}

#[test]
fn an_oversized_event_is_one_token_and_is_not_buffered() {
    let long = "x".repeat(EVENT_MAX);
    let two = format!("data: {long}\n\n{}", choice(r#""text":"x","finish_reason":null"#));
    let many = format!("{}\n\n", "data: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\n".repeat(EVENT_MAX / 28 + 1));
    for (stream, tokens) in [(&two, 2), (&many, 1)] {
        for piece in [1 << 12, 1 << 30] {
            let mut reader = SseReader::new(Endpoint::Completions);
            let mut seen = 0;
            for bytes in stream.as_bytes().chunks(piece) {
                seen += reader.feed(bytes).tokens;
                assert!(reader.line.capacity() + reader.data.capacity() <= 4 * EVENT_MAX);
            }
            assert_eq!(seen, tokens);
            assert!(reader.line.capacity() + reader.data.capacity() <= 2 * KEPT_MAX);
        }
    }
}

#[test]
fn responses_and_messages_streams_are_counted() {
    let responses = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
        event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n\
        event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":4,\"output_tokens\":1}}}\n\n";
    let expected = Seen {
        tokens: 1,
        usage: usage(4, 1),
        done: true,
        finished: true,
        error: false,
        informative: false,
    };
    assert_eq!(read(Endpoint::Responses, responses, &[]), expected);
    let messages = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":4,\"output_tokens\":0}}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\n\
        event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    assert_eq!(read(Endpoint::Messages, messages, &[7; 99]), expected);
}

#[test]
fn native_api_streams_are_counted() {
    let sglang = "data: {\"text\":\"a\",\"meta_info\":{\"prompt_tokens\":4,\"completion_tokens\":1,\"cached_tokens\":0,\"finish_reason\":null}}\n\n\
        data: {\"text\":\"a b c\",\"meta_info\":{\"prompt_tokens\":4,\"completion_tokens\":3,\"cached_tokens\":2,\"finish_reason\":{\"type\":\"length\"}}}\n\n\
        data: [DONE]\n\n";
    let informative = Usage { cached: Some(Tokens(2)), ..usage(4, 3).unwrap() };
    let expected = Seen {
        tokens: 3,
        usage: Some(informative),
        done: true,
        finished: true,
        error: false,
        informative: false,
    };
    assert_eq!(read(Endpoint::Generate, sglang, &[9; 99]), expected);
    let tgi = "data:{\"index\":1,\"token\":{\"id\":5,\"text\":\"a\"},\"generated_text\":null,\"details\":null}\n\n\
        data:{\"index\":2,\"token\":{\"id\":6,\"text\":\"b\"},\"generated_text\":\"ab\",\"details\":{\"generated_tokens\":2,\"input_length\":4}}\n\n";
    let expected = Seen {
        tokens: 2,
        usage: usage(4, 2),
        done: true,
        finished: true,
        error: false,
        informative: false,
    };
    assert_eq!(read(Endpoint::Generate, tgi, &[]), expected);
    let ids = "data: {\"request_id\":\"r\",\"choices\":[{\"index\":0,\"token_ids\":[7],\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"token_ids\":[8],\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";
    let expected = Seen {
        tokens: 2,
        usage: None,
        done: true,
        finished: true,
        error: false,
        informative: false,
    };
    assert_eq!(read(Endpoint::TokensIn, ids, &[]), expected);
}

#[test]
fn ollama_lines_are_counted_for_every_split() {
    let chat = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n\
        {\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"b\"},\"done\":false}\n\
        {\"model\":\"m\",\"message\":{\"content\":\"\"},\"done\":true,\"prompt_eval_count\":4,\"eval_count\":2}\n";
    let expected = Seen {
        tokens: 2,
        usage: usage(4, 2),
        done: true,
        finished: true,
        error: false,
        informative: false,
    };
    for pieces in [&[][..], &[1; 400], &[7; 99]] {
        assert_eq!(read(Endpoint::OllamaChat, chat, pieces), expected);
    }
    let error = "{\"response\":\"a\",\"done\":false}\n{\"error\":\"out of memory\"}\n";
    let expected = Seen { tokens: 1, error: true, ..Seen::default() };
    assert_eq!(read(Endpoint::OllamaGenerate, error, &[]), expected);
}

#[test]
fn llama_cpps_timings_replace_a_missing_usage() {
    let last = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\
        \"timings\":{\"cache_n\":3,\"prompt_n\":6,\"prompt_ms\":1.5,\"predicted_n\":2}}\n\n";
    let informative = Usage { cached: Some(Tokens(3)), ..usage(9, 2).unwrap() };
    check(last, Seen { usage: Some(informative), finished: true, ..Seen::default() });
}

proptest! {
    #[test]
    fn recorded_streams_are_independent_of_the_split(
        record in 0..3_usize, pieces in prop::collection::vec(1..400_usize, 0..80),
        end in prop::sample::select(vec!["\n", "\r", "\r\n"]),
    ) {
        let text = json([CHAT, COMPLETIONS[0], COMPLETIONS[1]][record]);
        let stream = text["decode_sse"].as_str().expect("text").replace('\n', end);
        let whole = read(Endpoint::ChatCompletions, &stream, &[]);
        prop_assert_eq!(whole, read(Endpoint::ChatCompletions, &stream, &pieces));
        prop_assert_eq!(u64::from(whole.tokens), whole.usage.map_or(0, |usage| usage.completion.get()));
    }

    #[test]
    fn arbitrary_bytes_are_independent_of_the_split(
        stream in "(data: ?|\\{\"choices\":\\[\\{\"text\":\"x\"\\}\\]\\}|\\[DONE\\]|[:a\\n\\r ]|\\n\\n|\\r\\n){0,24}",
        pieces in prop::collection::vec(1..9_usize, 0..60),
    ) {
        let whole = read(Endpoint::Completions, &stream, &[]);
        prop_assert_eq!(whole, read(Endpoint::Completions, &stream, &pieces));
    }
}

/// Events that carry counts, in any order and number.
const COUNTING: [&str; 12] = [
    r#"{"type":"message_start","message":{"usage":{"input_tokens":4,"output_tokens":0}}}"#,
    r#"{"type":"message_start"}"#,
    r#"{"type":"content_block_delta","delta":{"text":"a"},"usage":{"output_tokens":2}}"#,
    r#"{"type":"message_delta","usage":{"output_tokens":1}}"#,
    r#"{"type":"message_delta"}"#,
    r#"{"type":"response.completed","response":{"usage":{"input_tokens":4,"output_tokens":1}}}"#,
    r#"{"type":"response.completed"}"#,
    r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
    r#"{"meta_info":{"prompt_tokens":4,"completion_tokens":3}}"#,
    r#"{"token":{},"generated_text":"a","details":{"generated_tokens":1}}"#,
    r#"{"token":{},"generated_text":"a","details":{"generated_tokens":1,"input_length":2}}"#,
    r#"{"response":"a","done":true,"eval_count":1}"#,
];

proptest! {
    #[test]
    fn counting_events_in_any_order_are_independent_of_the_split(
        events in prop::collection::vec(0..COUNTING.len(), 0..8),
        pieces in prop::collection::vec(1..200_usize, 0..20),
        kind in prop::sample::select(vec![
            Endpoint::ChatCompletions, Endpoint::Responses, Endpoint::Messages, Endpoint::Generate,
            Endpoint::OllamaChat,
        ]),
    ) {
        let event = |event: usize| match kind {
            Endpoint::OllamaChat => format!("{}\n", COUNTING[event]),
            _ => format!("data: {}\n\n", COUNTING[event]),
        };
        let stream: String = events.into_iter().map(event).collect();
        prop_assert_eq!(read(kind, &stream, &[]), read(kind, &stream, &pieces));
    }
}

/// Whether an informative event was seen, and how many choices finished.
fn informative(kind: Endpoint, stream: &str) -> (bool, u32) {
    let mut reader = SseReader::new(kind);
    let seen = reader.feed(stream.as_bytes());
    (seen.informative, reader.finished_choices())
}

#[test]
fn informative_events_are_distinguished_from_the_opening_chunk() {
    use Endpoint::{ChatCompletions, Messages, Responses};
    for (kind, data, tells) in [
        (ChatCompletions, r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, false),
        (ChatCompletions, r#"{"choices":[],"prompt_progress":{}}"#, true),
        (
            ChatCompletions,
            r#"{"choices":[{"delta":{"role":"assistant"}}],"prompt_progress":{"total":9}}"#,
            true,
        ),
        (Responses, r#"{"type":"response.created"}"#, true),
        (Messages, r#"{"type":"message_start"}"#, true),
        (Messages, r#"{"type":"ping"}"#, true),
        (ChatCompletions, "no JSON", true),
    ] {
        assert_eq!(informative(kind, &format!("data: {data}\n\n")).0, tells, "{data}");
    }
    assert!(!informative(ChatCompletions, ": comment\n\nevent: x\nretry: 3\n\n").0);
}

#[test]
fn every_choice_finishes_once() {
    let end = |index: &str| {
        format!("data: {{\"choices\":[{{{index}\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\n")
    };
    let usual = "data: {\"choices\":[{\"index\":3,\"text\":\"x\",\"finish_reason\":\"stop\"}]}\n\n";
    let all = [end("\"index\":0,"), end("\"index\":0,"), end("\"index\":2,"), usual.into()];
    assert_eq!(informative(Endpoint::Completions, &all.concat()).1, 3);
    assert_eq!(
        informative(Endpoint::Completions, &end("")).1,
        1,
        "an index of its own is not needed"
    );
    let generated = "data: {\"index\":1,\"meta_info\":{\"completion_tokens\":1,\"prompt_tokens\":1,\"finish_reason\":{\"type\":\"stop\"}}}\n\n";
    assert_eq!(informative(Endpoint::Generate, generated).1, 1);
    let llama = "data: {\"content\":\"\",\"stop\":true}\n\n";
    assert!(SseReader::new(Endpoint::Other).feed(llama.as_bytes()).done);
}

#[test]
fn errors_are_recognised_by_event_name_field_or_object() {
    let token = choice(r#""delta":{"content":"Hi"},"finish_reason":null"#);
    for error in [
        "event: error\ndata: {\"message\":\"boom\"}\n\n",
        "event:error\r\ndata: boom\r\n\r\n",
        "data: {\"object\":\"error\",\"message\":\"boom\",\"code\":500}\n\n",
        "error: {\"code\":500,\"message\":\"boom\"}\n\n",
    ] {
        let stream = format!("{token}{error}");
        for pieces in [vec![], vec![1; stream.len()]] {
            let seen = read(Endpoint::ChatCompletions, &stream, &pieces);
            assert!(seen.error && !seen.finished, "{stream}: {seen:?}");
        }
        assert_eq!(
            crate::EngineError::of_events(error.as_bytes()).is_some(),
            !error.contains(": boom")
        );
    }
    let other = format!("event: error\n\nevent: message\n{token}");
    check(&other, Seen { tokens: 1, ..Seen::default() });
}

#[test]
fn an_empty_finish_reason_and_a_byte_order_mark_are_ignored() {
    for delta in [r#"{"content":"a"}"#, r#"{"reasoning":"a"}"#] {
        check_choice(&format!(r#""delta":{delta},"finish_reason":"""#), 1, false);
        let first = choice(&format!(r#""delta":{delta},"finish_reason":"stop""#));
        check(&format!("\u{feff}{first}"), Seen { tokens: 1, finished: true, ..Seen::default() });
    }
}
