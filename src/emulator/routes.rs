//! Paths to answers.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tidegate_sim::{SeqId, Sequence, Work};
use tidegate_terms::Tokens;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::answer::{self, Frames};
use crate::ask::{self, Ask, Refusal};
use crate::config::{EngineKind, LoadFailurePolicy};
use crate::handoff::{self, GIVE_UP_PATH, READ_PATH};
use crate::scheduler::{Command, Said};
use crate::server::Emulated;
use crate::stats::Counters;

/// Answer one request.
pub async fn answer(
    engine: Arc<Emulated>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let get = parts.method == Method::GET;
    Ok(match parts.uri.path() {
        "/v1/chat/completions" => generate(engine, true, &parts.headers, &body).await,
        "/v1/completions" => generate(engine, false, &parts.headers, &body).await,
        "/health" if get => full(200, Bytes::new()),
        "/version" if get => full(200, Bytes::from_static(b"{\"version\":\"0.32.0+emulated\"}")),
        "/load" if get => {
            let load = engine.counters.snapshot();
            full(
                200,
                Bytes::from(json!({ "server_load": load.running + load.waiting }).to_string()),
            )
        }
        "/v1/models" if get => full(200, models(&engine)),
        "/metrics" if get => {
            let capacity = engine.config.profile.kv_capacity.get();
            full(200, Bytes::from(engine.counters.page(&engine.config.model, capacity)))
        }
        "/tokenize" => match ask::count(&body) {
            Ok(count) => full(200, tokens(&engine, count)),
            Err(refused) => full(refused.status, answer::refusal(&refused)),
        },
        READ_PATH => match handoff::serve_read(&engine, &body) {
            Some(answer) => full(200, answer),
            None => full(404, Bytes::new()),
        },
        GIVE_UP_PATH => {
            handoff::serve_give_up(&engine, &body);
            full(200, Bytes::new())
        }
        path => full(404, answer::error(404, "NotFoundError", &format!("no {path}"), None)),
    })
}

async fn generate(
    engine: Arc<Emulated>,
    chat: bool,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<Reply> {
    let mut ask = match ask::read(&engine.config, chat, body) {
        Ok(ask) => ask,
        Err(refused) => return refuse(&refused).await,
    };
    if engine.config.kind == EngineKind::Plain {
        ask.handoff = None;
    }
    let id = request_id(chat, headers);
    let params = ask.handoff.clone().unwrap_or_default();
    if params.do_remote_decode {
        return prefill(engine, &ask, &id).await;
    }
    let mut work = Work::Whole;
    if params.do_remote_prefill {
        match handoff::read(&engine, &params, ask.prompt).await {
            true => work = Work::DecodeOnly,
            false if engine.config.policy == LoadFailurePolicy::Recompute => {
                Counters::add(&engine.counters.recomputes, 1);
            }
            false => return failed(ask.stream),
        }
    }
    let sequences = admit(&engine, &ask, work);
    if ask.stream {
        return stream(&engine, &ask, &id, sequences);
    }
    collect(&engine, &ask, &id, sequences).await
}

/// A prefill leg: one token that nobody reads, and the KV held under a lease.
async fn prefill(engine: Arc<Emulated>, ask: &Ask, id: &str) -> Response<Reply> {
    let mut sequences = admit(&engine, &Ask { n: 1, ..ask.clone() }, Work::PrefillOnly);
    while let Some(said) = sequences.said.recv().await {
        if said != Said::Prefilled {
            continue;
        }
        let Some(sequence) = sequences.live.pop() else { break };
        let request_id = format!("{id}-{:08x}", fastrand::u32(..));
        engine.leases.hold(request_id.clone(), sequence, ask.prompt, engine.config.lease);
        let handoff = answer::handoff(&engine, &request_id, ask.prompt);
        Counters::add(&engine.counters.finished, 1);
        let one = Ask { output: 1, n: 1, ..ask.clone() };
        return full(200, answer::whole(&engine, &one, id, handoff));
    }
    failed(false)
}

/// Sequences of one request; dropped before they end, they are cancelled.
struct Sequences {
    engine: Arc<Emulated>,
    live: Vec<SeqId>,
    said: UnboundedReceiver<Said>,
}

impl Drop for Sequences {
    fn drop(&mut self) {
        for id in self.live.drain(..) {
            self.engine.tell(Command::Cancel(id));
        }
    }
}

fn admit(engine: &Arc<Emulated>, ask: &Ask, work: Work) -> Sequences {
    let (to, said) = unbounded_channel();
    let mut live = Vec::new();
    if work != Work::DecodeOnly {
        Counters::add(&engine.counters.prompt_computed, ask.prompt);
    }
    for index in 0..ask.n {
        let id = engine.next_sequence();
        let sequence = Sequence {
            id,
            prompt: Tokens(ask.prompt),
            cached: Tokens::ZERO,
            output: Tokens(ask.output),
            // Only the first answer of several can have been handed over.
            work: if index == 0 || work == Work::PrefillOnly { work } else { Work::Whole },
        };
        engine.tell(Command::Admit { sequence, index, to: to.clone() });
        live.push(id);
    }
    Sequences { engine: Arc::clone(engine), live, said }
}

async fn collect(
    engine: &Arc<Emulated>,
    ask: &Ask,
    id: &str,
    mut sequences: Sequences,
) -> Response<Reply> {
    let mut ended = 0;
    while let Some(said) = sequences.said.recv().await {
        ended += u32::from(matches!(said, Said::Token { last: true, .. }));
    }
    if ended < ask.n {
        return failed(false);
    }
    sequences.live.clear();
    Counters::add(&engine.counters.finished, 1);
    full(200, answer::whole(engine, ask, id, Value::Null))
}

fn stream(engine: &Arc<Emulated>, ask: &Ask, id: &str, sequences: Sequences) -> Response<Reply> {
    let frames = (0..ask.n).map(|index| Frames::new(engine, ask, id, index)).collect();
    let tokens = TokenStream {
        frames,
        emitted: vec![0; ask.n as usize],
        open: ask.n,
        sequences,
        finished: false,
    };
    let mut response = Response::new(Reply::Stream(Box::new(tokens)));
    let kind = http::HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn refuse(refused: &Refusal) -> Response<Reply> {
    if let Some(params) = refused.handoff.as_ref().filter(|params| params.do_remote_prefill) {
        handoff::give_up(params).await;
    }
    full(refused.status, answer::refusal(refused))
}

fn failed(stream: bool) -> Response<Reply> {
    let message = "Internal server error";
    if !stream {
        return full(500, answer::error(500, "InternalServerError", message, None));
    }
    let mut response = full(200, answer::error_event(message));
    let kind = http::HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn request_id(chat: bool, headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let id = given.map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned);
    if chat { format!("chatcmpl-{id}") } else { format!("cmpl-{id}-0") }
}

fn models(engine: &Emulated) -> Bytes {
    let card = json!({
        "id": engine.config.model, "object": "model", "created": 1, "owned_by": "vllm",
        "root": engine.config.model, "parent": null, "max_model_len": engine.config.max_model_len,
    });
    Bytes::from(json!({ "object": "list", "data": [card] }).to_string())
}

fn tokens(engine: &Emulated, count: u64) -> Bytes {
    let ids: Vec<u64> = (0..count).collect();
    let limit = engine.config.max_model_len;
    Bytes::from(json!({ "count": count, "max_model_len": limit, "tokens": ids }).to_string())
}

fn full(status: u16, body: Bytes) -> Response<Reply> {
    let mut response = Response::new(Reply::Full(Full::new(body)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A body: all here, or tokens as they come.
pub enum Reply {
    /// All here.
    Full(Full<Bytes>),
    /// Tokens as they come.
    Stream(Box<TokenStream>),
}

/// One frame a token.
pub struct TokenStream {
    frames: Vec<Frames>,
    emitted: Vec<u64>,
    open: u32,
    sequences: Sequences,
    finished: bool,
}

impl TokenStream {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.open == 0 {
            if std::mem::replace(&mut self.finished, true) {
                return Poll::Ready(None);
            }
            self.sequences.live.clear();
            Counters::add(&self.sequences.engine.counters.finished, 1);
            return Poll::Ready(Some(self.frames[0].tail()));
        }
        match self.sequences.said.poll_recv(context) {
            Poll::Ready(Some(Said::Token { index, last })) => {
                let emitted = &mut self.emitted[index as usize];
                let frame = self.frames[index as usize].token(index, *emitted, last);
                *emitted += 1;
                self.open -= u32::from(last);
                Poll::Ready(Some(frame))
            }
            // The engine was killed, or the stream is over.
            Poll::Ready(Some(Said::Prefilled) | None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Reply::Full(full) => Pin::new(full).poll_frame(context),
            Reply::Stream(tokens) => {
                tokens.poll(context).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Reply::Full(full) => full.size_hint(),
            Reply::Stream(_) => http_body::SizeHint::default(),
        }
    }
}
