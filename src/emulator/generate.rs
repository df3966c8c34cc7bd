//! Lifecycle of a generation request: parse, admit to the scheduler or to the hand-off, respond.
//! Dropping an [`Answers`] before its end cancels the remaining sequences at once.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_sim::{SeqId, Sequence, Work};
use tidegate_types::Tokens;
use tokio::sync::oneshot;

use crate::config::{EngineKind, VllmConnector};
use crate::{auth, mooncake, room, store, trtllm};

use crate::body::{self, Ask, Handoff, Refused, Remote};
use crate::engine::Shared;
use crate::feed::Feed;
use crate::fetch::{self, Fetch};
use crate::lease::Held;
use crate::refusal::Refusal;
use crate::scheduler::Command;
use crate::shape::{Ids, Shape, handoff_params};
use crate::side::What;
use crate::stats::Counters;
use crate::stream::{Reply, TokenStream};

/// The answers of one request in progress.
pub struct Answers {
    /// The engine.
    pub engine: Arc<Shared>,
    /// All answers; those to one prompt are adjacent.
    pub all: Vec<Making>,
    /// Dropping it stops an unfinished hand-off.
    _stop: oneshot::Sender<()>,
    ids: Ids,
    /// Transfer name that both sides of a hand-off are given in advance.
    offered: Option<String>,
}

/// One answer.
pub struct Making {
    /// Token feed.
    pub feed: Arc<Feed>,
    sequence: SeqId,
    prompt: Tokens,
    /// Whether its KV is held for a reader when it ends.
    held: bool,
    /// Whether the scheduler has ended the sequence, or holds it for a lease.
    settled: bool,
    /// Blocks that go to the store when it ends.
    stores: Option<Vec<u64>>,
}

/// Whether the client requests the engine's load (docs/spec/engine-protocols.md#orca).
const ORCA: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// Answers a chat or completion request.
pub async fn generate(
    engine: Arc<Shared>,
    chat: bool,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<Reply> {
    if engine.is_dead() {
        return refuse(&Refusal::internal());
    }
    if engine.kind() == EngineKind::Trtllm
        && let Err(refusal) = auth::check(&engine.config, headers, body)
    {
        return refuse(&refusal);
    }
    let mut ask = match body::read(&engine.config, engine.kind(), chat, body)
        .and_then(|ask| has_room(&engine, ask))
    {
        Ok(ask) => ask,
        Err(refused) => {
            if let Handoff::Consume(remote) = refused.handoff {
                tokio::spawn(give_up(engine, *remote));
            }
            return refuse(&refused.refusal);
        }
    };
    if mooncake::asserts(&engine, &ask.handoff) {
        engine.die();
        return refuse(&Refusal::internal());
    }
    if let Handoff::Offer(transfer) = &ask.handoff
        && engine.config.connector == VllmConnector::Mooncake
    {
        ask.handoff = Handoff::Offer(mooncake::pinned(&engine, headers, transfer));
    }
    let ids = Ids::new(chat, headers);
    let shape = Shape::new(&engine.config, &ids, &ask);
    let answers = begin(engine, &ask, ids);
    match &ask.handoff {
        Handoff::Meet(name) => return room::prefill(answers, &shape, name).await,
        Handoff::Offer(name) if answers.engine.kind() == EngineKind::Trtllm => {
            return trtllm::context(answers, &shape, &ask, name).await;
        }
        _ => {}
    }
    if ask.stream {
        return stream(TokenStream::new(answers, shape));
    }
    let orca = headers.get(ORCA).and_then(|format| load_header(&answers.engine, format));
    let mut response = whole(answers, &shape).await;
    if let Some(load) = orca {
        response.headers_mut().insert("endpoint-load-metrics", load);
    }
    response
}

fn has_room(engine: &Shared, ask: Ask) -> Result<Ask, Refused> {
    let waiting = engine.counters.waiting.load(Relaxed);
    match engine.config.max_queued {
        Some(max) if waiting >= u64::from(max) => {
            Err(Refused { refusal: Refusal::busy(), handoff: ask.handoff })
        }
        _ => Ok(ask),
    }
}

/// Notifies the prefill engine that the KV will not be read.
async fn give_up(engine: Arc<Shared>, remote: Remote) {
    // If the request fails, the engine is gone or its lease will expire.
    engine.peers.ask(&remote, What::Release, Tokens::ZERO, Tokens::ZERO).await.ok();
}

/// Admits every sequence of a request to the scheduler, or to the hand-off that precedes it.
fn begin(engine: Arc<Shared>, ask: &Ask, ids: Ids) -> Answers {
    let (stop, stopped) = oneshot::channel();
    let offered = match &ask.handoff {
        Handoff::Offer(name) | Handoff::Meet(name) => Some(name.clone()),
        _ => None,
    };
    let (mut all, mut fetches) = (Vec::new(), Vec::new());
    for prompt in &ask.prompts {
        let (kv, tokens) = (prompt.kv(), Tokens(prompt.tokens()));
        let local = Tokens(engine.cached(prompt));
        for index in 0..ask.n {
            let feed = Arc::new(Feed::new(ask.stream));
            // Answers to one prompt share its KV: all but the first are prefix-cache hits.
            let cached = if index == 0 { local } else { tokens - Tokens(1) };
            // vLLM also holds the KV of answers longer than one token. Here they get no hand-off, so that
            // a proxy that leaves max_tokens unchanged is detected.
            let one = ask.output == 1 || engine.kind() != EngineKind::Vllm;
            let held = (ask.handoff == Handoff::Produce || offered.is_some()) && one && index == 0;
            let work = if held { Work::PrefillOnly } else { Work::Whole };
            let id = engine.next_sequence();
            let sequence =
                Sequence { id, prompt: tokens, cached, output: Tokens(ask.output), work };
            let making = Making {
                feed: Arc::clone(&feed),
                sequence: id,
                prompt: tokens,
                held,
                settled: false,
                stores: (index == 0 && store::used_by(&engine)).then(|| prompt.chain()),
            };
            all.push(making);
            if let Handoff::Consume(remote) = &ask.handoff {
                let (engine, remote) = (Arc::clone(&engine), Remote::clone(remote));
                fetches.push(Fetch { engine, remote, sequence, local, kv, feed });
                continue;
            }
            let fetched =
                if index == 0 { store::fetch(&engine, prompt, cached) } else { Tokens::ZERO };
            let sequence = Sequence { cached: cached + fetched, ..sequence };
            Counters::add(&engine.counters.prompt_computed, (tokens - sequence.cached).get());
            Counters::add(&engine.counters.prompt_cached, cached.get());
            feed.set_kv(kv, sequence.cached.get());
            let admit = Command::Admit { sequence, feed, reserved: None };
            if fetched == Tokens::ZERO {
                engine.tell(admit);
                continue;
            }
            let (engine, takes) = (Arc::clone(&engine), engine.config.profile.transfer(fetched));
            // A sequence whose client has disconnected is not admitted.
            tokio::spawn(async move {
                tokio::time::sleep(takes.to_duration()).await;
                engine.tell(admit);
            });
        }
    }
    if !fetches.is_empty() {
        tokio::spawn(fetch::run(fetches, stopped));
    }
    Counters::add(&engine.counters.open, 1);
    Answers { engine, all, _stop: stop, ids, offered }
}

impl Answers {
    /// Ends answer `i` after its last token: holds its KV, and returns its hand-off as JSON.
    pub fn settle(&mut self, i: usize) -> Option<String> {
        let engine = &self.engine;
        let making = &mut self.all[i];
        making.settled = true;
        if let Some(chain) = &making.stores {
            store::put(engine, chain);
        }
        if !making.held {
            return None;
        }
        let (tokens, feed) = (making.prompt.get(), &making.feed);
        let request_id = self.offered.clone().unwrap_or_else(|| self.ids.internal(i));
        let held = Held { sequence: making.sequence, tokens, kv: feed.kv(), cached: feed.cached() };
        let params = handoff_params(engine, &request_id, &held);
        engine.leases.hold(request_id, held, engine.config.lease.to_duration());
        // A transfer name known to both engines is not returned.
        self.offered.is_none().then_some(params)
    }

    /// Marks all answers as ended without an error.
    pub fn finish(&self) {
        Counters::add(&self.engine.counters.finished, 1);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for making in self.all.iter().filter(|making| !making.settled) {
            making.feed.leave();
            self.engine.tell(Command::Cancel(making.sequence));
        }
        self.engine.counters.open.fetch_sub(1, Relaxed);
    }
}

async fn whole(mut answers: Answers, shape: &Shape) -> Response<Reply> {
    for i in 0..answers.all.len() {
        let feed = Arc::clone(&answers.all[i].feed);
        let ended = poll_fn(|context| feed.poll_beyond(u64::MAX, context)).await;
        if ended.failed {
            Counters::add(&answers.engine.counters.errors, 1);
            return refuse(&Refusal::internal());
        }
    }
    let params: Vec<_> = (0..answers.all.len()).map(|i| answers.settle(i)).collect();
    answers.finish();
    let feeds: Vec<&Feed> = answers.all.iter().map(|making| &*making.feed).collect();
    // Of several prompts only the first one's hand-off is returned, as in vLLM.
    json(StatusCode::OK, shape.whole(&feeds, params.into_iter().next().flatten()))
}

fn stream(tokens: TokenStream) -> Response<Reply> {
    let mut response = Response::new(Reply::Stream(Box::new(tokens)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Returns the response of a refusal.
pub fn refuse(refusal: &Refusal) -> Response<Reply> {
    json(refusal.status, refusal.body())
}

/// Returns a JSON response.
pub fn json(status: StatusCode, body: Bytes) -> Response<Reply> {
    let mut response = Response::new(Reply::Full(Full::new(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Returns the load in the requested format.
fn load_header(engine: &Shared, format: &HeaderValue) -> Option<HeaderValue> {
    let waiting = engine.counters.waiting.load(Relaxed) as f64;
    let usage = engine.kv_usage();
    let text = match format.as_bytes().to_ascii_uppercase().as_slice() {
        b"JSON" => format!(
            "JSON {{\"named_metrics\": {{\"num_requests_waiting\": {waiting:?}, \"kv_cache_usage_perc\": {usage:?}}}}}"
        ),
        b"TEXT" => format!(
            "TEXT named_metrics.kv_cache_usage_perc={usage:?}, named_metrics.num_requests_waiting={waiting:?}"
        ),
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}
