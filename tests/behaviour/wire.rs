//! HTTP/1.1 byte by byte: requests that clients may send and their answers, and answers that
//! engines may send and their parsing. RFC 9112 where it leaves tidegate no choice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{until, within};
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{Engine, Proxy, chat, plain};

const CHAT: &str = "/v1/chat/completions";

async fn serving(act: Act) -> (Fake, Proxy) {
    let fake = Fake::start([], act).await;
    let proxy = Proxy::start("body_max_bytes = 20000\n", &[plain("a", &fake)]).await;
    (fake, proxy)
}

fn request(more: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\n{more}content-length: {length}\r\n\r\n{body}")
}

/// Reads until the proxy closes.
async fn talk(to: SocketAddr, pieces: &[&str]) -> String {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        // The proxy may close before it has read everything.
        if socket.write_all(piece.as_bytes()).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    answer
}

fn statuses(answers: &str) -> Vec<&str> {
    let heads = answers.split("HTTP/1.").skip(1).filter(|head| head[1..].starts_with(' '));
    heads.map(|head| head.split(' ').nth(1).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_write_are_answered_in_order() {
    let (fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let first = request("x-n: 1\r\n", &chat(false));
    let last = request("x-n: 2\r\nconnection: close\r\n", &chat(false));
    let answers = talk(proxy.data, &[&format!("{first}{last}")]).await;
    assert_eq!(statuses(&answers), ["200", "200"], "{answers}");
    assert_eq!(answers.matches("connection: close").count(), 1, "{answers}");
    let sent: Vec<_> = fake.sent().iter().map(|sent| sent.headers["x-n"].clone()).collect();
    assert_eq!(sent, ["1", "2"]);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_arrive_byte_by_byte() {
    let (fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let whole = request("connection: close\r\n", r#"{"model":"m","messages":[]}"#);
    let bytes: Vec<&str> = whole.split("").collect();
    let answer = talk(proxy.data, &bytes).await;
    assert_eq!(statuses(&answer), ["200"], "{answer}");
    assert_eq!(fake.sent()[0].body, r#"{"model":"m","messages":[]}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_chunks_reaches_the_engine_with_its_length() {
    let (fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let body = chat(false);
    let (one, two) = body.split_at(100);
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let one = format!("{:x};a=b\r\n{one}\r\n", one.len());
    let two = format!("{:x}\r\n{two}\r\n0\r\nx-trailer: 1\r\n\r\n", two.len());
    let answer = talk(proxy.data, &[&head, &one, &two]).await;
    assert_eq!(statuses(&answer), ["200"], "{answer}");
    let sent = &fake.sent()[0];
    assert_eq!(sent.body, body);
    assert_eq!(sent.headers["content-length"], body.len().to_string());
    assert!(!sent.headers.contains_key("transfer-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_is_answered_unless_the_request_is_refused() {
    let (fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let body = chat(false);
    let head = |length: usize| {
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    let mut socket = TcpStream::connect(proxy.data).await.unwrap();
    socket.write_all(head(body.len()).as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    within(socket.read_exact(&mut go_on)).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(statuses(&answer), ["200"]);

    let refused = talk(proxy.data, &[&head(30_000)]).await;
    assert_eq!(statuses(&refused), ["413"], "{refused}");
    assert_eq!(fake.sent().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_still_sending_receives_a_refusal() {
    let (_fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let long = "x".repeat(4 << 20);
    let answer = talk(proxy.data, &[&request("", &long)]).await;
    assert_eq!(statuses(&answer), ["413"], "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_a_stream_without_chunks() {
    let token = r#"data: {"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    let chunks = [token, "data: [DONE]"].map(|event| format!("{event}\n\n"));
    let (_fake, proxy) = serving(Act::Chunks(chunks.to_vec())).await;
    let body = chat(true);
    let old = format!("POST {CHAT} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = talk(proxy.data, &[&old]).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(body, chunks.concat());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_request_is_answered_without_a_body() {
    let (_fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let answer =
        talk(proxy.data, &["HEAD /health HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"]).await;
    assert!(answer.ends_with("\r\n\r\n") && statuses(&answer).len() == 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_in_the_apis_error_format() {
    let (fake, proxy) = serving(Act::Json(200, chat_answer("hello"))).await;
    let long = format!("GET / HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    let smuggled = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    let twice = format!("POST {CHAT} HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n");
    let zipped = format!("POST {CHAT} HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n");
    for (wire, status) in [
        ("\u{16}\u{3}\u{1} no http\r\n\r\n", "400"),
        ("GET / HTTP/3.0\r\n\r\n", "505"),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        (&twice, "400"),
        (&smuggled, "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        (&zipped, "501"),
        (&long, "431"),
    ] {
        let answer = talk(proxy.data, &[wire]).await;
        assert_eq!(statuses(&answer), [status], "{wire:.60}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(error["error"]["message"].is_string(), "{body}");
    }
    assert!(fake.sent().is_empty());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_is_disconnected_after_the_time_out() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("keepalive_seconds = 0.2\n", &[plain("a", &fake)]).await;
    let answered = request("", &chat(false));
    let stalled = format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\n{{");
    for (wire, answers) in [("", 0), ("POST ", 0), (&*answered, 1), (&*stalled, 1)] {
        let answer = talk(proxy.data, &[wire]).await;
        assert_eq!(statuses(&answer).len(), answers, "{wire:.40}: {answer}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_disconnected_after_the_stall_limit() {
    let token = format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(100_000)
    );
    let fake = Fake::start([], Act::Hang(vec![token; 200])).await;
    let proxy = Proxy::start("client_stall_seconds = 0.3\n", &[plain("a", &fake)]).await;
    let mut socket = TcpStream::connect(proxy.data).await.unwrap();
    socket.write_all(request("", &chat(true)).as_bytes()).await.unwrap();
    // The client is answered, and never reads.
    until("the answer is on its way", || !proxy.is_settled()).await;
    proxy.settles().await;
    drop(socket);
}

/// Engine that answers every request on a connection with the next of these bytes, and closes after
/// the last. Probes get 404.
struct Raw {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Raw {
    /// `scripts`: answers by connection, for connections that carry requests.
    async fn start(scripts: Vec<Vec<&'static str>>) -> Raw {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let scripts = Arc::new(scripts);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (scripts, count) = (Arc::clone(&scripts), Arc::clone(&count));
                tokio::spawn(async move { converse(socket, &scripts, &count).await });
            }
        });
        Raw { address, connections }
    }

    fn engine(&self) -> Engine {
        let url = format!("http://{}", self.address);
        Engine { name: "raw", url, more: "engine = \"plain\"\nmodels = [\"m\"]" }
    }
}

async fn converse(mut socket: TcpStream, scripts: &[Vec<&str>], connections: &AtomicUsize) {
    let mut script: Option<std::slice::Iter<'_, &str>> = None;
    let mut read = Vec::new();
    loop {
        // A complete request; the proxy sends every body with its length.
        let end = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.map_or(0, |text| text.lines().next().unwrap().parse().unwrap());
                if read.len() >= end + 4 + length {
                    break end + 4 + length;
                }
            }
            match socket.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let work = read.starts_with(b"POST /v1/chat");
        read.drain(..end);
        let answer = match (work, &mut script) {
            (false, _) => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            (true, Some(script)) => script.next().unwrap(),
            (true, none) => {
                let mine = connections.fetch_add(1, SeqCst);
                none.insert(scripts[mine].iter()).next().unwrap()
            }
        };
        socket.write_all(answer.as_bytes()).await.unwrap();
        if script.as_ref().is_some_and(|script| script.as_slice().is_empty()) {
            return;
        }
    }
}

/// Returns a 200 with a valid chat body.
macro_rules! ok {
    ($head:literal) => {
        concat!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
            $head,
            "\r\n{\"choices\":[]}"
        )
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_end_an_answer_is_read() {
    let engine = Raw::start(vec![
        vec![ok!("content-length: 14\r\n")],
        vec![ok!("")],
        vec![concat!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", ok!("content-length: 14\r\n"))],
        vec!["HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"choices\":[]}"],
        vec!["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7;x\r\n{\"choic\r\n7\r\nes\":[]}\r\n0\r\nx: y\r\n\r\n"],
    ])
    .await;
    let proxy = Proxy::start("", &[engine.engine()]).await;
    for n in 1..=5 {
        let answer = proxy.post(CHAT, &chat(false)).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "{\"choices\":[]}"), "{n}");
        assert_eq!(engine.connections.load(SeqCst), n);
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_reused_only_after_a_complete_answer() {
    let good = ok!("content-length: 14\r\n");
    // Surplus bytes beyond the announced length belong to no answer.
    let more = concat!(ok!("content-length: 14\r\n"), "HTTP/1.1 500 Smuggled\r\n\r\n");
    let closes = ok!("content-length: 14\r\nconnection: close\r\n");
    // An engine that would answer again after `connection: close`: the proxy must not reuse the
    // connection.
    let wrong = "HTTP/1.1 500 Asked Again\r\n\r\n";
    let first = [vec![closes, wrong]];
    let rest = [(); 11].map(|()| vec![good, good, more, wrong]);
    let engine = Raw::start(first.into_iter().chain(rest).collect()).await;
    let proxy = Proxy::start("", &[engine.engine()]).await;
    for n in 1..=10 {
        let answer = proxy.post(CHAT, &chat(false)).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "{\"choices\":[]}"), "{n}");
    }
    let connections = engine.connections.load(SeqCst);
    // One connection carries three requests; after its surplus bytes each request has its own
    // connection.
    assert!((8..10).contains(&connections), "{connections} connections for ten requests");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_a_closed_idle_connection_is_retried() {
    let good = ok!("content-length: 14\r\n");
    // Each connection closes after its second answer, when the proxy prepares a third request.
    let engine = Raw::start(vec![vec![good, good]; 12]).await;
    let proxy = Proxy::start("", &[engine.engine()]).await;
    for n in 1..=12 {
        let answer = proxy.post(CHAT, &chat(false)).await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.body);
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_http_answer_is_not_forwarded() {
    for wire in [
        "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"choices\":[]}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\n",
    ] {
        let engine = Raw::start(vec![vec![wire]; 9]).await;
        let proxy = Proxy::start("", &[engine.engine()]).await;
        let answer = proxy.post(CHAT, &chat(false)).await;
        assert!(answer.status.is_server_error(), "{wire:?}: {}", answer.body);
        assert!(answer.json()["error"]["message"].is_string(), "{wire:?}");
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_may_answer_before_it_has_read_all() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let read = socket.read(&mut head).await.unwrap();
                let work = head[..read].starts_with(b"POST");
                let (status, body) =
                    if work { ("400 Bad Request", "{\"why\":1}") } else { ("404 No", "") };
                let length = body.len();
                let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                socket.write_all(text.as_bytes()).await.unwrap();
                count.fetch_add(usize::from(work), SeqCst);
                // The rest is never read; the connection stays open.
                std::future::pending::<()>().await;
            });
        }
    });
    let url = format!("http://{address}");
    let engine = Engine { name: "hasty", url, more: "engine = \"plain\"\nmodels = [\"m\"]" };
    let proxy = Proxy::start("", &[engine]).await;
    let large = chat(false).replace("word ", &"word ".repeat(4000));
    assert!(large.len() > 6 << 20);
    let answer = proxy.post(CHAT, &large).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (400, "{\"why\":1}"));
    until("one answer", || answered.load(SeqCst) == 1).await;
    proxy.settles().await;
}
