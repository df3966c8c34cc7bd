//! Models: named in forms and by aliases, in large numbers, loaded at run time, and served with
//! different context lengths.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::Full;

use crate::client::{get, post, send, until};
use crate::fake::{Act, Fake, chat_answer};
use crate::field::{ask, case};
use crate::proxy::{Engine, Proxy, chat_with, plain};

const CHAT: &str = "/v1/chat/completions";

fn list(names: impl IntoIterator<Item = String>) -> String {
    let card = |name: String| format!("{{\"id\":\"{name}\",\"object\":\"model\"}}");
    let cards: Vec<String> = names.into_iter().map(card).collect();
    format!("{{\"object\":\"list\",\"data\":[{}]}}", cards.join(","))
}

async fn serving(names: &[&str]) -> Fake {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    fake.set_answer("/v1/models", 200, &list(names.iter().map(|name| (*name).to_owned())));
    fake
}

fn body(model: &str) -> String {
    format!("{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}")
}

/// Starts a proxy that serves all these models.
async fn serving_all(top: &str, engines: &[Engine], models: &[&str]) -> Proxy {
    let proxy = Proxy::start_cold(top, engines);
    until("it listens", || std::net::TcpStream::connect(proxy.data).is_ok()).await;
    loop {
        let all = send(proxy.data, get("/v1/models")).await.json();
        let known =
            |model: &&str| all["data"].as_array().unwrap().iter().any(|c| c["id"] == **model);
        if models.iter().all(known) {
            return proxy;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multipart_form_is_routed_by_its_model_and_refused_if_the_model_is_unknown() {
    let [a, b] = [serving(&["m"]).await, serving(&["w"]).await];
    let proxy = serving_all("", &[plain("a", &a), plain("b", &b)], &["m", "w"]).await;
    let case = case("06-multipart");
    for _ in 0..4 {
        assert_eq!(ask(&proxy, &case.request).await.status, 200);
    }
    assert_eq!((a.sent().len(), b.sent().len()), (0, 4));
    let form = "preamble\n--b\"x\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\n\n\
                --bx\nRIFF\n--b\"x\nContent-Disposition: form-data; name=\"model\"\n\nm\n--b\"x--\n";
    for (form, model, status) in
        [(form, "m", 200), (&form.replace("\nm\n", "\nnone\n"), "none", 404)]
    {
        let mut request = post("/v1/audio/translations", form.to_owned());
        let kind = "Multipart/Form-Data; boundary=\"b\\\"x\"";
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        let answer = send(proxy.data, request).await;
        assert_eq!(answer.status, status, "{model}: {}", answer.body);
        if status == 404 {
            assert_eq!(answer.json()["error"]["code"], "model_not_found");
        } else {
            assert_eq!(a.sent().last().unwrap().body, form);
        }
    }
    assert_eq!((a.sent().len(), b.sent().len()), (1, 4));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_adapters_are_served_and_new_ones_discovered_on_first_request() {
    let [a, b] = [serving(&["m"]).await, serving(&["m"]).await];
    let names = |from: usize, to: usize| (from..to).map(|n| format!("a{n}"));
    let top = "[probe]\ninterval_seconds = 3600\ntimeout_seconds = 15\n";
    let engines = [plain("a", &a), plain("b", &b)];
    let proxy = Proxy::start(top, &engines).await;
    b.set_answer("/v1/models", 200, &list(names(0, 300).chain(["m".to_owned()])));
    // The request itself is sent first: only the request triggers a query of the models.
    let case = case("07-256-names");
    assert_eq!(ask(&proxy, &case.request).await.status, 200);
    for name in names(0, 300) {
        assert_eq!(proxy.post(CHAT, &body(&name)).await.status, 200, "{name}");
    }
    assert_eq!((a.sent().len(), b.sent().len()), (0, 301));
    let all = send(proxy.data, get("/v1/models")).await.json();
    assert_eq!(all["data"].as_array().unwrap().len(), 301);
    // New models replace them; the removed ones are unknown.
    b.set_answer("/v1/models", 200, &list(names(300, 600)));
    assert_eq!(proxy.post(CHAT, &body("a599")).await.status, 200);
    assert_eq!(proxy.post(CHAT, &body("a0")).await.status, 404);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_models_trigger_queries_at_a_bounded_rate() {
    let fake = serving(&["m"]).await;
    let top = "[probe]\ninterval_seconds = 3600\ntimeout_seconds = 15\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    let before = fake.count_of("/v1/models");
    let began = std::time::Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..120 {
        let data = proxy.data;
        let body = body(&format!("none-{}", n % 40));
        asking.spawn(async move { send(data, post(CHAT, body)).await });
    }
    while let Some(answer) = asking.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["error"]["code"], "model_not_found");
    }
    let rounds = fake.count_of("/v1/models") - before;
    let most = began.elapsed().as_secs() as usize + 2;
    assert!((1..=most).contains(&rounds), "{rounds} rounds");
    assert!(fake.sent().is_empty());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_listed_and_becomes_the_models_name() {
    let fake = serving(&["org/m"]).await;
    let top = "[[models]]\nname = \"org/m\"\naliases = [\"gpt-4\", \"d\"]\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    let sent = "{ \"n\": 1.0, \"model\" : \"gpt-4\" ,\"messages\":[], \"x\":\"\\u0061\" }";
    assert_eq!(proxy.post(CHAT, sent).await.status, 200);
    assert_eq!(
        fake.sent()[0].body,
        sent.replace("\"gpt-4\"", "\"org/m\""),
        "no other member is changed"
    );
    let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nd\r\n--x--\r\n";
    let mut request = post("/v1/audio/transcriptions", form);
    let kind = "multipart/form-data; boundary=x";
    request.headers_mut().insert("content-type", kind.parse().unwrap());
    assert_eq!(send(proxy.data, request).await.status, 200);
    assert_eq!(fake.sent()[1].body, form.replace("\r\nd\r\n", "\r\norg/m\r\n"));
    let all = send(proxy.data, get("/v1/models")).await.json();
    let ids: Vec<&str> =
        all["data"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["org/m", "d", "gpt-4"]);
    for (path, id) in [
        ("/v1/models/org/m", "org/m"),
        ("/v1/models/org%2Fm", "org/m"),
        ("/v1/models/gpt-4/", "gpt-4"),
    ] {
        let one = send(proxy.data, get(path)).await;
        assert_eq!((one.status.as_u16(), one.json()["id"].as_str()), (200, Some(id)), "{path}");
    }
    assert_eq!(
        send(proxy.data, get("/v1/models/none")).await.json()["error"]["code"],
        "model_not_found"
    );
    for path in ["/v1/models", "/v1/models/d", "/health"] {
        let request = Request::builder().method(Method::HEAD).uri(path).header("host", "t");
        let answer = send(proxy.data, request.body(Full::<Bytes>::default()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, ""), "{path}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_routed_to_a_backend_with_sufficient_context_length() {
    let [short, long] = [serving(&["m"]).await, serving(&["m"]).await];
    short.set_model("m", 200);
    long.set_model("m", 4000);
    let proxy = Proxy::start("", &[plain("a", &short), plain("b", &long)]).await;
    for _ in 0..4 {
        // About 400 words of prompt and 16 output tokens.
        let answer = proxy.post(CHAT, &chat_with(false, &"word ".repeat(400), "")).await;
        assert_eq!(answer.status, 200);
    }
    let many = chat_with(false, "word", "").replace("\"max_tokens\":16", "\"max_tokens\":1000");
    assert_eq!(proxy.post(CHAT, &many).await.status, 200);
    assert_eq!((short.sent().len(), long.sent().len()), (0, 5));
    for _ in 0..24 {
        assert_eq!(proxy.post(CHAT, &chat_with(false, "word", "")).await.status, 200);
    }
    assert!(!short.sent().is_empty(), "short prompts are routed to either engine");
    // If no context is long enough, the engine with the longest one validates the request.
    let before = long.sent().len();
    let answer = proxy.post(CHAT, &chat_with(false, &"word ".repeat(40_000), "")).await;
    assert_eq!((answer.status.as_u16(), long.sent().len()), (200, before + 1));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azures_key_header_is_accepted() {
    let fake = serving(&["m"]).await;
    let top = "[[auth.keys]]\nname = \"team\"\nkey = \"secret-key-of-a-team\"\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    let with = |key: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("api-key", key.parse().unwrap());
        let mut request = post(CHAT, body("m"));
        request.headers_mut().extend(headers);
        request
    };
    assert_eq!(send(proxy.data, with("secret-key-of-a-team")).await.status, 200);
    assert_eq!(send(proxy.data, with("secret-key-of-another")).await.status, 401);
}
