//! Engine APIs: relayed byte for byte, and accounted by the usage that the engine reports.

use crate::client::{post, send};
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, plain, vllm};

const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n";
const DELTA: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":5}}}\n\n";

fn parts(stream: &[&str]) -> Vec<String> {
    stream.iter().map(|part| (*part).to_owned()).collect()
}

fn responses() -> Vec<String> {
    parts(&[RESPONSES, DELTA, DELTA, COMPLETED])
}

fn messages() -> Vec<String> {
    parts(&[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":0}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ])
}

fn sglang() -> Vec<String> {
    parts(&[
        "data: {\"text\":\"a\",\"meta_info\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"finish_reason\":null}}\n\n",
        "data: {\"text\":\"a b\",\"meta_info\":{\"prompt_tokens\":9,\"completion_tokens\":5,\"finish_reason\":{\"type\":\"stop\"}}}\n\n",
        "data: [DONE]\n\n",
    ])
}

fn tokens_in() -> Vec<String> {
    parts(&[
        "data: {\"choices\":[{\"index\":0,\"token_ids\":[5,6],\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5}}\n\n",
        "data: [DONE]\n\n",
    ])
}

fn ollama(member: &str) -> Vec<String> {
    parts(&[
        &format!("{{\"model\":\"m\",{member},\"done\":false}}\n"),
        "{\"model\":\"m\",\"done\":true,\"prompt_eval_count\":9,\"eval_count\":5}\n",
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_is_forwarded_and_its_tokens_match_the_engines_count() {
    for (path, body, act) in [
        ("/v1/responses", r#"{"model":"m","input":"a","stream":true}"#, Act::Chunks(responses())),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"}],"stream":true}"#,
            Act::Chunks(messages()),
        ),
        ("/generate", r#"{"text":"a","stream":true}"#, Act::Chunks(sglang())),
        (
            "/inference/v1/generate",
            r#"{"token_ids":[1,2],"stream":true}"#,
            Act::Chunks(tokens_in()),
        ),
        (
            "/api/chat",
            r#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#,
            Act::Lines(ollama("\"message\":{\"content\":\"a\"}")),
        ),
        (
            "/api/generate",
            r#"{"model":"m","prompt":"a"}"#,
            Act::Lines(ollama("\"response\":\"a\"")),
        ),
    ] {
        let (Act::Chunks(chunks) | Act::Lines(chunks)) = &act else { continue };
        let whole = chunks.concat();
        let fake = Fake::start([act], Act::Drop).await;
        let proxy = Proxy::start("", &[plain("a", &fake)]).await;
        let answer = proxy.post(path, body).await;
        assert_eq!(answer.body, whole, "{path}");
        assert_eq!(fake.sent()[0].body, body, "{path}");
        proxy.settles().await;
        assert_eq!(proxy.tokens().await, (9.0, 5.0), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_whole_answer_is_forwarded_and_its_tokens_match_the_engines_count() {
    let openai = r#"{"x":[1.50],"usage":{"prompt_tokens":9,"completion_tokens":5}}"#;
    let other = r#"{"x":[1.50],"usage":{"input_tokens":9,"output_tokens":5}}"#;
    for (path, body, answer, counts) in [
        ("/v1/chat/completions", r#"{"model":"m","messages":[1]}"#, openai, true),
        ("/v1/completions", r#"{"model":"m","prompt":[1,2,3]}"#, openai, true),
        ("/v1/completions", r#"{"model":"m","prompt":"a"}"#, openai, true),
        ("/v1/responses", r#"{"model":"m","input":[{"role":"user","content":"a"}]}"#, other, true),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":9,"messages":[1],"system":"s"}"#,
            other,
            true,
        ),
        (
            "/generate",
            r#"{"input_ids":[1,2]}"#,
            r#"{"text":"x","meta_info":{"prompt_tokens":9,"completion_tokens":5}}"#,
            true,
        ),
        (
            "/api/chat",
            r#"{"model":"m","messages":[1],"stream":false}"#,
            r#"{"done":true,"prompt_eval_count":9,"eval_count":5}"#,
            true,
        ),
        ("/v1/embeddings", r#"{"model":"m","input":["a","b"]}"#, openai, false),
        ("/tokenize", r#"{"model":"m","prompt":"a"}"#, r#"{"count":3,"tokens":[1,2,3]}"#, false),
        ("/detokenize", r#"{"model":"m","tokens":[1]}"#, r#"{"prompt":"a"}"#, false),
        ("/rerank", r#"{"model":"m","query":"a","documents":["b"]}"#, r#"{"results":[]}"#, false),
        (
            "/v1/rerank",
            r#"{"model":"m","query":"a","documents":["b"]}"#,
            r#"{"results":[]}"#,
            false,
        ),
        ("/score", r#"{"model":"m","text_1":"a","text_2":"b"}"#, r#"{"data":[]}"#, false),
        (
            "/v1/messages/count_tokens",
            r#"{"model":"m","messages":[]}"#,
            r#"{"input_tokens":3}"#,
            false,
        ),
        ("/api/embed", r#"{"model":"m","input":"a"}"#, r#"{"embeddings":[]}"#, false),
    ] {
        let fake = Fake::start([], Act::Json(200, answer.to_owned())).await;
        let proxy = Proxy::start("", &[plain("a", &fake)]).await;
        let got = proxy.post(path, body).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (200, answer), "{path}");
        let sent = &fake.sent()[0];
        assert_eq!((sent.path.as_str(), sent.body.as_ref()), (path, body.as_bytes()));
        proxy.settles().await;
        let expected = if counts { (9.0, 5.0) } else { (0.0, 0.0) };
        assert_eq!(proxy.tokens().await, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multipart_audio_passes_unread() {
    let fake = Fake::start([], Act::Json(200, r#"{"text":"hello"}"#.to_owned())).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let form = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n";
    let mut request = post("/v1/audio/transcriptions", form);
    let kind = "multipart/form-data; boundary=x";
    request.headers_mut().insert("content-type", kind.parse().unwrap());
    assert_eq!(send(proxy.data, request).await.body, r#"{"text":"hello"}"#);
    assert_eq!(fake.sent()[0].body, form);
    assert_eq!(fake.sent()[0].headers["content-type"], kind);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_messages_and_token_ids_are_disaggregated_on_vllm() {
    let params = r#"{"do_remote_prefill":true,"remote_engine_id":"e","remote_block_ids":[[1]]}"#;
    let prefilled = format!(
        r#"{{"id":"r","usage":{{"input_tokens":200,"output_tokens":1}},"kv_transfer_params":{params}}}"#
    );
    let text = "word ".repeat(400);
    let ids: Vec<String> = (0..400).map(|id| id.to_string()).collect();
    for (path, body, limit, stream) in [
        (
            "/v1/responses",
            format!(r#"{{"model":"m","stream":true,"input":"{text}","max_output_tokens":64}}"#),
            "/max_output_tokens",
            responses(),
        ),
        (
            "/v1/messages",
            format!(
                r#"{{"model":"m","stream":true,"max_tokens":64,"messages":[{{"role":"user","content":"{text}"}}]}}"#
            ),
            "/max_tokens",
            messages(),
        ),
        (
            "/inference/v1/generate",
            format!(
                r#"{{"stream":true,"token_ids":[{}],"sampling_params":{{"max_tokens":64}}}}"#,
                ids.join(",")
            ),
            "/sampling_params/max_tokens",
            tokens_in(),
        ),
    ] {
        let p = Fake::start([], Act::Json(200, prefilled.clone())).await;
        let d = Fake::start([], Act::Chunks(stream.clone())).await;
        let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
        let proxy = Proxy::start(SPLIT, &engines).await;
        assert_eq!(proxy.post(path, &body).await.body, stream.concat(), "{path}");
        let (prefill, decode) = (p.sent()[0].json(), d.sent()[0].json());
        assert_eq!(prefill.pointer(limit).unwrap(), 1, "{path}");
        assert_eq!(prefill["stream"], false);
        assert_eq!(prefill["kv_transfer_params"]["do_remote_decode"], true);
        assert_eq!(decode.pointer(limit).unwrap(), 64);
        let handed: serde_json::Value = serde_json::from_str(params).unwrap();
        assert_eq!(decode["kv_transfer_params"], handed, "{path}");
        assert_eq!(p.sent()[0].path, path);
        proxy.settles().await;
        assert_eq!(proxy.tokens().await.1, 5.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_stream_is_retried_until_its_first_event() {
    let created = parts(&[RESPONSES]);
    let script = [Act::Break(vec![]), Act::Chunks(responses()), Act::Break(created.clone())];
    let fakes = Fake::start_sharing(script, Act::Chunks(responses()), 2).await;
    let proxy = Proxy::start("", &[plain("a", &fakes[0]), plain("b", &fakes[1])]).await;
    let body = r#"{"model":"m","input":"a","stream":true}"#;
    let answer = proxy.post("/v1/responses", body).await;
    assert_eq!(answer.body, responses().concat());
    // The client has received the event: the request is not retried.
    let answer = proxy.post("/v1/responses", body).await.body;
    let rest = answer.strip_prefix(&created.concat()).unwrap_or_else(|| panic!("{answer}"));
    assert!(rest.trim_start().starts_with("event: error\ndata: {"), "{rest}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sglangs_native_api_is_disaggregated_on_prefill_and_decode_modes() {
    let one = r#"{"text":"x","meta_info":{"prompt_tokens":9,"completion_tokens":1}}"#;
    let p = Fake::start([], Act::Json(200, one.to_owned())).await;
    let d = Fake::start([], Act::Chunks(sglang())).await;
    let engines = [
        vllm("p", p.url(), "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"prefill\""),
        vllm("d", d.url(), "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\""),
    ];
    let proxy = Proxy::start("", &engines).await;
    let body = r#"{"text":"a b c","stream":true,"sampling_params":{"max_new_tokens":64}}"#;
    assert_eq!(proxy.post("/generate", body).await.body, sglang().concat());
    let (prefill, decode) = (p.sent()[0].json(), d.sent()[0].json());
    assert_eq!(prefill, decode);
    assert!(prefill["bootstrap_room"].is_u64() && prefill["text"] == "a b c", "{prefill}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_ollama_stream_ends_with_an_ollama_error() {
    let line = "{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n";
    for (sent, expected) in [(line.to_owned(), 2), (format!("{line}{{\"model"), 3)] {
        let fake = Fake::start([Act::BreakLines(vec![sent])], Act::Drop).await;
        let proxy = Proxy::start("", &[plain("a", &fake)]).await;
        let answer = proxy.post("/api/generate", r#"{"model":"m","prompt":"a"}"#).await;
        let lines: Vec<&str> = answer.body.lines().collect();
        assert_eq!(lines.len(), expected, "{}", answer.body);
        let last: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert!(last["error"].as_str().unwrap().contains("backend a"), "{last}");
        proxy.settles().await;
    }
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let answer = proxy.post("/api/chat", r#"{"model":"unknown","messages":[]}"#).await;
    assert!(answer.status == 404 && answer.json()["error"].is_string(), "{}", answer.body);
}
