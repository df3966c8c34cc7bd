//! Access control of the admin port, and the pins of manual role changes.

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::Value;
use std::io::{Read, Write};
use std::time::Duration;

use crate::certificates::Authority;
use crate::client::{Answer, get, post, send, until};
use crate::fake::{Act, Fake, chat_answer};
use crate::fleet::Emulated;
use crate::proxy::{FREE, Proxy, chat, plain, vllm};

fn with(
    mut request: Request<Full<Bytes>>,
    headers: &[(&'static str, &str)],
) -> Request<Full<Bytes>> {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_from_other_origins_are_refused() {
    let (a, b) = (Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await);
    let engines = [vllm("a", a.url(), FREE), vllm("b", b.url(), FREE)];
    let proxy = Proxy::start("[planner]\nenabled = false\n", &engines).await;
    let own = format!("http://{}", proxy.admin);
    let change = || post("/v1/backends/a/role", "{\"role\":\"draining\"}");
    let before = proxy.backend("a").await["role"].clone();
    for (headers, status) in [
        (&[("content-type", "text/plain")][..], 415),
        (&[("content-type", "application/x-www-form-urlencoded")], 415),
        (&[("origin", "http://evil.example")], 403),
        (&[("origin", "null")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("host", "rebound.evil.example")], 421),
    ] {
        let answer = send(proxy.admin, with(change(), headers)).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
        assert_eq!(proxy.backend("a").await["role"], before, "{headers:?}");
    }
    let answer = send(proxy.admin, with(get("/v1/fleet"), &[("host", "x.evil.example")])).await;
    assert_eq!(answer.status, 421, "{}", answer.body);
    let same = [("host", &own[7..]), ("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(send(proxy.admin, with(change(), &same)).await.status, 200);
    assert_eq!(proxy.backend("a").await["role"], "draining");
    let large = post("/v1/backends/a/role", " ".repeat(1 << 20));
    assert!(matches!(send(proxy.admin, large).await.status.as_u16(), 400 | 413));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_address_and_the_commands_support_a_token_and_tls() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ca");
    let leaf = authority.leaf(directory.path(), "admin", "admin");
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let token = directory.path().join("token");
    std::fs::write(&token, "\u{feff}0123456789abcdef-token\r\n").unwrap();
    let top = format!("[admin]\ntoken_file = \"{}\"\n", token.display());
    let proxy = Proxy::start(&top, &[plain("a", &fake)]).await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 401), ("/v1/fleet", 401)]
    {
        assert_eq!(send(proxy.admin, get(path)).await.status, status, "{path}");
    }
    for (key, status) in [("Bearer 0123456789abcdef-token", 200), ("Bearer 0123456789abcdef", 401)]
    {
        let answer = send(proxy.admin, with(get("/v1/fleet"), &[("authorization", key)])).await;
        assert_eq!(answer.status, status, "{key}");
    }
    let program = |args: &[&str], environment: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(args).env_remove("TIDEGATE_ADMIN_TOKEN");
        if let Some(token) = environment {
            command.env("TIDEGATE_ADMIN_TOKEN", token);
        }
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let admin = proxy.admin.to_string();
    let file = token.display().to_string();
    let status = ["status", "--admin", &admin];
    assert!(!program(&status, None).0);
    assert!(program(&status, Some("0123456789abcdef-token")).0);
    assert!(program(&[&status[..], &["--token-file", &file]].concat(), None).0);
    drop(proxy);

    let top = format!("[admin]\n[admin.tls]\n{}", leaf.toml());
    let proxy = Proxy::start_cold(&top, &[plain("a", &fake)]);
    let admin = format!("https://{}", proxy.admin);
    let ca = authority.file.display().to_string();
    let (ok, text) = program(&["status", "--admin", &admin, "--ca-file", &ca], None);
    assert!(ok && text.contains("backend"), "{text}");
    let (ok, text) = program(&["status", "--admin", &admin], None);
    assert!(!ok && text.contains("--ca-file"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_the_admin_address_are_bounded() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let admin = proxy.admin;
    let open = tokio::task::block_in_place(|| {
        let connect = |_| std::net::TcpStream::connect(admin).unwrap();
        let mut open: Vec<_> = (0..300).map(connect).collect();
        let mut closed = 0;
        for stream in open.iter_mut().rev().take(40) {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            // A 503 and the end of the connection.
            let mut status = [0; 12];
            let is_answered = stream.read_exact(&mut status).is_ok() && status.ends_with(b"503");
            closed += usize::from(is_answered);
        }
        assert_eq!(closed, 40, "the last 40 are beyond 256");
        open
    });
    drop(open);
    let answers = async || {
        tokio::task::block_in_place(|| {
            let mut stream = std::net::TcpStream::connect(admin).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(b"GET /livez HTTP/1.0\r\nhost: a\r\n\r\n").ok();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok();
            text.starts_with("HTTP/1.0 200")
        })
    };
    while !answers().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn role_of(fleet: &Value) -> String {
    fleet["role"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_flip_holds_until_it_expires_or_is_released() {
    let fleet = Emulated::start(3).await;
    const NAMES: [&str; 3] = ["e0", "e1", "e2"];
    let engines: Vec<_> = (0..3).map(|i| vllm(NAMES[i], fleet.url(i), FREE)).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("roles.json");
    let top =
        format!("[admin]\nstate_file = \"{}\"\n[planner]\ndwell_seconds = 0\n", file.display());
    let proxy = Proxy::start(&top, &engines).await;
    // A role that the planner would not choose: it leaves prompts without a prefill engine.
    let flip = async |proxy: &Proxy, body: &str| -> Answer { proxy.set_role("e0", body).await };
    let answer = flip(&proxy, "{\"role\":\"draining\",\"hold_seconds\":500}").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let left = answer.json()["held_seconds"].as_f64().unwrap();
    assert!(left > 490.0 && left <= 500.0, "{left}");
    for _ in 0..20 {
        let body = fleet.chat(false, 900, 2);
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
        assert_eq!(role_of(&proxy.backend("e0").await), "draining");
    }
    let shown = proxy.backend("e0").await;
    assert_eq!(shown["pinned"], false);
    assert!(shown["held_seconds"].as_f64().unwrap() > 400.0, "{shown}");
    assert!(shown["held_until"].as_f64().unwrap() > 1.7e9, "{shown}");
    drop(proxy);

    let proxy = Proxy::start(&top, &engines).await;
    let shown = proxy.backend("e0").await;
    assert_eq!(role_of(&shown), "draining", "it holds over a restart");
    assert!(shown["held_seconds"].as_f64().unwrap() > 400.0, "{shown}");
    assert_eq!(flip(&proxy, "{\"pin\":false}").await.status, 200);
    let released =
        |backend: &Value| backend["held_seconds"].is_null() && role_of(backend) != "draining";
    proxy.shows("e0", released).await;

    let answer = flip(&proxy, "{\"role\":\"draining\"}").await;
    let usual = answer.json()["held_seconds"].as_f64().unwrap();
    assert!(usual > 590.0 && usual <= 600.0, "the usual time is 10 minutes: {usual}");
    assert_eq!(flip(&proxy, "{\"role\":\"draining\",\"hold_seconds\":0.05}").await.status, 200);
    proxy.shows("e0", released).await;
    for bad in [
        "{\"role\":\"decode\",\"hold_seconds\":-1}",
        "{\"role\":\"decode\",\"hold_seconds\":1e9}",
        "{\"role\":\"decode\",\"pin\":true,\"hold_seconds\":5}",
    ] {
        assert_eq!(flip(&proxy, bad).await.status, 400, "{bad}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_whether_a_request_would_be_served() {
    // An address without a listener.
    let nothing = crate::proxy::RefusingAddress::new();
    let proxy = Proxy::start_cold("", &[vllm("a", nothing.url(), FREE)]);
    let why = send(proxy.admin, get("/readyz")).await;
    assert_eq!(why.status, 503, "in the first moment too: {}", why.body);
    assert!(why.body.contains("backend"), "{}", why.body);
    drop(proxy);

    let (a, b) = (
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
    );
    let engines = [vllm("a", a.url(), FREE), vllm("b", b.url(), FREE)];
    let proxy = Proxy::start("", &engines).await;
    let ready = async || send(proxy.admin, get("/readyz")).await;
    crate::client::within(async { while ready().await.status != 200 {} }).await;
    for name in ["a", "b"] {
        let answer = proxy.set_role(name, "{\"role\":\"draining\",\"pin\":true}").await;
        assert_eq!(answer.status, 200);
    }
    let answer = ready().await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("draining"), "{}", answer.body);
    assert_eq!(proxy.set_role("a", "{\"role\":\"mixed\"}").await.status, 200);
    assert_eq!(ready().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_keys_are_not_forwarded_by_default() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let keys = "[[auth.keys]]\nname = \"n\"\nkey = \"sk-gateway-key\"\n";
    let forward = format!("[auth]\nforward_authorization = true\n{keys}");
    for (top, key, forwarded) in
        [("", "sk-any", true), (keys, "sk-gateway-key", false), (&forward, "sk-gateway-key", true)]
    {
        let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("x-api-key", key), ("api-key", key)];
        let request = with(post("/v1/chat/completions", chat(false)), &headers);
        assert_eq!(send(proxy.data, request).await.status, 200, "{top}");
        let sent = fake.sent().pop().unwrap();
        for name in ["authorization", "x-api-key", "api-key"] {
            assert_eq!(sent.headers.contains_key(name), forwarded, "{name} with {top:?}");
        }
        let mut two = post("/v1/chat/completions", chat(false));
        two.headers_mut().append("authorization", bearer.parse().unwrap());
        two.headers_mut().append("authorization", "Bearer other".parse().unwrap());
        let status = if top.is_empty() { 200 } else { 401 };
        assert_eq!(send(proxy.data, two).await.status, status, "{top}");
        until("it is settled", || proxy.is_settled()).await;
    }
}
