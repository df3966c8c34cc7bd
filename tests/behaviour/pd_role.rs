//! vLLM engines that enforce a role (`/v1/pd_role`, RFC 56133).

use http::HeaderValue;
use serde_json::Value;
use tidegate_emulator::{EmulatorConfig, PdRole};
use tidegate_types::Seconds;

use crate::client::{get, post, send, until};
use crate::fleet::Emulated;
use crate::proxy::{Engine, Proxy};

async fn launched(count: u16, role: PdRole) -> Emulated {
    Emulated::with(EmulatorConfig { count, pd_role: Some(role), ..EmulatorConfig::default() }).await
}

fn backend(name: &'static str, url: String, role: &str) -> Engine {
    let more =
        format!("engine = \"vllm\"\nconnector = \"nixl\"\nrole_switch = true\nrole = \"{role}\"\n");
    Engine { name, url, more: more.leak() }
}

async fn flip(proxy: &Proxy, name: &str, role: &str) {
    let answer = proxy.set_role(name, &format!("{{\"role\":\"{role}\"}}")).await;
    assert!(answer.status.is_success(), "{}", answer.body);
}

async fn ask(proxy: &Proxy, engines: &Emulated, prompt: usize, output: usize) {
    let answer = proxy.post("/v1/chat/completions", &engines.chat(true, prompt, output)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
}

/// Two prefill engines of `p` and a decode engine of `d`.
fn prefill_and_decode(p: &Emulated, d: &Emulated) -> [Engine; 3] {
    [
        backend("p0", p.url(0), "prefill"),
        backend("p1", p.url(1), "prefill"),
        backend("d", d.url(0), "decode"),
    ]
}

/// The engine's own role and epoch.
async fn reported(engines: &Emulated, engine: usize) -> (String, u64) {
    let status = send(engines.address(engine), get("/v1/pd_role")).await.json();
    (status["role"].as_str().unwrap().to_owned(), status["epoch"].as_u64().unwrap())
}

/// Switches an engine as another router would.
async fn switch_directly(engines: &Emulated, engine: usize, role: &str, epoch: u64) -> Value {
    let body = format!("{{\"role\":\"{role}\",\"expected_epoch\":{epoch},\"drain_timeout\":10}}");
    send(engines.address(engine), post("/v1/pd_role", body)).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_sets_the_engines_role_and_each_leg_names_it() {
    let p = launched(2, PdRole::Prefill).await;
    let d = launched(1, PdRole::Decode).await;
    let engines = prefill_and_decode(&p, &d);
    let proxy = Proxy::start("", &engines).await;
    let switching = async {
        until("it decodes", || d.stats(0).running == 1).await;
        flip(&proxy, "p0", "decode").await;
        proxy.takes_role("p0", "decode").await;
        flip(&proxy, "d", "prefill").await;
        for prompt in 610..616 {
            ask(&proxy, &p, prompt, 8).await;
        }
    };
    tokio::join!(ask(&proxy, &p, 600, 400), switching);
    proxy.takes_role("d", "prefill").await;
    assert_eq!(reported(&p, 0).await, ("decode".to_owned(), 1));
    assert_eq!(reported(&d, 0).await, ("prefill".to_owned(), 1));
    for prompt in 620..626 {
        ask(&proxy, &p, prompt, 8).await;
    }
    proxy.settles().await;
    assert!(p.stats(0).transfers_in >= 12, "the engine switched to decode pulled the KV");
    let stats = [p.stats(0), p.stats(1), d.stats(0)];
    assert!(stats.iter().all(|s| s.transfers_failed + s.errors + s.aborts == 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_another_router_has_switched_loses_no_request() {
    let p = launched(2, PdRole::Prefill).await;
    let d = launched(1, PdRole::Decode).await;
    let engines = prefill_and_decode(&p, &d);
    let proxy = Proxy::start("", &engines).await;
    ask(&proxy, &p, 600, 4).await;
    proxy.settles().await;
    // Twice: the role is the same, the epoch is not.
    for (role, epoch) in [("decode", 0), ("prefill", 1)] {
        assert_eq!(switch_directly(&p, 0, role, epoch).await["phase"], "draining");
        until("it has switched", || p.stats(0).running == 0).await;
        while reported(&p, 0).await != (role.to_owned(), epoch + 1) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        for prompt in 0..8 {
            ask(&proxy, &p, 610 + 10 * epoch as usize + prompt, 4).await;
        }
    }
    proxy.settles().await;
    let stale = switch_directly(&p, 0, "decode", 0).await;
    assert_eq!(stale["detail"], "Stale role epoch");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_drain_keeps_its_role_and_a_failed_one_is_quarantined() {
    let drain_max = Seconds(0.3);
    let config = EmulatorConfig {
        count: 2,
        pd_role: Some(PdRole::Prefill),
        pd_role_drain_max: drain_max,
        ..EmulatorConfig::default()
    };
    let p = Emulated::with(config.clone()).await;
    let failing =
        Emulated::with(EmulatorConfig { count: 1, pd_role_commit_fails: true, ..config }).await;
    let d = launched(1, PdRole::Decode).await;
    let engines = [
        backend("held", p.url(0), "prefill"),
        backend("other", p.url(1), "prefill"),
        backend("failing", failing.url(0), "prefill"),
        backend("d", d.url(0), "decode"),
    ];
    let proxy = Proxy::start("", &engines).await;
    // A prefill whose KV nobody reads.
    let mut held = post(
        "/v1/completions",
        r#"{"model":"m","prompt":"a b c d","max_tokens":1,"kv_transfer_params":{"do_remote_decode":true}}"#.to_owned(),
    );
    held.headers_mut().insert("x-vllm-pd-role", HeaderValue::from_static("prefill"));
    held.headers_mut().insert("x-vllm-pd-epoch", HeaderValue::from_static("0"));
    assert_eq!(send(p.address(0), held).await.status, 200);
    flip(&proxy, "held", "decode").await;
    proxy.journals("restored").await;
    proxy.takes_role("held", "prefill").await;
    assert_eq!(reported(&p, 0).await, ("prefill".to_owned(), 0));
    flip(&proxy, "failing", "decode").await;
    proxy.journals("quarantined").await;
    assert_eq!(proxy.role_of("failing").await, "draining");
    for prompt in 600..604 {
        ask(&proxy, &p, prompt, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_has_its_launch_role_again() {
    let mut p = launched(2, PdRole::Prefill).await;
    let d = launched(1, PdRole::Decode).await;
    let engines = prefill_and_decode(&p, &d);
    let proxy = Proxy::start("[probe]\ninterval_seconds = 0.1\n", &engines).await;
    flip(&proxy, "p0", "decode").await;
    proxy.takes_role("p0", "decode").await;
    p.kill(0).await;
    ask(&proxy, &p, 600, 4).await;
    p.revive(0).await;
    proxy.takes_role("p0", "prefill").await;
    proxy.journals("adopted").await;
    for prompt in 610..618 {
        ask(&proxy, &p, prompt, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_the_endpoint_changes_its_role_by_routing() {
    let e = Emulated::start(3).await;
    let engines = [
        backend("e0", e.url(0), "prefill"),
        backend("e1", e.url(1), "prefill"),
        backend("e2", e.url(2), "decode"),
    ];
    let proxy = Proxy::start("", &engines).await;
    ask(&proxy, &e, 600, 4).await;
    flip(&proxy, "e0", "decode").await;
    proxy.takes_role("e0", "decode").await;
    flip(&proxy, "e2", "prefill").await;
    proxy.takes_role("e2", "prefill").await;
    for prompt in 610..614 {
        ask(&proxy, &e, prompt, 4).await;
    }
    proxy.settles().await;
    assert!(e.stats(0).transfers_in >= 4);
    assert_eq!(e.stats(0).transfers_failed + e.stats(2).errors, 0);
}
