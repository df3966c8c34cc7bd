//! Lifecycle of a generation request: parse, admit to the scheduler or to the hand-off, respond.
//! Dropping an [`ActiveAnswers`] before its end cancels the remaining sequences at once.

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

use crate::config::{EmulatedEngine, VllmConnector};
use crate::{auth, mooncake, pd_role, rendezvous, shared_kv_store, trtllm};

use crate::engine::EmulatedState;
use crate::error_response::ErrorResponse;
use crate::fetch::{self, Fetch};
use crate::kv_transfer::TransferMessage;
use crate::lease::HeldKv;
use crate::request_body::{self, GenerationRequest, RefusedBody, Remote, RequestedHandoff};
use crate::response_body::{ResponseBody, TokenStream};
use crate::response_format::{ResponseFormat, ResponseIds, handoff_params};
use crate::scheduler::SchedulerCommand;
use crate::stats::EmulatorCounters;
use crate::token_feed::TokenFeed;

/// The answers of one request in progress.
pub struct ActiveAnswers {
    /// The engine.
    pub engine: Arc<EmulatedState>,
    /// All answers; those to one prompt are adjacent.
    pub all: Vec<ActiveAnswer>,
    /// Dropping it stops an unfinished hand-off.
    _stop: oneshot::Sender<()>,
    ids: ResponseIds,
    /// Transfer name that both sides of a hand-off are given in advance.
    offered: Option<String>,
}

/// One answer.
pub struct ActiveAnswer {
    /// Token feed.
    pub feed: Arc<TokenFeed>,
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
    engine: Arc<EmulatedState>,
    chat: bool,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<ResponseBody> {
    if engine.has_failed_assertion() {
        return refuse(&ErrorResponse::internal());
    }
    if engine.kind() == EmulatedEngine::Trtllm
        && let Err(refusal) = auth::check(&engine.config, headers, body)
    {
        return refuse(&refusal);
    }
    let mut ask = match request_body::read(&engine.config, engine.kind(), chat, body)
        .and_then(|ask| has_room(&engine, ask))
        .and_then(|ask| match pd_role::check(&engine, &ask.handoff) {
            Ok(()) => Ok(ask),
            Err(refusal) => Err(RefusedBody { refusal, handoff: ask.handoff }),
        }) {
        Ok(ask) => ask,
        Err(refused) => {
            if let RequestedHandoff::Consume(remote) = refused.handoff {
                tokio::spawn(give_up(engine, *remote));
            }
            return refuse(&refused.refusal);
        }
    };
    if mooncake::asserts(&engine, &ask.handoff) {
        engine.fail_assertion();
        return refuse(&ErrorResponse::internal());
    }
    if let RequestedHandoff::Offer(transfer) = &ask.handoff
        && engine.config.connector == VllmConnector::Mooncake
    {
        ask.handoff = RequestedHandoff::Offer(mooncake::pinned(&engine, headers, transfer));
    }
    let ids = ResponseIds::new(chat, headers);
    let shape = ResponseFormat::new(&engine.config, &ids, &ask);
    let answers = begin(engine, &ask, ids);
    match &ask.handoff {
        RequestedHandoff::Meet(name) => return rendezvous::prefill(answers, &shape, name).await,
        RequestedHandoff::Offer(name) if answers.engine.kind() == EmulatedEngine::Trtllm => {
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

fn has_room(
    engine: &EmulatedState,
    ask: GenerationRequest,
) -> Result<GenerationRequest, RefusedBody> {
    let waiting = engine.counters.waiting.load(Relaxed);
    match engine.config.max_queued {
        Some(max) if waiting >= u64::from(max) => {
            Err(RefusedBody { refusal: ErrorResponse::busy(), handoff: ask.handoff })
        }
        _ => Ok(ask),
    }
}

/// Notifies the prefill engine that the KV will not be read.
async fn give_up(engine: Arc<EmulatedState>, remote: Remote) {
    // A failure is ignored: the engine has stopped, or its lease will expire.
    engine.peers.ask(&remote, TransferMessage::Release, Tokens::ZERO, Tokens::ZERO).await.ok();
}

/// Admits every sequence of a request to the scheduler, or to the hand-off that precedes it.
fn begin(engine: Arc<EmulatedState>, ask: &GenerationRequest, ids: ResponseIds) -> ActiveAnswers {
    let (stop, stopped) = oneshot::channel();
    let offered = match &ask.handoff {
        RequestedHandoff::Offer(name) | RequestedHandoff::Meet(name) => Some(name.clone()),
        _ => None,
    };
    let (mut all, mut fetches) = (Vec::new(), Vec::new());
    for prompt in &ask.prompts {
        let (kv, tokens) = (prompt.kv(), Tokens(prompt.tokens()));
        let local = Tokens(engine.cached(prompt));
        for index in 0..ask.n {
            let feed = Arc::new(TokenFeed::new(ask.stream));
            // Answers to one prompt share its KV: all but the first are prefix-cache hits.
            let cached = if index == 0 { local } else { tokens - Tokens(1) };
            // vLLM also holds the KV of answers longer than one token. Here they get no hand-off, so that
            // a proxy that leaves max_tokens unchanged is detected.
            let one = ask.output == 1 || engine.kind() != EmulatedEngine::Vllm;
            let held = (ask.handoff == RequestedHandoff::Produce || offered.is_some())
                && one
                && index == 0;
            let work = if held { Work::PrefillOnly } else { Work::Colocated };
            let id = engine.next_sequence();
            let sequence =
                Sequence { id, prompt: tokens, cached, output: Tokens(ask.output), work };
            let answer = ActiveAnswer {
                feed: Arc::clone(&feed),
                sequence: id,
                prompt: tokens,
                held,
                settled: false,
                stores: (index == 0 && shared_kv_store::used_by(&engine)).then(|| prompt.chain()),
            };
            all.push(answer);
            if let RequestedHandoff::Consume(remote) = &ask.handoff {
                let (engine, remote) = (Arc::clone(&engine), Remote::clone(remote));
                fetches.push(Fetch { engine, remote, sequence, local, kv, feed });
                continue;
            }
            let fetched = if index == 0 {
                shared_kv_store::fetch(&engine, prompt, cached)
            } else {
                Tokens::ZERO
            };
            let sequence = Sequence { cached: cached + fetched, ..sequence };
            EmulatorCounters::add(
                &engine.counters.prompt_computed,
                (tokens - sequence.cached).get(),
            );
            EmulatorCounters::add(&engine.counters.prompt_cached, cached.get());
            feed.set_kv(kv, sequence.cached.get());
            let admit = SchedulerCommand::Admit { sequence, feed, reserved: None };
            if fetched == Tokens::ZERO {
                engine.send_command(admit);
                continue;
            }
            let (engine, takes) = (Arc::clone(&engine), engine.config.profile.transfer(fetched));
            // A sequence whose client has disconnected is not admitted.
            tokio::spawn(async move {
                tokio::time::sleep(takes.to_duration()).await;
                engine.send_command(admit);
            });
        }
    }
    if !fetches.is_empty() {
        tokio::spawn(fetch::run(fetches, stopped));
    }
    EmulatorCounters::add(&engine.counters.open, 1);
    ActiveAnswers { engine, all, _stop: stop, ids, offered }
}

impl ActiveAnswers {
    /// Waits for the end of a prefill leg's only answer, and settles it. Returns its tokens; `None`
    /// if the engine failed, which is counted.
    pub async fn prefilled(&mut self) -> Option<Arc<TokenFeed>> {
        let feed = self.ended(0).await?;
        self.settle(0);
        Some(feed)
    }

    /// Waits for the last token of answer `i`. Returns its tokens; `None` if the engine failed,
    /// which is counted.
    async fn ended(&self, i: usize) -> Option<Arc<TokenFeed>> {
        let feed = Arc::clone(&self.all[i].feed);
        let ended = poll_fn(|context| feed.poll_beyond(u64::MAX, context)).await;
        if ended.failed {
            EmulatorCounters::add(&self.engine.counters.errors, 1);
            return None;
        }
        Some(feed)
    }

    /// Ends answer `i` after its last token: holds its KV, and returns its hand-off as JSON.
    pub fn settle(&mut self, i: usize) -> Option<String> {
        let engine = &self.engine;
        let answer = &mut self.all[i];
        answer.settled = true;
        if let Some(chain) = &answer.stores {
            shared_kv_store::put(engine, chain);
        }
        if !answer.held {
            return None;
        }
        let (tokens, feed) = (answer.prompt.get(), &answer.feed);
        let request_id = self.offered.clone().unwrap_or_else(|| self.ids.internal(i));
        let held =
            HeldKv { sequence: answer.sequence, tokens, kv: feed.kv(), cached: feed.cached() };
        let params = handoff_params(engine, &request_id, &held);
        engine.leases.hold(request_id, held, engine.config.lease.to_duration());
        // A transfer name known to both engines is not returned.
        self.offered.is_none().then_some(params)
    }

    /// Marks all answers as ended without an error.
    pub fn finish(&self) {
        EmulatorCounters::add(&self.engine.counters.finished, 1);
    }
}

impl Drop for ActiveAnswers {
    fn drop(&mut self) {
        for answer in self.all.iter().filter(|answer| !answer.settled) {
            answer.feed.leave();
            self.engine.send_command(SchedulerCommand::Cancel(answer.sequence));
        }
        self.engine.counters.open.fetch_sub(1, Relaxed);
    }
}

async fn whole(mut answers: ActiveAnswers, shape: &ResponseFormat) -> Response<ResponseBody> {
    for i in 0..answers.all.len() {
        if answers.ended(i).await.is_none() {
            return refuse(&ErrorResponse::internal());
        }
    }
    let params: Vec<_> = (0..answers.all.len()).map(|i| answers.settle(i)).collect();
    answers.finish();
    let feeds: Vec<&TokenFeed> = answers.all.iter().map(|answer| &*answer.feed).collect();
    // Of several prompts only the first one's hand-off is returned, as in vLLM.
    json(StatusCode::OK, shape.whole(&feeds, params.into_iter().next().flatten()))
}

fn stream(tokens: TokenStream) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Stream(Box::new(tokens)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Returns the response of a refusal.
pub fn refuse(refusal: &ErrorResponse) -> Response<ResponseBody> {
    json(refusal.status, refusal.body())
}

/// Returns a JSON response.
pub fn json(status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(Full::new(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Returns the load in the requested format.
fn load_header(engine: &EmulatedState, format: &HeaderValue) -> Option<HeaderValue> {
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
