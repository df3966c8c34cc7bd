//! Routing by path: family-specific paths go to an engine that has them, requests for stored state
//! go to the engine that stores it, and engines may have a path prefix.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use crate::client::{Answer, get, post, send, until};
use crate::fake::{Act, Fake, chat_answer};
use crate::field::{Play, RawEngine, ask, case};
use crate::proxy::{Engine, Proxy, chat, plain};

const RESPONSES: &str = "/v1/responses";

fn named(name: &'static str, fake: &Fake, more: &'static str) -> Engine {
    Engine { name, url: fake.url(), more }
}

async fn answering(body: &str) -> Fake {
    Fake::start([], Act::Json(200, body.to_owned())).await
}

async fn with(proxy: &Proxy, method: Method, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("host", "t");
    send(proxy.data, request.body(Full::<Bytes>::default()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_routed_to_an_engine_kind_that_supports_it() {
    let [v, l, o] = [answering("{}").await, answering("{}").await, answering("{}").await];
    o.set_answer("/api/version", 200, "{\"version\":\"1\"}");
    let engines = [
        named("v", &v, "engine = \"vllm\""),
        named("l", &l, "engine = \"llamacpp\""),
        named("o", &o, "engine = \"ollama\"\npaths = [\"/v1/moderations\", \"/x/*\"]"),
    ];
    let proxy = Proxy::start("", &engines).await;
    for (path, fake) in [
        ("/pooling", &v),
        ("/infill", &l),
        ("/completion/", &l),
        ("/apply-template", &l),
        ("/api/embed", &o),
        ("/v1/moderations", &o),
        ("/x/1", &o),
    ] {
        for _ in 0..3 {
            let before = fake.sent().len();
            let answer = proxy.post(path, "{\"model\":\"m\"}").await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            let sent = fake.sent();
            assert_eq!((sent.len(), &*sent[before].path), (before + 1, path.trim_end_matches('/')));
        }
    }
    l.set_answer("/props", 200, "{\"l\":1}");
    o.set_answer("/api/tags", 200, "{\"models\":[1]}");
    o.set_answer("/api/ps", 200, "{\"models\":[2]}");
    for (path, body) in [
        ("/props", "{\"l\":1}"),
        ("/api/tags?x=1", "{\"models\":[1]}"),
        ("/api/ps", "{\"models\":[2]}"),
    ] {
        let answer = with(&proxy, Method::GET, path).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, body), "{path}");
    }
    for path in [
        "/v1/files",
        "/v1/classify",
        "/api/pull",
        "/slots",
        "/metrics",
        "/flush_cache",
        "/reset_prefix_cache",
        "/v1/load_lora_adapter",
        "/x/1/2",
        "/v1/responses/..%2fx",
    ] {
        assert_eq!(proxy.post(path, "{}").await.status, 404, "{path}");
        let read = with(&proxy, Method::GET, path).await.status;
        assert!(matches!(read.as_u16(), 404 | 405), "{path}: {read}");
    }
    assert_eq!(with(&proxy, Method::DELETE, "/infill").await.status, 405);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_one_plain_engine_are_routed_to_it() {
    let [a, b] = [answering("{\"here\":1}").await, answering("{\"here\":1}").await];
    for path in ["/v1/images/generations", "/v1/moderations", "/v1/files", "/v1/batches"] {
        a.set_answer(path, 404, "{\"error\":{\"message\":\"none\"}}");
    }
    let proxy = Proxy::start("", &[plain("a", &a), plain("b", &b)]).await;
    for path in ["/v1/images/generations", "/v1/moderations", "/v1/files", "/v1/batches"] {
        for _ in 0..4 {
            let answer = proxy.post(path, "{\"model\":\"m\",\"prompt\":\"x\"}").await;
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, "{\"here\":1}"), "{path}");
        }
        b.set_answer(path, 404, "{\"error\":{\"message\":\"none either\"}}");
        let answer = proxy.post(path, "{}").await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("none"), "the engine's message: {}", answer.body);
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_response_is_continued_on_its_holder() {
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_s\"}}\n\n";
    let delta = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n";
    let done = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_s\",\"usage\":null}}\n\n";
    let stream = Act::Chunks([created, delta, done].map(str::to_owned).to_vec());
    let fakes = [
        Fake::start([], Act::Json(200, "{\"id\":\"resp_0\",\"object\":\"response\"}".to_owned()))
            .await,
        Fake::start([], Act::Json(200, "{\"id\":\"resp_1\",\"object\":\"response\"}".to_owned()))
            .await,
        Fake::start([], stream).await,
    ];
    let [a, b, c] = &fakes;
    let proxy = Proxy::start("", &[plain("a", a), plain("b", b), plain("c", c)]).await;
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..60 {
        let answer = proxy.post(RESPONSES, "{\"model\":\"m\",\"input\":\"x\"}").await;
        assert_eq!(answer.status, 200);
        let id =
            ["resp_0", "resp_1", "resp_s"].into_iter().find(|id| answer.body.contains(id)).unwrap();
        *seen.entry(id).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    let ids = ["resp_0", "resp_1", "resp_s"];
    let ends = ["", "/input_items", "/cancel"];
    for (id, end) in ids.iter().flat_map(|id| ends.map(|end| (id, end))) {
        fakes.iter().for_each(|fake| fake.set_answer(&format!("{RESPONSES}/{id}{end}"), 200, "{}"));
    }
    for (id, fake) in ids.into_iter().zip(&fakes) {
        for round in 1..=3 {
            let before = fake.sent().len();
            let body =
                format!("{{\"model\":\"m\",\"input\":\"y\",\"previous_response_id\":\"{id}\"}}");
            assert_eq!(proxy.post(RESPONSES, &body).await.status, 200);
            assert_eq!(fake.sent().len(), before + 1, "{id}");
            for (method, end, query) in [
                (Method::GET, "", "/"),
                (Method::DELETE, "", ""),
                (Method::GET, "/input_items", "?limit=3"),
                (Method::POST, "/cancel", ""),
            ] {
                let path = format!("{RESPONSES}/{id}{end}{query}");
                assert_eq!(with(&proxy, method, &path).await.status, 200, "{path}");
            }
            let queries = |fake: &Fake, end: &str| fake.count_of(&format!("{RESPONSES}/{id}{end}"));
            for other in &fakes {
                let times = if other.address == fake.address { round } else { 0 };
                let seen = ends.map(|end| queries(other, end));
                assert_eq!(seen, [2 * times, times, times], "{id}");
            }
        }
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_stored_objects_are_looked_up_on_each_backend() {
    let kept = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"id\":\"r1\"}";
    let case = case("09-previous-response");
    for at in 0..3 {
        let mut engines = Vec::new();
        for n in 0..3 {
            let missing = case.answer.clone();
            let answer = if n == at { Bytes::from_static(kept.as_bytes()) } else { missing };
            engines.push(RawEngine::start(answer).await);
        }
        let all: Vec<Engine> =
            engines.iter().zip(["a", "b", "c"]).map(|(engine, name)| engine.engine(name)).collect();
        let proxy = Proxy::start("", &all).await;
        for _ in 0..3 {
            let answer = ask(&proxy, &case.request).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "{\"id\":\"r1\"}"));
        }
        // The id of the answer is now known.
        let before: usize = engines.iter().map(|engine| engine.received().len()).sum();
        let cancel = with(&proxy, Method::POST, "/v1/responses/r1/cancel").await;
        assert_eq!(cancel.status, 200);
        let after: usize = engines.iter().map(|engine| engine.received().len()).sum();
        assert_eq!(after, before + 1, "one engine was queried");
        proxy.settles().await;
    }
    let engine = RawEngine::start(case.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    assert_eq!(ask(&proxy, &case.request).await.status, 404, "no engine stores it");
    assert_eq!(engine.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_url_may_have_a_path_prefix() {
    let fake = answering(&chat_answer("hello")).await;
    fake.set_answer("/health", 500, "");
    fake.set_answer("/v1/models", 500, "");
    fake.set_answer("/a/b/health", 200, "");
    let models = "{\"object\":\"list\",\"data\":[{\"id\":\"m\"}]}";
    fake.set_answer("/a/b/v1/models", 200, models);
    let url = format!("{}/a/b/", fake.url());
    let proxy = Proxy::start("", &[Engine { name: "a", url, more: "engine = \"vllm\"" }]).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    assert_eq!(fake.sent().last().unwrap().path, "/a/b/v1/chat/completions");
    assert_eq!(fake.count_of("/v1/models") + fake.count_of("/health"), 0);
    proxy.shows("a", |backend| backend["health"] == "up").await;
    assert!(send(proxy.data, get("/v1/models")).await.body.contains("\"m\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_with_several_addresses_is_expanded_to_backends() {
    let fake = answering(&chat_answer("hello")).await;
    let url = fake.url().replace("127.0.0.1", "localhost");
    let more = "engine = \"plain\"\nexpand = true\nmodels = [\"m\"]";
    let proxy = Proxy::start("", &[Engine { name: "e", url, more }]).await;
    let fleet = proxy.admin("/v1/fleet").await;
    let names: Vec<&str> =
        fleet["backends"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "e-1", "{names:?}");
    for _ in 0..4 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_stored_object_waits_for_its_holders_capacity() {
    let body = "{\"id\":\"r1\"}";
    let kept = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = kept.clone();
    let engine =
        RawEngine::scripted(move |_, _| vec![Play::Wait, Play::bytes(answer.clone())]).await;
    let more = "engine = \"plain\"\nmodels = [\"m\"]\nstreams_max = 1";
    let top = "[queue]\ndeadline_seconds = 1\n";
    let proxy = Proxy::start(top, &[engine.engine_with("a", more)]).await;
    let request = |n: usize| {
        let body = format!("{{\"model\":\"m\",\"input\":\"{n}\",\"previous_response_id\":\"r1\"}}");
        post(RESPONSES, body)
    };
    let first = tokio::spawn(send(proxy.data, request(1)));
    until("the first is at the engine", || engine.received().len() == 1).await;
    // A request without capacity until its queue deadline is refused.
    assert_eq!(send(proxy.data, request(2)).await.status, 504);
    assert_eq!(engine.received().len(), 1, "the engine has one stream");
    let third = tokio::spawn(send(proxy.data, request(3)));
    engine.resume();
    assert_eq!(first.await.unwrap().status, 200);
    engine.resume();
    assert_eq!(third.await.unwrap().status, 200);
    assert_eq!(engine.received().len(), 2);
    proxy.settles().await;
}
