//! An engine that always says the same, as cheaply as sockets allow: `fixed-engine ADDR CHUNKS GAP_MS PER_WRITE`.
//! A request whose body has `"stream":true` gets CHUNKS server-sent events, PER_WRITE of them a write,
//! a write every GAP_MS; any other chat request gets 1 KB of JSON. It never reads more than it must.
//! To a proxy that splits requests it is a vLLM with NIXL: the prefill leg gets a hand-off, at once. `GET /handoffs` says how
//! many prefills and how many decodes with a hand-off there were.
#![allow(
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "a measuring tool: it fails loudly"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
struct Fixed {
    /// Prefills that handed over, and decodes that took a hand-off.
    handoffs: Arc<[AtomicU64; 2]>,
    handoff: Vec<u8>,
    plain: Vec<u8>,
    models: Vec<u8>,
    empty: Vec<u8>,
    writes: Vec<Vec<u8>>,
    gap: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<usize>().unwrap();
    let fixed = Fixed::new(number(2), Duration::from_millis(number(3) as u64), number(4));
    let listener = TcpListener::bind(&args[1]).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let fixed = fixed.clone();
        // A client that hangs up ends its own task.
        tokio::spawn(async move { drop(serve(stream, &fixed).await) });
    }
}

impl Fixed {
    fn new(chunks: usize, gap: Duration, per_write: usize) -> Fixed {
        let event = |i: usize| {
            let event = format!(
                "data: {{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\",\
                 \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" w{i:03}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
            );
            chunk(&event)
        };
        let mut events: Vec<Vec<u8>> = (0..chunks).map(event).collect();
        events.push([chunk("data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat());
        let text = "word ".repeat(170);
        let plain = format!(
            "{{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"bench\",\"choices\":[{{\"index\":0,\"message\":\
             {{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":200,\"total_tokens\":370,\"completion_tokens\":170}}}}"
        );
        let handoff = "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":\
             {\"role\":\"assistant\",\"content\":\"word\"},\"finish_reason\":\"length\"}],\
             \"usage\":{\"prompt_tokens\":200,\"total_tokens\":201,\"completion_tokens\":1},\
             \"kv_transfer_params\":{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[1,2,3,4]],\
             \"remote_engine_id\":\"fixed\",\"remote_request_id\":\"r\",\"remote_host\":\"127.0.0.1\",\"remote_port\":1,\"tp_size\":1}}";
        let card =
            |id: &str| format!("{{\"id\":\"{id}\",\"object\":\"model\",\"max_model_len\":131072}}");
        let models =
            format!("{{\"object\":\"list\",\"data\":[{},{}]}}", card("bench"), card("split"));
        Fixed {
            handoffs: Arc::default(),
            handoff: answer(handoff),
            plain: answer(&plain),
            models: answer(&models),
            empty: answer(""),
            writes: events.chunks(per_write).map(|events| events.concat()).collect(),
            gap,
        }
    }
}

fn chunk(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

fn answer(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn serve(mut stream: TcpStream, fixed: &Fixed) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let (head, total) = loop {
            if let Some(found) = whole(&buffer[..filled]) {
                break found;
            }
            let n = stream.read(&mut buffer[filled..]).await?;
            if n == 0 {
                return Ok(());
            }
            filled += n;
        };
        let request = &buffer[..total];
        let remote = |member: &[u8]| find(&request[head..], member).is_some();
        if request.starts_with(b"GET /v1/models") {
            stream.write_all(&fixed.models).await?;
        } else if request.starts_with(b"GET /handoffs") {
            let [prefills, decodes] = [0, 1].map(|i: usize| fixed.handoffs[i].load(Relaxed));
            stream.write_all(&answer(&format!("[{prefills},{decodes}]"))).await?;
        } else if request.starts_with(b"GET ") {
            stream.write_all(&fixed.empty).await?;
        } else if remote(b"\"do_remote_decode\":true") {
            fixed.handoffs[0].fetch_add(1, Relaxed);
            stream.write_all(&fixed.handoff).await?;
        } else if remote(b"\"stream\":true") {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).await?;
            let mut beat = tokio::time::interval(fixed.gap.max(Duration::from_millis(1)));
            for write in &fixed.writes {
                beat.tick().await;
                stream.write_all(write).await?;
            }
        } else {
            stream.write_all(&fixed.plain).await?;
        }
        if remote(b"\"do_remote_prefill\":true") {
            fixed.handoffs[1].fetch_add(1, Relaxed);
        }
        buffer.copy_within(total..filled, 0);
        filled -= total;
    }
}

/// Where the head of the first whole request ends, and where the request does.
fn whole(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let total = head + length.unwrap_or(0);
    (bytes.len() >= total).then_some((head, total))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
