//! Field cases of responses: events before the first token, ends of streams, encodings, and
//! hand-offs in answers of any kind.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::time::Duration;

use crate::client::until;
use crate::field::{Play, RawAnswer, RawClient, RawEngine, ask, body_of, case};
use crate::proxy::{Proxy, chat};

/// Returns a request for a path.
pub fn request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

pub const STREAM: &str = r#"{"model":"m","messages":[],"stream":true}"#;

pub const EVENTS: &str =
    "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Frames one chunk of a chunked body.
pub fn chunk(data: &str) -> Play {
    Play::bytes(format!("{:x}\r\n{data}\r\n", data.len()))
}

/// Sends a request through a proxy to one engine. Asserts that the engine received it once and
/// stays healthy; returns the answer.
async fn once(answer: impl Into<Bytes>, request: &[u8], closes: bool) -> RawAnswer {
    let answer = answer.into();
    let engine = match closes {
        true => RawEngine::start_closing(answer).await,
        false => RawEngine::start(answer).await,
    };
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    for n in 1..4 {
        let answer = ask(&proxy, request).await;
        assert_eq!(engine.received().len(), n, "once each: {answer:?}");
        proxy.settles().await;
    }
    let last = ask(&proxy, request).await;
    assert_eq!(engine.received().len(), 4, "the engine is not blamed: {last:?}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_comments_before_the_first_token_are_ignored() {
    let case = case("10-comments");
    let answer = once(case.answer.clone(), &case.request, false).await;
    assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
    assert!(answer.text().ends_with(&*String::from_utf8_lossy(&body_of(&case.answer)[3..])));
}

#[tokio::test(flavor = "multi_thread")]
async fn requested_events_are_forwarded_before_the_first_token() {
    for name in ["10-created", "10-prompt-progress", "10-upper-case-type"] {
        let case = case(name);
        // The first chunk is sent; the rest follows after the client has received it.
        let head = case.answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let line = case.answer[head..].windows(2).position(|two| two == b"\r\n").unwrap();
        let size = std::str::from_utf8(&case.answer[head..head + line]).unwrap();
        let first = head + line + 2 + usize::from_str_radix(size, 16).unwrap() + 2;
        let (one, two) = (case.answer.slice(..first), case.answer.slice(first..));
        let plays = [Play::Bytes(one), Play::Wait, Play::Bytes(two)];
        let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&case.request).await;
        client.read_to("\n\n").await;
        engine.resume();
        let answer = client.answer().await;
        assert_eq!(answer.body, body_of(&case.answer), "{name}");
        assert!(answer.whole);
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn non_json_answers_are_forwarded_from_their_first_byte() {
    let case = case("10-speech");
    let text = String::from_utf8(case.answer.to_vec()).unwrap();
    for kind in
        ["audio/pcm", "AUDIO/L16; rate=24000", "text/plain", "application/x-ndjson", "image/png"]
    {
        let answer = text.replace("audio/pcm", kind);
        let (one, two) = answer.split_at(answer.find("pcm\r\n3").unwrap() + 5);
        let plays = [Play::bytes(one.to_owned()), Play::Wait, Play::bytes(two.to_owned())];
        let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&case.request).await;
        client.read_to("pcm").await;
        engine.resume();
        assert_eq!(client.answer().await.body, "pcmpcm", "{kind}");
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_after_the_end_mark_does_not_count_as_a_failure() {
    for name in ["11-no-done", "11-no-last-chunk"] {
        let case = case(name);
        let answer = once(case.answer.clone(), &case.request, true).await;
        assert_eq!(answer.body, body_of(&case.answer), "{name}");
        assert!(answer.whole, "{name}");
    }
    let finished = |more: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"stop\"{more}}}]}}\n\n")
    };
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let chats = "/v1/chat/completions";
    let two = r#"{"model":"m","messages":[],"stream":true,"n":2}"#;
    let both = [finished(",\"index\":0"), finished(",\"index\":1")].concat();
    let prompts = r#"{"model":"m","prompt":["a","b"],"stream":true}"#;
    let input = r#"{"model":"m","input":"x","stream":true}"#;
    let generate = r#"{"text":"x","stream":true,"sampling_params":{}}"#;
    let meta = r#"data: {"text":"a","meta_info":{"prompt_tokens":1,"completion_tokens":1,"finish_reason":{"type":"stop"}}}"#;
    for (path, body, events) in [
        (chats, STREAM, finished("")),
        (chats, two, both.clone()),
        ("/v1/completions", prompts, both.replace("\"delta\":{}", "\"text\":\"x\"")),
        ("/v1/responses", input, "data: {\"type\":\"response.completed\"}\n\n".to_owned()),
        ("/v1/responses", input, "data: {\"type\":\"response.incomplete\"}\n\n".to_owned()),
        ("/v1/messages", STREAM, "data: {\"type\":\"message_stop\"}\n\n".to_owned()),
        (
            "/v1/messages",
            STREAM,
            "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n"
                .to_owned(),
        ),
        ("/generate", generate, format!("{meta}\n\n")),
        (chats, STREAM, "data: [DONE]".to_owned()),
    ] {
        for end in [Play::Close, Play::Reset, Play::bytes("0\r\n\r\n"), Play::bytes("no chunk\r\n")]
        {
            let all = format!("{token}{events}");
            let plays = vec![
                Play::bytes(EVENTS),
                chunk(&all),
                Play::Pause(Duration::from_millis(20)),
                end.clone(),
                Play::Close,
            ];
            let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
            let proxy = Proxy::start("", &[engine.engine("a")]).await;
            for n in 1..4 {
                let answer = ask(&proxy, &request(path, body)).await;
                assert_eq!(answer.text(), format!("{token}{events}"), "{path} {end:?}");
                assert!(answer.whole);
                assert_eq!(engine.received().len(), n, "{path} {end:?}");
            }
            proxy.settles().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_two_choices_ends_after_both() {
    let events = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let plays = vec![Play::bytes(EVENTS), chunk(events), Play::Close];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let two = r#"{"model":"m","messages":[],"stream":true,"n":2}"#;
    let answer = ask(&proxy, &request("/v1/chat/completions", two)).await;
    assert!(answer.text().contains("\"error\""), "{}", answer.text());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_mark_releases_the_reservation() {
    let end =
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let plays = vec![Play::bytes(EVENTS), chunk(end), Play::Wait, Play::Close];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let one = "engine = \"plain\"\nmodels = [\"m\"]\nstreams_max = 1";
    let proxy = Proxy::start("", &[engine.engine_with("a", one)]).await;
    let mut first = RawClient::connect(proxy.data).await;
    first.send(&request("/v1/chat/completions", STREAM)).await;
    first.read_to("stop").await;
    // The first connection is still open: its engine holds it.
    let mut second = RawClient::connect(proxy.data).await;
    second.send(&request("/v1/chat/completions", STREAM)).await;
    second.read_to("stop").await;
    engine.resume();
    engine.resume();
    assert!(first.answer().await.whole && second.answer().await.whole);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_held_open_by_the_engine_ends_for_the_client() {
    let plays = vec![
        Play::bytes(EVENTS),
        chunk("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"),
        Play::Wait,
    ];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = ask(&proxy, &request("/v1/chat/completions", STREAM)).await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert!(!answer.text().contains("error"));
    until("the engine sees it", || engine.left() == 1).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_terminates_a_partial_event_and_is_sent_once() {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let plays = vec![Play::bytes(EVENTS), chunk(&format!("{token}data: {{\"cho")), Play::Close];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = ask(&proxy, &request("/v1/chat/completions", STREAM)).await.text();
    assert!(answer.starts_with(&format!("{token}data: {{\"cho\n\ndata: {{\"error\"")), "{answer}");
    assert!(answer.ends_with("\n\ndata: [DONE]\n\n"), "{answer}");

    let error = "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n";
    let plays = vec![Play::bytes(EVENTS), chunk(&format!("{token}{error}")), Play::Close];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = ask(&proxy, &request("/v1/chat/completions", STREAM)).await.text();
    assert_eq!(answer, format!("{token}{error}"), "no second error");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_are_sent_accept_encoding_identity_and_coded_answers_are_decoded() {
    let leak = case("02-gzip-leak");
    let answer = once(leak.answer.clone(), &leak.request, false).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-encoding"), None);
    assert!(!answer.text().contains("remote_host"), "{}", answer.text());
    assert!(answer.text().contains("\"kv_transfer_params\":null"), "{}", answer.text());

    let stream = case("02-gzip-stream");
    let answer = once(stream.answer.clone(), &stream.request, false).await;
    assert_eq!((answer.status, answer.whole), (200, true));
    assert!(answer.text().starts_with("data: {") && answer.text().contains("[DONE]"), "{answer:?}");

    let engine = RawEngine::start(stream.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    ask(&proxy, &stream.request).await;
    assert_eq!(engine.received()[0].header("accept-encoding"), ["identity"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_content_coding_is_refused_once_and_does_not_count_against_the_engine() {
    for (kind, coding) in [
        ("application/json", "br"),
        ("text/event-stream", "zstd"),
        ("application/json", "gzip, br"),
    ] {
        let answer = format!(
            "HTTP/1.1 200 X\r\ncontent-type: {kind}\r\ncontent-encoding: {coding}\r\ncontent-length: 4\r\n\r\nxxxx"
        );
        let answer = once(answer, &request("/v1/chat/completions", STREAM), false).await;
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(answer.text().contains("content-encoding"), "{}", answer.text());
    }
    // Broken gzip as well.
    let broken = "HTTP/1.1 200 X\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nxxxx";
    let answer = once(broken, &request("/v1/chat/completions", STREAM), false).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    // At any endpoint: an answer that cannot be read may contain a hand-off.
    let audio = "HTTP/1.1 200 X\r\ncontent-type: audio/pcm\r\ncontent-encoding: br\r\ncontent-length: 4\r\n\r\nxxxx";
    let answer = once(audio, &case("10-speech").request, false).await;
    assert_eq!(answer.status, 502, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_is_redacted_whatever_the_content_type_and_framing() {
    let body = r#"say "x {"id":1,"kv_transfer_params":{"remote_host":"h"},"y":2}"#;
    let ask = request("/v1/chat/completions", r#"{"model":"m","messages":[]}"#);
    let types =
        ["application/octet-stream", "audio/pcm", "image/png", "text/plain", "application/x", "x"];
    let heads = types.map(|kind| format!("content-type: {kind}\r\n"));
    for kind in heads.iter().map(String::as_str).chain([""]) {
        let (first, second) = body.split_at(30);
        let chunks = [first, second].map(|part| format!("{:x}\r\n{part}\r\n", part.len())).concat();
        for (n, framed) in [
            format!("content-length: {}\r\n\r\n{body}", body.len()),
            format!("transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"),
        ]
        .into_iter()
        .enumerate()
        {
            let answer = once(format!("HTTP/1.1 200 X\r\n{kind}{framed}"), &ask, false).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{kind} {n}");
            let text = answer.text();
            assert!(
                !text.contains("remote_host") && text.ends_with("\"y\":2}"),
                "{kind} {n} {text}"
            );
        }
    }
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"kv_transfer_params\"\r: c\rdata: :{\"remote_host\":1}}\r\rdata: [DONE]\r\r";
    let answer = format!(
        "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{stream}",
        stream.len()
    );
    let answer = once(answer, &request("/v1/chat/completions", STREAM), false).await;
    assert!(!answer.text().contains("remote_host"), "{}", answer.text());
    assert!(answer.text().contains("[DONE]"), "{}", answer.text());
}

/// Returns JSON of more than a megabyte that ends in a hand-off.
fn big(member: &str) -> String {
    format!("{{\"choices\":[],\"x\":\"{}\",{member}}}", "y".repeat(1_500_000))
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_is_redacted_in_answers_of_any_size_and_encoding() {
    let member = r#""kv_transfer_params":{"remote_host":"h"}"#;
    let escaped = r#""kv\u005ftransfer_params" : {"remote_host":"h"}"#;
    let ask = request("/v1/chat/completions", r#"{"model":"m","messages":[]}"#);
    for member in [member, escaped, r#""disaggregated_params":{"remote_host":"h"}"#] {
        let small = format!("{{\"choices\":[{{\"m\":{{{member}}}}}],{member}}}");
        for body in [small, big(member)] {
            let gone = body.replace(r#"{"remote_host":"h"}"#, "null");
            let json = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\n";
            let length = body.len();
            let plain = format!("{json}content-length: {length}\r\n\r\n{body}").into_bytes();
            let zip = gzipped(&body);
            let head =
                format!("{json}content-encoding: gzip\r\ncontent-length: {}\r\n\r\n", zip.len());
            let error =
                format!("HTTP/1.1 400 X\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes();
            let status = [200, 200, 400];
            for (n, answer) in
                [plain, [head.into_bytes(), zip].concat(), error].into_iter().enumerate()
            {
                let answer = once(answer, &ask, false).await;
                assert_eq!((answer.status, answer.whole), (status[n], true), "{n} {member}");
                assert!(answer.text() == gone, "{n} {member}: {:.300}", answer.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_quoted_in_an_error_is_redacted() {
    let quoted =
        r#"{"error":{"message":"bad input {'kv_transfer_params': {'remote_host': 'h'}}"}}"#;
    let answer = format!("HTTP/1.1 400 X\r\ncontent-length: {}\r\n\r\n{quoted}", quoted.len());
    let engine = RawEngine::start(answer).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body, quoted.replace("{'remote_host': 'h'}", "null"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_quoted_in_an_error_beside_the_first_token_is_redacted() {
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    let error =
        "data: {\"error\":{\"message\":\"bad {'kv_transfer_params': {'remote_host': 'h'}}\"}}\n\n";
    let both = chunk(&format!("{token}{error}"));
    let engine = RawEngine::scripted(move |_, _| {
        vec![Play::bytes(EVENTS), both.clone(), Play::bytes("0\r\n\r\n")]
    })
    .await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = proxy.post("/v1/chat/completions", STREAM).await;
    let text = answer.body.clone();
    assert!(
        text.contains("\"content\":\"a\"") && text.contains("'kv_transfer_params': null"),
        "{text}"
    );
    assert!(!text.contains("remote_host"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_held_open_after_its_last_choice_ends_with_the_apis_end_mark() {
    let finished = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\n";
    let message = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\n";
    let asks_usage =
        r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
    for (path, body, events, end) in [
        ("/v1/chat/completions", STREAM, finished.to_owned(), "data: [DONE]\n\n"),
        ("/v1/chat/completions", asks_usage, format!("{finished}{usage}"), "data: [DONE]\n\n"),
        (
            "/v1/messages",
            STREAM,
            message.to_owned(),
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
    ] {
        let held = chunk(&events);
        let engine =
            RawEngine::scripted(move |_, _| vec![Play::bytes(EVENTS), held.clone(), Play::Wait])
                .await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&request(path, body)).await;
        let answer = client.answer().await;
        assert!(answer.whole, "{answer:?}");
        assert_eq!(answer.text(), format!("{events}{end}"));
        until("the engine's connection is closed", || engine.left() == 1).await;
        proxy.settles().await;
    }
}
