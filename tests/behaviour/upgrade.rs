//! Shutdown and upgrade: a new process takes over, and no accepted request is cut.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{get, open, post, send, until, within};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::process::{serve, serve_with, tidegate, until_models_are_served, write};
use crate::proxy::{chat, config, plain, two_ports};

/// Clients that send one request after another until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

/// A client whose connection is refused finds no listener and stops without a failure.
#[derive(Clone, Copy, PartialEq)]
enum Refused {
    Fails,
    Stops,
}

impl Load {
    /// `kept`: one connection for many requests, until the server closes it.
    fn start(data: SocketAddr, clients: usize, refused: Refused) -> Load {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut all = JoinSet::new();
        for client in 0..clients {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            all.spawn(run(data, client % 2 == 0, refused, stop, answered));
        }
        Load { stop, answered, clients: all }
    }

    async fn answers(&self, more: usize) {
        let before = self.answered.load(SeqCst);
        until("more answers", || self.answered.load(SeqCst) >= before + more).await;
    }

    /// Returns the failures.
    async fn end(mut self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        let mut failures = Vec::new();
        while let Some(client) = within(self.clients.join_next()).await {
            failures.extend(client.unwrap());
        }
        failures
    }
}

async fn run(
    data: SocketAddr,
    kept: bool,
    refused: Refused,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(SeqCst) {
        let stream = match TcpStream::connect(data).await {
            Ok(stream) => stream,
            Err(_) if refused == Refused::Stops => break,
            Err(error) => {
                failures.push(format!("connect: {error}"));
                continue;
            }
        };
        let (mut sender, driver) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        for number in 0.. {
            let answer = match within(
                sender.send_request(post("/v1/chat/completions", chat(false))),
            )
            .await
            {
                Ok(answer) => answer,
                Err(error) => {
                    failures.push(format!("kept {kept}, request {number}: {error:?}"));
                    break;
                }
            };
            let closes = answer.headers().get("connection").is_some_and(|word| word == "close");
            if answer.status() != 200 {
                failures.push(format!("status {}", answer.status()));
            }
            if let Err(error) = within(answer.into_body().collect()).await {
                failures.push(format!("body: {error}"));
            }
            answered.fetch_add(1, SeqCst);
            if closes || !kept || stop.load(SeqCst) {
                break;
            }
        }
    }
    failures
}

fn with_socket(socket: &Path) -> String {
    format!("upgrade_socket = \"{}\"\nlinger_seconds = 2\n", socket.display())
}

/// Returns the settings of a test; a linger time in `top` replaces the default of 0.
fn settings(data: SocketAddr, admin: SocketAddr, top: &str, fake: &Fake) -> String {
    let text = config(data, admin, top, &[plain("a", fake)]);
    match top.contains("linger_seconds") {
        true => text.replacen("linger_seconds = 0\n", "", 1),
        false => text,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_takes_over_under_load_without_failures() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let (data, admin) = two_ports();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let text = settings(data, admin, &with_socket(&socket), &fake);
    let mut old = serve(&text);
    until_models_are_served(data, admin).await;
    let load = Load::start(data, 6, Refused::Fails);
    let watched = Arc::new(AtomicBool::new(true));
    let watching = Arc::clone(&watched);
    let readiness = tokio::spawn(async move {
        let mut unready = Vec::new();
        while watching.load(SeqCst) {
            let answer = send(admin, get("/readyz")).await;
            if answer.status != 200 {
                unready.push(answer.body);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        unready
    });
    load.answers(20).await;
    for _ in 0..2 {
        let new = serve_with(&text, &["--upgrade"]);
        until("it waits for the listeners", || socket.exists()).await;
        old.signal("-QUIT");
        load.answers(20).await;
        assert_eq!(old.exit_code().await, Some(0));
        load.answers(20).await;
        old = new;
    }
    assert_eq!(load.end().await, Vec::<String>::new());
    watched.store(false, SeqCst);
    assert_eq!(readiness.await.unwrap(), Vec::<String>::new(), "readiness is steady");
    old.signal("-TERM");
    assert_eq!(old.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_the_old_process_is_not_cut() {
    let mut chunks = chat_chunks(400);
    let end = chunks.split_off(3);
    let fake = Fake::start([], Act::Chunks([chunks, end].concat())).await;
    let (data, admin) = two_ports();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let text = settings(data, admin, &with_socket(&socket), &fake);
    let mut old = serve(&text);
    until_models_are_served(data, admin).await;
    let mut stream = open(data, post("/v1/chat/completions", chat(true))).await.unwrap();
    let mut answer = stream.chunk().await.unwrap().unwrap().to_vec();
    let mut new = serve_with(&text, &["--upgrade"]);
    until("it waits for the listeners", || socket.exists()).await;
    old.signal("-QUIT");
    while let Some(chunk) = stream.chunk().await {
        answer.extend_from_slice(&chunk.unwrap());
    }
    assert!(answer.ends_with(b"data: [DONE]\n\n"), "the stream was cut");
    drop(stream);
    assert_eq!(old.exit_code().await, Some(0));
    until_models_are_served(data, admin).await;
    new.signal("-TERM");
    assert_eq!(new.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_continues_if_no_successor_serves() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let (data, admin) = two_ports();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let mut proxy = serve(&settings(data, admin, &with_socket(&socket), &fake));
    until_models_are_served(data, admin).await;
    let load = Load::start(data, 2, Refused::Fails);
    for signal in ["-QUIT", "-HUP", "-QUIT", "-HUP"] {
        proxy.signal(signal);
        load.answers(20).await;
    }
    // A process that takes the listeners and dies.
    let dying = UnixListener::bind(&socket).unwrap();
    proxy.signal("-QUIT");
    let (stream, _) = tokio::task::spawn_blocking(move || dying.accept()).await.unwrap().unwrap();
    load.answers(20).await;
    drop(stream);
    load.answers(20).await;
    assert_eq!(load.end().await, Vec::<String>::new());
    assert!(proxy.child.try_wait().unwrap().is_none(), "the process still runs");
    assert_eq!(send(admin, get("/readyz")).await.status, 200);
    proxy.signal("-TERM");
    assert_eq!(proxy.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_linger_accepted_requests_complete() {
    let fake = Fake::start([], Act::Slow(200, chat_answer("x"))).await;
    let (data, admin) = two_ports();
    let mut proxy = serve(&settings(data, admin, "linger_seconds = 0.5\n", &fake));
    until_models_are_served(data, admin).await;
    let load = Load::start(data, 25, Refused::Stops);
    load.answers(25).await;
    proxy.signal("-TERM");
    // The old process serves while it lingers.
    load.answers(10).await;
    assert_eq!(proxy.exit_code().await, Some(0));
    assert_eq!(load.end().await, Vec::<String>::new());
}

#[test]
fn upgrading_without_a_socket_or_a_running_proxy_is_reported() {
    let (data, admin) = two_ports();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let engine = crate::proxy::vllm("a", "http://127.0.0.1:9".to_owned(), crate::proxy::FREE);
    for (top, words) in [
        (String::new(), "upgrade_socket"),
        (format!("upgrade_socket = \"{}\"\n", socket.display()), "no proxy listens on"),
    ] {
        let (_directory, path) = write(&config(data, admin, &top, std::slice::from_ref(&engine)));
        let mut command = tidegate();
        let output = command.args(["serve", "--upgrade", "--config"]).arg(path).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words) && text.contains("--upgrade"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_prints_its_addresses_and_port_0_is_any_port() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (_directory, path) = write(&config(any, any, "", &[plain("a", &fake)]));
    let mut command = tidegate();
    command.args(["serve", "--config"]).arg(path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let reading = move || {
        let mut bytes = [0; 256];
        // A line is written in pieces: only a complete one counts.
        let addresses = |text: &str| {
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            whole.filter(|line| line.contains("http://127.0.0.1:")).count()
        };
        while addresses(&text) < 2 {
            let read = stderr.read(&mut bytes).unwrap();
            assert!(read > 0, "{text}");
            text += std::str::from_utf8(&bytes[..read]).unwrap();
        }
        text
    };
    let text = within(tokio::task::spawn_blocking(reading)).await.unwrap();
    let address = |word: &str| -> SocketAddr {
        let line = text.lines().find(|line| line.contains(word)).unwrap();
        let at = line.split("http://").nth(1).unwrap();
        at.trim_end_matches('/').parse().unwrap()
    };
    let (data, admin) = (address("listens on"), address("dashboard"));
    until_models_are_served(data, admin).await;
    assert_eq!(send(admin, get("/livez")).await.status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
}
