//! Properties that hold for arbitrary bytes, as plain functions. The fuzz targets call them with
//! libFuzzer's inputs (`fuzz/run`, on stable Rust), `cargo test` with the seeds in corpus/.
//! The result of a check depends on its input only.

#![warn(missing_docs)]

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use tidegate_engine::role_switch::{decode_graphs, read_switch, role_now};
use tidegate_engine::{
    Edits, Endpoint, EngineKind, Family, HandoffRedactor, Legs, RendezvousInfo, Seen, SseReader,
    UsageFilter, UsageRequest, cards_of, is_form, list_of, model_in_form, models_of, scan,
};
use tidegate_http1::{
    BodyError, BodyReader, Framing, RetryAfter, read_response, read_request, read_upgrade,
};
use tidegate_signals::engine::EngineReading;
use tidegate_signals::facts::Facts;
use tidegate_signals::kv::event::KvBatch;
use tidegate_signals::kv::mirror::{BlockChange, KvMirror};
use tidegate_signals::{loads, orca, prometheus};
use tidegate_types::Tokens;

const ENDPOINTS: [Endpoint; 6] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Tokenize,
    Endpoint::Responses,
    Endpoint::Messages,
];

/// Endpoints whose streams differ; the first six are those of [`ENDPOINTS`].
const STREAMS: [Endpoint; 8] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Tokenize,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::Generate,
    Endpoint::OllamaChat,
];

/// The first bytes select endpoint and piece length; the rest is the input.
fn split(input: &[u8]) -> Option<(Endpoint, usize, &[u8])> {
    let (choice, rest) = input.split_at_checked(2)?;
    Some((ENDPOINTS[choice[0] as usize % ENDPOINTS.len()], choice[1] as usize + 1, rest))
}

/// Observations in a stream do not depend on the split.
pub fn sse(input: &[u8]) {
    let Some((choice, stream)) = input.split_at_checked(2) else { return };
    let kind = STREAMS[choice[0] as usize % STREAMS.len()];
    let piece = choice[1] as usize + 1;
    assert_eq!(read(kind, stream, stream.len().max(1)), read(kind, stream, piece));
}

fn read(kind: Endpoint, stream: &[u8], piece: usize) -> Seen {
    let mut reader = SseReader::new(kind);
    let mut total = Seen::default();
    let mut add = |seen: Seen| {
        total.tokens += seen.tokens;
        total.usage = seen.usage.or(total.usage);
        total.done |= seen.done;
        total.error |= seen.error;
        total.finished |= seen.finished;
    };
    for bytes in stream.chunks(piece) {
        add(reader.feed(bytes));
    }
    add(reader.finish());
    total
}

/// The model's span in a damaged form lies within the body and ends before a delimiter.
pub fn form(input: &[u8]) {
    let (kind, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&b"multipart/form-data; boundary=X"[..], input),
    };
    if let Some(at) = model_in_form(kind, body) {
        assert!(is_form(kind));
        let value = at.of(body);
        assert!(!value.is_empty() && std::str::from_utf8(value).is_ok());
        assert!(body[..at.start as usize].ends_with(b"\n"));
        assert!(
            body[at.end as usize..].starts_with(b"\n")
                || body[at.end as usize..].starts_with(b"\r\n")
        );
    }
}

/// A body is accepted only if it is a JSON object; legs and edits change the named members and no
/// other byte.
pub fn edits(input: &[u8]) {
    let Some((endpoint, _, body)) = split(input) else { return };
    let Ok(scan) = scan(endpoint, body) else { return };
    assert!(serde_json::from_slice::<IgnoredAny>(body).is_ok(), "invalid JSON was accepted");
    let body = Bytes::copy_from_slice(body);
    // JSON's grammar allows unpaired surrogates; serde_json refuses them, so that there is nothing
    // to compare.
    let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(&body) else { return };

    let mut edits = Edits::new();
    edits.set("max_tokens", b"1").set("added", b"{\"a\":[1.0]}");
    let edited = edits.apply(&body, &scan);
    object.insert("max_tokens".to_owned(), 1.into());
    object.insert("added".to_owned(), serde_json::json!({"a": [1.0]}));
    let read =
        serde_json::from_slice::<Map<String, Value>>(&edited).expect("an edited body is not JSON");
    assert_eq!(read, object);

    let rendezvous = RendezvousInfo { host: "h", port: 1, id: 1, peer: None, key: None };
    if let Legs::PrefillFirst { prefill } =
        Family::VllmNixl.legs(endpoint, &body, &scan, &rendezvous)
    {
        let prefill: Map<String, Value> = serde_json::from_slice(&prefill).expect("a leg is not JSON");
        assert_eq!(prefill["max_tokens"], 1);
        assert_eq!(prefill["stream"], false);
        for member in ["model", "messages", "prompt", "tools", "unknown"] {
            assert_eq!(prefill.get(member), object.get(member));
        }
    }
}

/// Redaction does not depend on the split; valid JSON stays valid; no reader finds a hand-off member
/// with a value: neither in JSON that begins anywhere in the text, nor in the data of an event.
pub fn redaction(input: &[u8]) {
    let Some((_, piece, answer)) = split(input) else { return };
    let stripped = tidegate_engine::redact_answer(answer);
    let mut whole = HandoffRedactor::keeping_length();
    let kept = answer.chunks(piece).map(|bytes| whole.pass(Bytes::copy_from_slice(bytes)));
    assert_eq!(kept.map(|piece| piece.len()).sum::<usize>(), answer.len());
    has_no_handoff(&stripped);
    let mut filter = HandoffRedactor::new();
    let pieces = answer.chunks(piece).map(|bytes| filter.pass(Bytes::copy_from_slice(bytes)));
    assert_eq!(pieces.collect::<Vec<_>>().concat(), *stripped);
    let Ok(Value::Object(mut object)) = serde_json::from_slice(answer) else { return };
    // Escaped, nested and repeated names are covered by other tests.
    let name: &[u8] = b"kv_transfer_params";
    let once = answer.windows(name.len()).filter(|bytes| *bytes == name).count() == 1;
    if !once || answer.contains(&b'\\') || answer.windows(2).any(|bytes| bytes == b"\n\n") {
        return;
    }
    if let Some(params) = object.get_mut("kv_transfer_params")
        && (params.is_object() || params.is_array())
    {
        *params = Value::Null;
        assert_eq!(serde_json::from_slice::<Value>(&stripped).ok(), Some(Value::Object(object)));
    }
}

/// Members whose values are redacted.
const HANDOFFS: [&str; 6] = [
    "kv_transfer_params",
    "ec_transfer_params",
    "disaggregated_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
];

fn has_no_handoff(text: &[u8]) {
    let lines = || text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let is_data = |line: &[u8]| {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        line.starts_with(b"data:") || line.starts_with(b"error:")
    };
    if !lines().any(is_data) {
        assert_none(text);
    }
    for event in events(text) {
        assert_none(&event);
    }
}

/// The data of each server-sent event, as the standard defines it.
fn events(text: &[u8]) -> Vec<Vec<u8>> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = String::from_utf8_lossy(text).replace("\r\n", "\n").replace('\r', "\n");
    let data = |line: &str| {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        (field == "data").then(|| value.strip_prefix(' ').unwrap_or(value).to_owned())
    };
    let event = |lines: &str| lines.split('\n').filter_map(data).collect::<Vec<_>>().join("\n");
    text.split("\n\n").map(|lines| event(lines).into_bytes()).collect()
}

/// Asserts that no JSON object that begins in the text has a hand-off member with a value.
fn assert_none(text: &[u8]) {
    const OBJECTS_MAX: usize = 64;
    let begins = (0..text.len()).filter(|at| text[*at] == b'{').take(OBJECTS_MAX);
    for at in begins {
        let read = serde_json::Deserializer::from_slice(&text[at..]).into_iter::<Value>().next();
        if let Some(Ok(value)) = read {
            assert!(!has_handoff(&value), "{value}");
        }
    }
}

fn has_handoff(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, value)| {
            HANDOFFS.contains(&name.as_str()) && !value.is_null() || has_handoff(value)
        }),
        Value::Array(values) => values.iter().any(has_handoff),
        _ => false,
    }
}

/// KV event messages are decoded or refused; the mirror stays within its limit and removes only
/// blocks that it added.
pub fn kv_events(input: &[u8]) {
    const BLOCKS_MAX: usize = 8;
    let Some((sizes, mut rest)) = input.split_at_checked(1) else { return };
    let mut mirror = KvMirror::new("m", usize::from(sizes[0] % 9) + 1, BLOCKS_MAX);
    let mut held = BTreeSet::new();
    // Several messages, each with a length byte.
    while let Some((length, more)) = rest.split_first() {
        let message = &more[..more.len().min(usize::from(*length))];
        rest = &more[message.len()..];
        let Ok(batch) = KvBatch::decode(message) else { continue };
        for event in &batch.events {
            mirror.apply(event, &mut |change| match change {
                BlockChange::Held(hash) => assert!(held.insert(hash)),
                BlockChange::Gone(hash) => assert!(held.remove(&hash)),
                BlockChange::Cleared => held.clear(),
            });
            assert!(mirror.len() <= BLOCKS_MAX);
        }
    }
}

/// A /metrics page reads the same after a line that is not a sample; no reader of engine output
/// panics.
pub fn metrics(page: &[u8]) {
    let names = |page| prometheus::samples(page).map(|sample| sample.name).collect::<Vec<_>>();
    let commented = [b"# a comment\n", page].concat();
    assert_eq!(names(page), names(&commented));
    for sample in prometheus::samples(page) {
        assert!(!sample.name.is_empty());
        sample.label("engine");
    }
    EngineReading::of_metrics(page);
    loads::reading(page);
    orca::reading(&String::from_utf8_lossy(page));
}

/// Requests and answers are parsed or refused, and their bodies decode independently of the split.
/// The first byte selects the split.
pub fn http1(input: &[u8]) {
    let Some((cut, message)) = input.split_first() else { return };
    let step = usize::from(*cut) + 1;
    let request = read_request(message).ok().flatten().map(|head| (head.length, head.framing));
    // The response to a websocket handshake parses as any other, except for a 101.
    if let (Ok(Some(plain)), Ok(Some(upgraded))) =
        (read_response(&Method::GET, message), read_upgrade(message))
    {
        assert_eq!((plain.length, plain.framing), (upgraded.length, upgraded.framing));
    }
    let answer = read_response(&Method::POST, message).ok().flatten();
    let answer = answer.map(|head| (head.length, head.framing));
    for (length, framing) in request.into_iter().chain(answer) {
        let rest = &message[length..];
        assert_eq!(body(framing, rest, step), body(framing, rest, rest.len().max(1)));
    }
    // A head is complete with its last byte and not before.
    if let Some((length, _)) = request {
        assert!(matches!(read_request(&message[..length - 1]), Ok(None)));
    }
}

/// Decodes a body; returns its data and the bytes consumed.
fn body(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize), BodyError> {
    let mut reader = BodyReader::new(framing);
    let (mut data, mut taken) = (Vec::new(), 0);
    for piece in wire.chunks(step) {
        let mut piece = piece.to_vec();
        let read = reader.read(&mut piece)?;
        data.extend_from_slice(&piece[read.data]);
        taken += read.consumed;
        if reader.is_done() {
            return Ok((data, taken));
        }
    }
    reader.close().map(|()| (data, taken))
}

/// A `retry-after` value yields a finite positive wait, or none. The first byte selects the time of
/// day.
pub fn retry_after(input: &[u8]) {
    let Some((now, value)) = input.split_first() else { return };
    let now = f64::from(*now) * 1e7;
    if let Some(after) = RetryAfter::read(value) {
        let seconds = after.seconds_from(now);
        assert!(seconds.is_none_or(|seconds| seconds.is_finite() && seconds > 0.0), "{after:?}");
        if let RetryAfter::At(time) = after {
            assert!(time >= 0.0 && seconds.is_some() == (time > now));
        }
    }
}

/// Head parser, body decoder, hand-off redaction, usage filter and token counter do not depend on
/// the split of an answer, and valid JSON stays valid.
pub fn answers(input: &[u8]) {
    let Some((kind, piece, message)) = split(input) else { return };
    let Ok(Some(head)) = read_response(&Method::POST, message) else { return };
    let rest = &message[head.length..];
    let whole = relayed(head.framing, kind, rest, rest.len().max(1));
    let cut = relayed(head.framing, kind, rest, piece);
    assert_eq!(whole.is_ok(), cut.is_ok());
    if let (Ok(whole), Ok(cut)) = (whole, cut) {
        assert_eq!(whole, cut);
    }
}

/// Relays an answer's body; returns the client's bytes and the observations.
fn relayed(
    framing: Framing,
    kind: Endpoint,
    wire: &[u8],
    step: usize,
) -> Result<(Vec<u8>, Seen), BodyError> {
    let mut reader = BodyReader::new(framing);
    let mut handoffs = HandoffRedactor::new();
    let mut usage = UsageFilter::new(UsageRequest::Never, Some(Tokens(3)));
    let mut data = Vec::new();
    let mut out = Vec::new();
    for piece in wire.chunks(step) {
        let mut piece = piece.to_vec();
        let read = reader.read(&mut piece)?;
        data.extend_from_slice(&piece[read.data.clone()]);
        let passed = handoffs.pass(Bytes::copy_from_slice(&piece[read.data]));
        out.extend_from_slice(&usage.pass(passed));
        if reader.is_done() {
            break;
        }
    }
    reader.close()?;
    out.extend_from_slice(&usage.rest().unwrap_or_default());
    Ok((out, read(kind, &data, step)))
}

/// Prefill answers and answers to queries are parsed or refused; decode legs and streams made of
/// them are JSON.
pub fn handoffs(answer: &[u8]) {
    const BODY: &[u8] =
        br#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let body = Bytes::from_static(BODY);
    let Ok(scan) = scan(Endpoint::ChatCompletions, &body) else { return };
    let is_json = |bytes: &[u8]| serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
    for family in [
        Family::VllmNixl,
        Family::VllmMooncake,
        Family::VllmSharedStore,
        Family::TrtLlm,
        Family::TrtLlmGenerationFirst,
    ] {
        if let Ok(handoff) = family.read_prefill(answer) {
            let leg = family.decode_leg(&body, &scan, &handoff, Some(b"key"));
            assert!(is_json(&leg.body), "{family:?}");
            let header = leg.header.map_or(String::new(), |(_, value)| value.into_string());
            assert!(HeaderValue::from_str(&header).is_ok());
        }
        if let Ok(peers) = family.read_peers(answer) {
            assert!(!peers.is_empty());
        }
        // Its events are complete: each line is JSON data or blank.
        if let Ok(stream) = family.as_stream(answer, &scan) {
            for data in stream.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let data = data.strip_prefix(b"data: ").expect("an event");
                assert!(data == b"[DONE]" || is_json(data));
            }
        }
    }
    let list = list_of(cards_of(answer).iter().map(|(_, card)| *card));
    assert!(is_json(&list));
    assert_eq!(models_of(&list), models_of(answer));
    read_switch(answer);
    role_now(answer);
    decode_graphs(answer);
    for kind in [EngineKind::Vllm, EngineKind::Sglang] {
        Facts::read(kind, Some(answer), Some(answer));
    }
}
