//! Recorded inputs from the field, byte for byte: the files of `field_cases/`, an engine that
//! answers with given bytes, and a client that sends and reads bytes. `NAME.req` is the client's
//! request, `NAME.ans` the engine's answer; `field_cases/README.md` has the expected result of
//! each.
//!
//! A test module imports what it needs: `use crate::field::{case, Play, RawClient, RawEngine}`.

#![allow(dead_code, reason = "test modules use different parts of it")]

use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::client::within;
use crate::proxy::{Engine, Proxy};

/// One case: request of the client and answer of the engine.
pub struct Case {
    pub request: Bytes,
    pub answer: Bytes,
}

/// Reads a case by the name of its files.
pub fn case(name: &str) -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/field_cases");
    let read = |end: &str| {
        let path = folder.join(format!("{name}.{end}"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        Bytes::from(bytes)
    };
    Case { request: read("req"), answer: read("ans") }
}

/// Step of an engine's answer.
#[derive(Clone, Debug)]
pub enum Play {
    /// Writes these bytes.
    Bytes(Bytes),
    /// Pauses for this time.
    Pause(Duration),
    /// Waits for a call of [`RawEngine::resume`], one call per wait.
    Wait,
    /// Closes the connection.
    Close,
    /// Resets the connection.
    Reset,
}

impl Play {
    pub fn bytes(bytes: impl Into<Bytes>) -> Play {
        Play::Bytes(bytes.into())
    }
}

/// Request as received by the engine.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: Bytes,
}

impl Received {
    /// Returns the values of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }
}

type Script = dyn Fn(usize, &Received) -> Vec<Play> + Send + Sync;

/// Engine that answers with given bytes. GET requests get 404 and are not counted.
pub struct RawEngine {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    script: Box<Script>,
    received: Mutex<Vec<Received>>,
    gate: Semaphore,
    playing: AtomicUsize,
    left: AtomicUsize,
}

impl RawEngine {
    /// Answers every request with these bytes; the connection stays open.
    pub async fn start(answer: impl Into<Bytes>) -> RawEngine {
        let answer = answer.into();
        RawEngine::scripted(move |_, _| vec![Play::Bytes(answer.clone())]).await
    }

    /// Answers every request with these bytes and closes the connection.
    pub async fn start_closing(answer: impl Into<Bytes>) -> RawEngine {
        let answer = answer.into();
        let plays = move |_, _: &Received| vec![Play::Bytes(answer.clone()), Play::Close];
        RawEngine::scripted(plays).await
    }

    /// Runs a script, which receives the request and its number from 0.
    pub async fn scripted(
        script: impl Fn(usize, &Received) -> Vec<Play> + Send + Sync + 'static,
    ) -> RawEngine {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Box::new(script),
            received: Mutex::default(),
            gate: Semaphore::new(0),
            playing: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                tokio::spawn(converse(socket, Arc::clone(&shared)));
            }
        });
        RawEngine { address, state }
    }

    /// Returns a plain backend with model `m`.
    pub fn engine(&self, name: &'static str) -> Engine {
        self.engine_with(name, "engine = \"plain\"\nmodels = [\"m\"]")
    }

    /// The same with these lines in its table.
    pub fn engine_with(&self, name: &'static str, more: &'static str) -> Engine {
        Engine { name, url: format!("http://{}", self.address), more }
    }

    /// Returns the recorded requests, without GETs.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// Ends one [`Play::Wait`].
    pub fn resume(&self) {
        self.state.gate.add_permits(1);
    }

    /// Returns the number of answers in progress, including waits and pauses.
    pub fn playing(&self) -> usize {
        self.state.playing.load(SeqCst)
    }

    /// Returns the number of answers whose reader disconnected during a wait or a pause.
    pub fn left(&self) -> usize {
        self.state.left.load(SeqCst)
    }
}

async fn converse(mut socket: TcpStream, state: Arc<State>) {
    let mut read = Vec::new();
    while let Some(request) = next_request(&mut socket, &mut read).await {
        if request.head.starts_with("GET ") {
            let none = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            if socket.write_all(none).await.is_err() {
                return;
            }
            continue;
        }
        let number = {
            let mut received = state.received.lock().unwrap();
            received.push(request.clone());
            received.len() - 1
        };
        let plays = (state.script)(number, &request);
        state.playing.fetch_add(1, SeqCst);
        let goes_on = play(&mut socket, &state, plays, &mut read).await;
        state.playing.fetch_sub(1, SeqCst);
        if !goes_on {
            return;
        }
    }
}

/// Returns false at the end of the connection.
async fn play(socket: &mut TcpStream, state: &State, plays: Vec<Play>, read: &mut Vec<u8>) -> bool {
    for step in plays {
        let waited = match step {
            Play::Bytes(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return false;
                }
                continue;
            }
            Play::Close => return false,
            Play::Reset => {
                socket.set_zero_linger().unwrap();
                return false;
            }
            Play::Pause(pause) => {
                unless_disconnected(socket, read, async { tokio::time::sleep(pause).await }).await
            }
            Play::Wait => {
                let permit = async { state.gate.acquire().await.unwrap().forget() };
                unless_disconnected(socket, read, permit).await
            }
        };
        if !waited {
            state.left.fetch_add(1, SeqCst);
            return false;
        }
    }
    true
}

/// Waits for `what`; returns false if the peer disconnects first.
async fn unless_disconnected(
    socket: &mut TcpStream,
    read: &mut Vec<u8>,
    what: impl Future<Output = ()>,
) -> bool {
    tokio::pin!(what);
    loop {
        tokio::select! {
            () = &mut what => return true,
            more = socket.read_buf(read) => if more.is_ok_and(|more| more == 0) { return false },
        }
    }
}

/// Reads a complete request; the proxy sends every body with its length.
async fn next_request(socket: &mut TcpStream, read: &mut Vec<u8>) -> Option<Received> {
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let length = length_of(&head).unwrap_or(0);
            if read.len() >= end + 4 + length {
                let body = Bytes::copy_from_slice(&read[end + 4..end + 4 + length]);
                read.drain(..end + 4 + length);
                return Some(Received { head, body });
            }
        }
        match socket.read_buf(read).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn length_of(head: &str) -> Option<usize> {
    let head = head.to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    value.trim().parse().ok()
}

/// Client that sends and reads bytes. Dropping it closes its connection.
pub struct RawClient {
    socket: TcpStream,
    read: Vec<u8>,
}

/// Complete answer.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    /// Body without chunk framing.
    pub body: Bytes,
    /// Whether it ended as its framing announces.
    pub whole: bool,
}

impl RawAnswer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the first value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }
}

impl RawClient {
    pub async fn connect(to: SocketAddr) -> RawClient {
        let socket = within(TcpStream::connect(to)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        RawClient { socket, read: Vec::new() }
    }

    /// Connects a client with a receive buffer of this size.
    pub async fn with_small_buffer(to: SocketAddr) -> RawClient {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = within(socket.connect(to)).await.unwrap();
        RawClient { socket, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.socket.write_all(bytes)).await.unwrap();
    }

    /// Closes the sending half.
    pub async fn half_close(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// Waits until these bytes have been received; keeps everything received.
    pub async fn read_to(&mut self, wanted: &str) {
        let wanted = wanted.as_bytes();
        while !self.read.windows(wanted.len()).any(|window| window == wanted) {
            let read = within(self.socket.read_buf(&mut self.read)).await.unwrap();
            assert!(read > 0, "ended before {wanted:?}: {}", self.so_far());
        }
    }

    /// Returns received bytes that belong to no returned answer.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Asserts that nothing has been received.
    pub fn forget(&mut self) {
        self.read.clear();
    }

    /// Returns the connection.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Returns the next answer; skips interim answers.
    pub async fn answer(&mut self) -> RawAnswer {
        loop {
            let head = self.head().await;
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            if status >= 200 {
                return self.body(status, head).await;
            }
        }
    }

    async fn head(&mut self) -> String {
        self.read_to("\r\n\r\n").await;
        let end = self.read.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head: Vec<u8> = self.read.drain(..end).collect();
        String::from_utf8(head).unwrap()
    }

    async fn body(&mut self, status: u16, head: String) -> RawAnswer {
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let mut body = Vec::new();
        let whole = match (chunked, length_of(&head)) {
            (true, _) => self.chunks(&mut body).await,
            (false, Some(length)) => self.take(length, &mut body).await,
            (false, None) => {
                while self.more().await {}
                body = std::mem::take(&mut self.read);
                true
            }
        };
        RawAnswer { status, head, body: Bytes::from(body), whole }
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                    break end;
                }
                if !self.more().await {
                    return false;
                }
            };
            let line: Vec<u8> = self.read.drain(..end + 2).collect();
            let size = String::from_utf8_lossy(&line[..end]).into_owned();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = Vec::new();
            if !self.take(size + 2, &mut chunk).await {
                body.append(&mut chunk);
                return false;
            }
            chunk.truncate(size);
            body.append(&mut chunk);
            if size == 0 {
                return true;
            }
        }
    }

    async fn take(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.read.len() < length && self.more().await {}
        let taken = length.min(self.read.len());
        into.extend(self.read.drain(..taken));
        taken == length
    }

    /// Returns false at the end of the connection.
    async fn more(&mut self) -> bool {
        within(self.socket.read_buf(&mut self.read)).await.is_ok_and(|read| read > 0)
    }

    /// Waits for the peer to close, and fails on any further byte.
    pub async fn is_closed(&mut self) -> bool {
        !self.more().await
    }
}

/// Sends the request of a case on its own connection.
pub async fn ask(proxy: &Proxy, request: &[u8]) -> RawAnswer {
    let mut client = RawClient::connect(proxy.data).await;
    client.send(request).await;
    client.answer().await
}

/// Returns the answer in `Case::answer`, without framing, for comparison with relayed bodies.
pub fn body_of(answer: &[u8]) -> Bytes {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (head, mut rest) = answer.split_at(end);
    if !String::from_utf8_lossy(head).to_ascii_lowercase().contains("chunked") {
        return Bytes::copy_from_slice(rest);
    }
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        rest = &rest[end + 2..];
        if size == 0 || rest.len() < size + 2 {
            break;
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
    Bytes::from(body)
}
