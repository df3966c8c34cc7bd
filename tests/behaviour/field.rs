//! Inputs from the field, byte for byte: the files of `field_cases/`, an engine that answers with
//! given bytes, and a client that sends and reads bytes. `NAME.req` is what the client sends,
//! `NAME.ans` what the engine answers; `field_cases/README.md` has the right value of each.
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

/// One case: what the client sends, and what the engine answers.
pub struct Case {
    pub request: Bytes,
    pub answer: Bytes,
}

/// A case by the name of its files.
pub fn case(name: &str) -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/field_cases");
    let read = |end: &str| {
        let path = folder.join(format!("{name}.{end}"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        Bytes::from(bytes)
    };
    Case { request: read("req"), answer: read("ans") }
}

/// One step of an engine's answer.
#[derive(Clone, Debug)]
pub enum Play {
    /// Write these bytes.
    Bytes(Bytes),
    /// Write nothing for so long.
    Pause(Duration),
    /// Write nothing until the test calls [`RawEngine::go_on`], once for each wait.
    Wait,
    /// Close the connection.
    Close,
    /// Reset the connection.
    Reset,
}

impl Play {
    pub fn bytes(bytes: impl Into<Bytes>) -> Play {
        Play::Bytes(bytes.into())
    }
}

/// A request as the engine got it.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: Bytes,
}

impl Received {
    /// The values of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }
}

type Script = dyn Fn(usize, &Received) -> Vec<Play> + Send + Sync;

/// An engine that answers with given bytes. A GET is answered 404 and not counted.
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
    /// Every request is answered with these bytes; the connection stays open.
    pub async fn start(answer: impl Into<Bytes>) -> RawEngine {
        let answer = answer.into();
        RawEngine::scripted(move |_, _| vec![Play::Bytes(answer.clone())]).await
    }

    /// Every request is answered with these bytes, and the connection is closed.
    pub async fn start_closing(answer: impl Into<Bytes>) -> RawEngine {
        let answer = answer.into();
        let plays = move |_, _: &Received| vec![Play::Bytes(answer.clone()), Play::Close];
        RawEngine::scripted(plays).await
    }

    /// The script gets the request and its number, from 0.
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

    /// A plain engine with model `m`.
    pub fn engine(&self, name: &'static str) -> Engine {
        self.engine_with(name, "engine = \"plain\"\nmodels = [\"m\"]")
    }

    /// The same with these lines in its table.
    pub fn engine_with(&self, name: &'static str, more: &'static str) -> Engine {
        Engine { name, url: format!("http://{}", self.address), more }
    }

    /// What it was sent, but GETs.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// Lets one [`Play::Wait`] go on.
    pub fn go_on(&self) {
        self.state.gate.add_permits(1);
    }

    /// Answers that are being written, waits and pauses included.
    pub fn playing(&self) -> usize {
        self.state.playing.load(SeqCst)
    }

    /// Answers whose reader left during a wait or a pause.
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

/// False: the connection is at its end.
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
                still_there(socket, read, async { tokio::time::sleep(pause).await }).await
            }
            Play::Wait => {
                let permit = async { state.gate.acquire().await.unwrap().forget() };
                still_there(socket, read, permit).await
            }
        };
        if !waited {
            state.left.fetch_add(1, SeqCst);
            return false;
        }
    }
    true
}

/// Waits for `what`; false if the other side leaves before.
async fn still_there(
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

/// A whole request; the proxy sends every body with its length.
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

/// A client that sends and reads bytes. Dropping it closes its connection.
pub struct RawClient {
    socket: TcpStream,
    read: Vec<u8>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    /// Without the framing of chunks.
    pub body: Bytes,
    /// It came to the end that its framing says.
    pub whole: bool,
}

impl RawAnswer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first value of a header, by its name in lower case.
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

    /// A client that has room for so few bytes that it has not read.
    pub async fn with_little_room(to: SocketAddr) -> RawClient {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = within(socket.connect(to)).await.unwrap();
        RawClient { socket, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.socket.write_all(bytes)).await.unwrap();
    }

    /// Close the sending half.
    pub async fn half_close(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// Wait until these bytes have come; all that has come is kept.
    pub async fn read_to(&mut self, wanted: &str) {
        let wanted = wanted.as_bytes();
        while !self.read.windows(wanted.len()).any(|window| window == wanted) {
            let read = within(self.socket.read_buf(&mut self.read)).await.unwrap();
            assert!(read > 0, "ended before {wanted:?}: {}", self.so_far());
        }
    }

    /// What has come and is not part of an answer that was taken.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Nothing has come so far.
    pub fn forget(&mut self) {
        self.read.clear();
    }

    /// The connection itself.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// The next answer; interim answers are passed over.
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

    /// False: the connection is at its end.
    async fn more(&mut self) -> bool {
        within(self.socket.read_buf(&mut self.read)).await.is_ok_and(|read| read > 0)
    }

    /// Has the other side closed? Waits for it, and fails if anything else comes.
    pub async fn is_closed(&mut self) -> bool {
        !self.more().await
    }
}

/// One request of a case, on a connection of its own.
pub async fn ask(proxy: &Proxy, request: &[u8]) -> RawAnswer {
    let mut client = RawClient::connect(proxy.data).await;
    client.send(request).await;
    client.answer().await
}

/// The answer that `Case::answer` has, without framing; for what is to be passed on as it is.
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
