//! `/v1/realtime`: a websocket is relayed byte for byte to a backend that supports it, and occupies
//! one stream there until either side closes.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

use crate::client::{get, send, until, within};
use crate::fake::{Act, Fake, chat_answer};
use crate::field::{RawAnswer, RawClient};
use crate::proxy::{Engine, Proxy, vllm};

pub const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Engine whose websockets are driven by the test.
pub struct Server {
    pub address: SocketAddr,
    opened: Mutex<mpsc::UnboundedReceiver<Opened>>,
}

/// Engine side of a websocket after its handshake.
pub struct Opened {
    head: String,
    /// Bytes received after the head so far.
    read: Vec<u8>,
    socket: TcpStream,
}

impl Server {
    pub async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, opened) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, sender.clone()));
            }
        });
        Server { address, opened: Mutex::new(opened) }
    }

    fn engine(&self, name: &'static str, more: &'static str) -> Engine {
        Engine { name, url: format!("http://{}", self.address), more }
    }

    /// Accepts the next websocket request.
    pub async fn opened(&self) -> Opened {
        within(async { self.opened.lock().await.recv().await }).await.unwrap()
    }
}

/// Other requests get 404.
async fn serve(mut socket: TcpStream, sender: mpsc::UnboundedSender<Opened>) {
    let mut read = Vec::new();
    loop {
        while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = read.drain(..end + 4).collect();
            let head = String::from_utf8(head).unwrap();
            if head.contains("/v1/realtime") {
                sender.send(Opened { head, read, socket }).ok();
                return;
            }
            let none = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            socket.write_all(none).await.ok();
        }
        if socket.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

impl Opened {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Asserts that exactly these bytes follow.
    pub async fn receives(&mut self, wanted: &[u8]) {
        while self.read.len() < wanted.len() {
            let read = within(self.socket.read_buf(&mut self.read)).await.unwrap();
            assert!(read > 0, "ended after {} bytes", self.read.len());
        }
        assert!(self.read == wanted, "bytes differ from those sent");
        self.read.clear();
    }

    /// Asserts that the peer has closed without a further byte.
    pub async fn is_closed(&mut self) {
        let read = within(self.socket.read_buf(&mut self.read)).await;
        assert!(read.unwrap_or(0) == 0 && self.read.is_empty());
    }
}

pub fn handshake(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: realtime\r\n{more}\r\n"
    )
}

async fn asks(proxy: &Proxy, target: &str, more: &str) -> RawClient {
    let mut client = RawClient::connect(proxy.data).await;
    client.send(handshake(target, more).as_bytes()).await;
    client
}

async fn refusal(proxy: &Proxy, request: &str) -> RawAnswer {
    let mut client = RawClient::connect(proxy.data).await;
    client.send(request.as_bytes()).await;
    client.answer().await
}

/// Websocket through the proxy, with both ends.
async fn tunnel(proxy: &Proxy, server: &Server) -> (RawClient, Opened) {
    let mut client = asks(proxy, "/v1/realtime?model=m", "").await;
    let mut opened = server.opened().await;
    opened.send(SWITCHED).await;
    client.read_to("\r\n\r\n").await;
    client.forget();
    (client, opened)
}

const MODEL: &str = "engine = \"plain\"\nmodels = [\"m\"]";

async fn settled(proxy: &Proxy, how: &str) {
    proxy.settles().await;
    let page = send(proxy.admin, get("/metrics")).await.body;
    let line = format!("tidegate_requests_settled_total{{ended=\"{how}\"}} 1");
    assert!(page.contains(&line), "{line}: {page}");
    for gauge in ["tidegate_live_requests", "tidegate_backend_streams"] {
        let rows = page.lines().filter(|line| line.starts_with(gauge));
        assert!(rows.clone().count() > 0 && rows.clone().all(|row| row.ends_with(" 0")), "{gauge}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_forwards_both_directions_and_a_disconnect_closes_the_engines_connection() {
    let server = Server::start().await;
    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    // Frames may follow directly after both heads.
    let request = handshake("/v1/realtime?model=m&x=1", "X-Custom: 7\r\n") + "early bytes";
    let mut client = RawClient::connect(proxy.data).await;
    client.send(request.as_bytes()).await;
    let mut opened = server.opened().await;
    assert!(opened.head.starts_with("GET /v1/realtime?model=m&x=1 HTTP/1.1\r\n"));
    for line in [
        "connection: Upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "sec-websocket-version: 13\r\n",
        "sec-websocket-protocol: realtime\r\n",
        "x-custom: 7\r\n",
    ] {
        assert_eq!(opened.head.matches(line).count(), 1, "{line}: {}", opened.head);
    }
    opened.send(format!("{SWITCHED}first bytes")).await;
    client.read_to("first bytes").await;
    let head = client.so_far().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    for line in [
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n",
        "x-request-id: ",
    ] {
        assert_eq!(head.matches(line).count(), 1, "{line}: {head}");
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"));
    client.forget();
    opened.receives(b"early bytes").await;
    proxy.shows("a", |backend| backend["streams"] == 1).await;

    // More than the socket buffers hold, in both directions at once.
    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let there = bytes.clone();
    let (mut from_engine, mut to_engine) = opened.socket.into_split();
    let (mut from_client, mut to_client) = client.into_socket().into_split();
    let writers =
        [tokio::spawn(async move { to_engine.write_all(&there).await.map(|()| to_engine) })];
    let sent = bytes.clone();
    let up = tokio::spawn(async move { to_client.write_all(&sent).await.map(|()| to_client) });
    let mut got = [vec![0; bytes.len()], vec![0; bytes.len()]];
    let [first, second] = &mut got;
    let reading =
        async { tokio::join!(from_engine.read_exact(first), from_client.read_exact(second)) };
    let (a, b) = within(reading).await;
    a.unwrap();
    b.unwrap();
    assert!(got.iter().all(|side| *side == bytes), "bytes were changed");
    let mut halves = Vec::new();
    for writer in writers {
        halves.push(writer.await.unwrap().unwrap());
    }
    drop((from_client, up.await.unwrap().unwrap()));
    assert_eq!(within(from_engine.read(&mut [0])).await.unwrap(), 0, "the engine's side ends");
    drop(halves);
    settled(&proxy, "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_of_a_websocket_is_forwarded_and_the_other_direction_stays_open() {
    let server = Server::start().await;
    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    let (mut client, mut opened) = tunnel(&proxy, &server).await;
    client.send(b"close frame").await;
    client.half_close().await;
    opened.receives(b"close frame").await;
    opened.is_closed().await;
    opened.send("the answer to it").await;
    client.read_to("the answer to it").await;
    drop(opened);
    assert!(client.is_closed().await);
    settled(&proxy, "done").await;

    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    let (mut client, mut opened) = tunnel(&proxy, &server).await;
    opened.send("close frame").await;
    opened.socket.shutdown().await.unwrap();
    client.read_to("close frame").await;
    assert!(client.is_closed().await);
    client.send(b"the answer to it").await;
    opened.receives(b"the answer to it").await;
    drop(client);
    opened.is_closed().await;
    settled(&proxy, "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connection_closes_the_other() {
    let server = Server::start().await;
    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    let (mut client, opened) = tunnel(&proxy, &server).await;
    opened.socket.set_zero_linger().unwrap();
    drop(opened);
    assert!(client.is_closed().await);
    settled(&proxy, "cut").await;

    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    let (client, mut opened) = tunnel(&proxy, &server).await;
    let socket = client.into_socket();
    socket.set_zero_linger().unwrap();
    drop(socket);
    opened.is_closed().await;
    settled(&proxy, "client_left").await;

    let top = "half_close = \"cancel\"";
    let proxy = Proxy::start(top, &[server.engine("a", MODEL)]).await;
    let (mut client, mut opened) = tunnel(&proxy, &server).await;
    client.half_close().await;
    opened.is_closed().await;
    assert!(client.is_closed().await);
    settled(&proxy, "client_left").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_time_out_ends_a_websocket_without_bytes() {
    let server = Server::start().await;
    let proxy = Proxy::start("keepalive_seconds = 1", &[server.engine("a", MODEL)]).await;
    let (mut client, mut opened) = tunnel(&proxy, &server).await;
    assert!(client.is_closed().await);
    opened.is_closed().await;
    settled(&proxy, "cut").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_in_the_query_chooses_the_backend() {
    let [a, b] = [Server::start().await, Server::start().await];
    let engines = [
        a.engine("a", "engine = \"plain\"\nmodels = [\"m\"]"),
        b.engine("b", "engine = \"plain\"\nmodels = [\"org/n\"]"),
    ];
    let top = "[[models]]\nname = \"org/n\"\naliases = [\"voice\"]\n";
    let proxy = Proxy::start_cold(top, &engines);
    let listed = async {
        while send(proxy.data, get("/v1/models")).await.body.matches("\"id\"").count() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within(listed).await;
    for (target, server, seen) in [
        ("/v1/realtime?model=m", &a, "GET /v1/realtime?model=m HTTP/1.1"),
        ("/v1/realtime/?a=1&model=org%2fn", &b, "GET /v1/realtime?a=1&model=org%2fn HTTP/1.1"),
        ("/v1/realtime?model=voice&a=1", &b, "GET /v1/realtime?a=1&model=org%2Fn HTTP/1.1"),
    ] {
        let mut client = asks(&proxy, target, "").await;
        let mut opened = server.opened().await;
        assert!(opened.head.starts_with(seen), "{}", opened.head);
        opened.send(SWITCHED).await;
        client.read_to("101 Switching").await;
    }
    let answer = refusal(&proxy, &handshake("/v1/realtime?model=none", "")).await;
    assert_eq!((answer.status, answer.text().contains("model_not_found")), (404, true));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_answered_without_101_is_forwarded_and_closes_the_connection() {
    let server = Server::start().await;
    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    // After a refused handshake no byte is parsed as a request.
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut client = RawClient::connect(proxy.data).await;
    let request = handshake("/v1/realtime?model=m", "") + smuggled;
    client.send(request.as_bytes()).await;
    let mut opened = server.opened().await;
    let body = "{\"error\":{\"message\":\"no more sessions\"}}";
    let length = body.len();
    opened
        .send(format!(
            "HTTP/1.1 403 Forbidden\r\nx-engine: 1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.text()), (403, body));
    assert_eq!(
        (answer.header("x-engine"), answer.header("connection")),
        (Some("1"), Some("close"))
    );
    assert!(client.is_closed().await);
    opened.receives(b"").await;
    proxy.settles().await;

    for head in ["Upgrade: h2c\r\nConnection: Upgrade\r\n", "Upgrade: websocket\r\n", ""] {
        let client = asks(&proxy, "/v1/realtime?model=m", "").await;
        let mut client = client;
        let mut opened = server.opened().await;
        opened.send(format!("HTTP/1.1 101 Switching Protocols\r\n{head}\r\n")).await;
        assert_eq!(client.answer().await.status, 502, "{head}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_routed_to_a_backend_that_supports_it() {
    let server = Server::start().await;
    let answers = || Fake::start([], Act::Json(200, chat_answer("x")));
    let [whole, other] = [answers().await, answers().await];
    let dead = crate::proxy::RefusingAddress::new();
    let dead = Engine { name: "dead", url: dead.url(), more: MODEL };
    // The path is requested only from engines whose family has it; one that answers 404 does not
    // have it.
    let engines = [
        Engine { name: "l", url: whole.url(), more: "engine = \"llamacpp\"" },
        Engine { name: "p", url: other.url(), more: MODEL },
        server.engine("a", MODEL),
        dead,
    ];
    let proxy = Proxy::start_cold("", &engines);
    for _ in 0..4 {
        proxy.shows("l", |backend| backend["health"] == "up").await;
        let (client, opened) = tunnel(&proxy, &server).await;
        drop((client, opened));
    }
    proxy.settles().await;

    let others = [Engine { name: "l", url: whole.url(), more: "engine = \"llamacpp\"" }];
    let proxy = Proxy::start("", &others).await;
    assert_eq!(refusal(&proxy, &handshake("/v1/realtime?model=m", "")).await.status, 404);
    let others = [vllm("v", whole.url(), "engine = \"vllm\"")];
    let proxy = Proxy::start("", &others).await;
    assert_eq!(refusal(&proxy, &handshake("/v1/realtime?model=m", "")).await.status, 404);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_unauthorized_handshakes_are_refused() {
    let server = Server::start().await;
    let keys = "[[auth.keys]]\nname = \"n\"\nkey = \"sk-gateway-key-of-n\"\n";
    let proxy = Proxy::start(keys, &[server.engine("a", MODEL)]).await;
    let target = "/v1/realtime?model=m";
    let key = "Authorization: Bearer sk-gateway-key-of-n\r\n";
    assert_eq!(refusal(&proxy, &handshake(target, "")).await.status, 401);
    let plain = format!("GET {target} HTTP/1.1\r\nhost: h\r\n{key}\r\n");
    let answer = refusal(&proxy, &plain).await;
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));
    let with_body = handshake(target, &format!("{key}content-length: 2\r\n")) + "{}";
    assert_eq!(refusal(&proxy, &with_body).await.status, 426);
    let old = handshake(target, key).replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(refusal(&proxy, &old).await.status, 426);
    let post = handshake(target, key).replace("GET ", "POST ");
    assert_eq!(refusal(&proxy, &post).await.status, 405);

    let stream = TokioIo::new(TcpStream::connect(proxy.data).await.unwrap());
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(driver);
    let request = Request::get(format!("http://h{target}"))
        .header("authorization", "Bearer sk-gateway-key-of-n")
        .body(Full::<Bytes>::default())
        .unwrap();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 426);

    let mut client = asks(&proxy, target, key).await;
    let mut opened = server.opened().await;
    assert!(!opened.head.contains("sk-gateway-key"), "the gateway's key is not forwarded");
    opened.send(SWITCHED).await;
    client.read_to("101 Switching").await;
    drop(client);
    opened.is_closed().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_does_not_cut_a_websocket_and_a_drain_waits_for_it() {
    let server = Server::start().await;
    let proxy = Proxy::start("", &[server.engine("a", MODEL)]).await;
    let (mut client, mut opened) = tunnel(&proxy, &server).await;
    let answer = proxy.set_role("a", "{\"role\":\"draining\"}").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    proxy.shows("a", |backend| backend["role"] == "draining").await;
    client.send(b"still there?").await;
    opened.receives(b"still there?").await;

    let data = proxy.data;
    let stopping = tokio::task::spawn_blocking(move || drop(proxy));
    until("the data port closes", || std::net::TcpStream::connect(data).is_err()).await;
    opened.send("still here").await;
    client.read_to("still here").await;
    assert!(!stopping.is_finished(), "the drain waits for the websocket");
    // The listeners' ports are free from here on, and other tests may take them.
    drop((client, opened));
    within(stopping).await.unwrap();
}
