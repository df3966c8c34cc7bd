//! Fault layer: a TCP relay with modes in front of one engine. It parses HTTP as far as the end of
//! a request, to answer in place of the engine, and the start of a stream, to count the streams
//! that it cuts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tidegate_http1::{Framing, read_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Request member that all engines refuse with 500, and the message of the refusal.
pub const REFUSED: &str = "\"user\":\"chaos-refused\"";
/// Request member that all engines answer with an error event; with 500 if the request is not
/// streamed.
pub const ERROR_EVENT: &str = "\"user\":\"chaos-error-event\"";
/// Message of both errors.
pub const MESSAGE: &str = "chaos: this request cannot be served";

/// Mode of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes are relayed.
    Pass,
    /// Connections are reset, and new ones refused.
    Refuse,
    /// Connections are accepted; no byte is relayed.
    Hang,
    /// Answers are reset after this number of bytes.
    Reset(usize),
    /// Each piece of an answer is delayed.
    Slow(Duration),
    /// Requests are answered with this status; health checks succeed.
    Fail(u16),
}

pub struct Tap {
    /// Address at which the proxy reaches the engine.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    cuts: Arc<AtomicU64>,
}

impl Tap {
    /// Creates a relay to `engine` on its own port.
    pub async fn start(engine: SocketAddr) -> Tap {
        let listener = crate::fleet::listen_low().await;
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let cuts = Arc::<AtomicU64>::default();
        tokio::spawn(relay(listener, engine, modes, Arc::clone(&cuts)));
        Tap { address, mode, cuts }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Returns the number of streams cut after their response head.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Relaxed)
    }
}

async fn relay(
    listener: TcpListener,
    engine: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    cuts: Arc<AtomicU64>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut links = JoinSet::new();
    loop {
        let refuses = *modes.borrow_and_update() == Mode::Refuse;
        match (&listener, refuses) {
            (Some(_), true) => listener = None,
            // The port may linger briefly.
            (None, false) => match TcpListener::bind(address).await {
                Ok(again) => listener = Some(again),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            (None, true) if modes.changed().await.is_err() => return,
            (None, true) => {}
            (Some(open), false) => tokio::select! {
                changed = modes.changed() => if changed.is_err() { return },
                accepted = open.accept() => if let Ok((near, _)) = accepted {
                    let link = Link::new(near, modes.clone(), Arc::clone(&cuts));
                    links.spawn(link.run(engine));
                },
                Some(_) = links.join_next() => {}
            },
        }
    }
}

/// One connection from the proxy.
struct Link {
    near: TcpStream,
    modes: watch::Receiver<Mode>,
    cuts: Arc<AtomicU64>,
    /// Buffer of the incoming request.
    incoming: Vec<u8>,
    /// Whether the current answer is a stream whose head has been relayed.
    is_streaming: bool,
    /// Bytes relayed of the current answer.
    answered: usize,
}

impl Link {
    fn new(near: TcpStream, modes: watch::Receiver<Mode>, cuts: Arc<AtomicU64>) -> Link {
        Link { near, modes, cuts, incoming: Vec::new(), is_streaming: false, answered: 0 }
    }

    async fn run(mut self, engine: SocketAddr) {
        self.near.set_nodelay(true).ok();
        let Ok(mut far) = TcpStream::connect(engine).await else { return self.cut() };
        far.set_nodelay(true).ok();
        let mut piece = vec![0; 16 << 10];
        loop {
            let mode = *self.modes.borrow_and_update();
            if mode == Mode::Refuse {
                return self.cut();
            }
            if mode == Mode::Hang {
                if self.modes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                changed = self.modes.changed() => if changed.is_err() { return },
                read = self.near.read_buf(&mut self.incoming) => {
                    let gone = read.unwrap_or(0) == 0;
                    if gone || !self.forward(&mut far, mode).await {
                        return;
                    }
                }
                read = far.read(&mut piece) => match read.unwrap_or(0) {
                    0 if self.answered == 0 || !self.is_streaming => return,
                    0 => return self.cut(),
                    n => if !self.answer(&piece[..n], mode).await { return },
                },
            }
        }
    }

    /// Relays complete requests. Returns false when the connection has ended.
    async fn forward(&mut self, far: &mut TcpStream, mode: Mode) -> bool {
        while let Ok(Some(head)) = read_request(&self.incoming) {
            let Framing::Length(length) = head.framing else { return false };
            let end = head.length + length as usize;
            if self.incoming.len() < end {
                break;
            }
            let rest = self.incoming.split_off(end);
            let request = std::mem::replace(&mut self.incoming, rest);
            (self.is_streaming, self.answered) = (false, 0);
            let sent = match in_place(&head.method, &request, mode) {
                Some(answer) => self.near.write_all(answer.as_bytes()).await,
                None => far.write_all(&request).await,
            };
            if sent.is_err() {
                return false;
            }
        }
        true
    }

    /// Relays a piece of an answer. Returns false when the connection has ended.
    async fn answer(&mut self, piece: &[u8], mode: Mode) -> bool {
        if let Mode::Slow(pause) = mode {
            tokio::time::sleep(pause).await;
        }
        if self.answered == 0 && find(piece, b"text/event-stream") {
            self.is_streaming = true;
        }
        let room = match mode {
            Mode::Reset(after) => after.saturating_sub(self.answered).min(piece.len()),
            _ => piece.len(),
        };
        self.answered += room;
        let passed = self.near.write_all(&piece[..room]).await.is_ok();
        if room < piece.len() {
            self.cut();
            return false;
        }
        if piece.ends_with(b"0\r\n\r\n") {
            self.is_streaming = false;
        }
        passed
    }

    /// Resets the connection, as a machine that loses power does.
    fn cut(&mut self) {
        if self.is_streaming {
            self.cuts.fetch_add(1, Relaxed);
        }
        self.near.set_zero_linger().ok();
    }
}

/// Returns the answer sent in place of the engine's.
fn in_place(method: &http::Method, request: &[u8], mode: Mode) -> Option<String> {
    if method != http::Method::POST {
        return None;
    }
    let error = |status: u16, words: &str| {
        format!(
            "{{\"error\":{{\"message\":\"{words}\",\"type\":\"InternalServerError\",\
             \"param\":null,\"code\":{status}}}}}"
        )
    };
    let whole = |status: u16, more: &str, body: &str| {
        let length = body.len();
        Some(format!(
            "HTTP/1.1 {status} Chaos\r\ncontent-type: application/json\r\n{more}\
             content-length: {length}\r\n\r\n{body}"
        ))
    };
    let is_event = find(request, ERROR_EVENT.as_bytes());
    if is_event && find(request, b"\"stream\":true") {
        let event = error(500, MESSAGE);
        return Some(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
             data: {event}\n\ndata: [DONE]\n\n"
        ));
    }
    if is_event || find(request, REFUSED.as_bytes()) {
        return whole(500, "", &error(500, MESSAGE));
    }
    match mode {
        Mode::Fail(status @ (429 | 503)) => {
            whole(status, "retry-after: 1\r\n", &error(status, "chaos: too busy"))
        }
        Mode::Fail(status) => whole(status, "", &error(status, "chaos: this engine is sick")),
        _ => None,
    }
}

fn find(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
