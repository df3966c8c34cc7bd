//! Overloaded engines: each is avoided for its `Retry-After`, other engines are tried, and the
//! client receives the engine's refusal when no engine is left. Field cases 04.

use crate::fake::{Act, Fake, chat_answer};
use crate::field::{RawEngine, ask, case};
use crate::proxy::{Proxy, plain};

const MANY: usize = 20;

async fn refusing(name: &str) -> RawEngine {
    RawEngine::start(case(name).answer).await
}

fn message(body: &[u8]) -> String {
    let error: serde_json::Value = serde_json::from_slice(body).unwrap();
    error["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn if_all_engines_refuse_the_client_gets_their_status_message_and_retry_after() {
    let (busy, overloaded) = ("04-status-429", "04-status-503");
    for (cases, status) in [
        (vec![busy], 429),
        (vec![overloaded], 503),
        (vec![busy, busy], 429),
        (vec![overloaded, overloaded], 503),
        (vec![busy, overloaded], 429),
        (vec![overloaded, overloaded, busy], 429),
    ] {
        let mut engines = Vec::new();
        for case in &cases {
            engines.push(refusing(case).await);
        }
        let named: Vec<_> =
            engines.iter().zip(["a", "b", "c"]).map(|(e, name)| e.engine(name)).collect();
        let proxy = Proxy::start("", &named).await;
        for n in 1..=3 {
            let answer = ask(&proxy, &case(busy).request).await;
            assert_eq!(answer.status, status, "{cases:?}: {answer:?}");
            assert_eq!(answer.header("retry-after"), Some("30"), "{cases:?}");
            assert_eq!(message(&answer.body), "why");
            let received: Vec<_> = engines.iter().map(|engine| engine.received().len()).collect();
            assert!(
                received.iter().all(|received| *received == n),
                "each engine once per request: {received:?}"
            );
        }
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_move_from_refusing_engines_to_the_serving_one() {
    let (a, b) = (refusing("04-status-503").await, refusing("04-status-429").await);
    let good = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let top = "[retry]\nattempts = 1\n";
    let proxy = Proxy::start(top, &[a.engine("a"), b.engine("b"), plain("good", &good)]).await;
    for _ in 0..MANY {
        let answer = ask(&proxy, &case("04-status-429").request).await;
        assert_eq!(answer.status, 200, "a refusal costs no attempt: {answer:?}");
    }
    assert_eq!(good.sent().len(), MANY);
    for engine in [a, b] {
        assert!(engine.received().len() <= 1, "the engine sent Retry-After: 30");
    }
    for name in ["a", "b"] {
        let health = proxy.backend(name).await["health"].clone();
        assert!(health == "busy" || health == "up" || health == "unknown", "{health}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_without_retry_after_or_within_a_stream_backs_off() {
    let event = "data: {\"error\":{\"message\":\"queue is full\",\"code\":503}}\n\n";
    let refusals = [
        "HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 529 X\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 429 X\r\nretry-after: soon\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 429 X\r\nretry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
        format!(
            "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{event}",
            event.len()
        ),
    ];
    for refusal in refusals {
        let busy = RawEngine::start(refusal.clone()).await;
        let good = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
        let proxy = Proxy::start("", &[busy.engine("busy"), plain("good", &good)]).await;
        for _ in 0..MANY {
            let answer = ask(&proxy, &case("04-status-429").request).await;
            assert_eq!(answer.status, 200, "{refusal}: {answer:?}");
        }
        assert_eq!(good.sent().len(), MANY, "{refusal}");
        proxy.settles().await;
        let alone = Proxy::start("", &[busy.engine("busy")]).await;
        let answer = ask(&alone, &case("04-status-429").request).await;
        assert!(matches!(answer.status, 429 | 503 | 529), "{refusal}: {answer:?}");
        let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{refusal}: {wait}");
    }
}
