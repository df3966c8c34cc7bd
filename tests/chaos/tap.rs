//! The fault layer: a TCP relay in front of one engine, with modes. It knows of HTTP where a request
//! ends, so that it can answer in place of the engine, and whether a stream has begun, so that it
//! can count the streams that it cuts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tidegate_http1::{Framing, read_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A member that all engines refuse with 500, and the words that they refuse it with.
pub const REFUSED: &str = "\"user\":\"chaos-refused\"";
/// A member that all engines answer with an error event; with 500 where nothing streams.
pub const ERROR_EVENT: &str = "\"user\":\"chaos-error-event\"";
/// The words of both.
pub const WORDS: &str = "chaos: this request cannot be served";

/// What the relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes pass.
    Pass,
    /// Connections are reset, and new ones refused.
    Refuse,
    /// Connections are accepted; no byte passes.
    Hang,
    /// An answer is reset after so many bytes of it.
    Reset(usize),
    /// Each piece of an answer waits.
    Slow(Duration),
    /// Requests are answered with this status, and good health is claimed.
    Fail(u16),
}

pub struct Tap {
    /// Where the proxy finds the engine.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    cuts: Arc<AtomicU64>,
}

impl Tap {
    /// A relay to `engine` on a port of its own.
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

    /// Streams that it cut after their head.
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
            // Its port may linger for a moment.
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

/// One connection of the proxy's.
struct Link {
    near: TcpStream,
    modes: watch::Receiver<Mode>,
    cuts: Arc<AtomicU64>,
    /// Of the request that is coming.
    asked: Vec<u8>,
    /// The answer on its way is a stream whose head has passed.
    is_streaming: bool,
    /// Bytes of the answer on its way.
    answered: usize,
}

impl Link {
    fn new(near: TcpStream, modes: watch::Receiver<Mode>, cuts: Arc<AtomicU64>) -> Link {
        Link { near, modes, cuts, asked: Vec::new(), is_streaming: false, answered: 0 }
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
                read = self.near.read_buf(&mut self.asked) => {
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

    /// Pass requests on as they are whole. `false`: the connection is over.
    async fn forward(&mut self, far: &mut TcpStream, mode: Mode) -> bool {
        while let Ok(Some(head)) = read_request(&self.asked) {
            let Framing::Length(length) = head.framing else { return false };
            let end = head.length + length as usize;
            if self.asked.len() < end {
                break;
            }
            let rest = self.asked.split_off(end);
            let request = std::mem::replace(&mut self.asked, rest);
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

    /// Pass a piece of an answer on. `false`: the connection is over.
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

    /// Reset the connection, as a machine that lost power does.
    fn cut(&mut self) {
        if self.is_streaming {
            self.cuts.fetch_add(1, Relaxed);
        }
        self.near.set_zero_linger().ok();
    }
}

/// What is answered in the engine's place.
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
        let event = error(500, WORDS);
        return Some(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
             data: {event}\n\ndata: [DONE]\n\n"
        ));
    }
    if is_event || find(request, REFUSED.as_bytes()) {
        return whole(500, "", &error(500, WORDS));
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
