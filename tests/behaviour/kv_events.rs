//! KV cache events: an engine that publishes them receives the prompts that it has cached, and the
//! predicted hits equal those it reports.

use bytes::Bytes;
use serde_json::json;
use std::sync::{Arc, Mutex};
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::client::{get, send};
use crate::fake::{Act, Fake};
use crate::proxy::{Engine, Proxy, plain};

/// Tokens per block of tidegate and of the engine.
const BLOCK: usize = 64;

/// Messages that an engine publishes and replays on request.
struct Publisher {
    socket: PubSocket,
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    folder: tempfile::TempDir,
}

impl Publisher {
    async fn start() -> Publisher {
        let folder = tempfile::tempdir().unwrap();
        let address = |name: &str| format!("ipc://{}", folder.path().join(name).display());
        let mut socket = PubSocket::new();
        socket.bind(&address("events")).await.unwrap();
        let mut questions = RouterSocket::new();
        questions.bind(&address("replay")).await.unwrap();
        let messages: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let known = Arc::clone(&messages);
        tokio::spawn(async move {
            while let Ok(question) = questions.recv().await {
                let frames = question.into_vec();
                let from = u64::from_be_bytes(frames[2].as_ref().try_into().unwrap());
                let known = known.lock().unwrap().clone();
                let answers = known.into_iter().enumerate().skip(from as usize);
                let last = (u64::MAX, Vec::new());
                for (number, payload) in answers.map(|(n, p)| (n as u64, p)).chain([last]) {
                    let number = Bytes::copy_from_slice(&number.to_be_bytes());
                    let message =
                        [frames[0].clone(), Bytes::new(), Bytes::new(), number, payload.into()];
                    questions.send(ZmqMessage::try_from(message.to_vec()).unwrap()).await.unwrap();
                }
            }
        });
        Publisher { socket, messages, folder }
    }

    /// Stores a message for replay.
    fn remember(&self, events: serde_json::Value) {
        let mut messages = self.messages.lock().unwrap();
        let at = messages.len() as f64;
        messages.push(rmp_serde::to_vec(&json!([at, events, 0])).unwrap());
    }

    /// Publishes the last stored message.
    async fn publish_last(&mut self) {
        let (number, payload) = {
            let messages = self.messages.lock().unwrap();
            (messages.len() as u64 - 1, messages.last().unwrap().clone())
        };
        let number = Bytes::copy_from_slice(&number.to_be_bytes());
        let message = [Bytes::from_static(b"kv@x"), number, payload.into()];
        self.socket.send(ZmqMessage::try_from(message.to_vec()).unwrap()).await.unwrap();
    }

    fn toml(&self) -> &'static str {
        let at = self.folder.path().display();
        let text = format!(
            "engine = \"plain\"\nkv_events = \"ipc://{at}/events\"\nkv_replay = \"ipc://{at}/replay\""
        );
        Box::leak(text.into_boxed_str())
    }
}

/// Without a tokenizer prompts cannot be matched with events, and the proxy does not subscribe.
fn model() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/testdata/tiny_llama.json");
    format!("[[models]]\nname = \"m\"\ntokenizer = \"{path}\"\n")
}

fn prompt(of: u32) -> Vec<u32> {
    (0..3 * BLOCK as u32).map(|i| of * 1000 + i).collect()
}

/// Returns the event that stores a whole prompt, under the engine's own hashes.
fn stored(of: u32) -> serde_json::Value {
    json!({
        "type": "BlockStored", "block_hashes": [of * 10, of * 10 + 1, of * 10 + 2],
        "parent_block_hash": null, "token_ids": prompt(of), "block_size": BLOCK, "lora_id": null,
        "medium": "GPU", "lora_name": null,
    })
}

fn answer() -> String {
    json!({
        "id": "c", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": "x", "logprobs": null, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3 * BLOCK, "completion_tokens": 1,
                  "prompt_tokens_details": {"cached_tokens": 2 * BLOCK}},
    })
    .to_string()
}

async fn ask(proxy: &Proxy, of: u32) {
    let body = json!({"model": "m", "prompt": prompt(of), "max_tokens": 1}).to_string();
    assert_eq!(proxy.post("/v1/completions", &body).await.status, 200);
    proxy.settles().await;
}

/// Returns a metric of the backend `publishing`.
async fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = send(proxy.admin, get("/metrics")).await.body;
    let start = format!("{name}{{backend=\"publishing\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{name} is not on the page")).parse().unwrap()
}

async fn until_metric(proxy: &Proxy, name: &str, value: u64) {
    for _ in 0..1000 {
        if metric(proxy, name).await == value {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{name} did not become {value}: {}", metric(proxy, name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_routed_to_the_engine_whose_kv_events_report_their_prefix() {
    let act = || Act::Json(200, answer());
    let (publishing, other) = (Fake::start([], act()).await, Fake::start([], act()).await);
    let mut publisher = Publisher::start().await;
    // Stored before the proxy started: a replay delivers it.
    publisher.remember(json!([stored(1)]));
    let engines = [
        plain("other", &other),
        Engine { name: "publishing", url: publishing.url(), more: publisher.toml() },
    ];
    let proxy = Proxy::start(&model(), &engines).await;
    until_metric(&proxy, "tidegate_kv_events_complete", 1).await;
    assert_eq!(metric(&proxy, "tidegate_kv_event_blocks").await, 3);
    let fleet = proxy.admin("/v1/fleet").await;
    assert_eq!(fleet["backends"][1]["prefix_source"], "events");
    for _ in 0..4 {
        ask(&proxy, 1).await;
    }
    assert_eq!((publishing.sent().len(), other.sent().len()), (4, 0));
    // Whole blocks of the engine, without the last token, as the engine then reports.
    let counted_on = metric(&proxy, "tidegate_prefix_predicted_tokens_total").await;
    assert_eq!(counted_on, 4 * 2 * BLOCK as u64);
    assert_eq!(metric(&proxy, "tidegate_prefix_cached_tokens_total").await, counted_on);

    // One message is lost; the next one reveals the gap, and the replay fills it.
    publisher.remember(json!([stored(2)]));
    publisher.remember(json!([{"type": "BlockRemoved", "block_hashes": [12, 11, 10]}]));
    publisher.publish_last().await;
    // The block count is three before and after: only the removal shows that the replay is
    // complete.
    let removed = "tidegate_kv_event_blocks_total{backend=\"publishing\",kind=\"removed\"} 3";
    crate::client::within(async {
        while !send(proxy.admin, get("/metrics")).await.body.contains(removed) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    for _ in 0..4 {
        ask(&proxy, 2).await;
    }
    assert_eq!((publishing.sent().len(), other.sent().len()), (8, 0));
    assert_eq!(metric(&proxy, "tidegate_kv_events_complete").await, 1);
    assert_eq!(metric(&proxy, "tidegate_kv_event_messages_lost_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kv_events_override_predictions_from_routed_requests() {
    let act = || Act::Json(200, answer());
    let (publishing, other) = (Fake::start([], act()).await, Fake::start([], act()).await);
    let mut publisher = Publisher::start().await;
    publisher.remember(json!([]));
    let engines = [
        plain("other", &other),
        Engine { name: "publishing", url: publishing.url(), more: publisher.toml() },
    ];
    let proxy = Proxy::start(&model(), &engines).await;
    until_metric(&proxy, "tidegate_kv_events_complete", 1).await;
    // Repeated until this engine is chosen.
    let mut of = 1;
    while publishing.sent().is_empty() {
        of += 1;
        ask(&proxy, of).await;
    }
    // The engine answered, but reported no stored prompt. If it received the prompt again for
    // another reason, no hit would be predicted.
    let counted_on = metric(&proxy, "tidegate_prefix_predicted_tokens_total").await;
    assert_eq!(counted_on, 0);
    publisher.remember(json!([stored(of)]));
    publisher.publish_last().await;
    until_metric(&proxy, "tidegate_kv_event_blocks", 3).await;
    ask(&proxy, of).await;
    assert_eq!(publishing.sent().len(), 2);
    let counted_on = metric(&proxy, "tidegate_prefix_predicted_tokens_total").await;
    assert_eq!(counted_on, 2 * BLOCK as u64);
}
