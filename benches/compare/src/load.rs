//! Load: `load ADDR plain|distinct|stream|split|split-stream CONNECTIONS SECONDS CHUNKS [RATE]` prints one JSON object. Each connection is kept alive
//! and sends its next request when it has the whole answer, and not before its turn if RATE requests a second are asked
//! for: proxies compared at one rate wake their neighbours equally often; an answer that is not 200, or a stream without all of
//! its chunks and [DONE], is an error. `distinct` is plain with a prompt never sent before in every request; `split` and `split-stream` are plain and
//! stream for the model `split` in place of `bench`. `load ADDR hold CONNECTIONS SECONDS 0` opens that many streams and holds them.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a measuring tool")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it fails loudly, and prints its result"
)]

use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a connection asks for.
#[derive(Clone, Copy)]
struct Asked {
    model: &'static str,
    stream: bool,
    hold: bool,
    chunks: usize,
}

#[derive(Default)]
struct Tally {
    micros: Vec<u64>,
    errors: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (address, kind) = (args[1].clone(), args[2].clone());
    let number = |i: usize| args[i].parse::<usize>().unwrap();
    let (connections, seconds, chunks) = (number(3), number(4), number(5));
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let stream = !matches!(kind.as_str(), "plain" | "distinct" | "split");
    let model = if kind.starts_with("split") { "split" } else { "bench" };
    let asked = Asked { model, stream, hold: kind == "hold", chunks };
    let rate = args.get(6).map_or(0.0, |rate| rate.parse::<f64>().unwrap());
    let pace = (rate > 0.0).then(|| Duration::from_secs_f64(connections as f64 / rate));
    let tasks: Vec<_> = (0..connections)
        .map(|i| {
            let turn = pace.map(|pace| (pace, pace.mul_f64(i as f64 / connections as f64)));
            let number = (kind == "distinct").then_some(i * 10_000_000);
            tokio::spawn(one(address.clone(), asked, end, turn, number))
        })
        .collect();
    let mut all = Tally::default();
    for task in tasks {
        let tally = task.await.unwrap();
        all.micros.extend(tally.micros);
        all.errors += tally.errors;
    }
    all.micros.sort_unstable();
    let at = |share: f64| {
        let rank = (share * all.micros.len() as f64).ceil() as usize;
        all.micros.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    };
    println!(
        "{{\"requests\":{},\"errors\":{},\"per_second\":{:.1},\"p50_us\":{},\"p99_us\":{}}}",
        all.micros.len(),
        all.errors,
        all.micros.len() as f64 / seconds as f64,
        at(0.5),
        at(0.99)
    );
}

async fn one(
    address: String,
    asked: Asked,
    end: Instant,
    turn: Option<(Duration, Duration)>,
    mut number: Option<usize>,
) -> Tally {
    let Asked { model, stream, hold, .. } = asked;
    let text = "Tell me about the tide at the gate. ".repeat(25);
    let body = format!(
        "{{\"model\":\"{model}\",\"max_tokens\":64,\"stream\":{stream},\"messages\":[{{\"role\":\"system\",\"content\":\"You are brief.\"}},\
         {{\"role\":\"user\",\"content\":\"000000000 {text}\"}}]}}"
    );
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer bench-key\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes();
    let digits = find(&request, b"000000000").unwrap();
    let mut tally = Tally::default();
    let mut link = None;
    let start = tokio::time::Instant::now();
    let mut beat = turn.map(|(pace, first)| tokio::time::interval_at(start + first, pace));
    while Instant::now() < end {
        if let Some(beat) = &mut beat {
            beat.tick().await;
        }
        if let Some(number) = &mut number {
            *number += 1;
            request[digits..digits + 9].copy_from_slice(format!("{number:09}").as_bytes());
        }
        let began = Instant::now();
        let result = exchange(&mut link, &address, &request, asked, end).await;
        match result {
            Ok(true) => tally.micros.push(began.elapsed().as_micros() as u64),
            _ if hold => return tally,
            _ => {
                tally.errors += 1;
                link = None;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    tally
}

async fn exchange(
    link: &mut Option<TcpStream>,
    address: &str,
    request: &[u8],
    asked: Asked,
    end: Instant,
) -> std::io::Result<bool> {
    let Asked { stream, hold, chunks, .. } = asked;
    if link.is_none() {
        let fresh = TcpStream::connect(address).await?;
        fresh.set_nodelay(true)?;
        *link = Some(fresh);
    }
    let Some(socket) = link else { return Ok(false) };
    socket.write_all(request).await?;
    let mut answer = Vec::with_capacity(2048);
    let mut searched = 0_usize;
    loop {
        if hold && Instant::now() >= end {
            return Ok(false);
        }
        let read = tokio::time::timeout_at(end.into(), socket.read_buf(&mut answer));
        let n =
            if hold { read.await.unwrap_or(Ok(0))? } else { socket.read_buf(&mut answer).await? };
        if n == 0 {
            return Ok(false);
        }
        // What is refused is no stream, and may have no chunks.
        if answer.len() > 12 && !answer.starts_with(b"HTTP/1.1 200") {
            return Ok(false);
        }
        if stream {
            // The last chunk of the answer, whole.
            let from = searched.saturating_sub(8);
            if find(&answer[from..], b"\n0\r\n\r\n").is_some() {
                let seen = answer.windows(13).filter(|w| *w == b"\"delta\":{\"con").count();
                let done = find(&answer, b"data: [DONE]").is_some();
                return Ok(answer.starts_with(b"HTTP/1.1 200") && done && seen == chunks);
            }
            searched = answer.len();
        } else if let Some(head) = find(&answer, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let length: Option<usize> = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if answer.len() >= head + 4 + length.unwrap_or(0) {
                return Ok(answer.starts_with(b"HTTP/1.1 200"));
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
